"""Kernels compiled by numba: imported only by the path that runs them."""
