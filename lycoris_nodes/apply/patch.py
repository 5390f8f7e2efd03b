"""The patch object that adds a whole stack to one weight of the host."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...lycoris_ops import Entry, LycorisError, Match, PatchPlan, dtype_name, kept_plan, located
from ..host.page import end_if_interrupted
from ..host.patching import WeightAdapterBase
from ..host.weights import is_out_of_memory, plain


class PatchMemoryError(LycorisError, torch.cuda.OutOfMemoryError):
    """There is no memory to patch or read a weight. Also an OutOfMemoryError, so that the host unloads models
    when it is raised.
    """


class LycorisPatch(WeightAdapterBase):
    """All layers of a stack that change one weight.

    To move the tensors to another device, the host rebuilds a patch from `loaded_keys` and `weights` only. So
    all state is in `weights`: the plan without tensors, the tensors, the strengths.
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
    def of(
        cls,
        shape: Sequence[int],
        pairs: Sequence[tuple[Entry, Match]],
    ) -> LycorisPatch:
        """Make the patch for a weight of `shape` from these adapter layers, which are read from their
        files."""
        plan = kept_plan(shape, pairs)
        keys = {match.layer for _, match in pairs}
        strengths = tuple(float(match.strength) for _, match in pairs)
        # The host finds and moves only tensors that are directly in `weights`.
        return cls(keys, (replace(plan, tensors=(), strengths=()), plan.tensors, strengths))

    def calculate_shape(self, key: str) -> tuple[int, ...] | None:
        """The weight's new shape if the stack enlarges it, else None."""
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
        """Patch the weight in place, in its own dtype, and return it.

        A weight that is quantised or that the stack enlarges is replaced by a new tensor. `strength` scales
        the whole stack: it is 1 unless another node merges patched models. The parameters after it belong to
        the host's signature and are not used.

        Raises PatchMemoryError, and leaves the weight unchanged, if memory runs out; LycorisError if a layer
        does not fit the weight.
        """
        plan, tensors, strengths = self.weights
        values = tuple(value * strength for value in strengths)
        hint = "Unload other models, or set the mode to bypass, which leaves weights as they are"
        named = memory_named("to patch this weight", key, weight.shape, weight.dtype, weight.device, hint)
        with named, located(weight=key):
            return plan.apply_within(plain(weight), tensors, values)


@contextmanager
def memory_named(
    purpose: str, key: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device, hint: str
) -> Generator[None]:
    """A context that turns errors of an allocator into a PatchMemoryError with the weight's name and size.
    `purpose` completes "there is no memory ", `hint` says what to do; the others describe the weight.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        name, size = dtype_name(dtype), math.prod(shape) * dtype.itemsize / 1e6
        raise PatchMemoryError(
            "E-memory-for-weight",
            key=key,
            purpose=purpose,
            shape=list(shape),
            name=name,
            device=str(device),
            size=f"{size:.1f}",
            hint=hint,
        ) from error


def build_patches(
    shapes: Mapping[str, Sequence[int]],
    pairs: Mapping[str, Sequence[tuple[Entry, Match]]],
) -> dict[str, LycorisPatch]:
    """A patch for each weight in `shapes` that the stack changes, by key. If the user interrupts, the host's
    own exception is raised between two weights.
    """
    patches: dict[str, LycorisPatch] = {}
    for key, matches in pairs.items():
        if key in shapes:
            end_if_interrupted()
            patches[key] = LycorisPatch.of(shapes[key], matches)
    return patches
