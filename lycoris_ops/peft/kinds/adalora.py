"""PEFT's AdaLoraConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..config import MOST_RANK
from ..fields import Fields
from .lora import LoraConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from ..config import Refusal

INIT_RANK = 12
"""PEFT's default of `init_r`."""
EPS = 1e-5
"""PEFT adds this to the rank in the denominator of the scale."""


@dataclass(frozen=True, kw_only=True)
class AdaLoraConfig(LoraConfig):
    """The scale is lora_alpha / (init_r + 1e-5), whatever rank a layer has left after training.

    An alpha of 0 or below stands for this remaining rank. The file holds only the remaining singular values.
    """

    peft_type: ClassVar[str] = "ADALORA"
    read_only: ClassVar[bool] = True
    without_effect: ClassVar[frozenset[str]] = LoraConfig.without_effect | {
        *("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
        # LoRA's fields that AdaLoRA does not read.
        *("use_qalora", "use_bdlora"),
        *("alora_invocation_tokens", "arrow_config", "kasa_config", "target_parameters"),
    }
    refused: ClassVar[Mapping[str, Refusal]] = {
        "layer_replication": LoraConfig.refused["layer_replication"],
    }

    @classmethod
    def read(cls, fields: Fields) -> Self:
        return cls(
            path=fields.file,
            r=fields.integer("init_r", INIT_RANK, low=1, high=MOST_RANK),
            alpha=fields.number("lora_alpha"),
            bias=fields.text("bias", "none"),
            fan_in_fan_out=fields.flag("fan_in_fan_out", False),
        )

    def alpha_at(self, path: str, rank: int) -> float:
        # Callers divide this by the remaining rank.
        return (self.alpha if self.alpha > 0 else rank) / (self.r + EPS) * rank
