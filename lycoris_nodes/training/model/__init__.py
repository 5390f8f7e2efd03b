"""A model of the host, open for training."""
