"""Models with latent variables held inside a KL budget: variational autoencoders, and the information bottleneck."""
