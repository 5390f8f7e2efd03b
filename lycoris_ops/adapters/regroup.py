"""An adapter's layers with the rows that another dialect has: parts of them, or several as one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from ..algorithms import Layer
from ..errors import WriteError
from ..layers.fuse import fuse
from ..maths.shapes import Rows, Shape
from ..names.targets import Targets
from ..names.written import Planned
from .adapter import Adapter

NEAR = 1e-5
"""How far a layer of other rows may be from the layers it is made of, as a share of their change: some
roundings of the scales that are multiplied into factors, and far below any wrong row."""
HELD = 4
"""Layers that are kept while what they are cut into is made: those of q, k and v follow each other."""


class Regrouper:
    """Makes the layers that are planned for another dialect out of an adapter's own."""

    def __init__(self, adapter: Adapter, targets: Targets | None) -> None:
        self._adapter = adapter
        self._shapes: Mapping[str, Shape] = {} if targets is None else _source_shapes(adapter, targets)
        self._layer = lru_cache(maxsize=HELD)(self._read)
        self._change = lru_cache(maxsize=HELD)(self._change_of)

    def make(self, planned: Planned) -> Layer:
        """The layer to write, changing a weight as those do that it is made of.

        Raises LayerError where its rows cannot be taken alone, or not be made one.
        """
        if planned.shape is None:
            return self._layer(planned.sources[0])
        rows = planned.shape[0]
        made = self._cut(planned, rows) or self._fused(planned, rows)
        self._check(planned, made)
        return made

    def _read(self, name: str) -> Layer:
        return self._adapter.layer(name, keep=False)

    def _cut(self, planned: Planned, rows: int) -> Layer | None:
        """Rows of one layer; None where there are several, or rows that no layer changes."""
        if len(planned.sources) != 1:
            return None
        ranges = [piece.rows for piece in planned.pieces if piece.rows is not None]
        if sum(stop - start for start, stop in ranges) != rows:
            return None
        made = self._layer(planned.sources[0]).rows(*ranges)
        # Raises where no tensor of a file would tell these rows.
        made.dump()
        return made

    def _fused(self, planned: Planned, rows: int) -> Layer:
        pieces: list[tuple[Layer, Rows]] = []
        for piece in planned.pieces:
            source, whole = self._layer(piece.layer), (0, self._shapes[piece.layer][0])
            start, stop = piece.rows or whole
            part = source if (start, stop) == whole else source.rows((start, stop))
            pieces.append((part, (piece.at, piece.at + stop - start)))
        return fuse(pieces, rows)

    def _check(self, planned: Planned, made: Layer) -> None:
        """Raise WriteError unless the layer changes a weight as those that it is made of."""
        assert planned.shape is not None
        weight = torch.zeros(planned.shape)
        wanted = torch.zeros(planned.shape)
        bias = torch.zeros(planned.shape[0])
        for piece in planned.pieces:
            met, delta, beside = self._change(piece.layer)
            start, stop = piece.rows or (0, len(met))
            here = slice(piece.at, piece.at + stop - start)
            weight[here] = met[start:stop].reshape(weight[here].shape)
            wanted[here] = delta[start:stop].reshape(weight[here].shape)
            if beside is not None:
                bias[here] = beside[start:stop]
        change = made.change(weight)
        found = torch.zeros(planned.shape) if change.delta is None else change.delta
        own_bias = torch.zeros(planned.shape[0]) if change.bias is None else change.bias
        for ours, theirs in ((found, wanted), (own_bias, bias)):
            error = (ours - theirs).abs().max().item()
            if not error <= NEAR * theirs.abs().max().item():
                raise WriteError(
                    "an internal check failed: the split or joined layer differs from its source",
                    file=self._adapter.path,
                    key=planned.name,
                    got=f"an error of {error:.2e}",
                    expected=f"at most {NEAR:g} of {theirs.abs().max().item():.2e}",
                    hint="Please report this; nothing was written",
                )

    def _change_of(self, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """A weight for one of the adapter's layers, and its change of that and of the bias."""
        layer, shape = self._layer(name), self._shapes[name]
        if layer.additive() is not None:
            weight = torch.zeros(1).expand(shape)
        else:
            weight = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
        change = layer.change(weight)
        return weight, torch.zeros(shape) if change.delta is None else change.delta, change.bias


def _source_shapes(adapter: Adapter, targets: Targets) -> Mapping[str, Shape]:
    """The shape of the weight, or of the rows of weights, that each layer meets."""
    found = {name: targets.find(name)[:1] for name in adapter.info}
    shapes = {name: targets.shape_of(*places[0]) for name, places in found.items() if places}
    return {name: shape for name, shape in shapes.items() if shape}
