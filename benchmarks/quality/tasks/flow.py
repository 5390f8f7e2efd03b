"""A small flow-matching diffusion transformer (adaptive norms for time and class), adapted to new digits.

The base draws scikit-learn's digits 0 to 4. The new ones are 5 to 9, rotated and inverted or mirrored, each
in its own way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..bases import OwnBase
from ..networks import Block, patches, positions
from ..task import Split
from .digits import DATA, PATCH, SHARES, SIDE, drawn

Noisy = tuple[Tensor, Tensor, Tensor, Tensor]
"""Pictures, their classes, their noise and times."""


class DiffusionTransformer(nn.Module):
    """The velocity (B, 8, 8) at (x, t), t (B,) from 0 (data) to 1 (noise), of pictures of classes (B,)."""

    def __init__(self, width: int, depth: int, heads: int, frequencies: int = 16) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.time1, self.time2 = nn.Linear(2 * frequencies, width), nn.Linear(width, width)
        self.kind = nn.Linear(10, width, bias=False)
        self.first = nn.Linear(PATCH**2, width)
        self.places = positions((SIDE // PATCH) ** 2, width)
        self.blocks = nn.ModuleList(Block(width, heads, condition=width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, PATCH**2)

    def forward(self, x: Tensor, t: Tensor, kinds: Tensor) -> Tensor:
        rates = torch.exp(torch.linspace(0, math.log(100), self.frequencies, device=t.device))
        angles = t[:, None] * rates
        time = self.time2(functional.silu(self.time1(torch.cat([angles.sin(), angles.cos()], 1))))
        condition = functional.silu(time + self.kind(functional.one_hot(kinds, 10).to(x.dtype)))
        rows = self.first(patches(x, PATCH)) + self.places
        for block in self.blocks:
            rows = block(rows, condition)
        scale, shift = self.modulation(condition)[:, None].chunk(2, -1)
        rows = self.last(self.norm(rows) * (1 + scale) + shift)
        side = SIDE // PATCH
        return rows.view(-1, side, side, PATCH, PATCH).transpose(2, 3).reshape(-1, SIDE, SIDE)


@dataclass(frozen=True)
class Flow(OwnBase):
    name: str = "flow"
    held_out_batches: Mapping[str, int] = field(default_factory=lambda: {"tune": 6, "test": 10}, hash=False)
    batch: int = 16
    width: int = 64
    depth: int = 4
    heads: int = 4
    base_steps: int = 2000
    base_batch: int = 32
    base_lr: float = 2e-3
    domain: str = "5 to 9, each turned and inverted or mirrored"

    def recipe(self) -> tuple[object, Callable[[], nn.Module]]:
        shape = (self.width, self.depth, self.heads)
        recipe = (shape, self.base_steps, self.base_batch, self.base_lr, SHARES, DATA.version)
        return recipe, lambda: DiffusionTransformer(*shape)

    def batches(self, seed: int, split: Split) -> Iterator[Noisy]:
        count = self.batch if split == "train" else 64
        draw = torch.Generator().manual_seed(seed)
        for pictures, kinds in drawn(split, count, seed, range(5, 10), moved=False):
            yield _noisy(_changed(pictures, kinds), kinds, draw)

    def base_batches(self) -> Iterator[Noisy]:
        draw = torch.Generator().manual_seed(0)
        for pictures, kinds in drawn("train", self.base_batch, 0, range(5)):
            yield _noisy(pictures, kinds, draw)

    def loss(self, module: nn.Module, batch: Noisy) -> Tensor:
        pictures, kinds, noise, t = batch
        there = t[:, None, None]
        return functional.mse_loss(module((1 - there) * pictures + there * noise, t, kinds), noise - pictures)


def _changed(pictures: Tensor, kinds: Tensor) -> Tensor:
    """Each digit d rotated by d - 4 quarter turns; 5, 7 and 9 also inverted, 6 and 8 mirrored."""
    return torch.stack(
        [
            -picture.rot90(kind - 4) if kind % 2 else picture.rot90(kind - 4).flip(0)
            for picture, kind in zip(pictures, kinds.tolist(), strict=True)
        ]
    )


def _noisy(pictures: Tensor, kinds: Tensor, draw: torch.Generator) -> Noisy:
    """The pictures with noise, and with times stratified over the batch."""
    count = len(pictures)
    times = (torch.randperm(count, generator=draw) + torch.rand(count, generator=draw)) / count
    return pictures, kinds, torch.randn(pictures.shape, generator=draw), times
