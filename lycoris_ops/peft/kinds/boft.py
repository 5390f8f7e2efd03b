"""PEFT's BOFTConfig."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ...algorithms import Layer
from ...algorithms.boft_peft import BoftPeft
from ...errors import LayerError
from ...maths.shapes import Shape
from ..config import (
    LORA_ONLY,
    TRANSPOSED_TENSORS,
    BiasedConfig,
    ConfiguredLayer,
    Module,
    Refusal,
    Wanted,
    common,
    plain_tensors,
)

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class WantedBoft(Wanted):
    block: int
    """The size of a block."""
    stages: int
    """The number of butterfly factors."""


@dataclass(frozen=True, kw_only=True)
class BoftConfig(BiasedConfig[WantedBoft]):
    """It states the size of a block and the number of butterfly factors. In a file that is read they follow
    from the shapes of the tensors."""

    peft_type: ClassVar[str] = "BOFT"
    algorithm: ClassVar[type[Layer]] = BoftPeft
    without_effect: ClassVar[frozenset[str]] = BiasedConfig.without_effect | {"boft_dropout", "init_weights"}
    refused: ClassVar[Mapping[str, Refusal]] = {"fan_in_fan_out": TRANSPOSED_TENSORS}

    boft_block_size: int = 0
    boft_block_num: int = 0
    """The number of blocks, 0 where their size is given instead."""
    boft_n_butterfly_factor: int = 1

    @classmethod
    def check_weight(cls, weight: Shape) -> None:
        if len(weight) not in (0, 2, 4):
            raise LayerError("E-peft-boft-shape", shape=list(weight))

    @classmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], WantedBoft]:
        assert isinstance(layer, BoftPeft)
        block, stages = layer.rank or 1, layer.boft_r.shape[0]
        return plain_tensors(layer, *LORA_ONLY), WantedBoft(block=block, stages=stages)

    @classmethod
    def of(cls, members: Sequence[ConfiguredLayer[WantedBoft]], module: Module) -> Self:
        return replace(
            super().of(members, module),
            boft_block_size=common(members, "one size of block", lambda wanted: wanted.block),
            boft_n_butterfly_factor=common(members, "one number of stages", lambda wanted: wanted.stages),
        )
