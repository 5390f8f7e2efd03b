"""The kinds of PEFT configurations, one in each file. A module that defines a `Config` registers it."""

from __future__ import annotations

from typing import Any

from ...discovery import discover_classes
from ..config import Config

KINDS: dict[str, type[Config[Any]]] = {kind.peft_type: kind for kind in discover_classes(__name__, Config)}
"""The kinds by `peft_type`, the name of the kind in a configuration."""
