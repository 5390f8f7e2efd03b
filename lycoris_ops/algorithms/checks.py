"""Checks of the tensors of a layer: their shapes, dtypes and numbers.

They raise LayerError. Where one tensor is at fault, the error names it by its suffix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import LayerError
from ..maths.shapes import Shape
from ..maths.tensors import is_finite
from ..messages import Phrase

FACTOR_DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
)
"""The dtypes that factors may have. Float8 is taken as plain numbers: the adapters that exist in it hold no
scales."""
MOST_DIMENSIONS = 8
"""The most dimensions of a tensor. The weight of a 3-D convolution has 5, and models have no larger ones."""
WORK = 16
"""How many values may be computed on the way to a change, for each value of the weight and of the file.

A Tucker core and its input factor are multiplied first, into (r, I, *kernel). In ordinary files r is at most
a few times the number of outputs, so the product is at most a few times the weight. A crafted core of a few
kilobytes could ask for gigabytes."""
SMALL = 1 << 20
"""A number of values (4 MB in float32) that may be computed whatever the sizes of the weight and of the file:
an output layer of 3 channels may have any rank."""
MOST_SCALE = torch.finfo(torch.float32).max
"""The largest alpha / rank: changes are computed in float32, which holds no larger number."""


def check_alpha(alpha: float, expected: str = "a finite number") -> None:
    """Raise LayerError for NaN and infinity."""
    # Not `isfinite`: torch.compile cannot trace it for a number that varies.
    if not abs(alpha) < math.inf:
        raise LayerError("E-alpha-not-finite", got=str(alpha), expected=expected)


def scale(alpha: float | None, rank: int) -> float:
    """alpha / rank, or 1 where the file holds no alpha.

    Raises LayerError for NaN and infinity, and where the quotient is above MOST_SCALE.
    """
    if alpha is None:
        return 1.0
    check_alpha(alpha)
    if abs(alpha / rank) > MOST_SCALE:
        raise LayerError("E-alpha-too-large", most_scale=f"{MOST_SCALE:.3g}", got=f"{alpha:g}")
    return alpha / rank


def agree(what: str, first: tuple[str, int], second: tuple[str, int | None]) -> None:
    """Raise LayerError unless two sizes, each given with the name of its tensor, are equal."""
    if first[1] != second[1]:
        raise LayerError(
            "E-sizes-disagree", what=what, one=first[0], other=second[0], size=first[1], other_size=second[1]
        )


def dimensions(shapes: Mapping[str, Shape], name: str, least: int = 2) -> Shape:
    """The shape of a tensor that must have at least `least` dimensions."""
    shape = shapes[name]
    if len(shape) < least:
        raise LayerError("E-shape-unusable-least", name=name, least=least, got=str(list(shape)))
    return shape


def exactly(shapes: Mapping[str, Shape], name: str, count: int) -> Shape:
    """The shape of a tensor that must have `count` dimensions."""
    shape = dimensions(shapes, name, count)
    if len(shape) > count:
        raise LayerError("E-shape-unusable-dimensions", name=name, count=count, got=str(list(shape)))
    return shape


def matrix(shapes: Mapping[str, Shape], name: str) -> tuple[int, int]:
    """The two sizes of a tensor that holds a matrix. Further dimensions must have the size 1.

    Raises LayerError for other shapes.
    """
    rows, columns, *ones = dimensions(shapes, name)
    agree("kernel sizes", (name, math.prod(ones)), ("a matrix", 1))
    return rows, columns


def vector(shapes: Mapping[str, Shape], name: str) -> int:
    """The number of values of a tensor that holds a vector. All dimensions but one must have the size 1.

    Raises LayerError for other shapes, even if their number of values would fit.
    """
    shape = dimensions(shapes, name, 1)
    if max(shape) != math.prod(shape):
        raise LayerError("E-not-a-vector", name=name, got=str(list(shape)))
    return max(shape)


def check_work(kind: str, work: int, values: int, held: int) -> None:
    """Raise LayerError where a layer asks for too much, see WORK.

    `work` is the number of values to be computed on the way to a change of `values` values, by a layer whose
    tensors hold `held`.
    """
    bound = max(SMALL, WORK * (values + held))
    if work > bound:
        raise LayerError(
            "E-products-too-large", kind=a_layer(kind), work=work, values=values, held=held, bound=bound
        )


def of_rank(kind: str, rank: int | None) -> str:
    """A kind with its rank in words, `lora 64`; the kind alone where there is no rank."""
    return f"{kind} {rank}" if rank else kind


def a_layer(kind: str) -> str:
    """A layer of that kind in words, with its article."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} layer"


def number(name: str, tensor: Tensor) -> float:
    """The single number in a tensor. Raises LayerError for another count, or for values of another kind."""
    check_number(name, tensor)
    if tensor.numel() != 1 or tensor.dtype == torch.bool:
        raise LayerError(
            "E-not-a-single-number", name=name, dtype=str(tensor.dtype), shape=list(tensor.shape)
        )
    return float(tensor.item())


def check_factor(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FACTOR_DTYPES:
        raise LayerError("E-factor-not-floating", key=name, got=str(tensor.dtype))
    if not is_finite(tensor.detach()):
        # Counted only for the message: finite factors need only `is_finite`, which costs less.
        bad = int((~torch.isfinite(tensor.detach().float())).sum())
        raise LayerError(
            "E-factor-not-finite",
            key=name,
            got=Phrase("R-values", {"bad": bad, "numel": tensor.numel()})
            if bad
            else Phrase("R-values-above", {"most_scale": MOST_SCALE}),
        )


def check_number(name: str, tensor: Tensor) -> None:
    if tensor.is_complex() or tensor.is_quantized:
        raise LayerError("E-dtype-not-numeric", key=name, got=str(tensor.dtype))
