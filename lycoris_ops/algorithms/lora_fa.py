"""LoRA whose down factor keeps its start: LoRA-FA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..maths.shapes import Shape
from .lora import Lora
from .offers import Gradient, Offer
from .one_sided import OneSided, sizes_of

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False, kw_only=True)
class LoraFa(OneSided):
    """A LoRA of which training changes up (O, r) alone, and down (r, I, *kernel) keeps its start.

    It trains O values for each of its rank in place of O + K, and of the input the backward pass needs down x
    alone, r values in place of I. A file holds both factors, and is that of a LoRA.

    Source: Zhang et al., "LoRA-FA" (2308.03303), section 3.
    """

    algorithm: ClassVar[str] = "lora_fa"
    frozen: ClassVar[frozenset[str]] = frozenset({"lora_down"})

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int, tucker: bool = False) -> Self:
        """As a LoRA: down (and mid with `tucker`) uniform in +-1 / sqrt(fan in), up zero."""
        return cls.of(Lora.init(shape, rank, alpha, seed=seed, tucker=tucker))

    @classmethod
    def offers(cls, gradient: Gradient) -> tuple[Offer, ...]:
        """Those of a LoRA, whose first step changes up alone, for O values for each of its rank."""
        return sizes_of(cls.algorithm, Lora.offers(gradient), gradient.shape[0])
