"""Kullback: measure, minimise and constrain KL divergence."""
