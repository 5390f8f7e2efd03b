"""A plan on one device and in one dtype: what runs in every forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..changes.forms import Additive, Dense, LowRank
from ..changes.operators import Diagonal, moved
from ..changes.place import Places, Where
from ..discovery import discover
from ..maths.scaling import scaled
from ..maths.shapes import Rows
from ..maths.tensors import compute_dtype, shaped
from . import forwards
from .forwards.forward import Forward, Item, Strengths, in_own_dtypes, recorded
from .forwards.low_rank import LowRankForward
from .geometry import Geometry, working_dtype
from .placed import factors_of
from .plan import Base, BypassPlan, Met

MakeForward = Callable[[Geometry, Sequence[Item], torch.dtype, torch.device], Forward]
Run = Callable[[Tensor], Tensor]
"""W x + b for an input x."""
_Change = tuple[Tensor, Rows | None, float]
"""A change of the output, the rows of the weight that it is for (None for all), and its strength."""

FORWARDS: dict[type[Any], MakeForward] = {
    form: module.FORWARD for module in discover(forwards.__name__) for form in getattr(module, "FORMS", ())
}
"""The class that computes the forward pass of each form."""


@dataclass(frozen=True)
class _Adding:
    """A forward pass, with its rows of the weight (None for all) and the slots of its layers' strengths."""

    forward: Forward
    rows: Rows | None
    slots: tuple[int, ...]
    where: Where | None = None
    """The `Where` whose factors the whole change has."""
    by_slot: bool = False
    """Whether each slot has factors of its own, which only a `LowRankForward` takes."""


class BoundPlan:
    """A plan bound to a device and a working dtype: y += sum of strength * factor * change.

    The factor is that of the layer's `Where` at each place and sample, and 1 without one. Where it is 0 the
    result is y, and where it is 1 the result without masks, in every bit, if the device rounds the columns of
    a product alike whatever is beside them. `places` is set before each pass.

    `shifts` are the operators M that change the input in one way for all outputs. They add up to one changed
    input, x + sum of strength * (M - 1) x. Where no other operator needs W x of the unchanged input, the
    module is given the changed input in its own pass (`takes_shift`). All other changed inputs go through the
    module together, in one more pass.
    """

    def __init__(
        self, plan: BypassPlan, met: Met, x: Tensor, dropout: float = 0.0, *, apart: Sequence[Where] = ()
    ) -> None:
        self.geometry = geometry = plan.geometry
        self.apart = tuple(apart)
        """Each `Where` whose factors are not applied, see `in_copies`."""
        self.places: Places | None = None
        slots = () if plan.formed else tuple(plan.slots())
        wheres = [one.where for one in slots] or [None]
        self.wheres = [None if where in self.apart else where for where in wheres]
        """The `Where` of each slot."""
        self.copies = [[own in (None, one) for own in wheres] for one in (None, *self.apart)] if apart else []
        placed = any(self.wheres)
        self.made_for = (x.dtype, x.device, dropout)
        """The dtype and device of the inputs, and the dropout."""
        self.dtype, self.dropout = working_dtype(x), dropout
        dtype, device = self.dtype, x.device
        self.bias = None if met.bias is None else geometry.per_channel(moved(met.bias, device, dtype))
        bases = moved(met.bases, device, dtype)
        self.shifts = [base for base in bases if base.outputs is None and base.rows is None]
        others = [base for base in bases if base.outputs is not None or base.rows is not None]
        self.turned: dict[Where | None, list[Base]] = {}
        """By their `Where`, shifts for which the module runs once more and the outputs are blended: the input
        of a convolution has other places than its output."""
        shifted = [wheres[base.slot] for base in self.shifts]
        if self.apart or (geometry.kernel and any(shifted)):
            taken = {
                where: all(base.outputs is None for base in others if wheres[base.slot] is where)
                for where in shifted
            }
            for base in self.shifts:
                if taken[wheres[base.slot]]:
                    self.turned.setdefault(wheres[base.slot], []).append(base)
            self.shifts = [base for base in self.shifts if not taken[wheres[base.slot]]]
        self.takes_shift = (
            bool(self.shifts) and not self.turned and all(base.outputs is None for base in others)
        )
        """Whether the module is given the changed input in place of x."""
        self.scales: list[tuple[Tensor, int]] = []
        """M - 1 and slot of each operator M that only scales all outputs, such as DoRA's."""
        self.others: list[Base] = []
        for base in others:
            extra = _diagonal(base)
            if extra is None:
                self.others.append(base)
            else:
                self.scales.append((extra, base.slot))
        items: dict[tuple[MakeForward, Rows | None, Where | None], list[Item]] = {}
        # In the order of each `Where`, as its layers would be added alone.
        order = list(dict.fromkeys(wheres))
        mixed = {wheres[slot] for form, _, slot in met.forms if not isinstance(form, LowRank)}
        for form, rows, slot in sorted(met.forms, key=lambda form: order.index(wheres[form[2]])):
            if geometry.groups > 1:
                form, rows = _on_all_rows(form, rows, geometry, compute_dtype(dtype), device), None
            make = FORWARDS[type(form)]
            where = wheres[slot]
            # Low-rank layers alone are one pair of products for all, with their factors on down x.
            joined = geometry.groups == 1 and not (apart or where in mixed)
            key = make, rows, None if joined else where
            items.setdefault(key, []).append(Item(moved(form, device), slot))
        self.forwards: list[_Adding] = []
        for (make, rows, where), found in items.items():
            forward = make(geometry, found, dtype, device)
            where = None if where in self.apart else where
            by_slot = placed and where is None and isinstance(forward, LowRankForward)
            slots_of = tuple(item.slot for item in found)
            self.forwards.append(_Adding(forward, rows, slots_of, where, by_slot))
        self.biases = [(moved(change, device, compute_dtype(dtype)), slot) for change, slot in met.biases]
        self.operates = bool(self.shifts or self.turned or self.scales or self.others)
        """Whether there are operators on the input or the output."""
        # A plan that torch.compile traces is not kept.
        self.follows = not torch.compiler.is_compiling() and self._reads_only(plan.tensors)
        """Whether later passes see the current values of tensors that learn."""

    def _reads_only(self, tensors: Sequence[Tensor]) -> bool:
        """Whether passes read these very tensors, with their current values, and nothing else."""
        if self.operates or self.biases:
            return False
        read = [adding.forward.reads for adding in self.forwards]
        return all(
            found is not None and all(any(one is own for own in tensors) for one in found) for found in read
        )

    def given(self, x: Tensor, strengths: Strengths) -> tuple[Tensor, Tensor]:
        """The input that the layers see, and the input that the module is given."""
        x = self.seen(x)
        change = self._turned(self.shifts, x, strengths) if self.takes_shift else None
        return x, x if change is None else x + change

    def seen(self, values: Tensor) -> Tensor:
        """An input or output as the layers see it, in the working dtype: vectors as the rows of a contiguous
        matrix, pictures with a batch dimension."""
        values = values if values.dtype == self.dtype else values.to(self.dtype)
        if kernel := self.geometry.kernel:
            return values[None] if values.ndim == len(kernel) + 1 else values
        values = values.contiguous()
        return values if values.ndim == 2 else values.view(-1, values.shape[-1])

    def finish(self, x: Tensor, y: Tensor, strengths: Strengths, run: Run) -> Tensor:
        """The module's output with all layers.

        x is the input as the layers see it. y is the module's output for the input that it was given, and may
        be written over. `run` computes W x + b.
        """
        total = met = self.seen(y)
        changes: list[_Change] = []
        extra = None
        if self.operates:
            for bases in self.turned.values():
                total = self._blended(x, total, met, bases, strengths, run)
            changes = self._by_operators(x, met, strengths, run)
            extra = self._summed(self.scales, total, strengths)
        before = total
        total = total.contiguous()
        if extra is not None:
            total = self._scaled(total, extra)
        elif total is before and changes and torch.is_grad_enabled():
            # Autograd may have saved y for an operator on outputs: then y must not be written over. With a
            # bias it has saved y - b instead. The module's own gradients need only its input and weight.
            learns = before.requires_grad or any(change.requires_grad for change, _, _ in changes)
            total = before.clone() if learns and self.bias is None else before
        for change, rows, strength in changes:
            self.geometry.part(total, rows).add_(change, alpha=strength)
        return shaped(self.beside(x, total, strengths), y.shape).to(y.dtype)

    def beside(self, x: Tensor, y: Tensor, strengths: Strengths) -> Tensor:
        """`finish` for a plan without operators: from the module's input x and its output y."""
        total = y
        if self.forwards:
            x, total = self.seen(x), self.seen(y)
            if self.dropout:
                x = functional.dropout(x, self.dropout)
            if self.geometry.kernel:
                x, total = self.geometry.padded(x), total.contiguous()
            with in_own_dtypes(x.device):
                for adding in self.forwards:
                    # `map` runs no Python code for each slot, as a generator would.
                    if not any(map(strengths.__getitem__, adding.slots)):
                        continue
                    add = adding.forward.add
                    if adding.where is not None or adding.by_slot:
                        add = partial(self._add_placed, adding)
                    if adding.rows is None:
                        total = add(total, x, strengths)
                        continue
                    part = self.geometry.part(total, adding.rows)
                    found = add(part, x, strengths)
                    if found is not part:
                        part.copy_(found)
        if self.biases and (change := self._summed(self.biases, total, strengths)) is not None:
            total = total + change.to(self.dtype)
        return (total if total.shape == y.shape else total.view(y.shape)).to(y.dtype)

    def in_copies(
        self, y: Tensor, strengths: Strengths, act: Callable[[Tensor, Strengths], Tensor]
    ) -> Tensor:
        """What `act` makes of y with all layers but those of `apart`, followed by the samples once more for
        each of `apart`, with its layers too.

        This is for a module whose tokens have no place but whose output is used at all places, such as keys
        and values made of a text.
        """
        return torch.cat([act(y.clone(), list(map(mul, strengths, own))) for own in self.copies])

    def _blended(
        self, x: Tensor, total: Tensor, y: Tensor, bases: Sequence[Base], strengths: Strengths, run: Run
    ) -> Tensor:
        """total + factor * (y' - y), with y' of the input that `bases` change: y' where the factor is 1 and
        `total` is y."""
        change = self._turned(bases, x, strengths)
        if change is None:
            return total
        found = self.seen(run((x + change).to(self.made_for[0])))
        found = found if total is y else found + (total - y)
        factors = self._factors(bases[0].slot, y)
        return found if factors is None else torch.lerp(total, found, factors.to(found.dtype))

    def _factors(self, slot: int, y: Tensor) -> Tensor | None:
        """The factors of a slot, shaped to be multiplied with an input or output y; None for 1."""
        where = self.wheres[slot]
        return None if where is None else factors_of(where, self.places, len(self.geometry.kernel), y)

    def _at(self, slot: int, change: Tensor, y: Tensor | None = None) -> Tensor:
        """The change times the factors of its slot; y is an input or output with its places."""
        factors = self._factors(slot, change if y is None else y)
        return change if factors is None else (change * factors).to(change.dtype)

    def _add_placed(self, adding: _Adding, y: Tensor, x: Tensor, strengths: Strengths) -> Tensor:
        """As `Forward.add`, with factors over places and samples."""
        kernel, forward = len(self.geometry.kernel), adding.forward
        if adding.where is None:
            assert isinstance(forward, LowRankForward)
            wheres = dict.fromkeys(filter(None, self.wheres))
            factors = {where: factors_of(where, self.places, kernel, y) for where in wheres}
            by_slot = [None if where is None else factors[where] for where in self.wheres]
            return forward.add(y, x, strengths, by_slot.__getitem__)
        own = factors_of(adding.where, self.places, kernel, y)
        if kernel:
            return torch.lerp(y, forward.add(y.clone(), x, strengths), own.to(y.dtype))
        # The change is linear in x, so x takes the factors: exact where they are 0 or 1.
        return forward.add(y, (x * own).to(x.dtype), strengths)

    def _summed(self, values: Sequence[tuple[Tensor, int]], y: Tensor, strengths: Strengths) -> Tensor | None:
        """The sum of strength * factor * value over vectors of the channels of y; None for nothing."""
        total: Tensor | None = None
        for value, slot in values:
            if strengths[slot] != 0.0:
                one = self._at(slot, self.geometry.per_channel(value * strengths[slot]), y)
                total = one if total is None else total + one
        return total

    def _scaled(self, y: Tensor, extra: Tensor) -> Tensor:
        """y + (y - bias) * extra; y may be written over."""
        if not recorded(y, extra):
            found = y.addcmul_(y, extra)
            return found if self.bias is None else found.addcmul_(self.bias, extra, value=-1)
        return scaled(y, extra, self.bias)

    def _turned(self, bases: Sequence[Base], x: Tensor, strengths: Strengths) -> Tensor | None:
        """The sum of strength * (M - 1) x over the operators M on inputs; None where nothing is added.

        For a linear layer it has the factors of each.
        """
        total: Tensor | None = None
        for base in bases:
            if strengths[base.slot] != 0.0 and base.inputs is not None:
                change = self.geometry.turned(base.inputs, x) * strengths[base.slot]
                change = change if self.geometry.kernel else self._at(base.slot, change)
                total = change if total is None else total + change
        return total

    def _by_operators(self, x: Tensor, y: Tensor, strengths: Strengths, run: Run) -> list[_Change]:
        """The changes by `shifts` and `others`."""
        bases = self.others if self.takes_shift else [*self.shifts, *self.others]
        inputs: list[Tensor] = []
        rest: list[Base] = []
        """What each of `inputs` is for. What is on its outputs is still to come."""
        alike: dict[tuple[Rows | None, Where | None], list[Base]] = {}
        """Operators on inputs alone that share one changed input, with their strengths."""
        changes: list[_Change] = []
        for base in bases:
            if strengths[base.slot] == 0.0:
                continue
            if base.outputs is None:
                where = self.wheres[base.slot] if self.geometry.kernel else None
                alike.setdefault((base.rows, where), []).append(base)
            elif base.inputs is not None:
                inputs.append(self.geometry.turned(base.inputs, x))
                rest.append(base)
            else:
                # Operators on outputs alone need no further W x: y holds it.
                met = self.geometry.part(self._unbiased(y), base.rows)
                changes.append(
                    (self._at(base.slot, self._on_outputs(base, met)), base.rows, strengths[base.slot])
                )
        for several in alike.values():
            change = self._turned(several, x, strengths)
            assert change is not None
            inputs.append(change)
            rest.append(several[0])
        for value, base in zip(self._products(inputs, run), rest, strict=True):
            part, strength = self.geometry.part(value, base.rows), strengths[base.slot]
            if base.outputs is None:
                strength = 1.0
            else:
                # outputs @ W @ inputs - W = part + (outputs - 1) (W + part), with part = W (inputs - 1).
                part = part + self._on_outputs(base, self.geometry.part(self._unbiased(y), base.rows) + part)
            if base.outputs is not None or self.geometry.kernel:
                part = self._at(base.slot, part)
            changes.append((part, base.rows, strength))
        return changes

    def _products(self, inputs: Sequence[Tensor], run: Run) -> Sequence[Tensor]:
        """W x, without the bias, of several inputs, by one pass through the module."""
        if not inputs:
            return ()
        # A convolution takes one batch dimension, a linear layer any number of leading ones.
        joined = (torch.cat if self.geometry.kernel else torch.stack)(list(inputs))
        # The module takes the dtype of its own input, which may be narrower than the working dtype.
        found = self._unbiased(run(joined.to(self.made_for[0])).to(self.dtype))
        return found.chunk(len(inputs)) if self.geometry.kernel else found.unbind()

    def _unbiased(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y - self.bias

    def _on_outputs(self, base: Base, y: Tensor) -> Tensor:
        """(M - 1) y for the operator M on outputs."""
        assert base.outputs is not None
        return self.geometry.first(base.outputs.change(self.geometry.last(y)))


def _diagonal(base: Base) -> Tensor | None:
    """M - 1 of an operator M that scales all outputs and does nothing else; None for others."""
    if base.inputs is None and base.rows is None and isinstance(base.outputs, Diagonal):
        return base.outputs.extra
    return None


def _on_all_rows(
    form: Additive, rows: Rows | None, geometry: Geometry, dtype: torch.dtype, device: torch.device
) -> LowRank | Dense:
    """The form for all rows of a weight, zero outside `rows`.

    With groups, a convolution of some rows alone would spread these rows over all groups.
    """
    plain = form if isinstance(form, LowRank) else Dense(form.dense(dtype, device))
    return plain if rows is None else plain.embedded(rows, geometry.outputs)
