"""Numerically accurate building blocks: array namespaces, phi, the residual of log-gamma and special functions."""
