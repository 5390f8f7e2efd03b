"""Other names of a model's layers, one module per architecture.

A module in this folder that defines `aliases(paths)` registers it: given the paths of a diffusion
model's layers, it returns other paths that adapter files use for them, or nothing where the paths
are of another architecture. `open_clip` is a text encoder's layout that only checkpoint files have.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping

Aliases = Callable[[Collection[str]], Mapping[str, str]]

_MODULES = [
    importlib.import_module(f"{__name__}.{module_info.name}")
    for module_info in pkgutil.iter_modules(__path__)
]
ARCHITECTURES: tuple[Aliases, ...] = tuple(
    module.aliases for module in _MODULES if hasattr(module, "aliases")
)
