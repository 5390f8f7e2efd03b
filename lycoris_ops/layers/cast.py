"""A layer in another dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.axes import field_of
from ..errors import LayerError, LycorisError
from ..files.dtypes import dtype_name
from ..maths.tensors import is_finite


def cast_layer(
    layer: Layer,
    dtype: torch.dtype,
    *,
    file: str | None = None,
    key: str | None = None,
    error: type[LycorisError] = LayerError,
) -> Layer:
    """The layer with its factors in a dtype, contiguous on the CPU.

    Raises `error` where a value is too large for it; `key` is the name of the layer.
    """
    held, cast = layer.tensors(), dict[str, Tensor]()
    for suffix in layer.table.suffixes - layer.table.numbers:
        value = held.get(field_of(suffix))
        if value is None or not value.is_floating_point():
            continue
        factor = cast[field_of(suffix)] = value.to("cpu", dtype).contiguous()
        if not is_finite(factor):
            raise error(
                "E-factor-too-large-for-dtype",
                file=file,
                key=key and f"{key}.{suffix}",
                most=value.abs().max().item(),
                largest=torch.finfo(dtype).max,
                dtype=dtype_name(dtype),
            )
    return layer.with_tensors(cast)
