"""Tucker cores in PEFT: either every layer with a kernel above 1 has one, or none has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from ..algorithms import Layer
from ..algorithms.axes import SET_BIAS
from ..errors import LayerError
from ..messages import phrase
from .config import LORA_ONLY, ConfiguredLayer, ConflictError, Module, WantedRank, plain_tensors


@dataclass(frozen=True, kw_only=True)
class WantedCore(WantedRank):
    tucker: bool
    """Whether the layer has a Tucker core."""

    @property
    def needs_core(self) -> bool:
        """Whether PEFT with `use_effective_conv2d` gives this layer a core, if its kernel is above 1."""
        return True


C = TypeVar("C", bound=WantedCore)


def with_core(layer: Layer, core: Tensor | None) -> dict[str, Tensor]:
    """The tensors of a layer in PEFT's format, with its Tucker core if it has one.

    PEFT treats a one-dimensional kernel (k,) as (k, 1), so its core gets one more dimension.
    Raises LayerError for a core of a three-dimensional kernel, and for tensors that PEFT does not hold.
    """
    tensors = plain_tensors(layer, *LORA_ONLY, SET_BIAS)
    if core is None or core.ndim == 4:
        return tensors
    if core.ndim > 4:
        raise LayerError("E-dialect-without-tucker-3d", got=str(list(core.shape)))
    cores = {
        name: core_of_name.unsqueeze(-1)
        for name, core_of_name in tensors.items()
        if name.endswith(("_t1", "_t2"))
    }
    return {**tensors, **cores}


def common_core(members: Sequence[ConfiguredLayer[C]], module: Module) -> bool:
    """The value of `use_effective_conv2d` for these layers.

    Raises ConflictError where some layers with a kernel above 1 have a Tucker core and others have none.
    """
    tucker = any(member.wanted.tucker for member in members)
    for member in members:
        without = member.wanted.needs_core and not member.wanted.tucker
        if tucker and without and module.kernels.get(member.path, 1) > 1:
            raise ConflictError("E-peft-tucker-mixed", member, phrase("R-no-core"))
    return tucker
