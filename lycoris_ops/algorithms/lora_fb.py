"""LoRA whose up factor keeps its start, the mirror image of LoRA-FA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..maths.shapes import Shape, flat_shape
from .base import kaiming
from .components import Growth, rows_beyond, running
from .lora import Lora
from .offers import Gradient, Offer, first
from .one_sided import OneSided, sizes_of

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False, kw_only=True)
class LoraFb(OneSided):
    """A LoRA of which training changes down (r, I, *kernel) alone, and up (O, r) keeps its start.

    It trains K values for each of its rank in place of O + K, which are fewer than those of LoRA-FA where a
    layer has more outputs than inputs. A file holds both factors, and is that of a LoRA.

    Source: Zhang et al., "LoRA-FA" (2308.03303), section 3, with the factors in each other's place.
    """

    algorithm: ClassVar[str] = "lora_fb"
    frozen: ClassVar[frozenset[str]] = frozenset({"lora_up"})

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int, tucker: bool = False) -> Self:
        """up uniform in +-1 / sqrt(O), as down is for the transposed weight; down zero.

        `tucker` is as for a LoRA.
        """
        plain = Lora.init(shape, rank, alpha, seed=seed, tucker=tucker)
        assert plain.lora_up is not None and plain.lora_down is not None
        up = kaiming((rank, shape[0]), torch.Generator().manual_seed(seed)).T
        return replace(
            cls.of(plain),
            lora_up=up.reshape(plain.lora_up.shape).contiguous(),
            lora_down=torch.zeros_like(plain.lora_down),
        )

    @classmethod
    def offers(cls, gradient: Gradient) -> tuple[Offer, ...]:
        """up = U_r, the leading left singular vectors of G (O, K), and down zero: gain sum_{j<=r} S_j^2.

        dL/ddown = up^T G has the energy of the same singular values as dL/dup of a LoRA.
        """
        if len(gradient.shape) < 2:
            return ()
        columns = flat_shape(gradient.shape)[1]
        found = sizes_of(cls.algorithm, Lora.offers(gradient), columns)
        return tuple(replace(offer, start={"lora_up": gradient.left}) for offer in found)

    def at(self, start: Mapping[str, Tensor], *, seed: int) -> Self:
        if self.lora_up is None or "lora_up" not in start:
            return self
        outputs, rank = self.lora_up.shape[:2]
        rows = first(start["lora_up"], rank, (outputs,), seed=seed)
        return replace(self, lora_up=rows.T.reshape(self.lora_up.shape).contiguous())

    def growth(self, gradient: Tensor, most: int, *, seed: int = 0) -> Growth | None:
        """up by `rows_beyond` of the transposed gradient; down zero. None with a Tucker core."""
        if self.lora_up is None or self.lora_down is None or self.lora_mid is not None:
            return None
        known = self.lora_up.flatten(1).T
        values, rows = rows_beyond(gradient.flatten(1).T, known, most, seed=seed)
        up = rows.T.reshape(len(gradient), len(rows), *self.lora_up.shape[2:])
        down = rows.new_zeros(len(rows), *self.lora_down.shape[1:])
        return Growth(running(values.double().square()), {"lora_up": up, "lora_down": down})
