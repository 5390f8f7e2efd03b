"""Several layers as one, for the rows of a weight that is one where theirs are several: q, k and v fused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import scale
from ..algorithms.full import Full
from ..algorithms.lora import Lora
from ..errors import LayerError
from ..maths.shapes import Rows
from ..maths.tensors import narrowed


def fuse(pieces: Sequence[tuple[Layer, Rows]], rows: int) -> Layer:
    """One layer of so many rows, given each layer with the rows that it is for; others do not change.

    LoRA: down is one below the other and up block-diagonal, of the rank of all together; layers with
    one and the same down share it. Full differences: one below the other.

    Raises LayerError for other kinds.
    """
    layers = [layer for layer, _ in pieces]
    if all(isinstance(layer, Full) for layer in layers):
        return _fuse_full([(layer, at) for layer, at in pieces if isinstance(layer, Full)], rows)
    for layer in layers:
        if not isinstance(layer, Lora) or layer.lora_up is None or layer.lora_mid is not None:
            raise _cannot_fuse(layer, "LoRA or full differences")
        if layer.bias_size is not None or layer.reshape_weight is not None:
            raise _cannot_fuse(layer, "LoRA without a sparse remainder or a new shape")
    return _fuse_lora([(layer, at) for layer, at in pieces if isinstance(layer, Lora)], rows)


def _cannot_fuse(layer: Layer, expected: str) -> LayerError:
    return LayerError(
        "layers of this kind cannot be made one layer",
        got=layer.algorithm + (" with DoRA" if getattr(layer, "dora_scale", None) is not None else ""),
        expected=expected,
    )


def _fuse_full(pieces: Sequence[tuple[Full, Rows]], rows: int) -> Full:
    if any(layer.set_weight is not None for layer, _ in pieces):
        raise LayerError("values of a weight cannot be made one with others' rows", got="set_weight")
    diffs = [(layer.diff, at) for layer, at in pieces if layer.diff is not None]
    return Full(diff=_stacked(diffs, rows), diff_b=_biases(pieces, rows))


def _biases(pieces: Sequence[tuple[Layer, Rows]], rows: int) -> Tensor | None:
    found = [(layer.diff_b.flatten(), at) for layer, at in pieces if layer.diff_b is not None]
    return _stacked(found, rows)


def _stacked(parts: Sequence[tuple[Tensor, Rows]], rows: int) -> Tensor | None:
    """Tensors in their rows of a larger one, which is zero elsewhere; None where there is none."""
    if not parts:
        return None
    dtype = _widest([part for part, _ in parts])
    total = parts[0][0].new_zeros(rows, *parts[0][0].shape[1:], dtype=dtype)
    for part, (start, stop) in parts:
        total[start:stop] = part
    return total


def _fuse_lora(pieces: Sequence[tuple[Lora, Rows]], rows: int) -> Lora:
    scales = [scale(layer.alpha, _down(layer).shape[0]) for layer, _ in pieces]
    if len({tuple(_down(layer).shape[1:]) for layer, _ in pieces}) > 1:
        raise LayerError("layers that are to be one have different inputs", got="down factors that differ")
    # One scale for all stays beside the factors, where nothing rounds it.
    folded = len(set(scales)) > 1
    downs: list[Tensor] = []
    columns: list[int] = []
    for layer, _ in pieces:
        down = _down(layer)
        known = next((n for n, other in enumerate(downs) if torch.equal(other, down)), None)
        columns.append(len(downs) if known is None else known)
        if known is None:
            downs.append(down)
    starts = [sum(down.shape[0] for down in downs[:n]) for n in range(len(downs))]
    rank = sum(down.shape[0] for down in downs)
    ups = [
        times(_up(layer), factor) if folded else _up(layer)
        for (layer, _), factor in zip(pieces, scales, strict=True)
    ]
    up = ups[0].new_zeros(rows, rank, *ups[0].shape[2:], dtype=_widest(ups))
    for (_, at), part, column in zip(pieces, ups, columns, strict=True):
        up[at[0] : at[1], starts[column] : starts[column] + part.shape[1]] = part
    alpha = float(rank) if folded else scales[0] * rank
    return Lora(
        lora_up=up,
        lora_down=torch.cat([down.to(_widest(downs)) for down in downs]),
        lora_b_bias=_lora_biases(pieces, scales, rows, folded),
        diff_b=_biases(pieces, rows),
        dora_scale=_magnitudes(pieces, rows),
        alpha=alpha,
    )


def _lora_biases(
    pieces: Sequence[tuple[Lora, Rows]], scales: Sequence[float], rows: int, folded: bool
) -> Tensor | None:
    found = [
        (times(layer.lora_b_bias.flatten(), factor) if folded else layer.lora_b_bias.flatten(), at)
        for (layer, at), factor in zip(pieces, scales, strict=True)
        if layer.lora_b_bias is not None
    ]
    return _stacked(found, rows)


def _magnitudes(pieces: Sequence[tuple[Lora, Rows]], rows: int) -> Tensor | None:
    """The magnitudes of outputs; every row needs one, for a row without is not a row at its norm."""
    found = [(layer.dora_scale, at) for layer, at in pieces if layer.dora_scale is not None]
    if not found:
        return None
    covered = sum(stop - start for _, (start, stop) in found)
    of_inputs = any(part.numel() != at[1] - at[0] or tuple(part.shape[:1]) == (1,) for part, at in found)
    if covered != rows or of_inputs:
        raise _cannot_fuse(pieces[0][0], "a DoRA magnitude of the outputs for each of them, or none")
    return _stacked([(part.flatten(), at) for part, at in found], rows)


def _up(layer: Lora) -> Tensor:
    assert layer.lora_up is not None
    return layer.lora_up


def _down(layer: Lora) -> Tensor:
    assert layer.lora_down is not None
    return layer.lora_down


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def times(tensor: Tensor, factor: float) -> Tensor:
    """The tensor times a number, in its own dtype where that holds the product, else in float32."""
    return narrowed(tensor.double() * factor, tensor.dtype)
