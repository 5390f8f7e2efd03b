"""A network of 1-D convolutions that predicts the next sample of a tone, adapted to other instruments.

Tones are made by a seeded recipe. The base knows plucked strings: one to three notes with harmonic overtones,
which die away. The new ones are bells and glides. Bells are tones by frequency modulation at ratios that are
not whole; in glides the pitch rises or falls, and the loudness trembles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..bases import OwnBase
from ..task import FIXED, Split

RATE = 8000
"""Samples per second."""


class Gated(nn.Module):
    """A causal convolution with a gate, which is added to its input (as in WaveNet)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.before = dilation
        self.conv = nn.Conv1d(channels, 2 * channels, 2, dilation=dilation)
        self.out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv(functional.pad(x, (self.before, 0))).chunk(2, 1)
        return x + self.out(value.tanh() * gate.sigmoid())


class Predictor(nn.Module):
    """The logits (B, levels, N) of the next sample's level at each of N samples (B, N) in [-1, 1]."""

    def __init__(self, channels: int, depth: int, levels: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, channels, 2)
        self.layers = nn.ModuleList(Gated(channels, 2**layer) for layer in range(depth))
        self.mix = nn.Conv1d(channels, 2 * channels, 1)
        self.head = nn.Conv1d(2 * channels, levels, 1)

    def forward(self, wave: Tensor) -> Tensor:
        x = self.first(functional.pad(wave[:, None], (1, 0)))
        for layer in self.layers:
            x = layer(x)
        return self.head(functional.silu(self.mix(functional.silu(x))))


@dataclass(frozen=True)
class Series(OwnBase):
    name: str = "series"
    held_out_batches: Mapping[str, int] = field(default_factory=lambda: {"tune": 3, "test": 5}, hash=False)
    batch: int = 4
    length: int = 224
    channels: int = 48
    depth: int = 7
    levels: int = 64
    noise: float = 0.002
    base_steps: int = 1500
    base_batch: int = 8
    base_lr: float = 3e-3
    domain: str = "bells and glides"
    untuned: ClassVar[bool] = True

    def recipe(self) -> tuple[object, Callable[[], nn.Module]]:
        shape = (self.channels, self.depth, self.levels)
        recipe = (shape, self.length, self.noise, self.base_steps, self.base_batch, self.base_lr, "strings")
        return recipe, lambda: Predictor(*shape)

    def batches(self, seed: int, split: Split) -> Iterator[Tensor]:
        # Tones are random, so the seed decides the split: seeds of training are below those of FIXED.
        assert (split == "train") == (seed < min(FIXED.values()))
        count = self.batch if split == "train" else 4 * self.batch
        return self._waves(_bells_and_glides, count, seed)

    def base_batches(self) -> Iterator[Tensor]:
        return self._waves(_strings, self.base_batch, 0)

    def loss(self, module: nn.Module, batch: Tensor) -> Tensor:
        return functional.cross_entropy(module(batch[:, :-1]), self._level(batch[:, 1:]))

    def _waves(self, tones: Callable[..., Tensor], count: int, seed: int) -> Iterator[Tensor]:
        """Batches (count, length + 1) of tones with equal peaks and a little noise."""
        draw = torch.Generator().manual_seed(seed)
        time = torch.arange(self.length + 1) / RATE
        while True:
            wave = tones(time, count, draw)
            wave = 0.8 * wave / wave.abs().amax(1, keepdim=True)
            yield wave + self.noise * torch.randn(wave.shape, generator=draw)

    def _level(self, wave: Tensor) -> Tensor:
        """The level of each sample, finer near 0 (mu-law)."""
        mu = self.levels - 1
        bent = wave.sign() * torch.log1p(mu * wave.abs()) / math.log1p(mu)
        return ((bent + 1) / 2 * mu).round().long().clamp(0, mu)


def _uniform(low: float, high: float, draw: torch.Generator, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=draw)


def _strings(time: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """One to three notes, each of eight harmonics whose loudness falls as a power of their number."""
    notes, tones = 3, torch.arange(1, 9)
    pitch = 100 * 2 ** _uniform(0, 2.5, draw, count, notes, 1, 1)
    phase = _uniform(0, 2 * math.pi, draw, count, notes, 8, 1)
    loud = tones[:, None] ** -_uniform(0.7, 2.0, draw, count, notes, 1, 1)
    fading = torch.exp(-time * tones[:, None] * _uniform(2, 12, draw, count, notes, 1, 1))
    waves = loud * fading * torch.sin(2 * math.pi * pitch * tones[:, None] * time + phase)
    heard = torch.rand((count, notes, 1), generator=draw) < 0.5
    heard[:, 0] = True
    return (waves.sum(2) * heard).sum(1)


def _bells_and_glides(time: Tensor, count: int, draw: torch.Generator) -> Tensor:
    pitch = 150 * 2 ** _uniform(0, 2.5, draw, count, 1)
    ratio, depth = _uniform(1.2, 3.7, draw, count, 1), _uniform(1, 4, draw, count, 1)
    phase = _uniform(0, 2 * math.pi, draw, count, 1)
    fading = torch.exp(-time * _uniform(5, 40, draw, count, 1))
    bells = torch.sin(
        2 * math.pi * pitch * time + depth * fading * torch.sin(2 * math.pi * ratio * pitch * time + phase)
    )
    slope, tremble = _uniform(-2, 2, draw, count, 1) * pitch / time[-1], _uniform(20, 60, draw, count, 1)
    angle = 2 * math.pi * (2 * pitch * time + slope * time**2 / 2) + phase
    glides = torch.sin(angle).sign() * torch.sin(angle).abs().sqrt()
    glides = glides * (1 + 0.5 * torch.sin(2 * math.pi * tremble * time + phase))
    return torch.where(torch.rand((count, 1), generator=draw) < 0.5, bells, glides)
