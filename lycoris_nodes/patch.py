"""The patch object that carries a whole stack into one of the host's weights."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..lycoris_ops import Entry, LycorisError, Match, PatchPlan, dtype_name, kept_plan
from .host import WeightAdapterBase, plain

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""How allocators say so that have no error of their own for it: those of CPUs, of MPS, of XPU."""


class PatchMemoryError(LycorisError, torch.cuda.OutOfMemoryError):
    """There was no memory to patch a weight with. The host answers such an error by unloading its models."""


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

        `strength` scales the whole stack: it is 1 unless another node merges patched models. Raises
        PatchMemoryError, with the weight as it was, where there is no memory to patch it.
        """
        plan, tensors, strengths = self.weights
        values = tuple(value * strength for value in strengths)
        hint = "Unload other models, or set the mode to bypass, which leaves weights as they are"
        with memory_named("to patch this weight", key, weight.shape, weight.dtype, weight.device, hint):
            try:
                return plan.apply_within(plain(weight), tensors, values)
            except LycorisError as error:
                raise error.within(weight=key) from None


@contextmanager
def memory_named(
    purpose: str, key: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device, hint: str
) -> Generator[None]:
    """Turn the many errors of allocators into a PatchMemoryError that names the weight and its size."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        name, size = dtype_name(dtype), math.prod(shape) * dtype.itemsize / 1e6
        raise PatchMemoryError(
            f"there is no memory {purpose}",
            key=key,
            got=f"a weight of {list(shape)}, {name} on {device}, {size:.1f} MB",
            hint=hint,
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return any(said in str(error).lower() for said in OUT_OF_MEMORY)


def build_patches(
    shapes: Mapping[str, Sequence[int]], pairs: Mapping[str, Sequence[tuple[Entry, Match]]]
) -> dict[str, LycorisPatch]:
    """One patch per weight that the stack changes and `shapes` names."""
    return {key: LycorisPatch.of(shapes[key], found) for key, found in pairs.items() if key in shapes}
