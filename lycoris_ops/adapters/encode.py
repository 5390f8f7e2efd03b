"""What each dialect can hold of a layer, and the tensors that it is written as.

kohya, comfy and lycoris hold every kind, each tensor under the algorithms' own suffix. diffusers holds LoRA
alone, its scale in a factor. PEFT holds the kinds that its classes can make again from a configuration,
which also has the scale.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import ALPHA, alpha_of, scale
from ..algorithms.factored import DORA, Factored
from ..algorithms.ia3 import Ia3
from ..algorithms.lora import BIAS, DOWN, EMBEDDING_UP, UP, Lora
from ..algorithms.oft import BLOCKS, Oft
from ..errors import LayerError
from ..layers.fuse import times
from ..names.written import Written
from .peft import Config, Wanted, kind_of
from .peft.kinds import lora as peft_lora

OPTIONAL = ("dora",)
"""Options that only choose how to compute with the very same tensors."""


@dataclass(frozen=True)
class Encoded:
    """A layer as a dialect writes it."""

    name: str
    """What stands before the suffixes: the layer's name, but where several share one."""
    tensors: Mapping[str, Tensor]
    """By the suffix that is written."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the file's metadata must say of it."""
    configured: tuple[type[Config[Any]], Wanted] | None = None
    """The kind of PEFT's configuration that it needs, and what that must say of it."""

    def to(self, dtype: torch.dtype) -> Encoded:
        """The same with all tensors in a dtype."""
        return replace(self, tensors={suffix: tensor.to(dtype) for suffix, tensor in self.tensors.items()})


def encode(layer: Layer, options: Mapping[str, Any], dialect: Written, name: str) -> Encoded:
    """The layer in a dialect. Raises LayerError, without the dialect's name, where that cannot hold it.

    `options` are those that no tensor tells, as in `LayerInfo`.
    """
    if dialect == "diffusers":
        return _diffusers(layer, name)
    if dialect == "peft":
        kind = kind_of(type(layer))
        if kind is None:
            raise LayerError(f"holds no {layer.algorithm}", got=layer.algorithm)
        tensors, wanted = kind.encoded(layer)
        return Encoded(name, tensors, configured=(kind, wanted))
    return _own(layer, options, name, numbered=dialect == "kohya")


def _own(layer: Layer, options: Mapping[str, Any], name: str, *, numbered: bool) -> Encoded:
    """Every kind, as the algorithm itself names its tensors."""
    said: dict[str, Any] = {}
    defaults = {field.name: field.default for field in dataclasses.fields(layer)}
    for option, value in options.items():
        if option in OPTIONAL or value == defaults[option] or _is_told(layer, option):
            continue
        if option != "sig_type":
            raise LayerError(f"has no place for {option}", got=f"{option} = {value}")
        said[option] = value
    tensors = layer.dump()
    tensors.pop(ALPHA, None)
    alpha = alpha_of(layer)
    if alpha is not None:
        tensors[ALPHA] = torch.tensor(alpha, dtype=torch.float32)
    if isinstance(layer, Factored) and DORA in tensors:
        tensors[DORA] = _shaped(layer, tensors[DORA])
    if numbered and isinstance(layer, Oft) and (match := re.fullmatch(r"(.+)\.(\d+)", name)):
        # kohya-ss numbers the parts of a fused layer in its suffix: see `grouping`.
        name = match[1]
        tensors[f"{BLOCKS}.{match[2]}"] = tensors.pop(BLOCKS)
    return Encoded(name, tensors, said)


def _is_told(layer: Layer, option: str) -> bool:
    """Whether the shape of a tensor says it too: which side a two-dimensional ia3_l is for."""
    return option == "feedforward" and (
        not isinstance(layer, Ia3) or layer.ia3_l is None or layer.ia3_l.ndim == 2
    )


def _shaped(layer: Factored, magnitude: Tensor) -> Tensor:
    """A DoRA magnitude in as many dimensions as the weight, for readers that take one for inputs."""
    if magnitude.ndim > 1 or layer.magnitude_axis() != 0:
        return magnitude
    return magnitude.reshape(-1, *(1 for _ in layer.extent[1:]))


def _diffusers(layer: Layer, name: str) -> Encoded:
    """LoRA with its scale in a factor, for readers that know no alpha.

    In `lora_B` where its dtype holds the product exactly, else in `lora_A` where that does, else in
    `lora_B` in float32.
    """
    tensors = peft_lora.named_tensors(layer)
    if EMBEDDING_UP in tensors:
        raise LayerError("holds no LoRA of an embedding", got=EMBEDDING_UP)
    assert isinstance(layer, Lora) and layer.lora_up is not None and layer.lora_down is not None
    rank = int(layer.lora_up.shape[1])
    factor = scale(layer.alpha, rank)
    up, down = times(layer.lora_up, factor), layer.lora_down
    if up.dtype != layer.lora_up.dtype and (scaled := times(down, factor)).dtype == down.dtype:
        up, down = layer.lora_up, scaled
    written = {**tensors, peft_lora.SUFFIXES[UP]: up, peft_lora.SUFFIXES[DOWN]: down}
    if BIAS in written:
        written[BIAS] = times(written[BIAS], factor)
    wanted = peft_lora.wanted(written, rank, float(rank))
    return Encoded(name, written, configured=(peft_lora.LoraConfig, wanted))
