"""Other names of a model's layers, one module per architecture.

A module in this folder that defines `aliases` registers it (see `base.Aliases`); one that defines
`fallback`, of the same form, is asked for names that nothing else explains. `open_clip` is a text
encoder's layout that only checkpoint files have.
"""

from __future__ import annotations

import importlib
import pkgutil

from .base import Aliases, Place, Places

__all__ = ["ARCHITECTURES", "FALLBACKS", "Place", "Places"]

_MODULES = [
    importlib.import_module(f"{__name__}.{module_info.name}")
    for module_info in pkgutil.iter_modules(__path__)
]
ARCHITECTURES: tuple[Aliases, ...] = tuple(
    module.aliases for module in _MODULES if hasattr(module, "aliases")
)
FALLBACKS: tuple[Aliases, ...] = tuple(module.fallback for module in _MODULES if hasattr(module, "fallback"))
