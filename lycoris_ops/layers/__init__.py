"""Layers of any kind: cast one, take a part, join several, compare two."""
