"""Tensors alone: shapes, numbers and decompositions that know no layer."""
