"""The version of the library and of the nodes. docs/versions.md says what it promises."""

__version__ = "0.3.0"
