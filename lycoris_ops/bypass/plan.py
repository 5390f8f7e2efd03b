"""The plan of a bypass: what is added to a module's output in place of changing its weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import Dependent, Parameter, checked
from ..changes.forms import Additive, Dense, reaches
from ..changes.operators import Diagonal, Operator, Sides, moved, tensors_of
from ..changes.place import Where
from ..changes.timing import Moment, Timing, product
from ..errors import LayerError
from ..layers.part import Part, part_of
from ..maths.shapes import Rows
from ..maths.tensors import CPU, largest_of
from .geometry import Geometry


class Slot(NamedTuple):
    """A layer of a stage with its strength."""

    part: Part
    strength: float
    timings: tuple[Timing, ...] = ()
    """Factors of the strength over the sampling."""
    where: Where | None = None
    """Its factors over places and samples; None if it is the same everywhere."""

    def at(self, moment: Moment) -> float:
        """The strength at a moment of the sampling."""
        return self.strength * product(self.timings, moment)


Acts = Literal["behind", "around"]
"""How a plan acts on a module's pass: it changes the output alone, or the input too."""
Slots = tuple[Slot, ...]
GivenLayer = Slot | tuple[Layer | Part, float]
"""A layer with its strength."""


@dataclass(frozen=True)
class Base:
    """strength * (outputs @ W @ inputs - W) on `rows` of the weight W, None for all.

    An operator of None leaves its side as it is. `slot` is the index of the strength in its stage.
    """

    inputs: Operator | None
    outputs: Operator | None
    rows: Rows | None
    slot: int


@dataclass(frozen=True)
class Met:
    """What a plan adds, once its layers know the weight and bias that they meet.

    `forms` are changes of the weight, each with its rows (None for all) and its slot, the index of its
    strength. `bases` are operators on the weight. `biases` are changes (O,) of the bias, each with its slot.
    `bias` is the module's bias where operators need it, because they act on W x and not on b; else None.
    """

    forms: tuple[tuple[Additive, Rows | None, int], ...]
    bases: tuple[Base, ...]
    biases: tuple[tuple[Tensor, int], ...]
    bias: Tensor | None = None


@dataclass(frozen=True)
class Stage:
    """The layers that meet a weight together, and those that meet the bias beside it."""

    layers: Slots
    biases: Slots = ()

    @property
    def strengths(self) -> tuple[float, ...]:
        return tuple(slot.strength for slot in self.slots())

    @property
    def additive(self) -> bool:
        """Whether no layer's change depends on the weight or the bias."""
        return not any(isinstance(form, Dependent) for slot in self.slots() for form in slot.part.forms())

    def slots(self) -> Slots:
        """The layers of the weight, then those of the bias."""
        return (*self.layers, *self.biases)


@dataclass(frozen=True)
class BypassPlan:
    """y = W x + b + sum of strength * change(W) x + strength * change(b), where W itself stays as it is.

    Stages follow each other as patches of one weight do: each stage sees the weight as the stages before it
    have changed it. Within a stage every layer sees the same weight. A plan of several stages forms the
    weight after the last stage anew in each pass.
    """

    geometry: Geometry
    stages: tuple[Stage, ...]
    tensors: tuple[Tensor, ...] = field(init=False, repr=False, compare=False)
    """All tensors of the layers."""

    def __post_init__(self) -> None:
        parts = [slot.part for slot in self.slots()]
        tensors = tuple(tensor for part in parts for tensor in part.layer.tensors().values())
        object.__setattr__(self, "tensors", tensors)

    @classmethod
    def build(cls, geometry: Geometry, layers: Sequence[GivenLayer]) -> BypassPlan:
        """A plan of one stage, from layers for the weight and parts for the bias, with their strengths.

        A `Slot` is for a strength that changes over the sampling, or differs over places and samples. Layers
        of strength 0 are left out. Raises LayerError where a layer does not fit, or cannot be bypassed (see
        `bypass_refusal`).
        """
        stage = Stage(_live(layers, "weight"), _live(layers, "bias"))
        for part, *_ in stage.layers:
            part.check_fit(geometry.shape)
            if reason := bypass_refusal(part):
                raise LayerError("E-layer-not-bypassed", file=part.file, key=part.key, got=reason)
        for part, *_ in stage.biases:
            part.check_fit((geometry.outputs,))
        return cls(geometry, (stage,))

    def then(self, later: BypassPlan) -> BypassPlan:
        """This plan and then `later`.

        An additive stage of `later` joins the stage before it, because its changes depend on no weight.
        Raises LayerError where one stage would follow another and a strength differs over places: then there
        is no single weight for the later stage to see.
        """
        stages = list(self.stages)
        for stage in later.stages:
            if stages and stage.additive:
                last = stages.pop()
                stage = Stage(last.layers + stage.layers, last.biases + stage.biases)
            stages.append(stage)
        joined = replace(self, stages=tuple(stages))
        if joined.formed and joined.placed:
            raise LayerError("E-places-beside-another-stack")
        return joined

    def slots(self) -> Iterator[Slot]:
        """The layers of all stages."""
        return (slot for stage in self.stages for slot in stage.slots())

    @property
    def strengths(self) -> tuple[tuple[float, ...], ...]:
        return tuple(stage.strengths for stage in self.stages)

    @property
    def formed(self) -> bool:
        """Whether the change of the weight is formed, because a later stage depends on an earlier one."""
        return len(self.stages) > 1

    @property
    def anew(self) -> bool:
        """Whether everything is computed from the weight and the layers again in each pass.

        A formed change is not kept: all of them would take as much memory as the weights of the model.
        """
        return self.learns or self.formed

    @property
    def timed(self) -> bool:
        """Whether a strength follows timings."""
        return any(slot.timings for slot in self.slots())

    @property
    def placed(self) -> bool:
        """Whether a strength differs over places or samples."""
        return any(slot.where is not None for slot in self.slots())

    def strengths_at(self, moment: Moment) -> tuple[tuple[float, ...], ...]:
        """The strengths at a moment of the sampling."""
        return tuple(tuple(slot.at(moment) for slot in stage.slots()) for stage in self.stages)

    @property
    def additive(self) -> bool:
        """Whether no layer's change depends on the weight or the bias.

        The order with other additive plans is then free.
        """
        return all(stage.additive for stage in self.stages)

    @property
    def operates(self) -> bool:
        """Whether there may be operators on the input or the output. A change that is formed only adds."""
        return not (self.formed or self.additive)

    @property
    def acts(self) -> Acts:
        parts = [slot.part for stage in self.stages for slot in stage.layers]
        behind = not self.operates or all(part.of_outputs(self.geometry.shape) for part in parts)
        return "behind" if behind else "around"

    @property
    def learns(self) -> bool:
        """Whether a tensor of a layer requires gradients, and so may have other values in the next pass."""
        return any(tensor.requires_grad for tensor in self.tensors)

    def meet(
        self,
        dtype: torch.dtype,
        device: torch.device,
        weight: Callable[[], Tensor],
        bias: Callable[[], Tensor | None],
        strengths: Sequence[Sequence[float]] | None = None,
    ) -> Met:
        """Find out what the layers need to know of the weight and bias.

        `weight` and `bias` read these, and are called only where a layer needs the values. They return
        tensors in `dtype` (float32 or float64), in which everything is computed. The result is on `device` if
        a layer is there or learns, or the plan is formed; else on the CPU. Gradients flow through it to the
        layers.

        A plan that is formed has its whole change in slot 0, at these strengths (its own by default).

        Raises LayerError, with file and key, where the change of a layer overflows.
        """
        held: list[Tensor] = []

        def own() -> Tensor:
            # Read once, when a layer first asks for it.
            if not held:
                held.append(weight().view(self.geometry.shape))
            return held[0]

        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
            if self.formed:
                return self._form(own(), bias, strengths or self.strengths)
            # Expanded from one value, so that it takes no memory.
            like = torch.zeros((), dtype=dtype, device=device).expand(self.geometry.shape)
            met = _meet(self, own, bias, like)
            here = self.learns or any(tensor.device == device for tensor in self.tensors)
            return met if here else moved(met, CPU)

    def _form(
        self, weight: Tensor, bias: Callable[[], Tensor | None], strengths: Sequence[Sequence[float]]
    ) -> Met:
        """The whole change of the weight and of the bias that the stages make one after the other."""
        changes_bias = any(stage.biases for stage in self.stages)
        own = bias() if changes_bias else None
        # Where there is no bias, a factor has nothing to change.
        beside = before = weight.new_zeros(self.geometry.outputs) if own is None else own
        whole = weight
        for stage, values in zip(self.stages, strengths, strict=True):
            count = len(stage.layers)
            whole = _after(whole, stage.layers, values[:count])
            beside = _after(beside, stage.biases, values[count:])
        biases = ((beside - before, 0),) if changes_bias else ()
        return Met(((Dense((whole - weight).flatten(1)), None, 0),), (), biases)


def bypass_refusal(part: Part) -> str | None:
    """Why a layer can only be merged; None where it can be bypassed."""
    if part.enlarged() is not None:
        return "it enlarges its weight"
    return None


def _after(value: Tensor, layers: Slots, strengths: Sequence[float]) -> Tensor:
    """A weight or bias with the changes of these layers."""
    total = value
    for slot, strength in zip(layers, strengths, strict=True):
        if strength != 0.0:
            total = total + strength * slot.part.delta(value)
    return total


def _meet(
    plan: BypassPlan, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None], like: Tensor
) -> Met:
    """`BypassPlan.meet` for a plan of one stage; `like` has the weight's shape, dtype and device."""
    (stage,) = plan.stages
    forms: list[tuple[Additive, Rows | None, int]] = []
    bases: list[Base] = []
    # Training checks the loss instead.
    checks: list[_Check] | None = None if plan.learns else []
    for slot, (part, *_) in enumerate(stage.layers):
        for form in part.forms():
            if isinstance(form, Dependent):
                with part.named():
                    found, base = _sides(plan, form.layer, part, slot, weight, like, checks)
                forms += [(one, part.rows, slot) for one in found]
                bases += base
            else:
                if checks is not None:
                    # Raises where the change overflows.
                    checks.append(_Check((), (form,), partial(part.delta, like)))
                forms.append((form, part.rows, slot))
    if checks:
        _look_at(checks)
    biases: list[tuple[Tensor, int]] = []
    for slot, (part, *_) in enumerate(stage.biases, start=len(stage.layers)):
        met = None if Stage((Slot(part, 1.0),)).additive else bias()
        if met is None:
            # An additive change needs only the size; where there is no bias, a factor has nothing to change.
            met = like.new_zeros(plan.geometry.outputs)
        biases.append((part.delta(met), slot))
    return Met(tuple(forms), tuple(bases), tuple(biases), bias() if bases else None)


def _sides(
    plan: BypassPlan,
    layer: Layer,
    part: Part,
    slot: int,
    weight: Callable[[], Tensor],
    like: Tensor,
    checks: list[_Check] | None,
) -> tuple[list[Additive], list[Base]]:
    """The forms and the operators of a layer whose change depends on the weight."""
    geometry, rows = plan.geometry, part.rows

    def met() -> Tensor:
        return weight() if rows is None else weight()[slice(*rows)]

    # Most operators need only the weight's shape, dtype and device: then nothing is read.
    sides = layer.sides(met() if layer.reads_weight else like if rows is None else like[slice(*rows)])
    if checks is not None:

        def change() -> None:
            with part.named():
                checked(layer.dependent(met()), met())

        floats = [one for one in tensors_of(sides) if one.is_floating_point()]
        checks.append(_Check(floats, (*sides.inside, *sides.beside), change))
    inputs, outputs = sides.inputs, sides.outputs
    kernel = inputs is not None and inputs.size != geometry.shape[1]
    groups = geometry.groups > 1 and not (outputs is None or isinstance(outputs, Diagonal))
    if kernel or groups:
        # An operator on inputs of the size K mixes places of the kernel, which no change of a convolution's
        # input can do. One on outputs that mixes rows of several groups would have to apply each row to the
        # inputs of other groups. Both become a full matrix.
        return [Dense(checked(layer.dependent(met()), met()).flatten(1))], []
    forms = [*(_scaled(form, sides) for form in sides.inside), *sides.beside]
    bases = [Base(inputs, outputs, rows, slot)] if inputs or outputs else []
    return forms, bases


@dataclass(frozen=True)
class _Check:
    """`otherwise` is called where a tensor is not finite, or where a value of a form, or an intermediate one,
    may be beyond float32."""

    tensors: Sequence[Tensor]
    forms: Sequence[Additive]
    otherwise: Callable[[], object]


def _look_at(checks: Sequence[_Check]) -> None:
    """Run all checks together, because each read waits for the device."""
    sizes = iter(largest_of([one for check in checks for one in check.tensors]))
    bounds = iter(reaches([form for check in checks for form in check.forms]))
    for check in checks:
        finite = [math.isfinite(next(sizes)) for _ in check.tensors]
        within = [next(bounds).within <= torch.finfo(torch.float32).max for _ in check.forms]
        if not all((*finite, *within)):
            check.otherwise()


def _scaled(form: Additive, sides: Sides) -> Additive:
    """outputs @ form @ inputs as a form. Only DoRA puts operators around a form, and they are diagonal."""
    assert sides.outputs is None or isinstance(sides.outputs, Diagonal)
    assert sides.inputs is None or isinstance(sides.inputs, Diagonal)
    rows, columns = (None if side is None else side.extra + 1 for side in (sides.outputs, sides.inputs))
    return form.scaled(rows, columns)


def _live(layers: Sequence[GivenLayer], parameter: Parameter) -> Slots:
    slots = (one if isinstance(one, Slot) else Slot(part_of(one[0]), float(one[1])) for one in layers)
    return tuple(slot for slot in slots if slot.strength != 0.0 and slot.part.parameter == parameter)
