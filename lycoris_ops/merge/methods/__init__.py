"""The merge methods, one a file. Each file has a METHOD."""
