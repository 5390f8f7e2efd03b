"""Estimate the memory of a training beside its model, and decide whether to checkpoint activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...host.page import io
from ...host.sounds import takes_sound
from ...schema.inputs import AS_FAMILY
from ..data.latents import parts_of
from ..model.recompute import blocks

LARGE = 1_000_000_000
"""Above this number of model parameters, `auto` checkpoints the blocks."""
KEPT, RECOMPUTED = 1.25, 0.1
"""Memory of a training step per block, as multiples of a pass without gradients: first with all activations
kept, then with those inside blocks recomputed. Measured by tests/bench/train_memory.py: 1.21 and 0.10 for
Flux 1 with 57 similar blocks, 0.37 and 0.07 for SD1.5 with 38."""


def checkpointing_input() -> Any:
    return io.Combo.Input(
        "checkpointing",
        options=[AS_FAMILY, "on", "off"],
        default=AS_FAMILY,
        tooltip="on: activations are computed again when they are needed, which takes much less memory and a "
        "third more time, with the same result. auto: on for large models.",
    )


def is_checkpointed(model: Any, choice: str) -> bool:
    """Whether to checkpoint the blocks of a model, by the user's choice or the model's size."""
    if choice != AS_FAMILY:
        return choice == "on"
    return sum(parameter.numel() for parameter in model.model.parameters()) > LARGE


def memory_for(
    model: Any,
    latents: Iterable[Mapping[str, Any]],
    batch_size: int,
    *,
    captions: Iterable[Any] = (),
    checkpointed: bool,
) -> float:
    """The bytes to leave free beside the model to train on batches of the largest of these latents.

    Computed as multiples of a pass without gradients. Text encoders that are trained too are not counted.
    """
    count = sum(1 for _ in blocks(model.model.diffusion_model))
    times = max(1.0, count * (RECOMPUTED if checkpointed else KEPT))
    return times * memory_of_pass(model, latents, batch_size, captions)


def memory_of_pass(
    model: Any, latents: Iterable[Mapping[str, Any]], batch_size: int, captions: Iterable[Any]
) -> float:
    """The bytes that a pass without gradients takes, by the host's own estimate for sampling: for a batch of
    the largest of these latents, with the largest inputs that the captions give beside it."""
    shapes = [_shape_of(model.model, one["samples"]) for one in latents]
    if not shapes:
        return 0.0
    shape = max(shapes, key=lambda shape: torch.Size(shape[1:]).numel())
    beside: dict[str, list[Any]] = {}
    for _, settings in (row for caption in captions for row in caption):
        for name, found in model.model.extra_conds_shapes(**settings).items():
            if name not in beside or math.prod(found) > math.prod(beside[name][0]):
                beside[name] = [found] * batch_size
    return float(model.model.memory_required([batch_size, *shape[1:]], cond_shapes=beside))


def _shape_of(model: Any, latent: Any) -> tuple[int, ...]:
    """The shape of a latent for the host's estimate: for models with sound, the shape of packed latents."""
    parts = parts_of(latent)
    if len(parts) == 1 and not takes_sound(model):
        return tuple(latent.shape)
    return (1, 1, sum(part[0].numel() for part in parts))
