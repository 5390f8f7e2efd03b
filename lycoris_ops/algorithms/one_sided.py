"""What the kinds of LoRA have in common of which one factor keeps its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from .lora import Lora
from .offers import Offer

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False, kw_only=True)
class OneSided(Lora):
    """A LoRA in training, one of whose factors is in `frozen`. No file says that it was: it holds a LoRA."""

    variants: ClassVar[tuple[frozenset[str], ...]] = ()

    @classmethod
    def suffixes(cls) -> frozenset[str]:
        return Lora.suffixes()

    @classmethod
    def of(cls, layer: Lora) -> Self:
        """A LoRA that is trained so from now on."""
        return cls(**_fields(layer))

    def filed(self) -> Lora:
        return Lora(**_fields(self))

    def exponents(self) -> Mapping[str, float]:
        """The factor that is trained takes all of it."""
        return {name: 1.0 for name in super().exponents() if name not in self.frozen}

    def normal(self) -> tuple[Self, Mapping[str, Tensor]]:
        """The layer as it is: independent components would need another frozen factor."""
        return self, {}


def sizes_of(algorithm: str, offers: Sequence[Offer], values: int) -> tuple[Offer, ...]:
    """The offers of a LoRA for another kind, of which so many values are trained for each of the rank."""
    return tuple(
        replace(
            offer,
            algorithm=algorithm,
            parameters=tuple(values * (rank or 0) for rank in offer.ranks),
            stored=offer.parameters,
        )
        for offer in offers
    )


def _fields(layer: Lora) -> dict[str, Any]:
    return {field.name: getattr(layer, field.name) for field in fields(layer)}
