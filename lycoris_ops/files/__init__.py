"""Adapter files and the names in them: what is on disk, and what in a model it means."""
