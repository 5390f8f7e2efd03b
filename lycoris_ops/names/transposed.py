"""Weights that GPT-2 and its kin store as (I, O), by the class Conv1D of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..maths.shapes import Shape

LINEAR = re.compile(r"(?:^|\.)(c_attn|q_attn|c_fc|c_proj)\.weight$")
"""The names of their linear layers. Other models give these names to layers that they store as (O, I)."""
WIDE = ("c_attn", "c_fc")
"""Those that have more outputs than inputs."""


def stored_transposed(shapes: Mapping[str, Shape]) -> frozenset[str]:
    """The keys of the weights of a model that are stored as (I, O), by their names and shapes."""
    weights = {
        key: (named[1], shape)
        for key, shape in shapes.items()
        if len(shape) == 2 and (named := LINEAR.search(key))
    }
    wide = {shape[1] > shape[0] for name, shape in weights.values() if name in WIDE}
    return frozenset(weights) if wide == {True} else frozenset()
