"""Weights in files: one module a format, and the registry of what can be built from them."""
