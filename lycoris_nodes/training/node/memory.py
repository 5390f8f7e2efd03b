"""The memory that a training takes beside its model, and whether activations are computed again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...host.page import io
from ...schema.inputs import AS_FAMILY
from ..model.recompute import blocks

LARGE = 1_000_000_000
"""Parameters of a model above which `auto` checkpoints its blocks."""
KEPT, RECOMPUTED = 1.25, 0.1
"""The memory of a step for each block of the model, in multiples of a pass without gradients: with all
activations kept, and with those of the blocks computed again. Measured by tests/bench/train_memory.py: 1.21
and 0.10 for Flux 1, which has 57 blocks that are alike, and 0.37 and 0.07 for SD1.5, which has 38."""


def checkpointing_input() -> Any:
    return io.Combo.Input(
        "checkpointing",
        options=[AS_FAMILY, "on", "off"],
        default=AS_FAMILY,
        tooltip="on: activations are computed again when they are needed, which takes much less memory and a "
        "third more time, with the same result. auto: on for large models.",
    )


def is_checkpointed(model: Any, choice: str) -> bool:
    """Whether the blocks of a model are checkpointed, by the user's choice or by its size."""
    if choice != AS_FAMILY:
        return choice == "on"
    return sum(parameter.numel() for parameter in model.model.parameters()) > LARGE


def memory_for(
    model: Any, latents: Iterable[Mapping[str, Any]], batch_size: int, *, checkpointed: bool
) -> float:
    """The bytes to leave free beside a model that is trained on batches of the largest of these latents.

    They are in multiples of the host's own estimate of a pass, which is for its sampling. Text encoders that
    are trained beside the model are not counted.
    """
    tensors = [one["samples"] for one in latents]
    shapes = [tuple(tensor.shape) for tensor in tensors if not getattr(tensor, "is_nested", False)]
    if not shapes:
        return 0.0
    shape = max(shapes, key=lambda shape: torch.Size(shape[1:]).numel())
    count = sum(1 for _ in blocks(model.model.diffusion_model))
    times = max(1.0, count * (RECOMPUTED if checkpointed else KEPT))
    return times * float(model.model.memory_required([batch_size, *shape[1:]]))
