"""Several layers joined into one: separate layers of q, k and v become the layer of a fused qkv weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from ..algorithms import ALGORITHMS, Layer
from ..algorithms.axes import ALPHA, DIFF_B, Join
from ..algorithms.checks import scale
from ..algorithms.factored import DORA, Factored
from ..errors import LayerError
from ..maths.shapes import Rows
from ..maths.tensors import promoted, times
from ..messages import either, phrase

Pieces = Sequence[tuple[Layer, Rows]]
"""Layers of one kind, each with the range of rows that it changes."""


def fuse(pieces: Pieces, rows: int) -> Layer:
    """One layer for a weight of `rows` rows, from layers that each change some of these rows.

    Rows in no range do not change. `Table.join` says which tensors are joined. In each product
    the right factors are stacked and the left factor is block-diagonal, so the ranks add up; layers with
    equal right factors share one. The two left factors of a LoHa have their zeros at the same places, so its
    change is the layers' changes, joined. All other tensors are stacked.

    Raises LayerError for layers of different kinds or of a kind that cannot be joined, for tensors and
    options that have no place in the result, and for layers of different inputs or with DoRA in some rows
    only.
    """
    pieces = [(layer.plain(), at) for layer, at in pieces]
    join = _join_of(pieces)
    first = pieces[0][0]
    fused: dict[str, Tensor | None] = dict.fromkeys(first.tensors())
    for name in (*join.rows, DIFF_B):
        fused[name] = _stacked(pieces, name, rows)
    if any(DORA in layer.tensors() for layer, _ in pieces):
        _check_magnitudes(pieces, rows)
        fused[DORA] = _stacked(pieces, DORA, rows)
    if not join.products:
        return replace(first, **fused, alpha=None)
    scales = [scale(layer.alpha, layer.rank or 1) for layer, _ in pieces]
    # A scale that all layers have in common stays in alpha: multiplied into a factor, it could round.
    folded = len(set(scales)) > 1
    if folded:
        # A change is scaled once, so the scale goes into one of the products.
        scaled = (join.products[0][0], *join.scaled)
        pieces = [(_times(layer, scaled, by), at) for (layer, at), by in zip(pieces, scales, strict=True)]
    for name in join.scaled:
        fused[name] = _stacked(pieces, name, rows)
    groups = _groups([[layer.tensors()[right] for _, right in join.products] for layer, _ in pieces])
    rank = 0
    for left, right in join.products:
        up, down = _joined(pieces, left, right, groups, rows)
        fused |= {left: up, right: down}
        rank = len(down)
    # Where the scales are in a factor already, alpha = rank gives the scale 1.
    return replace(first, **fused, alpha=float(rank) if folded else scales[0] * rank)


def _join_of(pieces: Pieces) -> Join:
    """How the layers are joined. Raises LayerError where they cannot be, or where something would be lost."""
    kind, join = type(pieces[0][0]), pieces[0][0].table.join
    for layer, _ in pieces:
        if join is None or type(layer) is not kind:
            able = [name for name, kind in ALGORITHMS.items() if kind.table.join is not None]
            raise _cannot_fuse(layer, f"layers of one kind, {either(able)}")
        held, factors = layer.tensors().keys(), {name for product in join.products for name in product}
        if lost := sorted(held - factors - {*join.rows, *join.scaled, DIFF_B, DORA}):
            raise _cannot_fuse(layer, f"layers without the tensors {', '.join(lost)}")
        for field in dataclasses.fields(layer):
            value = getattr(layer, field.name)
            plain = isinstance(value, Tensor) or value == field.default
            if not plain and field.name not in (ALPHA, *layer.chosen):
                raise _cannot_fuse(layer, f"layers without the option {field.name} = {value}")
    assert join is not None
    return join


def _cannot_fuse(layer: Layer, expected: str) -> LayerError:
    return LayerError(
        "E-kinds-not-joinable",
        got=layer.algorithm + (f" {phrase('R-dora')}" if DORA in layer.tensors() else ""),
        expected=expected,
    )


def _times(layer: Layer, names: Sequence[str], factor: float) -> Layer:
    held = layer.tensors()
    return layer.with_tensors({name: times(held[name], factor) for name in names if name in held})


def _stacked(pieces: Pieces, name: str, rows: int) -> Tensor | None:
    """The tensors of this name, stacked to `rows` rows, zero for layers without it; None if all lack it."""
    pieces_with_it = [(layer.tensors()[name], at) for layer, at in pieces if name in layer.tensors()]
    if not pieces_with_it:
        return None
    # A value for each output may be stored with further dimensions of size 1.
    if name in pieces[0][0].table.vectors:
        pieces_with_it = [(tensor.flatten(), at) for tensor, at in pieces_with_it]
    total = pieces_with_it[0][0].new_zeros(
        rows, *pieces_with_it[0][0].shape[1:], dtype=_widest([tensor for tensor, _ in pieces_with_it])
    )
    for factor, (start, stop) in pieces_with_it:
        total[start:stop] = factor
    return total


def _groups(rights: Sequence[Sequence[Tensor]]) -> list[int]:
    """A number from 0 for each layer, the same for layers with equal right factors.

    Layers cut from one layer have equal right factors. Joined again, they get its rank.
    """
    kept: list[Sequence[Tensor]] = []
    groups: list[int] = []
    for factors in rights:
        known = (n for n, other in enumerate(kept) if all(map(torch.equal, other, factors)))
        group = next(known, len(kept))
        groups.append(group)
        if group == len(kept):
            kept.append(factors)
    return groups


def _joined(pieces: Pieces, left: str, right: str, groups: Sequence[int], rows: int) -> tuple[Tensor, Tensor]:
    """The factors of one product of `rows` rows, from the factors of products for ranges of these rows.

    The left factors (O_n, r_n, ...) become the blocks of the new one. The right factors (r_n, ...) are
    stacked, one for each of the `groups`.
    """
    ups, downs = ([layer.tensors()[name] for layer, _ in pieces] for name in (left, right))
    if len({down.shape[1:] for down in downs}) > 1:
        raise LayerError("E-inputs-not-joinable", right=right)
    kept = [downs[groups.index(group)] for group in sorted(set(groups))]
    starts = [sum(len(down) for down in kept[:n]) for n in range(len(kept))]
    up = ups[0].new_zeros(rows, sum(map(len, kept)), *ups[0].shape[2:], dtype=_widest(ups))
    for (_, at), factor, group in zip(pieces, ups, groups, strict=True):
        up[at[0] : at[1], starts[group] : starts[group] + factor.shape[1]] = factor
    return up, torch.cat([down.to(_widest(kept)) for down in kept])


def _check_magnitudes(pieces: Pieces, rows: int) -> None:
    """Raise LayerError unless every row has a DoRA magnitude, by the same norm.

    A row without DoRA cannot get a magnitude: that would be the norm of W + delta, and W is not known.
    """
    layers = [layer for layer, _ in pieces if isinstance(layer, Factored)]
    if len({layer.dora for layer in layers}) > 1:
        raise _cannot_fuse(layers[0], "DoRA by one norm (`dora`) in all of the layers")
    magnitudes = [(layer.tensors()[DORA], at) for layer, at in pieces if DORA in layer.tensors()]
    covered = sum(stop - start for _, (start, stop) in magnitudes)
    # A magnitude (1, I, ...) is for inputs, whatever its size.
    of_inputs = any(
        magnitude.numel() != at[1] - at[0] or tuple(magnitude.shape[:1]) == (1,)
        for magnitude, at in magnitudes
    )
    if covered != rows or of_inputs:
        raise _cannot_fuse(layers[0], "a DoRA magnitude for the outputs of each of the layers, or of none")


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    return reduce(promoted, (tensor.dtype for tensor in tensors))
