"""Muon (https://kellerjordan.github.io/posts/muon) for matrices (in torch since 2.9); AdamW for the rest.

Muon's steps are scaled to the size of AdamW's (`adjust_lr_fn="match_rms_adamw"`, arXiv 2502.16982), so both
take the same rate. The options only go to Muon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import Optimiser, OptimiserFamily, ParameterGroup, built, class_of_torch


class Several:
    """Optimisers of different parameters, used as one."""

    def __init__(self, optimisers: Sequence[Optimiser]) -> None:
        self.parts = optimisers
        # The very same group objects: a rate that is set on them reaches the optimisers inside.
        self.param_groups = [group for optimiser in optimisers for group in optimiser.param_groups]

    def step(self) -> Any:
        for optimiser in self.parts:
            optimiser.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimiser in self.parts:
            optimiser.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [optimiser.state_dict() for optimiser in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimiser, state in zip(self.parts, state_dict["parts"], strict=True):
            optimiser.load_state_dict(state)
        self.param_groups[:] = [group for optimiser in self.parts for group in optimiser.param_groups]


def _make(groups: Sequence[ParameterGroup], options: Mapping[str, Any]) -> Optimiser:
    kind = class_of_torch("Muon", "2.9")
    matrices = _only(groups, matrix=True)
    rest = _only(groups, matrix=False)
    optimisers: list[Optimiser] = []
    if matrices:
        optimisers.append(built(kind, matrices, {"adjust_lr_fn": "match_rms_adamw", **options}))
    if rest:
        optimisers.append(built(torch.optim.AdamW, rest, {}))
    return Several(optimisers)


def _only(groups: Sequence[ParameterGroup], *, matrix: bool) -> list[ParameterGroup]:
    """The groups with only their matrices, or with only the rest; empty groups are left out."""
    matching = [
        # Magnitudes of DoRA have two dimensions, but are vectors.
        {**g, "params": [p for p in g["params"] if (p.ndim == 2 and not g["vectors"]) is matrix]}
        for g in groups
    ]
    return [group for group in matching if group["params"]]


FAMILY = OptimiserFamily("muon", _make, lr=1e-4)
