"""How a module multiplies: a linear layer, or a convolution with its stride, padding and groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional, grad

from ..changes.operators import Operator
from ..maths.shapes import Rows, Shape

CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
"""The number of dimensions of each convolution's kernel."""

LINEAR_FORWARDS = frozenset(
    {"Linear", "CublasLinear", "Linear4bit", "Linear8bitLt", "LinearFP4", "LinearNF4"}
)
"""Names of classes whose `forward` is W x + b, however they store W.

`Linear` is PyTorch's own class, and also the name of subclasses in ComfyUI and in quantisers; CublasLinear is
of cublas_ops, the others are of bitsandbytes. A class of another name may compute another product: of a
scaled weight, or of a padded input."""

TRANSPOSED_FORWARD = "Conv1D"
"""A class of the transformers library, used by GPT-2, whose `forward` is x W + b with W (inputs, outputs)."""


@dataclass(frozen=True)
class Geometry:
    """The shapes and options of a product y = W x + b.

    `outputs` and `inputs` count channels, and W is (outputs, inputs / groups, *kernel); `kernel` is () for a
    linear layer. A convolution whose padding is not by zeros pads its input first, by `pads` (in the order of
    `torch.nn.functional.pad`) and in `mode`. `transposed` is a linear layer that stores W^T.
    """

    outputs: int
    inputs: int
    kernel: Shape = ()
    stride: Shape = ()
    padding: Shape | str = ()
    dilation: Shape = ()
    groups: int = 1
    pads: tuple[int, ...] = ()
    mode: str = "zeros"
    transposed: bool = False

    @property
    def shape(self) -> Shape:
        """The weight's shape."""
        return (self.outputs, self.inputs // self.groups, *self.kernel)

    @property
    def columns(self) -> int:
        """The columns of the weight as a matrix."""
        return math.prod(self.shape[1:])

    def tokens(self, x: Tensor) -> int:
        """How many vectors of an input are multiplied with the weight; an estimate for a convolution."""
        return x.numel() // self.inputs // math.prod(self.stride)

    def padded(self, x: Tensor) -> Tensor:
        """The input as `product` takes it: with the padding that is not by zeros."""
        return functional.pad(x, self.pads, mode=self.mode) if self.pads else x

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """W x for a weight (n, K) and an input that is already `padded`: n output channels, no bias.

        Without groups, x may have fewer channels than the module's input; K is then smaller in proportion.
        """
        if not self.kernel:
            return functional.linear(x, weight)
        shaped = weight.view(len(weight), -1, *self.kernel)
        run = (functional.conv1d, functional.conv2d, functional.conv3d)[len(self.kernel) - 1]
        # With `pads` the input is padded already.
        padding: Any = 0 if self.pads else self.padding
        return run(x, shaped, None, self.stride, padding, self.dilation, self.groups)

    def add_weight_gradient(self, total: Tensor, x: Tensor, gradient: Tensor) -> None:
        """total += dL/dW, for an input that is already `padded` and dL/dy of its output."""
        if not self.kernel:
            total.addmm_(gradient.reshape(-1, gradient.shape[-1]).T, x.reshape(-1, x.shape[-1]))
            return
        if x.ndim == len(self.kernel) + 1:
            x, gradient = x[None], gradient[None]
        padding: Any = 0 if self.pads or self.padding == "valid" else self.padding
        if padding == "same":
            extents = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
            # `pad` takes the last dimension first. An odd one goes to the end.
            x = functional.pad(x, [size for e in reversed(extents) for size in (e // 2, e - e // 2)])
            padding = 0
        # torch types none of these.
        torchs = cast("Any", grad)
        run = (torchs.conv1d_weight, torchs.conv2d_weight, torchs.conv3d_weight)[len(self.kernel) - 1]
        total += run(x, self.shape, gradient, self.stride, padding, self.dilation, self.groups)

    def mix(self, h: Tensor, matrix: Tensor) -> Tensor:
        """Map the channels of h to n channels by a matrix (n, m) that is the same at each place.

        Without groups h has m channels. With groups h has m channels in each group, and each group's outputs
        see only these.
        """
        if not self.kernel:
            return functional.linear(h, matrix)
        ones = (1,) * len(self.kernel)
        run = (functional.conv1d, functional.conv2d, functional.conv3d)[len(self.kernel) - 1]
        return run(h, matrix.view(*matrix.shape, *ones), groups=self.groups)

    def last(self, values: Tensor) -> Tensor:
        """The values with their channels last, as operators take them; a view."""
        return values.movedim(1, -1) if self.kernel else values

    def first(self, values: Tensor) -> Tensor:
        """The inverse of `last`; a view."""
        return values.movedim(-1, 1) if self.kernel else values

    def per_channel(self, vector: Tensor) -> Tensor:
        """A vector over channels, shaped to be added to or multiplied with an output or input."""
        return vector.view(-1, *(1 for _ in self.kernel)) if self.kernel else vector

    def turned(self, operator: Operator, x: Tensor) -> Tensor:
        """(M - 1) x for an operator M on the input channels; with groups, on the channels of each group."""
        last = self.last(x)
        if self.groups == 1:
            return self.first(operator.change(last))
        cut = last.reshape(*last.shape[:-1], self.groups, -1)
        return self.first(operator.change(cut).flatten(-2))

    def part(self, y: Tensor, rows: Rows | None) -> Tensor:
        """The channels of y that come from some rows of the weight; a view."""
        return y if rows is None else y.narrow(1 if self.kernel else -1, rows[0], rows[1] - rows[0])


def geometry_of(module: nn.Module) -> Geometry | str:
    """The geometry of a module that is a plain linear layer or convolution, else why it is not."""
    name = type(module).__name__
    if type(module) is nn.modules.linear.NonDynamicallyQuantizableLinear:
        # nn.MultiheadAttention hands the weight to a function: a hook on the layer would never run.
        return "its weight is used without the layer being called"
    layer: Any = module
    by = definer(module).__name__
    if isinstance(module, nn.Linear) or _looks_linear(module):
        if by not in LINEAR_FORWARDS:
            return f"of class {name}, which multiplies in its own way"
        return Geometry(int(layer.out_features), int(layer.in_features))
    if name == by == TRANSPOSED_FORWARD and getattr(layer.weight, "ndim", 0) == 2:
        inputs, outputs = layer.weight.shape
        return Geometry(int(outputs), int(inputs), transposed=True)
    for kind, dimensions in CONVOLUTIONS.items():
        if isinstance(module, kind):
            if by != kind.__name__:
                return f"of class {name}, which multiplies in its own way"
            mode = str(layer.padding_mode)
            # torch holds the padding in the order of `functional.pad` under this private name.
            pads = () if mode == "zeros" else tuple(layer._reversed_padding_repeated_twice)
            padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
            return Geometry(
                outputs=layer.out_channels,
                inputs=layer.in_channels,
                kernel=_tuple(layer.kernel_size, dimensions),
                stride=_tuple(layer.stride, dimensions),
                padding=padding,
                dilation=_tuple(layer.dilation, dimensions),
                groups=layer.groups,
                pads=pads,
                mode=mode,
            )
    return f"of class {name}, not a linear layer or a convolution"


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype to multiply factors in: the input's, but float32 for float16 on a CPU.

    Products of float16 are a hundred times slower there.
    """
    return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype


def _looks_linear(module: Any) -> bool:
    """Whether a module that is no `nn.Linear` is a linear layer, as quantised ones of the host are."""
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(size, int) for size in sizes) and type(module).__name__ in LINEAR_FORWARDS


def definer(module: nn.Module) -> type:
    """The class that defines what the module runs: `forward`, or `_conv_forward` of a convolution."""
    # `nn.Module` has one too, which raises.
    return next(
        kind for kind in type(module).__mro__ if "forward" in vars(kind) or "_conv_forward" in vars(kind)
    )


def _tuple(value: Sequence[int], dimensions: int) -> Shape:
    sizes = tuple(int(size) for size in value)
    return sizes if len(sizes) == dimensions else sizes * dimensions
