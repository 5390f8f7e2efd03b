"""Tensors without layers: shapes, numbers and decompositions."""
