"""AdamW that averages the weights in place of a schedule (arXiv 2405.15682), of the package schedulefree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..extras import required
from . import Family, Group, Optimiser, built


def _make(groups: Sequence[Group], options: Mapping[str, Any]) -> Optimiser:
    package = required("schedulefree", "schedulefree", "the optimiser schedulefree")
    return built(package.AdamWScheduleFree, groups, options)


FAMILY = Family("schedulefree", _make, lr=1e-3, averages=True)
