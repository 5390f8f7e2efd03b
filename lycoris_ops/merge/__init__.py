"""Merge several adapters into one: a method merges the changes of each layer, and a layer is made of the
result."""
