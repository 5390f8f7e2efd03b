"""AdamW with states of 8 bits (arXiv 2110.02861), of the package bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..extras import required
from . import Family, Group, Optimiser, built


def _make(groups: Sequence[Group], options: Mapping[str, Any]) -> Optimiser:
    package = required("bitsandbytes", "bitsandbytes", "the optimiser adamw8bit")
    return built(package.optim.AdamW8bit, groups, options)


FAMILY = Family("adamw8bit", _make, lr=1e-4)
