"""What is known of each architecture, one record a file. A file that is put here is registered.

A file defines ARCHITECTURE, see `record.Architecture`. The tables of names have the notation of `notation`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...discovery import discover
from .base import Aliases, Paths, Place, Places
from .record import Architecture, Training

__all__ = [
    "ARCHITECTURES",
    "ASIDE",
    "DIFFUSERS",
    "DIFFUSERS_LOKR",
    "NAMES",
    "TRAINED",
    "Architecture",
    "Paths",
    "Place",
    "Places",
    "Training",
]

ARCHITECTURES: Mapping[str, Architecture] = {
    module.__name__.rpartition(".")[2]: module.ARCHITECTURE
    for module in discover(__name__)
    if hasattr(module, "ARCHITECTURE")
}
"""Every record, by the name of its file."""
_RECORDS = tuple(ARCHITECTURES.values())
DIFFUSERS: tuple[Aliases, ...] = tuple(record.diffusers for record in _RECORDS)
DIFFUSERS_LOKR: tuple[Aliases, ...] = tuple(record.diffusers_lokr for record in _RECORDS if record.lokr)
NAMES: tuple[Aliases, ...] = (*DIFFUSERS, *(record.aliases for record in _RECORDS))
TRAINED: tuple[Training, ...] = tuple(one for record in _RECORDS for one in record.trained)
"""How each model of the host is trained by default."""


def _below(path: str) -> re.Pattern[str]:
    """What fits the path of a layer at or below this one, in a model or in a part of one."""
    numbered = re.escape(path).replace(r"\*", r"\d+")
    return re.compile(rf"(?:^|\.){numbered}(?:\.|$)")


ASIDE: Mapping[re.Pattern[str], str] = {
    _below(path): why for record in _RECORDS for path, why in record.aside.items()
}
"""The layers of blocks that the records set aside, with the reasons."""
