"""The demonstration: a small policy that learns to add, trained with and without a KL budget."""
