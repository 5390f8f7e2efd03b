"""PEFT's LoHaConfig."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ...algorithms import Layer
from ...algorithms.base import alpha_of
from ...algorithms.loha import Loha
from ..config import ConfiguredLayer, Module, RankedConfig
from ..cores import WantedCore, common_core, with_core

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class LohaConfig(RankedConfig[WantedCore]):
    """With `use_effective_conv2d` every layer with a kernel above 1 has Tucker cores."""

    peft_type: ClassVar[str] = "LOHA"
    algorithm: ClassVar[type[Layer]] = Loha
    without_effect: ClassVar[frozenset[str]] = RankedConfig.without_effect | {
        *("rank_dropout", "module_dropout", "init_weights"),
    }

    use_effective_conv2d: bool = False

    @classmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], WantedCore]:
        assert isinstance(layer, Loha)
        tensors = with_core(layer, layer.hada_t1)
        rank = layer.rank or 1
        return tensors, WantedCore(r=rank, alpha=alpha_of(layer) or 0.0, tucker=layer.hada_t1 is not None)

    @classmethod
    def of(cls, members: Sequence[ConfiguredLayer[WantedCore]], module: Module) -> Self:
        return replace(super().of(members, module), use_effective_conv2d=common_core(members, module))
