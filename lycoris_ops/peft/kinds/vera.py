"""PEFT's VeraConfig."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ...algorithms import Layer
from ...algorithms.vera import A, B, Vera
from ...messages import phrase
from ..config import LORA_ONLY, BiasedConfig, ConfiguredLayer, ConflictError, Module, Wanted, plain_tensors
from ..fields import Fields

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class WantedVera(Wanted):
    outputs: int
    projections: tuple[Tensor, Tensor] = field(compare=False)
    """B (n, r) and A (r, m), which all layers share."""


@dataclass(frozen=True, kw_only=True)
class VeraConfig(BiasedConfig[WantedVera]):
    """The file holds A and B (`save_projection`), of as many inputs and outputs as PEFT gives them: the most
    that one of its layers has."""

    peft_type: ClassVar[str] = "VERA"
    algorithm: ClassVar[type[Layer]] = Vera
    without_effect: ClassVar[frozenset[str]] = BiasedConfig.without_effect | {
        *("vera_dropout", "d_initial", "init_weights"),
    }

    r: int = 256
    projection_prng_key: int = 0
    """PEFT takes A and B of adapters with one key to be the same."""
    save_projection: bool = True

    @classmethod
    def read(cls, fields: Fields) -> Self:
        # The rank follows from the shapes of the tensors.
        return replace(super().read(fields), fan_in_fan_out=fields.flag("fan_in_fan_out", False))

    @classmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], WantedVera]:
        assert isinstance(layer, Vera)
        return plain_tensors(layer, *LORA_ONLY), WantedVera(
            outputs=len(layer.vera_lambda_b),
            projections=(layer.vera_b, layer.vera_a),
        )

    @classmethod
    def of(cls, members: Sequence[ConfiguredLayer[WantedVera]], module: Module) -> Self:
        b, a = members[0].wanted.projections
        for member in members:
            if not all(map(_same, (b, a), member.wanted.projections)):
                raise ConflictError("E-peft-vera-projections", member, phrase("R-other-values"), a=A, b=B)
        sides = [(member.wanted.outputs, *member.wanted.weight[1:]) for member in members]
        for name, size, most in (
            (B, len(b), max(side[0] for side in sides)),
            (A, a.shape[1], max(side[1] if len(side) > 1 else a.shape[1] for side in sides)),
        ):
            if size != most:
                raise ConflictError(
                    "E-peft-vera-outputs" if name == B else "E-peft-vera-inputs",
                    members[0],
                    str(size),
                    name=name,
                    most=most,
                )
        return replace(
            super().of(members, module),
            r=len(a),
            projection_prng_key=zlib.crc32(a.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()),
        )


def _same(first: Tensor, other: Tensor) -> bool:
    return first is other or torch.equal(first, other)
