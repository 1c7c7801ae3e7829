"""`kullback train`: recipes that put the parts together on real trainers, and the run directories that they leave."""
