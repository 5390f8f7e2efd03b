"""Turn the node's inputs into settings for the linked model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from ....lycoris_ops import (
    ALGORITHMS,
    Adapter,
    Entry,
    LycorisError,
    Stack,
    optimisers,
    phrase,
    resolve,
    sketches,
    with_lora_plus,
)
from ...host.families.family import Family
from ...host.families.times import Times
from ...host.weights import weight_shapes
from ...schema.inputs import AS_FAMILY
from .experts import ALL, times_of_expert

FAMILY_RATED = ("adamw", "adamw8bit", "muon")
"""Optimisers that use the usual learning rate of the model family. The others have rates of their own."""
TEXT_RATE = 0.1
"""The usual learning rate of text encoders, as a share of the model's (kohya-ss/sd-scripts' guide for
SDXL)."""
TEXT_PRESET = "attn-mlp"
"""The preset for text encoders: the layers that kohya-ss trains."""
PRECISIONS: dict[str, torch.dtype | None] = {
    AS_FAMILY: None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
"""The model's dtype in training, by name; None keeps ComfyUI's choice."""

ELSEWHERE = (
    *("filename_prefix", "resume", "resume_from", "checkpointing", "validate_every", "checkpoint_every"),
    *("sample_every", "sample_settings", "keep", "dialect", "dtype", "saved"),
)
"""Settings that do not affect what is learned."""


class Asked(SimpleNamespace):
    """The inputs of the node, by their names in `schema.py`. A missing link is None or ()."""


def settings_of(asked: Asked) -> dict[str, Any]:
    """The settings that affect what is learned. A training is recognised by them.

    Of the links only the stack's weights are included: a state itself recognises its model, layers and data.
    """
    settings: dict[str, Any] = {
        name: value
        for name, value in vars(asked).items()
        if isinstance(value, str | int | float) and name not in ELSEWHERE
    }
    if settings.get("search") == "off":
        for name in ("search", "search_share"):
            settings.pop(name, None)
    # Left out where they change nothing, so that older trainings are still recognised.
    if not settings.get("masked_prior"):
        settings.pop("masked_prior", None)
    if settings.get("expert") == ALL:
        settings.pop("expert")
    for entry in asked.stack or ():
        rows = sketches(layer.tensors().values() for layer in entry.adapter.layers.values())
        settings["stack"] = f"{entry.adapter.name} {hashlib.sha256(repr(rows).encode()).hexdigest()[:8]}"
    return settings


def start_of(stack: Stack | None, model: Any, clip: Any) -> Adapter | None:
    """The adapter to continue from. Raises LycorisError unless the stack is one adapter for this model at
    strength 1, without rules, a schedule, a mask or a second one for another expert."""
    if stack is None:
        return None
    stack.check_constant("be trained on")
    names = ", ".join(entry.adapter.name for entry in stack) or "none"
    if len(stack) != 1:
        raise LycorisError("E-training-from-several-adapters", count=len(stack), names=names)
    (entry,) = stack
    if entry.strength != 1 or entry.rules is not None:
        raise LycorisError(
            "E-training-from-weighted-adapter",
            file=names,
            got=phrase("R-strength", strength=entry.strength)
            + (f" {phrase('R-block-rules')}" if entry.rules is not None else ""),
        )
    resolve(stack, weight_shapes(model, clip), absent_because="no `clip` is linked").check()
    return entry.adapter


def parts_of(start: Adapter, model: Any, clip: Any) -> tuple[Adapter | None, Adapter | None]:
    """The layers of an adapter for the model and those for the text encoders; None where there are none."""
    of_text = weight_shapes(clip)
    (entry,) = resolve(Stack([Entry(start)]), weight_shapes(model, clip)).entries
    texts = {match.layer for match in entry.matches if match.key in of_text}
    halves = (
        {name: layer for name, layer in start.layers.items() if (name in texts) is is_text}
        for is_text in (False, True)
    )
    first, second = (Adapter.of(layers, name=start.name) if layers else None for layers in halves)
    return first, second


def rate_of(asked: Asked, family: Family, options: Mapping[str, Any]) -> float | None:
    """The learning rate; None for the optimiser's own."""
    if asked.learning_rate:
        return asked.learning_rate
    if asked.optimiser not in FAMILY_RATED:
        return None
    algorithm = options.get("algorithm")
    rate = family.lr * (1.0 if algorithm is None else ALGORITHMS[algorithm].fresh_rate)
    return with_lora_plus(rate, asked.loraplus_ratio or None)


def text_rate_of(asked: Asked, rate: float | None) -> float:
    """The learning rate of the text encoders, as a multiple of the model's."""
    if not asked.text_learning_rate:
        return 1.0 if optimisers()[asked.optimiser].one_rate else TEXT_RATE
    own = rate or optimisers()[asked.optimiser].lr
    if not own:
        raise LycorisError(
            "E-encoder-rate-without-rate",
            key="text_learning_rate",
            text_learning_rate=f"{asked.text_learning_rate:g}",
        )
    return asked.text_learning_rate / own


def schedule_of(asked: Asked) -> str:
    """The schedule; of a slider perhaps the usual one."""
    if asked.schedule != AS_FAMILY:
        return asked.schedule
    # With a falling rate other attributes change less from pictures, and more between prompts.
    return "constant" if asked.more or optimisers()[asked.optimiser].averages else "cosine"


def times_of(asked: Asked, family: Family) -> Times:
    """How times are drawn. Unless a shift is given, the family's is used with any distribution."""
    shift = asked.shift or family.times.shift
    own = asked.times == AS_FAMILY
    times = replace(family.times, shift=shift) if own else Times(asked.times, shift=shift)
    return times_of_expert(times, asked.expert, asked.model)
