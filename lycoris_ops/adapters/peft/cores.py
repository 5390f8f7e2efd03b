"""Tucker cores as PEFT has them: for every kernel above 1, or for none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from ...algorithms import Layer
from ...errors import LayerError
from .config import UNSCALED, ConflictError, Member, Module, WantedRank, plain_tensors


@dataclass(frozen=True, kw_only=True)
class WantedCore(WantedRank):
    tucker: bool
    """Whether the layer has a Tucker core."""

    @property
    def needs_core(self) -> bool:
        """Whether PEFT would give a layer of a kernel above 1 a core, where it gives any."""
        return True


C = TypeVar("C", bound=WantedCore)


def with_core(layer: Layer, core: Tensor | None) -> dict[str, Tensor]:
    """The tensors as PEFT has them: the core of a one-dimensional kernel is one of (k, 1) there."""
    tensors = plain_tensors(layer, *UNSCALED)
    if core is None or core.ndim == 4:
        return tensors
    if core.ndim > 4:
        raise LayerError("holds no Tucker core of a three-dimensional kernel", got=str(list(core.shape)))
    cores = {suffix: tensor.unsqueeze(-1) for suffix, tensor in tensors.items() if _is_core(suffix)}
    return {**tensors, **cores}


def common_core(members: Sequence[Member[C]], module: Module) -> bool:
    """`use_effective_conv2d`. Raises ConflictError where some kernels have a core and some have none."""
    tucker = any(member.wanted.tucker for member in members)
    for member in members:
        without = member.wanted.needs_core and not member.wanted.tucker
        if tucker and without and module.kernels.get(member.path, 1) > 1:
            raise ConflictError("needs a Tucker core in every kernel, or in none", member, "no core")
    return tucker


def _is_core(suffix: str) -> bool:
    return suffix.endswith(("_t1", "_t2"))
