"""The version of the library and of the nodes. Semantic: docs/versions.md says of what."""

__version__ = "0.3.0"
