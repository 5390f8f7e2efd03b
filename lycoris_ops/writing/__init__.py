"""Adapters into files, in one of the dialects that tools read."""
