"""Other names of a model's layers, one module per architecture.

A module in this folder registers the functions that it defines, which all have the form `base.Aliases`:

- `diffusers`: the names of the layers in diffusers' model. Each row of a weight is under one of these names
  at most, so that files can be written in them.
- `diffusers_lokr`: the same for diffusers' model with all projections fused that it can fuse for LoKr. Only
  models for which diffusers reads LoKr have it.
- `aliases`: all other names.
- `fallback`: names that are tried only where nothing else explains a name.

and beside these `aside`, a mapping: layers of its blocks that are not trained by default, by their paths with
`*` for a number, with the reasons. What is below a path is meant too.

All but the last mostly come from tables, in the notation of `notation`. `open_clip` defines none of them:
it is a text encoder's layout that only checkpoint files have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...discovery import discover
from .base import Aliases, Paths, Place, Places

__all__ = ["ARCHITECTURES", "ASIDE", "DIFFUSERS", "DIFFUSERS_LOKR", "FALLBACKS", "Paths", "Place", "Places"]

_MODULES = discover(__name__)
DIFFUSERS: tuple[Aliases, ...] = tuple(
    module.diffusers for module in _MODULES if hasattr(module, "diffusers")
)
DIFFUSERS_LOKR: tuple[Aliases, ...] = tuple(
    module.diffusers_lokr for module in _MODULES if hasattr(module, "diffusers_lokr")
)
ARCHITECTURES: tuple[Aliases, ...] = (
    *DIFFUSERS,
    *(module.aliases for module in _MODULES if hasattr(module, "aliases")),
)
FALLBACKS: tuple[Aliases, ...] = tuple(module.fallback for module in _MODULES if hasattr(module, "fallback"))


def _below(path: str) -> re.Pattern[str]:
    """What fits the path of a layer at or below this one, in a model or in a part of one."""
    numbered = re.escape(path).replace(r"\*", r"\d+")
    return re.compile(rf"(?:^|\.){numbered}(?:\.|$)")


ASIDE: Mapping[re.Pattern[str], str] = {
    _below(path): why for module in _MODULES for path, why in getattr(module, "aside", {}).items()
}
"""The layers of blocks that the records set aside, with the reasons."""
