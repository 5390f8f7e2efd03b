"""The plan of a patch: all layers that change one weight, fused and applied in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import Dependent, Form, overflow
from ..algorithms.checks import a_layer
from ..changes.forms import Additive, Dense, add_up, reaches
from ..discovery import discover
from ..errors import LayerError, located
from ..layers.part import Part, part_of
from ..maths.shapes import Rows, Shape
from ..maths.tensors import CPU, compute_dtype, fetched, is_finite, largest_on_device, padded
from . import groups
from .groups.dense import DenseGroup
from .groups.dependent import DependentGroup
from .groups.group import Group
from .registry import Patch, apply_plans, path_report

Fuse = Callable[[Sequence[Any], Sequence[int], int], tuple[Group | DependentGroup, tuple[Tensor, ...]]]
SHARE = 0.25
"""Values of a patched weight are checked only where the bound of all changes is above this share of the
dtype's largest number. The rest is left for the weight itself: weights of models are below 1000, and the
largest float16 is 65504.

Checking every weight would add a tenth to the time of patching. So a bound of each change that does not
depend on the weight is computed from its factors once, when a plan is made.
"""
FUSE: dict[type[Form], Fuse] = {
    module.FORM: module.fuse for module in discover(groups.__name__) if hasattr(module, "FORM")
}
"""For each form, the function that makes one group of all its layers.

Its arguments are the forms, the index of each form's layer in the plan's strengths, and the number of tensors
that the plan holds already. It returns the group and the group's own tensors.
"""


@dataclass(frozen=True)
class PatchPlan:
    """W += sum over the layers of strength * delta, in one pass with one rounding.

    A plan is made for one shape of weight and one list of layers. The strengths, one for each layer in the
    order of that list, may differ from one application to the next. Every layer sees the weight as it was
    before the patch, so the order of the layers does not change the result.
    """

    shape: Shape
    final: Shape
    """The weight's shape afterwards: larger than before where a layer enlarges it with zeros."""
    groups: tuple[tuple[Group, Rows | None], ...]
    """Each group with the rows of the weight that it changes, None for all."""
    dependent: tuple[tuple[DependentGroup, Rows | None], ...] = ()
    """The same for changes that depend on the weight. Their tensors are the plan's last."""
    tensors: tuple[Tensor, ...] = ()
    strengths: tuple[float, ...] = ()
    bounds: tuple[Bound, ...] = ()
    """Bounds on the changes that do not depend on the weight."""

    @classmethod
    def build(
        cls,
        shape: Sequence[int],
        device: torch.device | str,
        layers: Sequence[tuple[Layer | Part, float]],
    ) -> PatchPlan:
        """Decide which layers are fused, and move their tensors to `device`.

        `shape` and `device` describe the weight to be patched. Raises LayerError where a layer does
        not fit the shape.
        """
        return cls.build_all([(shape, device, layers)])[0]

    @classmethod
    @torch.no_grad()
    def build_all(
        cls,
        weights: Sequence[tuple[Sequence[int], torch.device | str, Sequence[tuple[Layer | Part, float]]]],
    ) -> list[PatchPlan]:
        """`build` for each (shape, device, layers), with one wait for each device in all."""
        drafts = [cls._draft(tuple(shape), torch.device(device), layers) for shape, device, layers in weights]
        bounds = iter(Bound.all_of([bound for _, bounded in drafts for bound in bounded]))
        return [replace(plan, bounds=tuple(islice(bounds, len(bounded)))) for plan, bounded in drafts]

    @classmethod
    def _draft(
        cls, shape: Shape, device: torch.device, layers: Sequence[tuple[Layer | Part, float]]
    ) -> tuple[PatchPlan, list[tuple[Additive, int, Part]]]:
        """A plan without bounds, and the forms that they are for, each with its slot and its part."""
        parts = [part_of(layer) for layer, _ in layers]
        final = _enlarged(shape, parts)
        bounded: list[tuple[Additive, int, Part]] = []
        by_form: dict[tuple[type[Form], Rows | None], tuple[list[Form], list[int]]] = {}
        for slot, part in enumerate(parts):
            # A layer that fits only the original shape changes that part of the larger weight. A layer that
            # fits both shapes is applied to the larger weight.
            beside = final != shape and part.fits(shape) and not part.fits(final)
            if not beside:
                part.check_fit(final)
            for form in _on_larger(part, shape, final) if beside else part.forms():
                forms, slots = by_form.setdefault((type(form), part.rows), ([], []))
                forms.append(form)
                slots.append(slot)
                if not isinstance(form, Dependent):
                    bounded.append((form, slot, part))
        fused: list[tuple[Group, Rows | None]] = []
        dependent: list[tuple[DependentGroup, Rows | None]] = []
        tensors: list[Tensor] = []
        for (kind, rows), (forms, slots) in sorted(by_form.items(), key=lambda one: one[0][0] is Dependent):
            group, own = FUSE[kind](forms, slots, len(tensors))
            if isinstance(group, DependentGroup):
                dependent.append((group, rows))
            else:
                fused.append((group, rows))
            tensors += [_moved(tensor.detach(), device).contiguous() for tensor in own]
        strengths = tuple(float(strength) for _, strength in layers)
        return cls(shape, final, tuple(fused), tuple(dependent), tuple(tensors), strengths), bounded

    @property
    def report(self) -> str:
        """What is fused and how, one line for each group."""
        return "\n".join(
            group.summary + (f", rows {rows[0]} to {rows[1]}" if rows else "")
            for group, rows in (*self.groups, *self.dependent)
        )

    @torch.no_grad()
    def apply_(self, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> Tensor:
        """Patch `weight` in place and return it, whatever its strides and floating-point dtype.

        The sum is formed in float32 (float64 for a float64 weight) and rounded once to the weight's dtype.
        `tensors` are the plan's, on any device: they are moved to the weight's here. `strengths` has one
        value for each layer. A weight that a layer enlarges cannot be patched in place: a larger one is
        returned. Raises LayerError for an integer weight, one of another shape than the plan's, one that no
        path can patch, and where a change overflows; the weight is then unchanged.
        """
        return self._applied([(self, self._patch(weight, tensors, strengths))])[0]

    @staticmethod
    @torch.no_grad()
    def apply_all(work: Sequence[tuple[PatchPlan, Tensor, str]]) -> list[Tensor]:
        """`apply_` for each (plan, weight, name), with the plan's own tensors and strengths.

        No two weights may share memory, because a path may patch many at once. So an error, which has the
        name of the weight, may come before or after other weights are patched.
        """
        patches: list[tuple[PatchPlan, Patch]] = []
        for plan, weight, name in work:
            with located(weight=name):
                patches.append((plan, plan._patch(weight, plan.tensors, plan.strengths, name)))
        return PatchPlan._applied(patches)

    def _patch(
        self, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float], name: str | None = None
    ) -> Patch:
        """The patch of a weight, which is enlarged first if a layer enlarges it."""
        if not weight.is_floating_point():
            raise LayerError("E-weight-not-patchable", got=str(weight.dtype))
        if tuple(weight.shape) not in (self.shape, self.final):
            raise LayerError(
                "E-plan-for-another-shape", got=str(list(weight.shape)), expected=str(list(self.shape))
            )
        if tuple(weight.shape) != self.final:
            weight = padded(weight, self.final)
        check_strengths(weight.dtype, strengths)
        moved = [_moved(tensor, weight.device) for tensor in tensors]
        return Patch(self, weight, moved, strengths, name)

    def _formed(self, patch: Patch) -> tuple[Patch, list[Tensor]]:
        """The patch with the sums of changes that depend on the weight in place of these, and the sums."""
        strengths, dtype = patch.strengths, compute_dtype(patch.weight.dtype)
        with located(weight=patch.name):
            totals = [
                group.total(
                    patch.tensors, strengths, dtype, patch.weight[slice(*rows)] if rows else patch.weight
                )
                for group, rows in self.dependent
            ]
        own = patch.tensors[: self.dependent[0][0].first] if self.dependent else patch.tensors
        dense = [
            (DenseGroup(len(own) + n, (len(strengths),)), rows) for n, (_, rows) in enumerate(self.dependent)
        ]
        plan = replace(self, groups=(*self.groups, *dense), dependent=())
        return Patch(plan, patch.weight, [*own, *totals], [*strengths, 1.0], patch.name), totals

    @staticmethod
    def _applied(patches: Sequence[tuple[PatchPlan, Patch]]) -> list[Tensor]:
        """The weights, after the patches, with one wait for each device for all that depend on weights."""
        unsure: list[tuple[PatchPlan, Patch]] = []
        sure: list[Patch] = []
        late: list[tuple[PatchPlan, Patch]] = []
        flags: list[Tensor] = []
        for plan, patch in patches:
            if not patch.weight.numel():
                continue
            if may_overflow(patch.weight.dtype, plan.bounds, patch.strengths):
                unsure.append((plan, patch))
            elif not plan.dependent:
                sure.append(patch)
            else:
                formed, totals = plan._formed(patch)
                size = reduce(torch.add, map(largest_on_device, totals))
                # Written so that NaN does not count as small.
                flag = ~(size <= SHARE * torch.finfo(patch.weight.dtype).max)
                if patch.weight.device.type != "cpu":
                    # The flag is read later, with those of other weights. Where it is set, zeros are added.
                    zeroed = [tensor.masked_fill(flag, 0.0) for tensor in formed.tensors]
                    apply_plans([formed._replace(tensors=zeroed)])
                    late.append((plan, patch))
                    flags.append(flag)
                elif flag:
                    unsure.append((plan, patch))
                else:
                    apply_plans([formed])
        unsure += [pair for pair, flag in zip(late, fetched(*flags), strict=True) if flag]
        for plan, patch in unsure:
            plan._try(patch)
        apply_plans(sure)
        return [patch.weight for _, patch in patches]

    def _try(self, patch: Patch) -> None:
        """Patch a weight by way of a copy. Raises LayerError where finite values become NaN or infinite."""
        copy = patch.weight.clone()
        formed, _ = self._formed(patch._replace(weight=copy))
        with located(weight=patch.name):
            apply_plans([formed])
            if not is_finite(copy) and is_finite(patch.weight):
                raise self._overflow(patch)
        patch.weight.copy_(copy)

    def _overflow(self, patch: Patch) -> LayerError:
        """The error for a weight that the patch would make NaN or infinite."""
        weight, strengths = patch.weight, patch.strengths
        dtype = compute_dtype(weight.dtype)
        for group, rows in self.dependent:
            error = group.overflow(patch.tensors, strengths, dtype, weight[slice(*rows)] if rows else weight)
            if error:
                return error
        worst = max(self.bounds, key=lambda bound: max(bound.shares(weight.dtype, strengths)), default=None)
        return overflow(weight.dtype).within(file=worst and worst.file, key=worst and worst.key)

    def apply_within(self, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> Tensor:
        """`apply_` for a weight that another patch may have enlarged since the plan was made.

        The plan changes the part of the weight that has the plan's shape: the first rows, columns and so on.
        The weight is enlarged further where the plan enlarges it. Raises LayerError as `apply_` does, and
        where the weight is smaller than the plan's shape.
        """
        present = tuple(weight.shape)
        if present == self.shape or not _holds(present, self.shape):
            return self.apply_(weight, tensors, strengths)
        if not _holds(present, self.final):
            weight = padded(weight, [max(pair) for pair in zip(present, self.final, strict=True)])
        self.apply_(weight[tuple(slice(size) for size in self.final)], tensors, strengths)
        return weight


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A copy from pinned memory to an accelerator runs beside the work of both."""
    # A copy to the CPU must be complete before it is read, so it blocks.
    return tensor if tensor.device == device else tensor.to(device, non_blocking=device.type != "cpu")


def patch_(weight: Tensor, layers: Sequence[tuple[Layer | Part, float]]) -> Tensor:
    """weight += sum of strength * delta over the (layer, strength) pairs, in place and fused.

    Returns the weight, or a larger one where a layer enlarges it. Raises LayerError where a layer does not
    fit the weight, for an integer weight, and where a change overflows; the weight is then unchanged.
    """
    plan = PatchPlan.build(weight.shape, weight.device, layers)
    return plan.apply_(weight, plan.tensors, plan.strengths)


def patch_report(weight: Tensor, layers: Sequence[tuple[Layer | Part, float]]) -> str:
    """What `patch_` would fuse for this weight, which path would add it, and why better paths would not."""
    plan = PatchPlan.build(weight.shape, weight.device, layers)
    return f"{plan.report}\n{path_report(plan, weight)}"


def _holds(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether `shape` is at least as large as `other` in every dimension."""
    return len(shape) == len(other) and all(size >= least for size, least in zip(shape, other, strict=True))


def _enlarged(shape: Shape, parts: Sequence[Part]) -> Shape:
    """The weight's shape after all layers have enlarged it.

    Raises LayerError where a layer's shape has another number of dimensions, or is too small in one.
    """
    final = shape
    for part in parts:
        larger = part.enlarged()
        if larger is None:
            continue
        if len(larger) != len(shape) or any(new < old for new, old in zip(larger, shape, strict=True)):
            raise LayerError(
                "E-enlarged-shape-too-small",
                file=part.file,
                key=part.key,
                shape=list(shape),
                got=str(list(larger)),
            )
        final = tuple(max(new, old) for new, old in zip(larger, final, strict=True))
    return final


def _on_larger(part: Part, shape: Sequence[int], final: Shape) -> tuple[Form, ...]:
    """The change of a layer for the weight of `shape`, as a form for the enlarged weight of shape `final`.

    It is zero in the part that the enlargement adds. It is formed in full, because weights that layers
    enlarge are small. Raises LayerError where the change depends on the weight.
    """
    forms = part.forms()
    met, larger = part.shape_met(shape), part.shape_met(final)
    additive = [form for form in forms if not isinstance(form, Dependent)]
    if len(additive) < len(forms):
        raise LayerError(
            "E-weight-enlarged-by-another",
            file=part.file,
            key=part.key,
            algorithm=a_layer(part.layer.algorithm),
            got=str(list(met)),
            expected=str(list(larger)),
        )
    with part.named():
        change = add_up(additive, torch.float64, CPU).reshape(met)
    return (Dense(padded(change, larger).flatten(1)),)


@dataclass(frozen=True)
class Bound:
    """Bounds on the change of one layer at strength 1. `file` and `key` say where the layer is from."""

    slot: int
    """The layer's index in the plan's strengths."""
    most: float
    """No value of the change is larger."""
    within: float
    """No intermediate result of the change is larger."""
    file: str | None = None
    key: str | None = None

    @classmethod
    def all_of(cls, forms: Sequence[tuple[Additive, int, Part]]) -> tuple[Bound, ...]:
        """The bounds of (form, slot, part) triples, with one synchronisation of the device."""
        reached = zip(reaches([form for form, _, _ in forms]), forms, strict=True)
        return tuple(
            cls(slot, reach.most, reach.within, part.file, part.key) for reach, (_, slot, part) in reached
        )

    def shares(self, dtype: torch.dtype, strengths: Sequence[float]) -> tuple[float, float]:
        """`most` as a share of the largest number of a weight's dtype, `within` as one of the sum's."""
        strength = abs(strengths[self.slot])
        shares = (
            strength * self.most / torch.finfo(dtype).max,
            max(1.0, strength) * self.within / torch.finfo(compute_dtype(dtype)).max,
        )
        # NaN is infinity times zero.
        most, within = (math.inf if math.isnan(share) else share for share in shares)
        return most, within


def may_overflow(dtype: torch.dtype, bounds: Sequence[Bound], strengths: Sequence[float]) -> bool:
    """Whether changes of these bounds may make a finite weight of `dtype` NaN or infinite."""
    shares = [bound.shares(dtype, strengths) for bound in bounds]
    return sum(most for most, _ in shares) > SHARE or sum(within for _, within in shares) > SHARE


def check_strengths(dtype: torch.dtype, strengths: Sequence[float]) -> None:
    """Raise LayerError for a strength beyond the range of the dtype in which a weight's changes are added."""
    for strength in strengths:
        if not abs(strength) <= torch.finfo(compute_dtype(dtype)).max:
            raise LayerError("E-strength-not-usable", got=f"{strength:g}")
