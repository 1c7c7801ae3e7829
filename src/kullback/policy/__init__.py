"""Policies: what holds one near its reference while it learns."""
