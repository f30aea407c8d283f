"""Weights in files: one module a format, and what they say of the network."""
