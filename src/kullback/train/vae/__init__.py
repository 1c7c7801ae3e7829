"""Training of latent-variable models with a KL budget: variational autoencoders and the information bottleneck."""
