"""Merge several adapters into one: a method merges the changes of each layer into a new layer."""
