"""PEFT's LNTuningConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...algorithms import Layer
from ...algorithms.axes import SET_BIAS
from ...algorithms.full import SET, Full
from ...errors import LayerError
from ..config import Config, Wanted

SUFFIXES = {SET: "ln_tuning_layers.weight", SET_BIAS: "ln_tuning_layers.bias"}
"""PEFT's suffix for each of our suffixes of whole values."""
BESIDE = {"ln_tuning_layers.weight": "weight", "ln_tuning_layers.bias": "bias"}
"""PEFT's names for the same tensors where a file of another kind has the norm in `modules_to_save`, or trains
biases."""


@dataclass(frozen=True, kw_only=True)
class LnTuningConfig(Config[Wanted]):
    """The tensors are the values of whole norms, or of biases alone, so the configuration only names the
    modules."""

    peft_type: ClassVar[str] = "LN_TUNING"
    algorithm: ClassVar[type[Layer]] = Full

    @classmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], Wanted]:
        tensors = layer.dump()
        if not tensors.keys() <= SUFFIXES.keys():
            raise LayerError("E-dialect-without-kind", algorithm=layer.algorithm, got=layer.algorithm)
        wanted = Wanted(set_bias=SET not in tensors)
        return {SUFFIXES[suffix]: tensor for suffix, tensor in tensors.items()}, wanted
