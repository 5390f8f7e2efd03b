"""The version of the library and of the nodes. Semantic: docs/pack-authors.md says of what."""

__version__ = "0.2.0"
