"""PEFT's OFTConfig."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...algorithms import Layer
from ...algorithms.oftv2 import MOST_TERMS, SCALED, TERMS, OftV2
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
    release,
)
from ..fields import Fields

if TYPE_CHECKING:
    from typing_extensions import Self

EPS = 6e-5
"""PEFT's default of `eps`, which has an effect only with `coft`."""
SMALLEST = torch.finfo(torch.float32).tiny
"""The smallest bound of a rotation: it must be above 0."""
ONCE = (0, 18)
"""The first release of PEFT that counts the last term of OFT's series once. Earlier ones count it twice."""


@dataclass(frozen=True, kw_only=True)
class WantedOft(Wanted):
    block: int
    """The size of a block."""
    blocks: int
    """The number of blocks in the file; 1 where one block serves all inputs."""
    rotation: tuple[int, int, float | None]
    """`terms`, `last` and `constraint` of the layer."""


@dataclass(frozen=True, kw_only=True)
class OftConfig(BiasedConfig[WantedOft]):
    """`coft` bounds each block by `eps`, see `OftV2`. Without `use_cayley_neumann` the rotation is exact.

    `peft_version` decides which series is meant, see `ONCE`. Releases before 0.18 do not write it.
    """

    peft_type: ClassVar[str] = "OFT"
    algorithm: ClassVar[type[Layer]] = OftV2
    without_effect: ClassVar[frozenset[str]] = BiasedConfig.without_effect | {
        *("module_dropout", "init_weights"),
    }
    refused: ClassVar[Mapping[str, Refusal]] = {"fan_in_fan_out": TRANSPOSED_TENSORS}

    r: int = 0
    """The number of blocks, 0 where their size is given instead."""
    oft_block_size: int = 0
    block_share: bool = False
    coft: bool = False
    eps: float = EPS
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = TERMS
    peft_version: str = ""

    @classmethod
    def read(cls, fields: Fields) -> Self:
        coft, series = fields.flag("coft", False), fields.flag("use_cayley_neumann", True)
        return replace(
            super().read(fields),
            coft=coft,
            # Without `coft` it has no effect, so no value is an error.
            eps=fields.number("eps", EPS, low=SMALLEST) if coft else EPS,
            use_cayley_neumann=series,
            # PEFT takes 0 terms for 1.
            num_cayley_neumann_terms=max(
                1, fields.integer("num_cayley_neumann_terms", TERMS, low=0, high=MOST_TERMS)
            )
            if series
            else TERMS,
            peft_version=".".join(map(str, release(fields))),
        )

    def options(self, algorithm: type[Layer], path: str, shapes: Mapping[str, Shape]) -> dict[str, Any]:
        if algorithm is not self.algorithm:
            return {}
        # Without a version the release is (), which is before every other.
        number = tuple(int(number) for number in self.peft_version.split(".") if number)
        return {
            "terms": self.num_cayley_neumann_terms if self.use_cayley_neumann else 0,
            "last": 1 if number >= ONCE else 2,
            "constraint": self.eps if self.coft else None,
        }

    @classmethod
    def check_weight(cls, weight: Shape) -> None:
        if math.prod(weight[2:]) > 1:
            raise LayerError("E-peft-oft-windows", kernel=list(weight[2:]))

    @classmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], WantedOft]:
        assert isinstance(layer, OftV2)
        if layer.oft_r_scaled_oft is not None:
            raise LayerError("E-dialect-without-scaled-oft", got=SCALED)
        rotation = (layer.terms, layer.last, layer.constraint)
        block, blocks = layer.rank or 1, layer.oft_r.shape[0]
        return plain_tensors(layer, *LORA_ONLY), WantedOft(block=block, blocks=blocks, rotation=rotation)

    @classmethod
    def of(cls, members: Sequence[ConfiguredLayer[WantedOft]], module: Module) -> Self:
        block = common(members, "one size of block", lambda wanted: wanted.block)
        terms, last, constraint = common(members, "one series in every layer", lambda wanted: wanted.rotation)
        return replace(
            super().of(members, module),
            oft_block_size=block,
            block_share=all(member.wanted.blocks == 1 for member in members),
            coft=constraint is not None,
            eps=EPS if constraint is None else constraint,
            use_cayley_neumann=terms > 0,
            num_cayley_neumann_terms=terms or TERMS,
            # Left out for the older series: its releases do not write it. Newer releases warn without it.
            peft_version=".".join(map(str, (*ONCE, 0))) if last == 1 else "",
        )

    def table(self) -> dict[str, Any]:
        table = super().table()
        if not self.peft_version:
            del table["peft_version"]
        return table
