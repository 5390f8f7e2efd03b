"""The kinds of PEFT configurations, one in each file. A module that defines a `Config` registers it."""

from __future__ import annotations

from typing import Any

from ...discovery import discover
from ..config import Config


def _discover() -> dict[str, type[Config[Any]]]:
    found: dict[str, type[Config[Any]]] = {}
    for module in discover(__name__):
        for value in vars(module).values():
            # A module's own classes only: `RankedConfig`, which it may import, is no kind.
            if isinstance(value, type) and issubclass(value, Config) and value.__module__ == module.__name__:
                found[value.peft_type] = value
    return found


KINDS = _discover()
"""The kinds by `peft_type`, the name of the kind in a configuration."""
