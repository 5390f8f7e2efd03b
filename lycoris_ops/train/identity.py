"""Whether a state belongs to this network on this model."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import alpha_of
from ..errors import MatchError
from ..files.safetensors_file import raw_bytes
from ..messages import phrase
from .network import LycorisNetwork

SAMPLE = 16
"""How many values at the beginning and at the end of a weight stand for all of it."""


def identity_of(net: LycorisNetwork) -> dict[str, Any]:
    """The model's frozen weights, each by its shape and a hash of some values, and the network's layers."""
    frozen = ((name, weight) for name, weight in net.module.named_parameters() if not weight.requires_grad)
    weights = {name: _mark(weight) for name, weight in frozen}
    return {"model": type(net.module).__name__, "weights": weights, "layers": layers_of(net)}


def layers_of(net: LycorisNetwork) -> dict[str, str]:
    """The network's layers by path: the kind, the sizes and alpha of each."""
    return {path: _described(member.layer) for path, member in net.members.items()}


def check_same(stored: dict[str, Any], own: dict[str, Any], file: str | None) -> None:
    """Raise MatchError, with the first difference, where a state is not for this network."""
    for table in ("weights", "layers"):
        theirs, ours = stored[table], own[table]
        for name in (*ours, *(name for name in theirs if name not in ours)):
            if not _alike(theirs.get(name), ours.get(name)):
                raise MatchError(
                    "E-state-of-another-model" if table == "weights" else "E-state-of-another-network",
                    file=file,
                    key=name,
                    got=theirs.get(name) or phrase("R-nothing-name"),
                    expected=ours.get(name) or phrase("R-nothing-name"),
                )


def _alike(mark: str | None, other: str | None) -> bool:
    """Whether two marks are of the same tensor. Packed and divided tensors have no hash to compare."""
    if mark is None or other is None:
        return False
    return mark == other or mark.startswith(f"{other} ") or other.startswith(f"{mark} ")


def _described(layer: Layer) -> str:
    sizes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in layer.tensors().items())
    return f"{layer.algorithm}, {sizes}, alpha {alpha_of(layer)}"


def _mark(weight: Tensor) -> str:
    text = f"{str(weight.dtype).removeprefix('torch.')} {list(weight.shape)}"
    values = _sample(weight)
    return text if values is None else f"{text} {hashlib.sha256(raw_bytes(values)).hexdigest()[:12]}"


def _sample(weight: Tensor) -> Tensor | None:
    """Some values; None where the weight is no plain tensor with values of its own."""
    if type(weight.data) is not Tensor or weight.is_meta or weight.layout != torch.strided:
        return None
    flat = weight.detach().flatten()
    ends = (flat[:SAMPLE].cpu(), flat[-SAMPLE:].cpu())
    return torch.cat([end.contiguous().view(torch.uint8) for end in ends])
