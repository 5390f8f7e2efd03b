"""The patch object with which the host adds a whole stack to one of its weights."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...lycoris_ops import Entry, LycorisError, Match, PatchPlan, dtype_name, kept_plan
from ..host.page import end_if_interrupted
from ..host.patching import WeightAdapterBase
from ..host.weights import plain

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What the errors of allocators say (CPU, MPS, XPU) that raise a plain RuntimeError when memory is out."""


class PatchMemoryError(LycorisError, torch.cuda.OutOfMemoryError):
    """There is no memory to patch or read a weight.

    It is an OutOfMemoryError as well, because the host answers such an error by unloading its models.
    """


class LycorisPatch(WeightAdapterBase):
    """All layers of a stack that change one weight.

    When the host moves the tensors to another device, it rebuilds a patch from `loaded_keys` and `weights`
    alone. All state is therefore in `weights`: the plan without tensors, the tensors, the strengths.
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
        """The patch of a weight of `shape` by these adapter layers, which are read from their files."""
        plan = kept_plan(shape, pairs)
        keys = {match.layer for _, match in pairs}
        strengths = tuple(float(match.strength) for _, match in pairs)
        # Only tensors that stand in `weights` itself are found and moved by the host.
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

        A weight that the stack enlarges, and one that is quantised, is not patched in place: another one is
        returned. `strength` scales the whole stack: it is 1 unless another node merges patched models. What
        follows it belongs to the host's signature and is not used.

        Raises PatchMemoryError, with the weight as it was, where there is no memory to patch it, and
        LycorisError where a layer does not fit it.
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
    """Raise what an allocator raises inside as a PatchMemoryError that names the weight and its size.

    `purpose` completes "there is no memory ", `hint` says what to do; the others describe the weight.
    """
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
    shapes: Mapping[str, Sequence[int]],
    pairs: Mapping[str, Sequence[tuple[Entry, Match]]],
) -> dict[str, LycorisPatch]:
    """Key to patch, for each weight that the stack changes and that is among `shapes`.

    An interrupt by the user ends it between two weights, by the host's own exception.
    """
    patches: dict[str, LycorisPatch] = {}
    for key, found in pairs.items():
        if key in shapes:
            end_if_interrupted()
            patches[key] = LycorisPatch.of(shapes[key], found)
    return patches
