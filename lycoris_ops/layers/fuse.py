"""Several layers joined into one: separate layers of q, k and v become the layer of a fused qkv weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.checks import scale
from ..algorithms.factored import Factored
from ..algorithms.full import Full
from ..algorithms.loha import Loha
from ..algorithms.lora import Lora
from ..errors import LayerError
from ..maths.shapes import Rows
from ..maths.tensors import promoted, times


def fuse(pieces: Sequence[tuple[Layer, Rows]], rows: int) -> Layer:
    """One layer for a weight of `rows` rows, from layers that each change some of these rows.

    `pieces` has each layer with its range of rows. Rows in no range do not change. LoRA: the down factors
    stand one below the other and up is block-diagonal, so that the rank is the sum of the ranks; layers
    with equal down factors share one. LoHa: the same for each of its two products, w?_b as down and w?_a as
    up; since both w?_a have zeros at the same places, the product of the two is that of the layers. Full
    differences stand one below the other.

    Raises LayerError for other kinds and for layers that cannot be joined: LoRA and LoHa with a Tucker core,
    a sparse remainder, `reshape_weight`, other inputs than the rest or DoRA in some rows only, and
    `set_weight`.
    """
    # The values of AdaLoRA are a part of its down factor: a LoRA has no place for them.
    pieces = [(layer.undiagonal() if isinstance(layer, Lora) else layer, at) for layer, at in pieces]
    layers = [layer for layer, _ in pieces]
    for layer in layers:
        if layer.set_bias is not None:
            raise _cannot_fuse(layer, "layers that change the bias, and do not set its values")
        if isinstance(layer, Lora) and layer.start is not None:
            raise _cannot_fuse(layer, f"LoRA without a start ({layer.start}) in the base weight")
    if all(isinstance(layer, Full) for layer in layers):
        return _fuse_full([(layer, at) for layer, at in pieces if isinstance(layer, Full)], rows)
    if all(isinstance(layer, Loha) for layer in layers):
        return _fuse_loha([(layer, at) for layer, at in pieces if isinstance(layer, Loha)], rows)
    for layer in layers:
        if not isinstance(layer, Lora) or layer.lora_up is None or layer.lora_mid is not None:
            raise _cannot_fuse(layer, "LoRA or LoHa without a Tucker core, or full differences")
        if layer.bias_size is not None or layer.reshape_weight is not None:
            raise _cannot_fuse(layer, "LoRA without a sparse remainder (bias_indices) or a reshape_weight")
    return _fuse_lora([(layer, at) for layer, at in pieces if isinstance(layer, Lora)], rows)


def _cannot_fuse(layer: Layer, expected: str) -> LayerError:
    return LayerError(
        "layers of this kind cannot be joined into one layer",
        got=layer.algorithm + (" with DoRA" if getattr(layer, "dora_scale", None) is not None else ""),
        expected=expected,
    )


def _fuse_full(pieces: Sequence[tuple[Full, Rows]], rows: int) -> Full:
    if any(layer.set_weight is not None for layer, _ in pieces):
        raise LayerError(
            "layers that set a weight's values cannot be joined into one layer", got="set_weight"
        )
    diffs = [(layer.diff, at) for layer, at in pieces if layer.diff is not None]
    return Full(diff=_stacked(diffs, rows), diff_b=_biases(pieces, rows))


def _biases(pieces: Sequence[tuple[Layer, Rows]], rows: int) -> Tensor | None:
    found = [(layer.diff_b.flatten(), at) for layer, at in pieces if layer.diff_b is not None]
    return _stacked(found, rows)


def _stacked(parts: Sequence[tuple[Tensor, Rows]], rows: int) -> Tensor | None:
    """One tensor of `rows` rows with each part at its range, zero elsewhere; None where there is no part."""
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
        raise LayerError(
            "layers of different inputs cannot be joined into one layer",
            got="down factors of different shapes",
        )
    # A scale that all layers have in common stays in alpha: multiplied into up, it could round.
    folded = len(set(scales)) > 1
    ups = [
        times(_up(layer), factor) if folded else _up(layer)
        for (layer, _), factor in zip(pieces, scales, strict=True)
    ]
    downs = [_down(layer) for layer, _ in pieces]
    up, down = _joined(ups, downs, _groups([(down,) for down in downs]), [at for _, at in pieces], rows)
    rank = down.shape[0]
    # Where the scales are in up already, alpha = rank gives the scale 1.
    alpha = float(rank) if folded else scales[0] * rank
    return Lora(
        lora_up=up,
        lora_down=down,
        lora_b_bias=_lora_biases(pieces, scales, rows, folded),
        diff_b=_biases(pieces, rows),
        dora_scale=_magnitudes(pieces, rows),
        dora=pieces[0][0].dora,
        alpha=alpha,
    )


def _fuse_loha(pieces: Sequence[tuple[Loha, Rows]], rows: int) -> Loha:
    for layer, _ in pieces:
        if layer.hada_t1 is not None:
            raise _cannot_fuse(layer, "LoHa without a Tucker core")
        if layer.bias_size is not None:
            raise _cannot_fuse(layer, "LoHa without a sparse remainder (bias_indices)")
    if len({tuple(layer.hada_w1_b.shape[1:]) for layer, _ in pieces}) > 1:
        raise LayerError(
            "layers of different inputs cannot be joined into one layer",
            got="hada_w1_b of different shapes",
        )
    scales = [scale(layer.alpha, layer.hada_w1_b.shape[0]) for layer, _ in pieces]
    folded = len(set(scales)) > 1
    # A change is scaled once, so the scale goes into one of the two products.
    left = [
        (times(layer.hada_w1_a, factor) if folded else layer.hada_w1_a).flatten(1)
        for (layer, _), factor in zip(pieces, scales, strict=True)
    ]
    first = [layer.hada_w1_b for layer, _ in pieces]
    second = [layer.hada_w2_b.flatten(1) for layer, _ in pieces]
    groups, ranges = _groups(list(zip(first, second, strict=True))), [at for _, at in pieces]
    w1_a, w1_b = _joined(left, first, groups, ranges, rows)
    w2_a, w2_b = _joined([layer.hada_w2_a.flatten(1) for layer, _ in pieces], second, groups, ranges, rows)
    rank = w1_b.shape[0]
    return Loha(
        hada_w1_a=w1_a,
        hada_w1_b=w1_b,
        hada_w2_a=w2_a,
        hada_w2_b=w2_b,
        diff_b=_biases(pieces, rows),
        dora_scale=_magnitudes(pieces, rows),
        dora=pieces[0][0].dora,
        alpha=float(rank) if folded else scales[0] * rank,
    )


def _groups(downs: Sequence[tuple[Tensor, ...]]) -> list[int]:
    """A number from 0 for each layer, the same for layers with equal factors.

    Layers that were cut from one have equal factors: joined again, they get its rank.
    """
    kept: list[tuple[Tensor, ...]] = []
    groups: list[int] = []
    for factors in downs:
        known = (n for n, other in enumerate(kept) if all(map(torch.equal, other, factors)))
        group = next(known, len(kept))
        groups.append(group)
        if group == len(kept):
            kept.append(factors)
    return groups


def _joined(
    ups: Sequence[Tensor], downs: Sequence[Tensor], groups: Sequence[int], ranges: Sequence[Rows], rows: int
) -> tuple[Tensor, Tensor]:
    """The factors of one product of `rows` rows, from those of products that each have a range of them.

    ups: (O_n, r_n, ...) each, which become the blocks of the first factor. downs: (r_n, ...) each, one below
    the other in the second, once for each of the `groups`.
    """
    kept = [downs[groups.index(group)] for group in sorted(set(groups))]
    starts = [sum(down.shape[0] for down in kept[:n]) for n in range(len(kept))]
    rank = sum(down.shape[0] for down in kept)
    up = ups[0].new_zeros(rows, rank, *ups[0].shape[2:], dtype=_widest(ups))
    for at, part, group in zip(ranges, ups, groups, strict=True):
        up[at[0] : at[1], starts[group] : starts[group] + part.shape[1]] = part
    return up, torch.cat([down.to(_widest(kept)) for down in kept])


def _lora_biases(
    pieces: Sequence[tuple[Lora, Rows]], scales: Sequence[float], rows: int, folded: bool
) -> Tensor | None:
    found = [
        (times(layer.lora_b_bias.flatten(), factor) if folded else layer.lora_b_bias.flatten(), at)
        for (layer, at), factor in zip(pieces, scales, strict=True)
        if layer.lora_b_bias is not None
    ]
    return _stacked(found, rows)


def _magnitudes(pieces: Sequence[tuple[Factored, Rows]], rows: int) -> Tensor | None:
    """The DoRA magnitudes (rows,) of all layers; None where no layer has one.

    Raises LayerError unless every row has one, by the same norm. No magnitude stands for a row without DoRA:
    it would have to be the norm of W + delta, and W is not known.
    """
    found = [(layer.dora_scale, at) for layer, at in pieces if layer.dora_scale is not None]
    if not found:
        return None
    if len({layer.dora for layer, _ in pieces}) > 1:
        raise _cannot_fuse(pieces[0][0], "DoRA by one norm (`dora`) in all of the layers")
    covered = sum(stop - start for _, (start, stop) in found)
    # A magnitude (1, I, ...) is for inputs, whatever its size.
    of_inputs = any(part.numel() != at[1] - at[0] or tuple(part.shape[:1]) == (1,) for part, at in found)
    if covered != rows or of_inputs:
        raise _cannot_fuse(pieces[0][0], "a DoRA magnitude for the outputs of each of the layers, or of none")
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
        dtype = promoted(dtype, tensor.dtype)
    return dtype
