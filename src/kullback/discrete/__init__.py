"""Discrete distributions: KL divergence, entropy and other divergences of probabilities and logits."""
