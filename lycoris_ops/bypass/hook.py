"""Hooks that add a plan's changes to what a module gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import LycorisError
from ..maths.tensors import compute_dtype
from .forwards.forward import outliving
from .geometry import geometry_of
from .plan import BypassPlan, Met
from .stages import Bound


class Reader(Protocol):
    """How the values of a module's weight and bias are read, whatever they are kept in."""

    def forward(self, module: nn.Module) -> Callable[..., Tensor]:
        """What multiplies by the weight: the module's `forward`, without what others add in it."""
        ...

    def weight(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor: ...

    def bias(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor | None: ...


class PlainReader:
    """Reads parameters that hold their values."""

    def forward(self, module: nn.Module) -> Callable[..., Tensor]:
        return module.forward

    def weight(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor:
        weight: Any = module.weight
        return weight.detach().to(device, dtype)

    def bias(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        bias: Any = module.bias
        return None if bias is None else bias.detach().to(device, dtype)


class Bypass:
    """The layers of a plan on one module, by hooks, so that its weight and its `forward` stay as they are.

    `attach` adds the hooks and `remove` takes them away. Raises LycorisError for a module of another
    geometry than the plan was made for.

    Tensors go to the device and dtype of the input with the first pass there. The weight is read by the
    layers that need its norm or its singular values, once: when `meet` is called, or with the first pass.
    `met`, what they learned from it, can be handed to another `Bypass` of the same plan and weight.

    Where a tensor of a layer requires gradients, they flow to it, and nothing is kept from one pass to the
    next: an optimiser may have changed it in between.
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
        found = geometry_of(module)
        if found != plan.geometry:
            raise LycorisError(
                "the plan was made for another module", key=name, got=str(found), expected=str(plan.geometry)
            )
        self.module = module
        self.plan = plan
        self.met = met
        self.name = name
        self._strengths = plan.strengths
        self._reader = reader or PlainReader()
        self._bound: Bound | None = None
        self._pass: tuple[Bound, list[Tensor]] | None = None
        """What is held between the two hooks of one pass."""
        self._handles: list[RemovableHandle] = []

    @property
    def strengths(self) -> tuple[tuple[float, ...], ...]:
        """Those of each stage: layers of the weight, then layers of the bias. May be changed at any time.

        Where a stage depends on what those before it make of the weight, it meets the weight anew then.
        """
        return self._strengths

    @strengths.setter
    def strengths(self, strengths: Sequence[Sequence[float]]) -> None:
        new = tuple(tuple(stage) for stage in strengths)
        if new != self._strengths and len(self.plan.stages) > 1:
            self.met = self._bound = None
        self._strengths = new

    def attach(self) -> Bypass:
        """Add the hooks, if they are not there.

        Raises LycorisError where another bypass is there and either depends on the weight: neither
        would see what the other makes of it. `BypassPlan.then` joins the two.
        """
        if self._handles:
            return self
        hooks: Mapping[int, Any] = cast("Any", self.module)._forward_hooks
        for hook in hooks.values():
            other = getattr(hook, "__self__", None)
            if isinstance(other, Bypass) and not (other.plan.additive and self.plan.additive):
                raise LycorisError(
                    "another bypass is on this module already",
                    key=self.name,
                    hint="Join the two plans by BypassPlan.then",
                )
        self._handles = [
            self.module.register_forward_pre_hook(self._before, with_kwargs=True),
            # Also where the pass fails, so that its input is let go.
            self.module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        return self

    def meet(self, dtype: torch.dtype, device: torch.device) -> Met:
        """Read what the layers need to know of the weight and bias, unless that is known already.

        `dtype` is float32 or float64. Raises LycorisError, with the name, for a layer that says too little.
        """
        if self.met is not None:
            return self.met
        try:
            with outliving():
                met = self.plan.at(self.strengths).meet(
                    dtype,
                    device,
                    lambda: self._reader.weight(self.module, dtype, device),
                    lambda: self._reader.bias(self.module, dtype, device),
                )
        except LycorisError as error:
            raise error.within(weight=self.name) from None
        if not self.plan.learns:
            self.met = met
        return met

    def remove(self) -> None:
        """Take the hooks away, if they are there, and let go of the tensors on the device."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._bound, self._pass = [], None, None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not any(strength != 0.0 for stage in self.strengths for strength in stage):
            self._pass = None
            return None
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        bound = self._bind(x)
        inputs = bound.inputs(x, self.strengths)
        self._pass = (bound, inputs)
        if inputs[0] is inputs[-1] or self._stands_beside_another(bound):
            return None
        given = inputs[0].view(x.shape).to(x.dtype)
        if args:
            return (given, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): given}

    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor | None
    ) -> Any:
        held, self._pass = self._pass, None
        if held is None or y is None:
            return None
        bound, inputs = held
        rest: Mapping[str, Any] = kwargs if args else {}
        # Not through the hooks: they are what asks.
        own = self._reader.forward(module)

        def run(x: Tensor) -> Tensor:
            return own(x, *args[1:], **rest)

        if not self._stands_beside_another(bound):
            return bound.finish(inputs, y, self.strengths, run)
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        met = run(inputs[0].view(x.shape).to(x.dtype))
        base = met.clone() if inputs[0] is inputs[-1] else run(x)
        return y + (bound.finish(inputs, met, self.strengths, run) - base)

    def _stands_beside_another(self, bound: Bound) -> bool:
        """Whether y is not the product alone, and it matters: what turns y or x would turn the other too."""
        return bound.turns and self._reader.forward(self.module) != self.module.forward

    def _bind(self, x: Tensor) -> Bound:
        learns = self.plan.learns
        if self._bound is None or learns or self._bound.key != (x.dtype, x.device):
            if learns:
                self.met = None
            met = self.meet(compute_dtype(x.dtype), x.device)
            with outliving():
                bound = Bound(self.plan.geometry, met, x)
            self._bound = None if learns else bound
            return bound
        return self._bound
