"""Adapters out of files: what a file holds, layer by layer."""
