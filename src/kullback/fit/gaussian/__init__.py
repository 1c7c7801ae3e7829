"""Fits of multivariate normal distributions and of their mixtures."""
