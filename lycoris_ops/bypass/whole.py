"""A bypass plan for one layer in training, at strength 1, on one device and in one dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..algorithms import Layer
from ..changes.forms import Additive
from ..changes.operators import Diagonal, Operator, Sides, moved
from ..maths.scaling import scaled
from ..maths.tensors import compute_dtype, shaped
from .bound import BoundPlan, Run
from .forwards.forward import Strengths
from .plan import BypassPlan, Met

ALONE = (1.0,)


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
        # Takes no memory: for layers that need only the weight's shape, dtype and device.
        like = torch.empty((), dtype=compute_dtype(x.dtype), device=x.device)
        self.like = like.expand(self.geometry.shape)
        self.plain = BoundPlan(plan, Met((), (), ()), x, dropout)
        """A plan that adds nothing, used for the working dtype and the shape of inputs."""
        self._kept: tuple[WholePass, Tensor, Tensor | None] | None = None
        """A pass that serves all later ones, with the factor of the outputs and the module's bias.

        It holds nothing but these two, and the factor is one of the layer's own tensors."""
        self._inside: BoundPlan | None = None
        self._beside: BoundPlan | None = None

    def begun(
        self, x: Tensor, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]
    ) -> WholePass | None:
        """The values for one pass; None where the layer cannot act on the module's input and output.

        `weight` and `bias` give the values in float32 or float64.
        """
        stage = self.plan.stages[0]
        if self._kept is not None and (kept := self.again(x, bias())) is not None:
            return kept
        met = weight().view(self.geometry.shape) if self.layer.reads_weight else self.like
        sides = self.layer.sides(met)
        if sides.inputs is not None and sides.inputs.size != self.geometry.shape[1]:
            return None
        inside = beside = None
        # A plan that does not follow the layer's tensors would keep the graph of this pass.
        if sides.inside:
            inside = self._inside or self.bound(sides.inside, x)
            self._inside = inside if inside.follows else None
        if sides.beside:
            beside = self._beside or self.bound(sides.beside, x)
            self._beside = beside if beside.follows else None
        dtype = self.plain.dtype
        outputs, inputs = sides.outputs, sides.inputs
        if dtype != met.dtype:
            outputs, inputs = moved((outputs, inputs), x.device, dtype)
        own = bias() if stage.biases or outputs is not None else None
        biases: tuple[Tensor, ...] = ()
        if stage.biases:
            # Zeros stand in for a missing bias: an additive change needs only the size, and scaling leaves
            # zeros.
            before = self.like.new_zeros(self.geometry.outputs) if own is None else own
            biases = tuple(part.part.delta(before).to(dtype) for part in stage.biases)
        shown = None if own is None else self.geometry.per_channel(own.to(dtype))
        begun = WholePass(self, self.plain.seen, sides, outputs, inputs, shown, biases, inside, beside)
        if isinstance(outputs, Diagonal) and not (inputs or sides.inside or sides.beside or biases):
            extra = outputs.extra
            if any(extra is tensor for tensor in self.plan.tensors):
                self._kept = begun, extra, own
        return begun

    def again(self, x: Tensor, bias: Tensor | None) -> WholePass | None:
        """The pass that was kept, if this is the bias that it holds, and no tensor has moved since."""
        if self._kept is None:
            return None
        kept, extra, own = self._kept
        if own is not bias:
            return None
        for tensor in (extra, own):
            if tensor is not None and not (tensor.dtype == self.like.dtype and tensor.device == x.device):
                return None
        return kept

    def bound(self, forms: Sequence[Additive], x: Tensor) -> BoundPlan:
        """A plan that adds these forms."""
        met = Met(tuple((form, None, 0) for form in forms), (), ())
        return BoundPlan(self.plan, met, x, self.plain.dropout)


@dataclass
class WholePass:
    """One pass of a `WholePlan`, with the methods of a `BoundPlan`."""

    whole: WholePlan
    seen: Run
    """As in `BoundPlan`."""
    sides: Sides
    outputs: Operator | None
    inputs: Operator | None
    bias: Tensor | None
    """b, shaped like the output's channels, where it is needed."""
    biases: tuple[Tensor, ...]
    """The changes of the bias."""
    inside: BoundPlan | None
    beside: BoundPlan | None
    turned: Tensor | None = None
    """The input after `inputs`."""
    operates: bool = field(default=True, init=False)

    def given(self, x: Tensor, strengths: Strengths) -> tuple[Tensor, Tensor]:
        """As in `BoundPlan`."""
        x, geometry = self.seen(x), self.whole.geometry
        if self.inputs is None:
            return x, x
        self.turned = geometry.first(self.inputs.product(geometry.last(x)))
        return x, self.turned

    def finish(self, x: Tensor, y: Tensor, strengths: Strengths, run: Run) -> Tensor:
        """As in `BoundPlan`."""
        total = self.seen(y)
        if self.inside is not None:
            total = self.inside.beside(x if self.turned is None else self.turned, total, ALONE)
        total = self._on_outputs(total)
        if self.beside is not None:
            total = self.beside.beside(x, total, ALONE)
        for change in self.biases:
            total = total + self.whole.geometry.per_channel(change)
        return shaped(total, y.shape).to(y.dtype)

    def _on_outputs(self, y: Tensor) -> Tensor:
        """y with `outputs` applied to everything but the bias."""
        outputs, bias, geometry = self.outputs, self.bias, self.whole.geometry
        if outputs is None:
            return y
        if isinstance(outputs, Diagonal):
            extra = geometry.per_channel(outputs.extra) if geometry.kernel else outputs.extra
            return scaled(y, extra, bias)
        output = geometry.first(outputs.product(geometry.last(y if bias is None else y - bias)))
        return output if bias is None else output + bias
