"""A small transformer over the columns of a table that fills in missing cells, adapted to another part.

The table is of cut diamonds, from plotnine's wheel. Numbers are told as the bin that they lie in, by
quantiles of the whole table. The base knows the lighter half of the stones, the new ones are the heavier
half.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.harness.packages import Package

from ..bases import OwnBase
from ..networks import Block, positions
from ..task import Split

FILE = "plotnine/data/diamonds.csv"
DATA = Package(
    "plotnine", "0.15.9", {FILE: "9574730b03aba241d899c4a97511c5061b19358fab89510774fb6c24168345c4"}
)
NUMBERS = ("carat", "depth", "table", "price", "x", "y", "z")
KINDS = ("cut", "color", "clarity")
COLUMNS = (*NUMBERS, *KINDS)
SHARES = {"tune": 2000, "test": 4000}
"""Heavier stones that are held out; the others are for training."""
Masked = tuple[Tensor, Tensor]
"""The values (B, columns) of rows, and which of their cells are missing."""


class Columns(nn.Module):
    """The logits (B, columns, values) of each cell."""

    def __init__(self, width: int, depth: int, heads: int, values: int) -> None:
        super().__init__()
        self.values = values
        # A column's values have rows of their own; after all columns come those of missing cells.
        self.cells = nn.Embedding(len(COLUMNS) * (values + 1), width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.places = positions(len(COLUMNS), width)
        self.head = nn.Linear(width, values)

    def forward(self, values: Tensor, missing: Tensor) -> Tensor:
        rows = torch.where(missing, self.values, values)
        x = self.cells(rows + (self.values + 1) * torch.arange(len(COLUMNS), device=rows.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x) + self.places)


@dataclass(frozen=True)
class Table(OwnBase):
    name: str = "table"
    held_out_batches: Mapping[str, int] = field(default_factory=lambda: {"tune": 6, "test": 10}, hash=False)
    batch: int = 48
    missing: float = 0.4
    """The share of cells that are missing."""
    bins: int = 32
    width: int = 64
    depth: int = 3
    heads: int = 4
    base_steps: int = 1500
    base_batch: int = 64
    base_lr: float = 2e-3
    domain: str = "the heavier half"

    def recipe(self) -> tuple[object, Callable[[], nn.Module]]:
        shape = (self.width, self.depth, self.heads, self.bins)
        recipe = (shape, self.missing, self.base_steps, self.base_batch, self.base_lr, DATA.version)
        return recipe, lambda: Columns(*shape)

    def batches(self, seed: int, split: Split) -> Iterator[Masked]:
        rows = _stones(self.bins)[1]
        held = sum(SHARES.values())
        here = {
            "tune": slice(SHARES["tune"]),
            "test": slice(SHARES["tune"], held),
            "train": slice(held, None),
        }
        return self._masked(rows[here[split]], self.batch if split == "train" else 4 * self.batch, seed)

    def base_batches(self) -> Iterator[Masked]:
        return self._masked(_stones(self.bins)[0], self.base_batch, 0)

    def loss(self, module: nn.Module, batch: Masked) -> Tensor:
        values, missing = batch
        return functional.cross_entropy(module(values, missing)[missing], values[missing])

    def _masked(self, rows: Tensor, count: int, seed: int) -> Iterator[Masked]:
        draw = torch.Generator().manual_seed(seed)
        while True:
            values = rows[torch.randint(len(rows), (count,), generator=draw)]
            yield values, torch.rand(values.shape, generator=draw) < self.missing


@functools.cache
def _stones(bins: int) -> tuple[Tensor, Tensor]:
    """The values of the lighter stones and of the heavier ones, in an order that is the same every time."""
    with DATA.file(FILE).open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    columns: list[Tensor] = []
    for name in NUMBERS:
        numbers = torch.tensor([float(row[name]) for row in table], dtype=torch.float64)
        edges = numbers.quantile(torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1])
        columns.append(torch.bucketize(numbers, edges))
    for name in KINDS:
        known = {kind: number for number, kind in enumerate(sorted({row[name] for row in table}))}
        columns.append(torch.tensor([known[row[name]] for row in table]))
    rows = torch.stack(columns, 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([float(row["carat"]) for row in table])[order]
    light = weights <= weights.median()
    return rows[order][light], rows[order][~light]
