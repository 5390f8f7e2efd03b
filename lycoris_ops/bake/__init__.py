"""A stack merged into a checkpoint file."""
