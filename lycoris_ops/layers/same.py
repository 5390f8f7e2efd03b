"""Whether two layers make the same change of every weight, found by comparing their tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.axes import ALPHA
from ..algorithms.checks import scale


def difference(wanted: Layer, got: Layer) -> str | None:
    """What differs between two layers, in words; None where they make the same change of every weight.

    `wanted` is the layer that was to be written to a file, `got` the one that was read back.
    """
    if type(wanted) is not type(got):
        return f"{got.algorithm}, not {wanted.algorithm}"
    wanted, got = wanted.like(got), got.like(got)
    scales = [1.0, 1.0]
    if wanted.table.scaled_by_alpha and wanted.rank is not None:
        scales = [scale(layer.alpha, layer.rank or 1) for layer in (wanted, got)]
    both = (wanted, got)
    factors = [
        name
        for name in got.variant.absorbing
        if all(isinstance(getattr(layer, name), Tensor) for layer in both)
    ]
    # Only in kinds with such factors can a saver have multiplied the scale into a tensor.
    folded = bool(factors) and scales[0] != scales[1]
    # A file holds alpha in float32.
    close = math.isclose(*scales, rel_tol=1e-6)
    if not folded and not close:
        return f"scale {scales[1]:g}, not {scales[0]:g}"
    scaled = ()
    if folded:
        # The factor that was scaled is the one that differs. Where none does, alpha was only rounded.
        other = next((name for name in factors if not _alike(wanted, got, name)), None)
        beside = got.table.join.scaled if got.table.join else ()
        scaled = () if close and other is None else (other or factors[0], *beside)
    for field in dataclasses.fields(wanted):
        ours, theirs = getattr(wanted, field.name), getattr(got, field.name)
        if isinstance(ours, Tensor) != isinstance(theirs, Tensor):
            return f"{field.name} is {'there' if isinstance(theirs, Tensor) else 'missing'}"
        if isinstance(ours, Tensor):
            by = scales if field.name in scaled else [1.0, 1.0]
            if not _equal(ours, theirs, by):
                return f"{field.name} has other values"
        elif field.name == ALPHA:
            # In all other kinds alpha has no effect, or it is part of the scale compared above.
            if wanted.table.constrained_by_alpha and not _close(ours, theirs):
                return f"alpha {theirs}, not {ours}"
        elif field.name not in wanted.chosen and ours != theirs:
            return f"{field.name} {theirs}, not {ours}"
    return None


def _alike(wanted: Layer, got: Layer, field: str) -> bool:
    return _equal(getattr(wanted, field), getattr(got, field), [1.0, 1.0])


def _close(ours: float | None, theirs: float | None) -> bool:
    if ours is None or theirs is None:
        return ours == theirs
    return math.isclose(ours, theirs, rel_tol=1e-6)


def _equal(ours: Tensor, theirs: Tensor, by: Sequence[float]) -> bool:
    """Whether two tensors, each times its factor in `by`, hold the same values in the same order.

    Where the factors differ, the values of the second may have been rounded once to its dtype.
    """
    if ours.numel() != theirs.numel():
        return False
    if by[0] == by[1] and ours.dtype == theirs.dtype and ours.itemsize > 1:
        # Without wider copies. torch compares no float8.
        return torch.equal(ours.flatten(), theirs.flatten())
    own, other = ours.flatten().double() * by[0], theirs.flatten().double() * by[1]
    if by[0] == by[1]:
        return torch.equal(own, other)
    # atol is the smallest subnormal number, the step to which tiny products round.
    info = torch.finfo(theirs.dtype)
    return bool(torch.allclose(own, other, rtol=info.eps, atol=info.smallest_normal * info.eps))
