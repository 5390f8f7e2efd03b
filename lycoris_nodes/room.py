"""The memory that a training takes beside its model, and whether activations are computed again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .host import inference_memory, io
from .wires import AS_FAMILY

LARGE = 1_000_000_000
"""Parameters of a model above which `auto` checkpoints its blocks."""
KEPT, RECOMPUTED = 8.0, 2.0
"""How many times the memory of a pass without a training is left free, with all activations kept and with
those of the blocks computed again. These are guesses on the safe side: the host frees no more than it has."""


def checkpointing_input() -> Any:
    return io.Combo.Input(
        "checkpointing",
        options=[AS_FAMILY, "on", "off"],
        default=AS_FAMILY,
        optional=True,
        advanced=True,
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
    """The bytes to leave free beside a model that is trained on batches of the largest of these latents."""
    tensors = [one["samples"] for one in latents]
    shapes = [tuple(tensor.shape) for tensor in tensors if not getattr(tensor, "is_nested", False)]
    if not shapes:
        return 0.0
    shape = max(shapes, key=lambda shape: torch.Size(shape[1:]).numel())
    return (RECOMPUTED if checkpointed else KEPT) * inference_memory(model, (batch_size, *shape[1:]))
