"""Estimators from samples: Monte Carlo, clustered means and the Pareto tail diagnostic."""
