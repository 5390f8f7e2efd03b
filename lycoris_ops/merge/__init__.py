"""Merge several adapters into one: a method merges the changes of each layer, and the result becomes a
layer."""
