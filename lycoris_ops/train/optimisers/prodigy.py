"""Prodigy (arXiv 2306.06101), of the package prodigyopt. It finds the rate itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..extras import required
from . import Family, Group, Optimiser, built


def _make(groups: Sequence[Group], options: Mapping[str, Any]) -> Optimiser:
    package = required("prodigyopt", "prodigyopt", "the optimiser prodigy")
    return built(package.Prodigy, groups, options)


FAMILY = Family("prodigy", _make, lr=1.0, one_rate=True)
