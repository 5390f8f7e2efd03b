"""Find, read and write weights that a file stores in fewer than 16 bits."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
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
    """The shape of the decoded weight. Packed data have another shape."""
    parts: Mapping[str, str]
    """The tensors to rewrite when the weight changes, each with the safetensors dtype to write it in. The
    weight's own key is among them. Their shapes stay the same. Empty for a weight that the codec cannot read.
    Then only `key` and `format` are used, in the error."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Other values that the codec needs to decode and encode the weight."""


class Codec(Protocol):
    """Reads and writes the quantised weights of a file.

    The quantised formats belong to a host application, which provides the codec. This library has none.
    """

    def find(self, file: TensorFile) -> Mapping[str, Quantised]:
        """The quantised weights of a file by key, found from its header and its small tensors alone."""
        ...

    def decode(self, weight: Quantised, stored: Mapping[str, Tensor]) -> Tensor:
        """The weight in float32, of `weight.shape`, in new memory. `stored` are the tensors that hold it in
        the file."""
        ...

    def encode(self, weight: Quantised, values: Tensor, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors that store `values` in the weight's format, with the shapes of the `stored` ones.

        `values` may be overwritten.
        """
        ...


NAMED = re.compile(r"(.+)\.quant_state\.bitsandbytes__(\w+)")
"""The name of the tensor that describes a weight of bitsandbytes: the weight's key, and the format.
Source: bitsandbytes (MIT), `QuantState.as_dict`."""


def quantised_in(file: TensorFile, codec: Codec | None) -> tuple[dict[str, Quantised], dict[str, str]]:
    """The quantised weights of a file that the codec reads, and the formats of all others.

    The formats are listed by the key of the weight, if the file names them. The shapes of the others in the
    file are the shapes of packed data.
    """
    weights: Mapping[str, Quantised] = codec.find(file) if codec else {}
    named = {match[1]: f"bitsandbytes {match[2]}" for match in map(NAMED.fullmatch, file.tensors) if match}
    unread = {key: weight.format for key, weight in weights.items() if not weight.parts}
    return {key: weight for key, weight in weights.items() if weight.parts}, {**named, **unread}


def stored_as(dtype: str, name: str | None) -> str:
    """How a file stores a weight that cannot be read: its dtype, and the name of its format if known."""
    return f"{dtype} in the format {name}" if name else dtype


def plain_floats(tensors: Mapping[str, TensorInfo], quantised: Collection[str] = ()) -> set[str]:
    """Names of the float tensors whose values can be read as they are, without any scale.

    A companion of a tensor, such as its scale, has the tensor's name, then a dot or an underscore, then more
    (`w_scale`, `weight.absmax`). All other tensors of a layer except its `bias` are also companions of its
    `weight`, whatever their names (`scale_weight`, `comfy_quant`).

    The `quantised` tensors are left out, and tensors of 8 bits or fewer that have companions, and the
    companions of both. If a tensor with companions or a `quantised` tensor is float8, all other float8
    tensors of the file are left out too, because one of them may only mark the format.
    """
    ordered = sorted(tensors)
    # For every tensor that is neither a weight nor a bias: the weight of its layer.
    weight_of = {
        name: f"{layer}.weight"
        for name in tensors
        for layer, _, leaf in (name.rpartition("."),)
        if leaf not in ("weight", "bias")
    }
    weights = set(weight_of.values())
    scaled = {
        name
        for name, info in tensors.items()
        if name in quantised
        or (_packed(info.dtype) and (name in weights or any(_begins(ordered, name + mark) for mark in "._")))
    }
    scales = beginning_with(ordered, (name + mark for name in scaled for mark in "._"))
    scales |= {name for name, weight in weight_of.items() if weight in scaled}
    kinds = FLOATS if any(tensors[name].dtype in FLOAT8 for name in scaled) else (*FLOATS, *FLOAT8)
    return {name for name, info in tensors.items() if info.dtype in kinds} - scaled - scales


def beginning_with(names: Iterable[str], heads: Iterable[str]) -> set[str]:
    """The names that begin with one of the heads, without comparing each name with each head."""
    ordered = sorted(names)
    beginning: set[str] = set()
    at = 0
    # In sorted order the names that begin with one head are neighbours. Among them are the names of any
    # longer head that begins with this one.
    for head in sorted(heads):
        at = max(at, bisect_left(ordered, head))
        while at < len(ordered) and ordered[at].startswith(head):
            beginning.add(ordered[at])
            at += 1
    return beginning


def _begins(ordered: list[str], head: str) -> bool:
    """Whether any name of a sorted list begins with `head`."""
    at = bisect_left(ordered, head)
    return at < len(ordered) and ordered[at].startswith(head)


def _packed(dtype: str) -> bool:
    # Booleans take 8 bits too, but are masks, not weights.
    return ITEM_BITS[dtype] <= 8 and dtype != "BOOL"


def seed_of(key: str) -> int:
    """The seed for the rounding of a weight. It depends on the key alone.

    The same merge therefore writes the same file every time, on any machine.
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1


def round_to_float8(values: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """The values in `dtype` (float8_e4m3fn or float8_e5m2), rounded up or down at random.

    Rounding is unbiased: the mean over all seeds is the value itself. A value that float8 holds exactly stays
    as it is. A value that is rounded beyond the largest of `dtype` becomes NaN. Rounding to nearest would
    lose most of an adapter's change, which is mostly smaller than half a step of an 8-bit float.
    Source of the layouts: Micikevicius et al., "FP8 Formats for Deep Learning" (arXiv 2209.05433).
    """
    info = torch.finfo(dtype)
    mantissa = {torch.float8_e4m3fn: 3, torch.float8_e5m2: 2}[dtype]
    # The exponent of the smallest step, the step of subnormal values.
    lowest = round(torch.tensor(info.smallest_normal).log2().item()) - mantissa
    generator = torch.Generator().manual_seed(seed)
    flat = values.reshape(-1)
    rounded = torch.empty(flat.shape, dtype=dtype)
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE].float().contiguous()
        # The exponent of each value's step, from the value's bits: 8 of exponent above 23 of mantissa.
        exponent = (piece.view(torch.int32) >> 23 & 0xFF).sub_(127 + mantissa).clamp_(min=lowest)
        # A float32 of this exponent and no mantissa is 2 ** exponent.
        step = exponent.add_(127).bitwise_left_shift_(23).view(torch.float32)
        steps = piece / step
        low = steps.floor()
        up = torch.rand(piece.shape, generator=generator) < steps.sub_(low)
        # Rounding never crosses zero, so the sign stays. Copying it keeps the sign of a zero too.
        piece = low.add_(up).mul_(step).copysign_(piece)
        rounded[start : start + PIECE] = piece.masked_fill_(~(piece.abs() <= info.max), torch.nan).to(dtype)
    return rounded.reshape(values.shape)
