"""Adapters of third-party libraries, one file for each library."""
