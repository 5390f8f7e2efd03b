"""Measure the changes of a stack's adapters, layer by layer and against each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from ..algorithms.fitting import Delta
from ..errors import LycorisError, located
from ..files.quantised import Codec
from ..files.weights import ModelSource, weights_of
from ..files.writing import Progress
from ..fit.engine import Steps
from ..maths.tensors import energy_of, fetched, wide
from ..merge.deltas import ROWS, Deltas
from ..merge.matching import Matched
from ..names.blocks import Blocks, block_in_path, kind_in_path
from ..names.layer_name import LayerName
from ..names.targets import Targets
from ..reading.adapter import Adapter
from ..stack.stack import Entry, Stack

SPECTRUM = 256
"""How many singular values of a change are kept at most. Norms count all of them."""
KINDS = ("attn", "mlp", "conv", "norm")
"""The kinds of layers in a block. Any other layer is `other`."""
ENOUGH = 0.99
"""A rank that keeps this share of the energy is enough."""


@dataclass(frozen=True)
class LayerMeasure:
    """One adapter's change D to one weight W, at the adapter's strength w."""

    layer: str
    """The layer's name in the file."""
    block: str
    kind: str
    """The layer's kind in its block: one of KINDS, or `other`."""
    entry: int
    """The adapter's index in the stack."""
    algorithm: str
    rank: int | None
    """The rank of the factors in the file; None where nothing is factored."""
    strength: float
    norm: float
    """||w D||, the Frobenius norm."""
    largest: float
    """The largest singular value of w D."""
    spectrum: tuple[float, ...]
    """The singular values of D, at most SPECTRUM of them, as shares of the largest one."""
    weight: float | None
    """||W|| of the base weight; None without a base."""

    @property
    def relative(self) -> float | None:
        """||w D|| / ||W||; None without a base."""
        return self.norm / self.weight if self.weight else None

    @property
    def effective(self) -> float:
        """The effective rank (sum of s^2)^2 / sum of s^4; 0 for no change."""
        squares = [value * value for value in self.spectrum]
        fourth = math.fsum(value * value for value in squares)
        return math.fsum(squares) ** 2 / fourth if fourth else 0.0

    def kept(self, ranks: int) -> list[float]:
        """The shares of the energy that the ranks 1 to `ranks` keep."""
        shares = list(accumulate(value * value for value in self.spectrum)) or [1.0]
        return [shares[min(rank, len(shares) - 1)] / shares[-1] for rank in range(ranks)]

    def rank_of(self, share: float) -> int:
        """The lowest rank that keeps this share of the energy."""
        kept = self.kept(len(self.spectrum))
        return next((rank for rank, own in enumerate(kept, 1) if own >= share * (1 - 1e-9)), len(kept))


@dataclass(frozen=True)
class Examination:
    """The measures of a stack's adapters, alone and together."""

    entries: tuple[Entry, ...]
    layers: tuple[LayerMeasure, ...]
    blocks: tuple[str, ...]
    """The changed blocks in the model's order; without a base, in the adapters'."""
    products: Mapping[str, Tensor]
    """For each block, the inner products <w_i D_i, w_j D_j> of T adapters, summed over the block's weights:
    (T, T) in float64."""
    conflicts: Mapping[str, tuple[Tensor, Tensor]]
    """How many values both adapters of a pair change, and how many of these they change in opposite
    directions: two matrices (T, T) for each block with a weight that several adapters change. Empty if
    `signs` of `examine` was off."""
    left_out: Mapping[str, str]
    """Layers that the base has no weight for, with the reasons."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.entries)

    def enough(self, entry: int) -> int | None:
        """The lowest rank that is enough for nine in ten layers (see ENOUGH); None if it changes nothing."""
        own = [layer for layer in self.layers if layer.entry == entry and layer.spectrum]
        ranks = sorted(layer.rank_of(ENOUGH) for layer in own)
        return ranks[math.ceil(0.9 * len(ranks)) - 1] if ranks else None

    def total(self) -> Tensor:
        """<w_i D_i, w_j D_j> over all blocks, (T, T)."""
        count = len(self.entries)
        return sum(self.products.values(), torch.zeros(count, count, dtype=torch.float64))

    def cosines(self, block: str | None = None) -> Tensor:
        """The cosines of all pairs of changes (T, T), in one block or over all; 0 where one changes nothing.

        The products of several weights are added up, as if all weights were one long vector.
        """
        gram = self.total() if block is None else self.products[block]
        norms = gram.diagonal().clamp(min=0).sqrt()
        sizes = norms[:, None] * norms[None]
        return torch.where(sizes > 0, gram / sizes.clamp(min=1e-300), 0.0)

    def disagreement(self) -> Tensor:
        """The share of opposite changes among the values that both adapters of a pair change, (T, T).

        Unrelated changes give one half. In general expect arccos(cosine) / pi.
        """
        both = sum((changed for changed, _ in self.conflicts.values()), torch.zeros_like(self.total()))
        opposite = sum((opposed for _, opposed in self.conflicts.values()), torch.zeros_like(self.total()))
        return torch.where(both > 0, opposite / both.clamp(min=1), 0.0)

    def norms(self, entry: int) -> dict[str, float]:
        """||w D|| of one adapter in each block: the root of the sum of squares over its weights."""
        return {
            block: math.sqrt(max(float(gram[entry, entry]), 0.0)) for block, gram in self.products.items()
        }

    def keeping(self) -> float:
        """The factor on all strengths that makes the sum as large as the largest single change.

        max ||w_i D_i|| / ||sum of w_i D_i||, or 1 if the sum is zero.
        """
        gram = self.total()
        size = math.sqrt(max(float(gram.sum()), 0.0))
        largest = math.sqrt(max(0.0, float(gram.diagonal().max()))) if len(gram) else 0.0
        return largest / size if size > 0 else 1.0


def examine(
    adapters: Stack | Iterable[tuple[Adapter, float]],
    *,
    base: ModelSource | None = None,
    signs: bool = True,
    device: torch.device | str = "cpu",
    codec: Codec | None = None,
    progress: Progress | None = None,
) -> Examination:
    """Measure what the adapters of a stack change, each alone and all against each other.

    Inner products are float64 sums over the factors, so it does not matter how an adapter divides the size of
    a change between its factors. `base` is the model, as in `merge_adapters`. With it changes are compared to
    the weights, blocks are the model's own, and kinds that depend on the weight can be measured. `signs` also
    compares the signs of single values; this forms every change in full. `progress` is called with the number
    of weights done.

    Raises as `merge_adapters` does.
    """
    stack = adapters if isinstance(adapters, Stack) else Stack(Entry(*pair) for pair in adapters)
    entries = [entry for entry in stack if not entry.off]
    if not entries:
        raise LycorisError("E-nothing-to-inspect")
    weights = None if base is None else weights_of(base, codec)
    return _Examining(Matched(entries, weights), signs, device).run(progress)


@dataclass
class _Examining:
    matched: Matched
    signs: bool
    device: torch.device | str
    layers: list[LayerMeasure] = field(default_factory=list[LayerMeasure])
    products: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    conflicts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict[str, tuple[Tensor, Tensor]])

    def __post_init__(self) -> None:
        self.entries, self.base = self.matched.entries, self.matched.base

    @cached_property
    def blocks(self) -> Blocks | None:
        return None if self.base is None else Blocks(Targets(self.base.shapes))

    def run(self, progress: Progress | None) -> Examination:
        steps = Steps(progress, len(self.matched.layers))
        for name in self.matched.layers:
            with located(key=name):
                deltas = self.matched.deltas(name, "weight", 0, self.device, steps.pause)
                if deltas is not None:
                    self._add(deltas)
            steps.step()
        order = list(self.products)
        if self.blocks is not None:
            model = self.blocks.positions
            order.sort(key=lambda name: model.get(name, len(model)))
        return Examination(
            tuple(self.entries),
            tuple(self.layers),
            tuple(order),
            {block: self.products[block] for block in order},
            {block: self.conflicts[block] for block in order if block in self.conflicts},
            self.matched.left_out,
        )

    def _add(self, deltas: Deltas) -> None:
        block, kind = self._named(deltas.layer)
        layers = self.matched.changing(deltas.layer, "weight")
        index = torch.tensor(deltas.entries)
        strengths = torch.tensor(deltas.strengths, dtype=torch.float64)
        count = len(self.entries)
        gram = self.products.setdefault(block, torch.zeros(count, count, dtype=torch.float64))
        own = deltas.gram() * strengths[:, None] * strengths[None]
        gram[index[:, None], index[None]] += own
        weight = self._weight(deltas.layer)
        for at, entry in enumerate(deltas.entries):
            most = min(SPECTRUM, *deltas.shape)
            delta = Delta(
                deltas.forms[at], deltas.shape, largest=most, device=deltas.device, pause=deltas.pause
            )
            values = [float(value) for value in delta.triples[1]]
            largest = values[0] if values else 0.0
            layer = layers[entry][0].layer
            info = self.entries[entry].adapter.info[layer]
            self.layers.append(
                LayerMeasure(
                    layer,
                    block,
                    kind,
                    entry,
                    info.algorithm.algorithm,
                    info.rank,
                    deltas.strengths[at],
                    math.sqrt(max(float(own[at, at]), 0.0)),
                    abs(deltas.strengths[at]) * largest,
                    tuple(value / largest for value in values) if largest else (),
                    weight,
                )
            )
        if self.signs and deltas.count > 1:
            self._count_signs(block, index, deltas)

    def _count_signs(self, block: str, index: Tensor, deltas: Deltas) -> None:
        count = len(self.entries)
        both, opposite = self.conflicts.setdefault(
            block,
            (torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.float64)),
        )
        changes = [delta.sign() for delta in deltas.weighted()]
        for start in range(0, deltas.shape[0], ROWS):
            deltas.pause()
            rows = wide(torch.stack([signs[start : start + ROWS].flatten() for signs in changes]))
            changed = rows.abs()
            products, counts = fetched(rows @ rows.T, changed @ changed.T)
            both[index[:, None], index[None]] += counts
            opposite[index[:, None], index[None]] += (counts - products) / 2

    def _weight(self, name: str) -> float | None:
        if self.base is None:
            return None
        return math.sqrt(energy_of(self.base.read(self.matched.target(name).key)))

    def _named(self, name: str) -> tuple[str, str]:
        """The block of a weight, and its kind: one of KINDS, or `other`."""
        if self.blocks is not None:
            named = self.blocks.of(self.matched.target(name))
            return named.block, next((kind for kind in KINDS if kind in named.names), "other")
        layer = LayerName.of(name)
        block = block_in_path(layer.path) or layer.component or layer.path
        return block, kind_in_path(layer.path) or "other"
