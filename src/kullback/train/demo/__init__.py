"""The demonstration: a small language model learns to add, and is trained by GRPO with and without a KL budget."""
