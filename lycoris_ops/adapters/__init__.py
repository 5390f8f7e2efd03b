"""Adapters: opening a file, the layers in it, and writing them in the dialect of any tool."""
