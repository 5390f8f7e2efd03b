"""Containers of named tensors: safetensors files, pickles, tensors in memory, and how files are written."""
