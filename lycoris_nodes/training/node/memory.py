"""Estimate the memory of a training beside its model, and decide whether to checkpoint activations."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ....lycoris_ops import LycorisError, TrainError, phrase
from ...host.families import family_of
from ...host.page import io
from ...host.weights import is_out_of_memory
from ...schema.inputs import AS_FAMILY
from ..data.latents import parts_of
from ..model.recompute import blocks

LARGE = 1_000_000_000
"""Above this number of model parameters, `auto` checkpoints the blocks."""
KEPT, RECOMPUTED = 1.25, 0.1
"""Memory of a training step per block, as multiples of a pass without gradients: first with all activations
kept, then with those inside blocks recomputed. Measured by benchmarks/train_memory.py: 1.21 and 0.10 for
Flux 1 with 57 similar blocks, 0.37 and 0.07 for SD1.5 with 38."""


class TrainingMemoryError(TrainError, torch.cuda.OutOfMemoryError):
    """There is no memory for a training. Also an OutOfMemoryError, so that the host unloads all models."""


@contextmanager
def within_memory(*advice: str) -> Generator[None]:
    """A context that turns an allocator's error into one that says what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, LycorisError) or not is_out_of_memory(error):
            raise
        raise TrainingMemoryError(
            "E-memory-for-training", advice=advice, got=str(error).partition("\n")[0]
        ) from error


def memory_advice(
    *, checkpointed: bool, batch_size: int = 1, encoder: bool = False, vae: bool = False, optimiser: str = ""
) -> list[str]:
    """What takes less memory, the least costly first."""
    return [
        *([phrase("R-set-checkpointing-on")] if not checkpointed else []),
        *(["lower `batch_size`"] if batch_size > 1 else []),
        phrase("R-lower-resolution-lycoris-training-pictures"),
        *(["unlink `clip` and `captions`"] if encoder else []),
        *(["unlink `vae`"] if vae else []),
        *([phrase("R-set-optimiser-adamw8bit")] if optimiser == "adamw" else []),
        phrase("R-load-model-fp8"),
    ]


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
    shapes = [_shape_of(model.model, latent["samples"]) for latent in latents]
    if not shapes:
        return 0.0
    shape = max(shapes, key=lambda shape: torch.Size(shape[1:]).numel())
    beside: dict[str, list[Any]] = {}
    for _, settings in (row for caption in captions for row in caption):
        for name, size in model.model.extra_conds_shapes(**settings).items():
            if name not in beside or math.prod(size) > math.prod(beside[name][0]):
                beside[name] = [size] * batch_size
    return float(model.model.memory_required([batch_size, *shape[1:]], cond_shapes=beside))


def _shape_of(model: Any, latent: Any) -> tuple[int, ...]:
    """The shape of a latent for the host's estimate: for models with sound, the shape of packed latents."""
    latents = parts_of(latent)
    if len(latents) == 1 and family_of(model).sound is None:
        return tuple(latent.shape)
    return (1, 1, sum(each[0].numel() for each in latents))
