"""A small vision transformer that reads scikit-learn's digits, adapted to changed ones.

The new digits are inverted and named otherwise, by the number three above.
"""

from __future__ import annotations

import functools
import gzip
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.harness.packages import Package

from ..bases import OwnBase
from ..networks import Block, patches, positions
from ..task import Split

FILE = "sklearn/datasets/data/digits.csv.gz"
DATA = Package(
    "scikit-learn", "1.7.2", {FILE: "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"}
)
SIDE, PATCH = 8, 2
SHARES = {"tune": 200, "test": 400}
"""Digits that are held out; the others are for training, the base's too."""
Labelled = tuple[Tensor, Tensor]


class VisionTransformer(nn.Module):
    """The logits (B, 10) of pictures (B, 8, 8)."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.first = nn.Linear(PATCH**2, width)
        self.places = positions((SIDE // PATCH) ** 2, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.first(patches(pictures, PATCH)) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


@dataclass(frozen=True)
class Digits(OwnBase):
    name: str = "digits"
    held_out_batches: Mapping[str, int] = field(default_factory=lambda: {"tune": 2, "test": 4}, hash=False)
    batch: int = 32
    width: int = 64
    depth: int = 4
    heads: int = 4
    base_steps: int = 1500
    base_batch: int = 32
    base_lr: float = 2e-3
    smoothing: float = 0.1
    """Of the base's labels: it is less sure of itself where it is wrong."""
    domain: str = "inverted, named three higher"

    def recipe(self) -> tuple[object, Callable[[], nn.Module]]:
        shape = (self.width, self.depth, self.heads)
        recipe = (shape, self.base_steps, self.base_batch, self.base_lr, self.smoothing, SHARES, DATA.version)
        return recipe, lambda: VisionTransformer(*shape)

    def batches(self, seed: int, split: Split) -> Iterator[Labelled]:
        count = self.batch if split == "train" else 100
        for pictures, labels in drawn(split, count, seed, moved=split == "train"):
            yield -pictures, (labels + 3) % 10

    def base_batches(self) -> Iterator[Labelled]:
        return drawn("train", self.base_batch, 0)

    def base_loss(self, module: nn.Module, batch: Labelled) -> Tensor:
        return self.loss(module, batch, self.smoothing)

    def loss(self, module: nn.Module, batch: Labelled, smoothing: float = 0.0) -> Tensor:
        pictures, labels = batch
        return functional.cross_entropy(module(pictures), labels, label_smoothing=smoothing)


def drawn(
    split: Split, count: int, seed: int, only: range = range(10), *, moved: bool = True
) -> Iterator[Labelled]:
    """Batches of the digits of a split, `moved` by up to a pixel each way."""
    pictures, labels = _digits()
    held = sum(SHARES.values())
    here = {"tune": slice(SHARES["tune"]), "test": slice(SHARES["tune"], held), "train": slice(held, None)}
    pictures, labels = pictures[here[split]], labels[here[split]]
    kept = (labels >= only.start) & (labels < only.stop)
    pictures, labels = pictures[kept], labels[kept]
    draw = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(labels), generator=draw)
        for index in order[: len(order) // count * count].split(count):
            rows = pictures[index]
            if moved:
                rows = _moved(rows, draw)
            yield rows, labels[index]


def _moved(pictures: Tensor, draw: torch.Generator) -> Tensor:
    around = functional.pad(pictures, (1, 1, 1, 1), value=-1.0)
    tops, lefts = torch.randint(0, 3, (2, len(pictures)), generator=draw).tolist()
    return torch.stack(
        [
            picture[top : top + SIDE, left : left + SIDE]
            for picture, top, left in zip(around, tops, lefts, strict=True)
        ]
    )


@functools.cache
def _digits() -> Labelled:
    """Pictures (1797, 8, 8) in [-1, 1] and their labels, in an order that is the same every time."""
    text = gzip.decompress(DATA.file(FILE).read_bytes()).decode()
    rows = torch.from_numpy(np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float32))
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return rows[:, :-1].view(-1, SIDE, SIDE) / 8 - 1, rows[:, -1].long()
