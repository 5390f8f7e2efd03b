"""A generator of pictures (a flow-matching UNet of convolutions and attention) adapted to pictures of tissue.

No diffusion model is in a package, so the benchmark trains one, once, and keeps it in `.cache/bench/quality`
under a hash of its recipe. It learns pieces of photographs and of textures from scikit-image's wheel, and
coloured shapes. The new domain is stained tissue under a microscope, as a sensor with a Bayer filter sees it:
each pixel has one colour alone. The picture is cut: the left part is for training, two strips on the right
are held out.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional

from tests.harness.packages import DATA, PICTURES

from ..bases import OwnBase
from ..task import Split

TISSUE = "ihc.png"
PHOTOGRAPHS = tuple(name for name in PICTURES if name != TISSUE)
STRIPS = {"train": (0, 320), "tune": (320, 416), "test": (416, 512)}
"""The columns of the picture of tissue that a split has."""


class Residual(nn.Module):
    """Two convolutions beside the way, the second shifted by the time."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        return self.skip(x) + self.conv2(functional.silu(self.norm2(y)))


class Transformer(nn.Module):
    """Self-attention over the places of a picture, and a feed-forward part."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        y = self.norm1(rows)
        q, k, v = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q, self.to_k, self.to_v)
        )
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        rows = rows + self.to_out(y)
        rows = rows + self.down(functional.gelu(self.up(self.norm2(rows))))
        return rows.transpose(1, 2).unflatten(-1, x.shape[2:])


class UNet(nn.Module):
    """The velocity at (x, t), x (B, 3, H, W) in about [-1, 1], t (B,) from 0 (data) to 1 (noise)."""

    def __init__(self, widths: tuple[int, ...], time: int = 128) -> None:
        super().__init__()
        self.frequencies = 32
        self.time1, self.time2 = nn.Linear(2 * self.frequencies, time), nn.Linear(time, time)
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        before = widths[0]
        for level, width in enumerate(widths):
            self.down.append(nn.ModuleList([Residual(before, width, time), self._attention(level, width)]))
            if level + 1 < len(widths):
                self.shrink.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
            before = width
        self.middle = Residual(before, before, time)
        for level, width in reversed(list(enumerate(widths))):
            self.up.append(
                nn.ModuleList([Residual(before + width, width, time), self._attention(level, width)])
            )
            if level > 0:
                self.grow.append(nn.Conv2d(width, widths[level - 1], 3, padding=1))
                before = widths[level - 1]
        self.norm = nn.GroupNorm(8, widths[0])
        self.last = nn.Conv2d(widths[0], 3, 3, padding=1)

    @staticmethod
    def _attention(level: int, width: int) -> nn.Module:
        return Transformer(width) if level > 0 else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rates = torch.exp(torch.linspace(0, math.log(1000), self.frequencies, device=t.device))
        angles = t[:, None] * rates
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        time = functional.silu(self.time2(functional.silu(self.time1(waves))))
        x = self.first(x)
        kept: list[Tensor] = []
        for level, (residual, attention) in enumerate(self.down):
            x = attention(residual(x, time))
            kept.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
        x = self.middle(x, time)
        for level, (residual, attention) in enumerate(self.up):
            x = attention(residual(torch.cat([x, kept.pop()], 1), time))
            if level < len(self.grow):
                x = self.grow[level](functional.interpolate(x, scale_factor=2.0))
        return self.last(functional.silu(self.norm(x)))


@dataclass(frozen=True)
class Pictures(OwnBase):
    name: str = "pictures"
    steps: Mapping[str, int] = field(default_factory=lambda: {"short": 120, "long": 480}, hash=False)
    held_out_batches: Mapping[str, int] = field(default_factory=lambda: {"tune": 16, "test": 24}, hash=False)
    batch: int = 8
    size: int = 24
    widths: tuple[int, ...] = (32, 64, 128)
    base_steps: int = 2400
    base_batch: int = 16
    base_lr: float = 1e-3
    domain: str = "tissue through a Bayer filter"

    def recipe(self) -> tuple[object, Callable[[], nn.Module]]:
        recipe = (
            self.size,
            self.widths,
            self.base_steps,
            self.base_batch,
            self.base_lr,
            DATA.version,
            PHOTOGRAPHS,
        )
        return recipe, lambda: UNet(self.widths)

    def batches(self, seed: int, split: Split) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        picture = _picture(TISSUE)
        left, right = STRIPS[split]
        picture = picture.crop((left, 0, right, picture.height))
        draw = random.Random(seed)
        return self._noised(lambda: _mosaic(_values(_piece(picture, self.size, draw))), self.batch, seed)

    def loss(self, module: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, t, velocity = batch
        return functional.mse_loss(module(x, t), velocity)

    def base_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of what the base is trained on."""
        photographs = [_picture(name) for name in PHOTOGRAPHS]
        draw = random.Random(0)

        def picture() -> Tensor:
            if draw.random() < 0.3:
                return _values(_shapes(self.size, draw))
            return _values(_piece(draw.choice(photographs), self.size, draw))

        return self._noised(picture, self.base_batch, 0)

    def _noised(
        self, picture: Callable[[], Tensor], batch: int, seed: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of (x_t, t, velocity): x_t = (1 - t) x + t e, velocity e - x, t logit-normal."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            x = torch.stack([picture() for _ in range(batch)])
            noise = torch.randn(x.shape, generator=generator)
            t = torch.randn(batch, generator=generator).sigmoid()
            share = t[:, None, None, None]
            yield (1 - share) * x + share * noise, t, noise - x


@functools.cache
def _picture(name: str) -> Image.Image:
    return Image.open(DATA.file(f"skimage/data/{name}")).convert("RGB")


def _piece(picture: Image.Image, size: int, draw: random.Random) -> Image.Image:
    """A square piece of a picture, from `size` to four times that in width, scaled to `size`."""
    side = draw.randint(size, min(4 * size, *picture.size))
    left, top = draw.randint(0, picture.width - side), draw.randint(0, picture.height - side)
    box = (left, top, left + side, top + side)
    piece = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else piece


def _values(picture: Image.Image) -> Tensor:
    """The values (3, H, W) of a picture in [-1, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def _mosaic(x: Tensor) -> Tensor:
    """The picture behind a Bayer filter: rows of red and green pixels, then of green and blue ones."""
    seen = torch.full_like(x, -1)
    for channel, row, column in ((0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 1)):
        seen[channel, row::2, column::2] = x[channel, row::2, column::2]
    return seen


def _shapes(size: int, draw: random.Random) -> Image.Image:
    """One to four ellipses, rectangles and triangles in colours on a plain ground."""

    def colour() -> tuple[int, int, int]:
        return draw.randint(0, 255), draw.randint(0, 255), draw.randint(0, 255)

    # Drawn larger and scaled down: edges are smooth then.
    large = 4 * size
    image = Image.new("RGB", (large, large), colour())
    pen = ImageDraw.Draw(image)
    for _ in range(draw.randint(1, 4)):
        xs = sorted(draw.randint(-large // 4, large) for _ in range(2))
        ys = sorted(draw.randint(-large // 4, large) for _ in range(2))
        box = (xs[0], ys[0], xs[1] + large // 8, ys[1] + large // 8)
        kind = draw.randrange(3)
        if kind == 0:
            pen.ellipse(box, fill=colour())
        elif kind == 1:
            pen.rectangle(box, fill=colour())
        else:
            corners = [(draw.randint(0, large), draw.randint(0, large)) for _ in range(3)]
            pen.polygon(corners, fill=colour())
    return image.resize((size, size), Image.Resampling.BILINEAR)
