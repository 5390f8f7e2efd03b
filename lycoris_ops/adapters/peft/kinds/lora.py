"""PEFT's LoraConfig."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ....algorithms import Layer
from ....algorithms.base import DIFF_B, alpha_of
from ....algorithms.factored import DORA, SPARSE
from ....algorithms.lora import BIAS, DOWN, EMBEDDING_UP, MID, RESHAPE, UP, Lora
from ....errors import LayerError
from ..config import Member, Module, RankedConfig, WantedRank, common, plain_tensors, ranks_of

if TYPE_CHECKING:
    from typing_extensions import Self

SUFFIXES = {
    DOWN: "lora_A.weight",
    UP: "lora_B.weight",
    DORA: "lora_magnitude_vector",
}
"""The algorithm's suffixes of a LoRA layer's tensors, to those of PEFT and diffusers."""


@dataclass(frozen=True, kw_only=True)
class WantedLora(WantedRank):
    use_dora: bool
    lora_bias: bool


@dataclass(frozen=True, kw_only=True)
class LoraConfig(RankedConfig[WantedLora]):
    """With `use_rslora` the scale is alpha / sqrt(r) instead of alpha / r."""

    peft_type: ClassVar[str] = "LORA"
    algorithm: ClassVar[type[Layer]] = Lora
    alpha_name: ClassVar[str] = "lora_alpha"

    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"

    @classmethod
    def read(cls, table: Mapping[str, Any], path: str) -> Self:
        return replace(super().read(table, path), use_rslora=bool(table.get("use_rslora", False)))

    def alpha_at(self, path: str, rank: int) -> float:
        alpha = super().alpha_at(path, rank)
        # Callers divide this by the rank, which gives alpha / sqrt(rank).
        return alpha * math.sqrt(rank) if self.use_rslora else alpha

    @classmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], WantedLora]:
        tensors = named_tensors(layer)
        assert isinstance(layer, Lora)
        return tensors, wanted(tensors, layer.rank_of(layer.shapes), alpha_of(layer) or 0.0)

    @classmethod
    def of(cls, members: Sequence[Member[WantedLora]], module: Module) -> Self:
        return cls(
            **ranks_of(members, module),
            lora_bias=common(
                members, "lora_B.bias in every layer, or in none", lambda wanted: wanted.lora_bias
            ),
            use_dora=common(members, "DoRA in every layer, or in none", lambda wanted: wanted.use_dora),
        )


def wanted(tensors: Mapping[str, Tensor], r: int, alpha: float) -> WantedLora:
    """What the configuration must say for a layer with these tensors by PEFT's suffixes."""
    return WantedLora(r=r, alpha=alpha, use_dora=SUFFIXES[DORA] in tensors, lora_bias=BIAS in tensors)


def named_tensors(layer: Layer) -> dict[str, Tensor]:
    """The tensors of a LoRA layer by PEFT's suffixes, without alpha.

    Raises LayerError for a layer of another kind, and for tensors that PEFT has no place for.
    """
    if not isinstance(layer, Lora):
        raise LayerError(f"holds no {layer.algorithm}", got=layer.algorithm)
    tensors = plain_tensors(layer, MID, DIFF_B, RESHAPE, *SPARSE)
    if DORA in tensors:
        # PEFT's magnitude is for outputs. On an embedding (V, D) it is for the D features, here the inputs.
        if layer.magnitude_axis() != (1 if EMBEDDING_UP in tensors else 0):
            raise LayerError("holds no DoRA magnitude of the inputs", got=str(list(tensors[DORA].shape)))
        # PEFT's magnitude is (O,), or on a convolution (1, O, 1, ...), like the outputs of a batch.
        ones = tuple(1 for _ in layer.extent[2:])
        tensors[DORA] = tensors[DORA].reshape(1, -1, *ones) if ones else tensors[DORA].flatten()
    return {SUFFIXES.get(suffix, suffix): tensor for suffix, tensor in tensors.items()}
