"""Other names of a model's layers, one module per architecture.

A module in this folder registers `diffusers`, the names that the layers have in that library's model, with
every row of a weight in one of them at most, and `aliases`, all other names (see `base.Aliases`, and
`notation` for the tables that they come from). One that defines `fallback`, of the same form, is asked for
names that nothing else explains. `open_clip` is a text encoder's layout that only checkpoint files have.
"""

from __future__ import annotations

from ...discovery import discover
from .base import Aliases, Place, Places

__all__ = ["ARCHITECTURES", "DIFFUSERS", "FALLBACKS", "Place", "Places"]

_MODULES = discover(__name__)
DIFFUSERS: tuple[Aliases, ...] = tuple(
    module.diffusers for module in _MODULES if hasattr(module, "diffusers")
)
ARCHITECTURES: tuple[Aliases, ...] = (
    *DIFFUSERS,
    *(module.aliases for module in _MODULES if hasattr(module, "aliases")),
)
FALLBACKS: tuple[Aliases, ...] = tuple(module.fallback for module in _MODULES if hasattr(module, "fallback"))
