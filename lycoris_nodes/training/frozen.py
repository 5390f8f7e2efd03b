"""Layers whose weights are not at hand as the model uses them: offloaded, packed or in another dtype.

The host copies, unpacks or casts such a weight for each pass. Autograd would keep the copy of every layer
until the backward pass, which is the whole model again in memory, or worse, see the buffer that the host has
meanwhile used for the next layer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .host import QuantizedTensor, fetched
from .recompute import put_back


def lent(model: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, nn.Module]]:
    """The layers, by path, of which the host makes a weight for each pass in this dtype on this device."""
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or not (hasattr(module, "comfy_cast_weights") or hasattr(module, "cast_bias_weight")):
            continue
        held: Any = module
        other = weight.device != device or (weight.dtype != dtype and held.comfy_cast_weights)
        if other or isinstance(weight, QuantizedTensor) or len(held.weight_function) or hasattr(module, "_v"):
            yield path, module


@contextmanager
def weights_fetched_again(model: nn.Module, dtype: torch.dtype, device: torch.device) -> Generator[int]:
    """A time in which such layers keep no weight for the backward pass but fetch it again there.

    Their weights get no gradients. Yields how many layers there are.
    """
    with ExitStack() as stack:
        count = 0
        for _, module in list(lent(model, dtype, device)):
            own = vars(module)
            before = own.get("forward")
            own["forward"] = _fetching(module, module.forward)
            stack.callback(put_back, own, before)
            count += 1
        yield count


def _fetching(module: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # A weight that an adapter has put over the layer's own is one with a graph.
        if not torch.is_grad_enabled() or not x.requires_grad or "weight" in vars(module):
            return forward(x, *args, **kwargs)
        return _Fetching.apply(x, module, lambda given: forward(given, *args, **kwargs))

    return run


class _Fetching(torch.autograd.Function):
    """A layer with a fixed weight. Source of the gradient of a linear one: dx = dy W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.module, ctx.run, ctx.dtype = module, forward, x.dtype
        ctx.linear = isinstance(module, nn.Linear)
        # The gradient of a linear layer does not depend on its input.
        ctx.save_for_backward(*(() if ctx.linear else (x,)))
        return forward(x.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        if ctx.linear:
            weight = fetched(ctx.module, gradient.dtype, gradient.device)
            scale = getattr(ctx.module, "pre_quant_scale", None)
            found = gradient @ weight
            return (found if scale is None else found * scale.to(found)).to(ctx.dtype), None, None
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(ctx.run(leaf), leaf, gradient)
        return found, None, None
