"""KL divergence, entropy and other divergences between discrete distributions, from probabilities or logits."""
