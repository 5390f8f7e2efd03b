"""Replace functions that networks call in training: fused kernels without a derivative by plain torch, and
norms whose inputs are overwritten later by norms that read copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ...host.training import fused_functions

NAMESPACE = "comfy_kitchen"
"""The library of these kernels. It has the same functions in plain torch."""


class Differentiable(TorchFunctionMode):
    """A context in which calls of fused kernels run as plain torch. Nothing is registered."""

    def __init__(self) -> None:
        super().__init__()
        self._functions: Mapping[str, Callable[..., Any]] = fused_functions()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            # Such as comfy_kitchen.apply_rope.default.
            namespace, name, *_ = str(func).split(".")
            if namespace == NAMESPACE and (plain := self._functions.get(name)) is not None:
                return plain(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class NormsCopied(TorchFunctionMode):
    """A context in which RMS norms that are called as functions read copies of their inputs."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.rms_norm and torch.is_grad_enabled():
            args = (args[0].clone(), *args[1:])
        return func(*args, **(kwargs or {}))
