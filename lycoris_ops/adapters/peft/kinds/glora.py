"""PEFT's GloraConfig."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ....algorithms import Layer
from ....algorithms.glora_peft import GloraPeft
from .. import patterns
from ..config import BiasedConfig, Member, Module, Wanted, common, plain_tensors
from ..fields import Fields

if TYPE_CHECKING:
    from typing_extensions import Self

RANK = 8
"""PEFT's default of `r`, written where no path has a rank."""
EITHER = "constant or vector"
"""The form of D and E (1,) where the layer may have one output: a configuration of either form gives it."""


@dataclass(frozen=True, kw_only=True)
class WantedGlora(Wanted):
    rank: int | None
    """None where no path of the layer is a product."""
    forms: tuple[str, str, str]
    """`config_A_B`, `config_C` and `config_D_E` for the layer."""


@dataclass(frozen=True, kw_only=True)
class GloraConfig(BiasedConfig[WantedGlora]):
    """A configuration of GLoRA layers. It says which form each of the paths A to E has.

    A layer whose path is switched off may stand beside others: there PEFT starts the path at zero.
    """

    peft_type: ClassVar[str] = "GLORA"
    algorithm: ClassVar[type[Layer]] = GloraPeft
    without_effect: ClassVar[frozenset[str]] = BiasedConfig.without_effect | {
        "init_weights",
        # The tensors tell.
        *("r", "config_A_B", "config_C", "config_D_E"),
    }

    r: int = RANK
    config_A_B: str = "none"  # noqa: N815
    config_C: str = "none"  # noqa: N815
    config_D_E: str = "none"  # noqa: N815

    @classmethod
    def read(cls, fields: Fields) -> Self:
        # The tensors tell the rest.
        return cls(path=fields.file, bias=fields.text("bias", "none"))

    @classmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], WantedGlora]:
        assert isinstance(layer, GloraPeft)
        a, c, d = (layer.form(layer.shapes, path) for path in "ACD")
        if d == "constant" and layer.extent[0] in (None, 1):
            d = EITHER
        coupled = layer.glora_c_xu
        rank = layer.rank if coupled is None else coupled.shape[0]
        return plain_tensors(layer), WantedGlora(
            rank=rank, forms=(a, c, d), set_bias=layer.set_bias is not None
        )

    @classmethod
    def of(cls, members: Sequence[Member[WantedGlora]], module: Module) -> Self:
        def form(path: str, place: int) -> str:
            return _common(members, f"one form of {path}", lambda wanted: wanted.forms[place])

        ranked = [member for member in members if member.wanted.rank is not None]
        return cls(
            target_modules=patterns.modules([member.path for member in members], module.paths),
            r=(common(ranked, "one rank", lambda wanted: wanted.rank) if ranked else None) or RANK,
            config_A_B=form("A and B", 0),
            config_C=form("C", 1),
            config_D_E=form("D and E", 2),
            bias=cls.bias_of(members),
        )


def _common(
    members: Sequence[Member[WantedGlora]], needed: str, form_of: Callable[[WantedGlora], str]
) -> str:
    """The form that all layers have whose path is not switched off, see `common`; "none" if all are."""
    some = [member for member in members if form_of(member.wanted) not in ("none", EITHER)]
    if some:
        return common(some, needed, form_of)
    return "constant" if any(form_of(member.wanted) == EITHER for member in members) else "none"
