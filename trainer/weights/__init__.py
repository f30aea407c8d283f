"""Files of weights: one module per format, and descriptions of networks in files."""
