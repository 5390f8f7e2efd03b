"""PEFT's OFTConfig."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ....algorithms import Layer
from ....algorithms.oftv2 import SCALED, TERMS, OftV2
from ....errors import LayerError
from .. import patterns
from ..config import LORA_ONLY, Config, Member, Module, Wanted, common, plain_tensors

if TYPE_CHECKING:
    from typing_extensions import Self

EPS = 6e-5
"""PEFT's default of `eps`, which has an effect only with `coft`."""
ONCE = (0, 18)
"""The first release of PEFT that counts the last term of OFT's series once. Those before count it twice."""


@dataclass(frozen=True, kw_only=True)
class WantedOft(Wanted):
    block: int
    """The size of a block."""
    blocks: int
    """The number of blocks in the file; 1 where one block serves all inputs."""
    rotation: tuple[int, int, float | None]
    """`terms`, `last` and `constraint` of the layer."""


@dataclass(frozen=True, kw_only=True)
class OftConfig(Config[WantedOft]):
    """`coft` bounds each block by `eps`, see `OftV2`. Without `use_cayley_neumann` the rotation is exact.

    `peft_version` tells which series is meant, see `ONCE`. Releases before 0.18 do not write it.
    """

    peft_type: ClassVar[str] = "OFT"
    algorithm: ClassVar[type[Layer]] = OftV2

    r: int = 0
    """The number of blocks, 0 where their size is given instead."""
    oft_block_size: int = 0
    block_share: bool = False
    coft: bool = False
    eps: float = EPS
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = TERMS
    bias: str = "none"
    peft_version: str = ""

    @classmethod
    def read(cls, table: Mapping[str, Any], path: str) -> Self:
        config = cls(
            path=path,
            coft=bool(table.get("coft", False)),
            # Without `coft` it has no effect, so whatever is there is no error.
            eps=float(table["eps"]) if table.get("coft") else EPS,
            use_cayley_neumann=bool(table.get("use_cayley_neumann", True)),
            num_cayley_neumann_terms=int(table.get("num_cayley_neumann_terms", TERMS)),
            peft_version=str(table.get("peft_version", "")),
        )
        if config.coft and not config.eps > 0:
            raise ValueError(f"coft with an eps of {config.eps}")
        if config.use_cayley_neumann and config.num_cayley_neumann_terms < 0:
            raise ValueError(f"num_cayley_neumann_terms of {config.num_cayley_neumann_terms}")
        return config

    def options(self, algorithm: type[Layer], path: str) -> dict[str, Any]:
        if algorithm is not self.algorithm:
            return {}
        # Without a version the release is (), which is before every other.
        release = tuple(int(part) for part in re.findall(r"\d+", self.peft_version)[:2])
        return {
            "terms": self.num_cayley_neumann_terms if self.use_cayley_neumann else 0,
            "last": 1 if release >= ONCE else 2,
            "constraint": self.eps if self.coft else None,
        }

    @classmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], WantedOft]:
        assert isinstance(layer, OftV2)
        if layer.oft_r_scaled_oft is not None:
            raise LayerError("holds no scaled OFT", got=SCALED)
        rotation = (layer.terms, layer.last, layer.constraint)
        block, blocks = layer.rank_of(layer.shapes), layer.oft_r.shape[0]
        return plain_tensors(layer, *LORA_ONLY), WantedOft(block=block, blocks=blocks, rotation=rotation)

    @classmethod
    def of(cls, members: Sequence[Member[WantedOft]], module: Module) -> Self:
        block = common(members, "one size of block", lambda wanted: wanted.block)
        terms, last, constraint = common(members, "one series in every layer", lambda wanted: wanted.rotation)
        return cls(
            target_modules=patterns.modules([member.path for member in members], module.paths),
            oft_block_size=block,
            block_share=all(member.wanted.blocks == 1 for member in members),
            coft=constraint is not None,
            eps=EPS if constraint is None else constraint,
            use_cayley_neumann=terms > 0,
            num_cayley_neumann_terms=terms or TERMS,
            # Left out for the older series, as by the releases that compute it. Newer ones warn without it.
            peft_version=".".join(map(str, (*ONCE, 0))) if last == 1 else "",
        )

    def table(self) -> dict[str, Any]:
        table = super().table()
        if not self.peft_version:
            del table["peft_version"]
        return table
