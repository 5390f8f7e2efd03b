"""Weights that a file holds in fewer bits than a 16-bit float: what is stored where, read and written."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..maths.shapes import Shape
from ..maths.tensors import PIECE
from .dtypes import FLOAT8, FLOATS, ITEM_BITS
from .tensor_file import TensorFile, TensorInfo


@dataclass(frozen=True)
class Quantised:
    """One quantised weight of a file, which may be stored as several tensors."""

    key: str
    format: str
    shape: Shape
    """The shape of the weight it stands for, which is not that of packed data."""
    parts: Mapping[str, str]
    """The tensors that are written anew when the weight changes, itself among them, each with the
    safetensors dtype it is written in; their shapes stay."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What else its codec has to know of it."""


class Codec(Protocol):
    """How quantised weights are read and written: the formats are a host's, and so is its code for them."""

    def find(self, file: TensorFile) -> Mapping[str, Quantised]:
        """The quantised weights of a file by key, told from its header and its small tensors."""
        ...

    def decode(self, weight: Quantised, stored: Mapping[str, Tensor]) -> Tensor:
        """The float32 weight of `weight.shape` that the stored parts stand for, in memory of its own."""
        ...

    def encode(self, weight: Quantised, values: Tensor, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The parts that stand for other values, of the stored ones' shapes; `values` may be overwritten."""
        ...


def plain_floats(tensors: Mapping[str, TensorInfo], quantised: Collection[str] = ()) -> set[str]:
    """Names of the float tensors that stand for their own values and for nothing else.

    Those are all but quantised weights and what lies beside them, such as scales. A float8 tensor is
    one where nothing lies beside it but a bias, in whatever format; a file in which any other float8
    tensor is quantised may hold more of them as marks, so none of them is taken for a weight there.
    """
    beside = _beside(tensors)
    scaled = {
        name
        for name, info in tensors.items()
        if name in quantised or (_packed(info.dtype) and beside.get(name))
    }
    scales = {other for name in scaled for other in beside.get(name, ())}
    kinds = FLOATS if any(tensors[name].dtype in FLOAT8 for name in scaled) else (*FLOATS, *FLOAT8)
    return {name for name, info in tensors.items() if info.dtype in kinds} - scaled - scales


def _packed(dtype: str) -> bool:
    return ITEM_BITS[dtype] <= 8 and dtype != "BOOL"


def _beside(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """For each name the tensors that only mean something together with it.

    They are named after it (`w_scale`, `weight.absmax`), or, beside a layer's `weight`, in any way
    (`scale_weight`, `comfy_quant`) other than `bias`.
    """
    found: dict[str, list[str]] = {}
    for name in tensors:
        layer, _, leaf = name.rpartition(".")
        owners = {name[:at] for at, mark in enumerate(name) if mark in "._"}
        if leaf not in ("weight", "bias"):
            owners.add(f"{layer}.weight")
        for owner in owners & tensors.keys():
            found.setdefault(owner, []).append(name)
    return found


def seed_of(key: str) -> int:
    """The seed of a weight's rounding: the same file comes out of the same merge on any machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1


def round_to_float8(values: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """Round each value up or down at random, so that its mean over the seeds is the value itself.

    What float8 can hold stays as it is, and what is beyond its largest value becomes NaN. Rounding to
    nearest would lose the change: it is mostly smaller than half a step of an 8-bit float.
    Source of the layouts: Micikevicius et al., "FP8 Formats for Deep Learning" (arXiv 2209.05433).
    """
    info = torch.finfo(dtype)
    mantissa = {torch.float8_e4m3fn: 3, torch.float8_e5m2: 2}[dtype]
    lowest = round(torch.tensor(info.smallest_normal).log2().item()) - mantissa
    generator = torch.Generator().manual_seed(seed)
    flat = values.reshape(-1)
    rounded = torch.empty(flat.shape, dtype=dtype)
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE].float().contiguous()
        # The exponent of each value's step: a float32 has 8 bits of exponent above 23 of mantissa.
        exponent = (piece.view(torch.int32) >> 23 & 0xFF).sub_(127 + mantissa).clamp_(min=lowest)
        step = exponent.add_(127).bitwise_left_shift_(23).view(torch.float32)
        steps = piece / step
        low = steps.floor()
        up = torch.rand(piece.shape, generator=generator) < steps.sub_(low)
        # The sign is that of the value: no rounding crosses zero, and a zero has one too.
        piece = low.add_(up).mul_(step).copysign_(piece)
        rounded[start : start + PIECE] = piece.masked_fill_(~(piece.abs() <= info.max), torch.nan).to(dtype)
    return rounded.reshape(values.shape)
