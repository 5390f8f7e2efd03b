"""Train beside layers whose weights are offloaded, packed or in another dtype.

The host copies, unpacks or casts such a weight for each pass. Autograd would keep every copy until the
backward pass: the whole model in memory again, or worse, a buffer that the host has reused for the next
layer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import grad

from ...host.weights import QuantizedTensor, cast_of
from .recompute import put_back


def lent(model: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[nn.Module]:
    """The layers whose weight the host copies, unpacks, patches or casts in each pass."""
    for module in model.modules():
        held: Any = module
        weight = module._parameters.get("weight")
        if weight is None or not (hasattr(held, "comfy_cast_weights") or hasattr(held, "cast_bias_weight")):
            continue
        away = weight.device != device or hasattr(held, "_v")
        packed = isinstance(weight, QuantizedTensor) or not weight.is_floating_point()
        patched = bool(getattr(held, "weight_function", ()))
        # The cast of a vector is as small as what autograd keeps anyway.
        cast = weight.dtype != dtype and getattr(held, "comfy_cast_weights", False) and weight.ndim > 1
        if away or packed or patched or cast:
            yield module


@contextmanager
def weights_fetched_again(model: nn.Module, dtype: torch.dtype, device: torch.device) -> Generator[int]:
    """A context in which the layers of `lent` keep no weight for the backward pass but fetch it again there.

    Their weights get no gradients. Yields how many layers there are.
    """
    with ExitStack() as stack:
        count = 0
        for module in list(lent(model, dtype, device)):
            own = vars(module)
            before = own.get("forward")
            # A `forward` that others have replaced may do more than multiply by the weight.
            own["forward"] = _fetching(module, module.forward, alone=before is None)
            stack.callback(put_back, own, before)
            count += 1
        yield count


def _fetching(module: nn.Module, forward: Callable[..., Tensor], *, alone: bool) -> Callable[..., Tensor]:
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # A weight that an adapter has put in place of the layer's own has a graph.
        if not torch.is_grad_enabled() or not x.requires_grad or "weight" in vars(module):
            return forward(x, *args, **kwargs)
        if args or kwargs:
            return _Fetching.apply(x, None, lambda value: forward(value, *args, **kwargs))
        return _Fetching.apply(x, module if alone else None, forward)

    return run


class _Fetching(torch.autograd.Function):
    """A layer with a frozen weight. dx = dy W, or for a convolution the transposed convolution of dy.

    Any other layer runs again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any, forward: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.module, ctx.run, ctx.dtype, ctx.shape = module, forward, x.dtype, x.shape
        ctx.back = _of_linear if isinstance(module, nn.Linear) else None
        if _is_plain_convolution(module, x.ndim):
            ctx.back = _of_convolution
        # These gradients do not depend on the input.
        ctx.save_for_backward(*(() if ctx.back else (x,)))
        output = forward(x.detach())
        # Callers may add to the output in place, which torch forbids for a view returned from here.
        return torch.ops.aten._unsafe_view(output, output.shape) if output._is_view() else output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        if ctx.back is None:
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                (gradient_of_x,) = torch.autograd.grad(ctx.run(leaf), leaf, gradient)
            return gradient_of_x, None, None
        weight = cast_of(ctx.module, gradient.dtype, gradient.device, kept=False)[0]
        return ctx.back(ctx.module, ctx.shape, weight, gradient).to(ctx.dtype), None, None


def _is_plain_convolution(module: Any, dimensions: int) -> bool:
    """Whether a layer is a plain convolution whose inputs have this many dimensions, with the batch."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    plain = isinstance(module, kinds) and module.padding_mode == "zeros"
    return plain and not isinstance(module.padding, str) and len(module.stride) + 2 == dimensions


def _of_linear(module: Any, shape: torch.Size, weight: Tensor, gradient: Tensor) -> Tensor:
    # The layer multiplies its input by these factors (I,), and its weight is stored divided by them.
    scale = getattr(module, "pre_quant_scale", None)
    product = gradient @ weight
    return product if scale is None else product * scale.to(product)


def _of_convolution(module: Any, shape: torch.Size, weight: Tensor, gradient: Tensor) -> Tensor:
    of_input = getattr(grad, f"conv{len(module.stride)}d_input")
    return of_input(shape, weight, gradient, module.stride, module.padding, module.dilation, module.groups)
