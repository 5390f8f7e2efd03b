"""Hooks that add a plan's changes to what a module gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..algebra import compute_dtype
from ..errors import LycorisError
from .bound import Bound
from .geometry import geometry_of
from .plan import BypassPlan, Met


class Reader(Protocol):
    """How the values of a module's weight and bias are read, whatever they are kept in."""

    def weight(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor: ...

    def bias(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor | None: ...


class PlainReader:
    """Reads parameters that hold their values."""

    def weight(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor:
        weight: Any = module.weight
        return weight.detach().to(device, dtype)

    def bias(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        bias: Any = module.bias
        return None if bias is None else bias.detach().to(device, dtype)


class Bypass:
    """The layers of a plan on one module, by hooks, so that its weight and its `forward` stay as they are.

    Tensors go to the device and dtype of the input with the first pass there. The weight is read then,
    once, by the layers that need its norm or its singular values; `met`, what they learned from it, can
    be handed to another `Bypass` of the same plan and weight.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: BypassPlan,
        *,
        reader: Reader | None = None,
        met: Met | None = None,
        name: str | None = None,
    ) -> None:
        self.module = module
        self.plan = plan
        self.met = met
        self.name = name
        self.strengths: tuple[tuple[float, ...], ...] = plan.strengths
        """Those of each stage: layers of the weight, then layers of the bias. May be changed at any time."""
        self._reader = reader or PlainReader()
        self._bound: Bound | None = None
        self._inputs: list[Tensor] | None = None
        self._handles: list[RemovableHandle] = []

    def attach(self) -> Bypass:
        """Add the hooks, if they are not there."""
        if not self._handles:
            self._handles = [
                self.module.register_forward_pre_hook(self._before, with_kwargs=True),
                self.module.register_forward_hook(self._after, with_kwargs=True),
            ]
        return self

    def remove(self) -> None:
        """Take the hooks away, if they are there, and let go of the tensors on the device."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._bound, self._inputs = [], None, None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not any(strength != 0.0 for stage in self.strengths for strength in stage):
            self._inputs = None
            return None
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        bound = self._bind(x)
        inputs = self._inputs = bound.inputs(x, self.strengths)
        if inputs[0] is inputs[-1]:
            return None
        given = inputs[0].view(x.shape).to(x.dtype)
        if args:
            return (given, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): given}

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Any:
        inputs, self._inputs = self._inputs, None
        if inputs is None or self._bound is None:
            return None
        rest: Mapping[str, Any] = kwargs if args else {}

        def run(x: Tensor) -> Tensor:
            # Not through the hooks: they are what asks.
            return module.forward(x, *args[1:], **rest)

        return self._bound.finish(inputs, y, self.strengths, run)

    def _bind(self, x: Tensor) -> Bound:
        if self._bound is None or self._bound.key != (x.dtype, x.device):
            # Not as inference tensors: they outlive this pass.
            with torch.inference_mode(False):
                if self.met is None:
                    self.met = self._meet(compute_dtype(x.dtype), x.device)
                self._bound = Bound(self.plan.geometry, self.met, x)
        return self._bound

    def _meet(self, dtype: torch.dtype, device: torch.device) -> Met:
        try:
            return self.plan.meet(
                dtype,
                device,
                lambda: self._reader.weight(self.module, dtype, device),
                lambda: self._reader.bias(self.module, dtype, device),
            )
        except LycorisError as error:
            raise error.within(key=self.name) from None


def bypass(module: nn.Module, plan: BypassPlan, **options: Any) -> Bypass:
    """Attach a plan to a module that it was made for; `remove` of the result takes it away."""
    found = geometry_of(module)
    if found != plan.geometry:
        raise LycorisError(
            "the plan was made for another module", got=str(found), expected=str(plan.geometry)
        )
    return Bypass(module, plan, **options).attach()
