"""Numerical foundations: array namespaces, phi, the residual of log-gamma, and special functions."""
