"""Training recipes on top of TRL, stable-baselines3 and PyTorch, each of which writes a run directory."""
