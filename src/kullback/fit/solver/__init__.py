"""The optimisation behind the fits: parametrisations, objectives, a trust-region method and multistart."""
