"""(IA)^3: a learned factor for each input or output of a layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..changes.forms import Additive
from ..changes.operators import Diagonal, Sides
from ..errors import LayerError
from ..maths.shapes import Extent, Shape, fits, shown
from ..maths.tensors import narrowed
from .axes import Table
from .base import Layer, option
from .checks import dimensions, vector
from .training import Trained

WEIGHT, ON_INPUT, IA3_L = "weight", "on_input", "ia3_l"


@dataclass(frozen=True, eq=False, kw_only=True)
class Ia3(Trained):
    """delta = W * w along the inputs (on_input 1) or the outputs (on_input 0): W' = W * (1 + w).

    weight (n,) holds w; on a convolution it is (1, n, 1, ...). PEFT's ia3_l holds the factor itself,
    W' = W * l: (1, I) for inputs, (O, 1) for outputs. On a convolution both are (1, n, 1, ...), and only
    `feedforward`, from PEFT's configuration, says whether l is for inputs. PEFT multiplies a layer's output
    by an l for outputs, so that l scales the bias as well.

    Source: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning" (2205.05638), eq. 1; layouts by
    LyCORIS and by PEFT.
    """

    algorithm: ClassVar[str] = "ia3"
    in_comfy: ClassVar[bool] = False
    table: ClassVar[Table] = Table(
        {WEIGHT: "<n>", ON_INPUT: "(), number"},
        {IA3_L: "<n>, around one"},
        alpha=None,
        extras={},
    )
    # Its values are relative to those of the weight.
    fresh_rate: ClassVar[float] = 10.0

    weight: Tensor | None = None
    on_input: Tensor | None = None
    ia3_l: Tensor | None = None
    feedforward: bool | None = option(
        None, lambda value: value is None or isinstance(value, bool), "True, False or None"
    )

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Extent:
        if IA3_L in shapes:
            first, second, *kernel = dimensions(shapes, IA3_L)
            vector(shapes, IA3_L)
            if not kernel:
                return (first, None) if second == 1 else (None, second)
        # The shapes do not say whether n counts outputs or inputs: `suits` accepts either.
        return (vector(shapes, IA3_L if IA3_L in shapes else WEIGHT),)

    @classmethod
    def suits(cls, shapes: Mapping[str, Shape], weight: Sequence[int]) -> bool:
        extent = cls.shape(shapes)
        return extent[0] in weight[:2] if len(extent) == 1 else fits(extent, weight)

    @property
    def extent(self) -> Extent:
        count = self._factor().numel()
        return (None, count, None) if self.of_inputs else (count, None)

    def check_fit(self, shape: Sequence[int]) -> None:
        if not fits(self.extent, shape):
            raise self.misfit(shape, shown(self.extent))

    def check_values(self) -> None:
        if self.on_input is not None:
            _said(self.on_input)

    def with_tensors(self, tensors: Mapping[str, Tensor | None]) -> Ia3:
        layer = super().with_tensors(tensors)
        # Read once, because each read waits for the device: a flag on an accelerator is the old flag, moved.
        flag, known = layer.on_input, self.on_input is not None or "of_inputs" in vars(self)
        if known and (flag is None or flag is self.on_input or flag.device.type != "cpu"):
            vars(layer)["of_inputs"] = self.of_inputs
        return layer

    @classmethod
    def is_told(cls, names: Collection[str]) -> bool:
        """False for PEFT's form, where only the configuration says if a convolution's inputs are scaled."""
        return ON_INPUT in names

    @classmethod
    def bias_shape(
        cls, shapes: Mapping[str, Shape], options: Mapping[str, Any] | None = None
    ) -> Shape | None:
        if IA3_L not in shapes:
            return None
        shape = shapes[IA3_L]
        # Without the option, `of_inputs` raises when the layer is used.
        outputs = shape[1] == 1 if len(shape) == 2 else (options or {}).get("feedforward") is False
        return (math.prod(shape),) if outputs else None

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Ia3:
        """w = 0 for the outputs; rank, alpha and seed have no meaning here."""
        ones = tuple(1 for _ in shape[2:])
        weight = torch.zeros(1, shape[0], *ones) if ones else torch.zeros(shape[0])
        return cls(weight=weight, on_input=torch.tensor(0))

    @property
    def proportional(self) -> bool:
        return True

    def sides(self, weight: Tensor) -> Sides:
        factor = Diagonal(self._factor(weight.dtype).to(weight.device))
        return Sides(inputs=factor) if self.of_inputs else Sides(outputs=factor)

    def of_outputs(self, shape: Sequence[int]) -> bool:
        return not self.of_inputs

    def bias_additive(self) -> tuple[Additive, ...] | None:
        """None where PEFT's factors are for outputs: they scale the layer's output, its bias included."""
        return () if self.ia3_l is None or self.of_inputs else None

    def by_factor(self) -> Ia3:
        """The layer with PEFT's factor l = 1 + w in place of w.

        l has the dtype of w where that holds every sum exactly, else float32: a narrow dtype has few values
        near 1. For outputs, PEFT's factor changes a bias as well, which w does not.
        """
        if self.weight is None:
            return self
        own = narrowed(1 + self.weight.double(), self.weight.dtype)
        flat = (1, -1) if self.of_inputs else (-1, 1)
        return Ia3(ia3_l=own if own.ndim > 2 else own.reshape(flat), feedforward=self.of_inputs)

    def like(self, other: Layer) -> Ia3:
        """In PEFT's form if the other is, and in any case with `feedforward` set."""
        layer = self.by_factor() if other.tensors().keys() & {IA3_L} else self
        return replace(layer, feedforward=layer.of_inputs)

    def row_axes(self) -> Mapping[str, int]:
        """For outputs, the axis whose size is not 1. Empty for inputs: all outputs share their factors."""
        return {} if self.of_inputs else self._axes("n")

    def _factor(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """w (n,), which is l - 1 for PEFT's l.

        l is converted before the subtraction, because a narrow dtype would round the difference.
        """
        if self.ia3_l is not None:
            return self.ia3_l.flatten().to(dtype) - 1
        assert self.weight is not None
        return self.weight.flatten().to(dtype)

    @cached_property
    def of_inputs(self) -> bool:
        """Whether the factors are for inputs. Raises LayerError where neither shape nor option says so."""
        if self.on_input is not None:
            return _said(self.on_input)
        assert self.ia3_l is not None
        if self.ia3_l.ndim == 2:
            return self.ia3_l.shape[1] > 1
        if self.feedforward is None:
            raise LayerError("E-ia3-side-unknown", got=str(list(self.ia3_l.shape)))
        return self.feedforward


def _said(on_input: Tensor) -> bool:
    """`on_input` as a flag. Raises LayerError where it is neither 0 nor 1."""
    value = on_input.item()
    if value not in (0, 1):
        raise LayerError("E-on-input-not-0-or-1", got=str(value))
    return bool(value)
