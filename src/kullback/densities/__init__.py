"""KL divergence where no formula gives it: quadrature and summation within a bound, Monte Carlo, bounds of mixtures."""
