"""Make layers for a dialect that splits or joins the adapter's layers.

One tool has a fused qkv layer where another has q, k and v. A layer to write is then cut out of one of the
adapter's layers, or joined from several.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import Sharing
from ..algorithms.checks import a_layer
from ..errors import LayerError, WriteError
from ..layers.fuse import fuse
from ..maths.shapes import Rows
from ..messages import phrase
from ..names.relation import LookedUp
from ..names.to_write import LayerToWrite
from ..reading.adapter import Adapter

NEAR = 1e-5
"""The largest allowed difference between a cut or joined layer and its sources, relative to their largest
change. It leaves room for the rounding of scales that are multiplied into factors, and is far below the
difference that a wrong row makes."""
HELD = 4
"""How many of the adapter's layers are kept in memory. Layers made from the same one, such as q, k and v,
follow each other, so few are enough."""


class Regrouper:
    """Makes the layers that are planned for another dialect out of an adapter's own."""

    def __init__(self, adapter: Adapter, looked_up: LookedUp) -> None:
        self._adapter = adapter
        self._shape_of = looked_up.shape_of
        # Decorated methods would keep this object, and its layers, alive.
        self._layer = lru_cache(maxsize=HELD)(self._read)
        self._change = lru_cache(maxsize=HELD)(self._change_of)

    def make(self, planned: LayerToWrite) -> Layer:
        """The layer to write. If it is cut or joined, check that it changes the model as its sources do.

        Raises LayerError where rows of a layer cannot be taken alone, or layers cannot be joined; WriteError
        where the check fails.
        """
        if planned.shape is None:
            return self._layer(planned.sources[0])
        rows = planned.shape[0]
        layer = self._cut(planned, rows) or self._fused(planned, rows)
        self._check(planned, layer)
        return layer

    def _read(self, name: str) -> Layer:
        # No dialect holds AdaLoRA's third factor, and few read a convolution's factors as matrices.
        return self._adapter.layer(name, keep=False).plain(self._shape_of(name))

    def _cut(self, planned: LayerToWrite, rows: int) -> Layer | None:
        """A layer made of some rows of one layer.

        None where several layers are needed, or where some rows stay unchanged: then see `_fused`.
        """
        if len(planned.sources) != 1:
            return None
        ranges = [piece.rows for piece in planned.pieces if piece.rows is not None]
        if sum(stop - start for start, stop in ranges) != rows:
            return None
        source = self._layer(planned.sources[0])
        layer = source.rows(*ranges)
        if _values(layer) > _values(source):
            raise LayerError(
                "E-kind-rows-not-small",
                algorithm=a_layer(source.algorithm),
                got=", ".join(phrase("R-rows", start=start, stop=stop) for start, stop in ranges),
            )
        return layer

    def _fused(self, planned: LayerToWrite, rows: int) -> Layer:
        """One layer with this number of rows, joined from several or with rows that it leaves unchanged."""
        pieces: list[tuple[Layer, Rows]] = []
        for piece in planned.pieces:
            source, every = self._layer(piece.layer), (0, self._shape_of(piece.layer)[0])
            start, stop = piece.rows or every
            cut = source if (start, stop) == every else source.rows((start, stop))
            if isinstance(cut, Sharing):
                cut = cut.alone((stop - start, *self._shape_of(piece.layer)[1:]))
            pieces.append((cut, (piece.at, piece.at + stop - start)))
        return fuse(pieces, rows)

    def _check(self, planned: LayerToWrite, layer: Layer) -> None:
        """Raise WriteError unless the layer changes weight and bias as its sources do."""
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
        change = layer.change(weight)
        own_delta = torch.zeros(planned.shape) if change.delta is None else change.delta
        own_bias = torch.zeros(planned.shape[0]) if change.bias is None else change.bias
        for ours, theirs in ((own_delta, wanted), (own_bias, bias)):
            error = (ours - theirs).abs().max().item()
            # In this form NaN fails too.
            if not error <= NEAR * theirs.abs().max().item():
                raise WriteError(
                    "E-internal-split-differs",
                    file=self._adapter.path,
                    key=planned.name,
                    error=f"{error:.2e}",
                    near=f"{NEAR:g}",
                    theirs=f"{theirs.abs().max().item():.2e}",
                )

    def _change_of(self, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """A weight to try a layer on, and the layer's change of that weight and of the bias."""
        layer, shape = self._layer(name), self._shape_of(name)
        # A weight of zeros needs no memory, but hides a change that depends on the weight.
        if layer.additive() is not None:
            weight = torch.zeros(1).expand(shape)
        else:
            weight = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
        change = layer.change(weight)
        return weight, torch.zeros(shape) if change.delta is None else change.delta, change.bias


def _values(layer: Layer) -> int:
    return sum(tensor.numel() for tensor in layer.tensors().values())
