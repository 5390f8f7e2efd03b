"""Trains a small flow transformer on drawn pictures in the host, and measures the loss of adapters for it.

The model has the layout of FLUX.1. The host loads it from a file, and trains, patches and samples it like any
other. The pictures are grey and have 32 x 32 pixels. There is no autoencoder: a latent is the picture with
4 x 4 pixels folded into channels. The model learns bright discs, squares, triangles and crosses on black. It
is adapted to the same shapes with dark stripes, on a bright background that fades.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from tests.harness.base import CONTEXT
from tests.harness.diffusion import write_model

from ..bases import trained

SIDE, FOLD, KINDS, TOKENS = 32, 4, 4, 4
"""The side of a picture in pixels, the side of the square of pixels that becomes one place of a latent, the
number of shapes, and the length of a caption in tokens."""
GUIDANCE = 3.5
"""The guidance that the host uses for this layout if no node sets it."""
Noisy = tuple[Tensor, Tensor, Tensor, Tensor]
"""Latents, the numbers of their captions, noise and times."""


@dataclass(frozen=True)
class Shapes:
    """The settings of the benchmark. Its figures depend on these and on the code."""

    width: int = 128
    double: int = 1
    single: int = 2
    base_steps: int = 2000
    base_batch: int = 16
    base_lr: float = 2e-3
    pictures: Mapping[str, int] = field(default_factory=lambda: {"train": 40, "tune": 32, "test": 64})
    draws: int = 4
    """How many pairs of noise and time each held-out picture is judged with."""


SEEDS = {"train": 1, "tune": 2, "test": 3}


def drawn(count: int, seed: int, *, hatched: bool) -> tuple[Tensor, Tensor]:
    """Pictures (count, 1, 32, 32) from -1 to 1, and the numbers of their shapes (count,)."""
    draw = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((count, 1, 1), generator=draw)

    kinds = torch.arange(count)[torch.randperm(count, generator=draw)] % KINDS
    line = (torch.arange(SIDE) + 0.5) * 2 / SIDE - 1
    rows, columns = line[:, None] - between(-0.3, 0.3), line - between(-0.3, 0.3)
    angle, radius = between(0, 2 * math.pi), between(0.35, 0.6)
    x, y = angle.cos() * columns - angle.sin() * rows, angle.sin() * columns + angle.cos() * rows
    sides = [x * math.cos(turn) + y * math.sin(turn) for turn in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    bars = [torch.maximum(one.abs() - radius, other.abs() - radius / 3) for one, other in ((x, y), (y, x))]
    # How far each pixel is outside the shape of its picture.
    outside = torch.stack(
        [
            (x**2 + y**2).sqrt() - radius,
            torch.maximum(x.abs(), y.abs()) - 0.8 * radius,
            torch.stack(sides).amax(0) - radius / 2,
            torch.minimum(*bars),
        ]
    )[kinds, torch.arange(count)]
    inside = (0.5 - outside * SIDE / 2).clamp(0, 1)
    if not hatched:
        return (2 * inside - 1)[:, None], kinds
    ground = 0.6 + between(-0.4, 0.4) * line + between(-0.4, 0.4) * line[:, None]
    stripes = torch.sign(torch.sin(3 * math.pi * (line + line[:, None]) + between(0, 2 * math.pi)))
    return (ground.clamp(-1, 1) * (1 - inside) + (0.4 * stripes - 0.6) * inside)[:, None], kinds


def latents(pictures: Tensor) -> Tensor:
    """Pictures (N, 1, 32, 32) as latents (N, 16, 8, 8), as the model itself sees them."""
    return functional.pixel_unshuffle(pictures, FOLD)


def captions() -> tuple[Tensor, Tensor]:
    """Made-up outputs of a text encoder, one for each shape: (4, tokens, 768), and pooled ones (4, 768)."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn((KINDS, TOKENS, CONTEXT), generator=draw), torch.randn(
        (KINDS, CONTEXT), generator=draw
    )


def noisy(count: int, seed: int, draws: int = 1, *, hatched: bool) -> Noisy:
    """`count` pictures, each `draws` times with new noise; the times are evenly spaced from 0 to 1."""
    pictures, kinds = drawn(count, seed, hatched=hatched)
    x, kinds = latents(pictures).repeat(draws, 1, 1, 1), kinds.repeat(draws)
    draw = torch.Generator().manual_seed(1_000 + seed)
    times = (torch.randperm(len(x), generator=draw) + 0.5) / len(x)
    return x, kinds, torch.randn(x.shape, generator=draw), times


class Host:
    """The trained model in the host, with its training data and the losses of adapters."""

    def __init__(self, nodes: Any, folder: Path, shapes: Shapes) -> None:
        import comfy.model_management

        self.nodes = nodes
        self.shapes = shapes
        self.context, self.pooled = captions()
        place = folder / "models" / "diffusion_models"
        sizes = {"width": shapes.width, "double": shapes.double, "single": shapes.single}

        def untrained() -> nn.Module:
            write_model(place / "untrained.safetensors", "Flux", **sizes)
            made = nodes.UNETLoader().load_unet("untrained.safetensors", "default")[0]
            network = made.model.diffusion_model.requires_grad_(True)
            for inner in network.modules():
                if isinstance(inner, nn.LayerNorm):
                    # Blocks overwrite the input of their norms, and the backward pass still needs it.
                    inner.register_forward_pre_hook(lambda _, given: (given[0].clone(),))
            return network

        recipe = (sizes, shapes.base_steps, shapes.base_batch, shapes.base_lr)
        # Some of the host's fused operations have no gradient. In training it uses others.
        comfy.model_management.in_training = True
        try:
            base = trained(
                "shapes",
                recipe,
                untrained,
                self._batches,
                self._loss,
                steps=shapes.base_steps,
                lr=shapes.base_lr,
            )
        finally:
            comfy.model_management.in_training = False
        save_file(base.state_dict(), place / "shapes.safetensors")
        self.model = nodes.UNETLoader().load_unet("shapes.safetensors", "default")[0]

    def _batches(self) -> Iterator[Noisy]:
        for number in itertools.count():
            yield noisy(self.shapes.base_batch, 1_000_000 + number, hatched=False)

    def _loss(self, module: nn.Module, batch: Noisy) -> Tensor:
        x, kinds, noise, times = batch
        there = times[:, None, None, None]
        guidance = torch.full_like(times, GUIDANCE)
        seen = (1 - there) * x + there * noise
        found = module(seen, times, self.context[kinds], y=self.pooled[kinds], guidance=guidance)
        return functional.mse_loss(found, noise - x)

    def data(self) -> dict[str, Any]:
        """The inputs of a node that trains: latents as an autoencoder would give them, and captions."""
        pictures, kinds = drawn(self.shapes.pictures["train"], SEEDS["train"], hatched=True)
        outer = self.model.model.process_latent_out(latents(pictures))
        return {
            "model": self.model,
            "latents": [{"samples": one[None]} for one in outer],
            "positive": [
                [[self.context[kind][None], {"pooled_output": self.pooled[kind][None]}]]
                for kind in kinds.tolist()
            ],
        }

    @torch.no_grad()
    def held_out(
        self, adapter: Mapping[str, Tensor], split: str, *, hatched: bool = True
    ) -> tuple[float, float]:
        """Two losses of the model, patched by the host with an adapter.

        The first is the mean square error of the velocity at evenly spaced times. The second is the loss of
        the host's trainer: the mean square error of the denoised latent, at times of the host's schedule.
        """
        import comfy.model_management
        import comfy.sd

        patched, _ = comfy.sd.load_lora_for_models(self.model, None, dict(adapter), 1.0, 0.0)
        comfy.model_management.load_models_gpu([patched])
        batch = noisy(self.shapes.pictures[split], SEEDS[split], self.shapes.draws, hatched=hatched)
        sampling = patched.model.model_sampling
        try:
            own = [self._errors(patched.model, part, part[3])[0] for part in _parts(batch)]
            theirs = [
                self._errors(
                    patched.model, part, torch.stack([sampling.percent_to_sigma(t) for t in part[3]])
                )[1]
                for part in _parts(batch)
            ]
        finally:
            comfy.model_management.unload_all_models()
        return sum(own) / len(own), sum(theirs) / len(theirs)

    def _errors(self, model: Any, batch: Noisy, sigmas: Tensor) -> tuple[float, float]:
        """The mean square errors of the velocity and of the denoised latent."""
        x, kinds, noise, _ = batch
        there = sigmas[:, None, None, None]
        guidance = torch.full_like(sigmas, GUIDANCE)
        seen = (1 - there) * x + there * noise
        found = model.apply_model(
            seen, sigmas, c_crossattn=self.context[kinds], y=self.pooled[kinds], guidance=guidance
        )
        velocity = (seen - found) / there
        return float(functional.mse_loss(velocity, noise - x)), float(functional.mse_loss(found, x))


def _parts(batch: Noisy, size: int = 64) -> list[Noisy]:
    """The batch in parts of `size` rows, which must divide its number of rows."""
    parts = zip(*(tensor.split(size) for tensor in batch), strict=True)
    return [(x, kinds, noise, times) for x, kinds, noise, times in parts]
