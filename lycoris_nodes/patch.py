"""The patch object that carries a whole stack into one of the host's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..lycoris_ops import Entry, LycorisError, PatchPlan
from ..lycoris_ops.kept_plans import kept_plan
from ..lycoris_ops.resolve import Match
from .host import WeightAdapterBase


class LycorisPatch(WeightAdapterBase):
    """All layers of a stack that change one weight.

    The host rebuilds a patch from `loaded_keys` and `weights` alone when it moves the tensors to
    another device, so all state is in `weights`: the plan without tensors, the tensors, and the
    strengths.
    """

    name = "lycoris"

    def __init__(
        self,
        loaded_keys: set[str],
        weights: tuple[PatchPlan, tuple[Tensor, ...], tuple[float, ...]],
    ) -> None:
        self.loaded_keys = loaded_keys
        self.weights: Any = weights

    @classmethod
    def of(cls, shape: Sequence[int], pairs: Sequence[tuple[Entry, Match]]) -> LycorisPatch:
        """The patch of a weight of `shape`; reads the layers that it needs."""
        plan = kept_plan(shape, pairs)
        keys = {match.layer for _, match in pairs}
        strengths = tuple(float(match.strength) for _, match in pairs)
        return cls(keys, (replace(plan, tensors=(), strengths=()), plan.tensors, strengths))

    def calculate_shape(self, key: str) -> tuple[int, ...] | None:
        """The weight's shape afterwards where the stack enlarges it, else None."""
        plan = self.weights[0]
        return plan.final if plan.final != plan.shape else None

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        """Patch the weight in place, in the dtype it has, and return it.

        `strength` scales the whole stack: it is 1 unless another node merges patched models.
        """
        plan, tensors, strengths = self.weights
        try:
            return plan.apply_(weight, tensors, tuple(value * strength for value in strengths))
        except LycorisError as error:
            raise error.within(key=key) from None


def build_patches(
    shapes: Mapping[str, Sequence[int]], pairs: Mapping[str, Sequence[tuple[Entry, Match]]]
) -> dict[str, LycorisPatch]:
    """One patch per weight that the stack changes and `shapes` names."""
    return {key: LycorisPatch.of(shapes[key], found) for key, found in pairs.items() if key in shapes}
