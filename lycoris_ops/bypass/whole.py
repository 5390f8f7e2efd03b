"""A bypass plan for one layer in training, at strength 1, on one device and in one dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ..algorithms import Layer
from ..changes.forms import Additive
from ..changes.operators import Diagonal, Operator, moved
from ..maths.scaling import scaled
from ..maths.tensors import compute_dtype
from .bound import BoundPlan, Run, seen
from .forwards.forward import in_own_dtypes, narrowing, outliving
from .geometry import working_dtype
from .plan import BypassPlan, Met

T = TypeVar("T")
Read = Callable[[torch.dtype, torch.device], T]
"""Reads a module's weight or bias in a dtype, float32 or float64, on a device."""


def alone_in(plan: BypassPlan) -> Layer | None:
    """The plan's only layer if a `WholePlan` can run it: its change depends on the weight. Else None."""
    if plan.formed or plan.placed or plan.geometry.groups > 1 or len(plan.stages[0].layers) != 1:
        return None
    (part,) = (slot.part for slot in plan.stages[0].layers)
    if part.rows is not None or part.window is not None:
        return None
    with part.named():
        return part.layer if part.layer.additive() is None else None


class WholePlan:
    """y = outputs @ (W + inside) @ inputs x + b + beside x, with the `Sides` of the layer.

    A `BoundPlan` adds strength * change for any number of layers. At strength 1, W x need not be subtracted
    first, which saves about half of the operations. The plan is kept from pass to pass; the layer computes
    its operators, such as norms and rotations, anew in each.
    """

    def __init__(self, plan: BypassPlan, layer: Layer, x: Tensor, dropout: float = 0.0) -> None:
        self.plan, self.layer, self.geometry = plan, layer, plan.geometry
        self.made_for = (x.dtype, x.device, dropout)
        self.dtype = working_dtype(x)
        with outliving():
            # Takes no memory: for layers that need only the weight's shape, dtype and device.
            like = torch.empty((), dtype=compute_dtype(x.dtype), device=x.device)
            self.like = like.expand(self.geometry.shape)
        self._reads_weight = layer.reads_weight
        self._kept: tuple[WholePass, Tensor, Tensor | None] | None = None
        """A pass that serves all later ones, with the factor of the outputs and the module's bias.

        It holds nothing but these two, and the factor is one of the layer's own tensors."""
        self._inside: BoundPlan | None = None
        self._beside: BoundPlan | None = None

    def begun(self, x: Tensor, weight: Read[Tensor], bias: Read[Tensor | None]) -> WholePass | None:
        """The values for one pass; None where the layer cannot act on the module's input and output."""
        if self._kept is not None:
            kept, factor, own = self._kept
            # A tensor that has moved to another dtype or device is still the same object.
            here = factor.dtype == self.like.dtype and factor.device == x.device
            if here and own is bias(self.like.dtype, x.device):
                return kept
        # For a small layer these contexts take long, so they are entered only where needed.
        if torch.is_inference_mode_enabled() or narrowing(x.device) is not None:
            with outliving(), in_own_dtypes(x.device):
                return self._begun_anew(x, weight, bias)
        return self._begun_anew(x, weight, bias)

    def _begun_anew(self, x: Tensor, weight: Read[Tensor], bias: Read[Tensor | None]) -> WholePass | None:
        like, geometry, stage = self.like, self.geometry, self.plan.stages[0]
        met = weight(like.dtype, x.device).view(like.shape) if self._reads_weight else like
        sides = self.layer.sides(met)
        if sides.inputs is not None and sides.inputs.size != like.shape[1]:
            return None
        # A plan that does not follow the layer's tensors would keep the graph of this pass.
        inside = beside = None
        if sides.inside:
            inside = self._inside or self._bound(sides.inside, x)
            self._inside = inside if inside.follows else None
        if sides.beside:
            beside = self._beside or self._bound(sides.beside, x)
            self._beside = beside if beside.follows else None
        outputs, inputs = sides.outputs, sides.inputs
        if self.dtype != met.dtype:
            outputs, inputs = moved((outputs, inputs), x.device, self.dtype)
        own = bias(like.dtype, x.device) if stage.biases or outputs is not None else None
        changes: tuple[Tensor, ...] = ()
        if stage.biases:
            # Zeros stand in for a missing bias: an additive change needs only the size, and scaling leaves
            # zeros.
            before = like.new_zeros(geometry.outputs) if own is None else own
            changes = tuple(slot.part.delta(before).to(self.dtype) for slot in stage.biases)
        shown = None if own is None else geometry.per_channel(own.to(self.dtype))
        begun = WholePass(self, outputs, inputs, shown, changes, inside, beside)
        if isinstance(outputs, Diagonal) and not (inputs or sides.inside or sides.beside or changes):
            factor = outputs.extra
            if any(factor is tensor for tensor in self.plan.tensors):
                self._kept = begun, factor, own
        return begun

    def _bound(self, forms: Sequence[Additive], x: Tensor) -> BoundPlan:
        """A plan that adds these forms."""
        met = Met(tuple((form, None, 0) for form in forms), (), ())
        return BoundPlan(self.plan, met, x, self.made_for[2])


@dataclass
class WholePass:
    """One pass of a `WholePlan`, as `Acting`."""

    plan: WholePlan
    outputs: Operator | None
    inputs: Operator | None
    bias: Tensor | None
    """b, shaped like the output's channels, where it is needed."""
    biases: tuple[Tensor, ...]
    """The changes of the bias."""
    inside: BoundPlan | None
    beside: BoundPlan | None
    operates: bool = field(default=True, init=False)

    def fed(self, x: Tensor) -> Tensor:
        if self.inputs is None:
            return x
        geometry = self.plan.geometry
        vectors = geometry.last(seen(x, geometry, self.plan.dtype))
        return geometry.first(self.inputs.product(vectors)).view(x.shape).to(x.dtype)

    def finish(self, x: Tensor, fed: Tensor, y: Tensor, run: Run) -> Tensor:
        geometry, outputs, bias = self.plan.geometry, self.outputs, self.bias
        # Operators take vectors in any shape, and this step takes long beside a small layer.
        total = (
            y if y.dtype == self.plan.dtype and not geometry.kernel else seen(y, geometry, self.plan.dtype)
        )
        if self.inside is not None:
            total = self.inside.finish(fed, fed, total, run)
        # On everything but the bias.
        if isinstance(outputs, Diagonal):
            extra = geometry.per_channel(outputs.extra) if geometry.kernel else outputs.extra
            total = scaled(total, extra, bias)
        elif outputs is not None:
            vectors = geometry.last(total if bias is None else total - bias)
            total = geometry.first(outputs.product(vectors))
            total = total if bias is None else total + bias
        if self.beside is not None:
            total = self.beside.finish(x, x, total, run)
        for change in self.biases:
            total = total + geometry.per_channel(change)
        total = total if total.shape == y.shape else total.view(y.shape)
        return total if total.dtype == y.dtype else total.to(y.dtype)
