"""Checks of a training set-up and of finished runs; each check returns findings."""
