"""Layers of any kind: parts of them, several as one, and whether two are the same."""
