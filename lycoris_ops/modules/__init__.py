"""Which parts of a model can be adapted, and how they are chosen by name."""

from .patterns import Pattern, patterns
from .sites import Kind, Site, select

__all__ = ["Kind", "Pattern", "Site", "patterns", "select"]
