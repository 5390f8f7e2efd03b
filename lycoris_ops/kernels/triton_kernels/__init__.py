"""Kernels in the Triton language: imported only by the path that runs them."""
