"""A plan on one device and in one dtype: what runs in every forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..changes.forms import Additive, Dense, LowRank
from ..changes.operators import Diagonal, moved
from ..changes.place import Places, Where
from ..discovery import discover
from ..errors import LycorisError
from ..maths.scaling import scaled
from ..maths.shapes import Rows
from ..maths.tensors import compute_dtype
from . import forwards
from .forwards.forward import Forward, Item, Strengths, in_own_dtypes, recorded
from .forwards.low_rank import LowRankForward
from .geometry import Geometry, working_dtype
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


class Acting(Protocol):
    """What acts on a module in one pass: a `BoundPlan`, or the `WholePass` of one layer that learns."""

    operates: bool
    """Whether there are operators on the input or the output. They must not act on what others add."""

    def fed(self, x: Tensor) -> Tensor:
        """What the module is fed in place of its input x: x itself where no operator changes it."""
        ...

    def finish(self, x: Tensor, fed: Tensor, y: Tensor, run: Run) -> Tensor:
        """The module's output with all layers. y is its output for `fed`, and may be written over. `run`
        computes W x + b."""
        ...


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
    a product alike whatever is beside them. `strengths` and `places` are set before each pass.

    With `apart` the output has the samples with all layers but those of `apart`, then the samples once more
    for each `Where` of `apart`, with its layers too. No factors are applied to these. This is for a module
    whose tokens have no place but whose output is used at all places, such as keys and values made of a text.

    `shifts` are the operators M that change the input in one way for all outputs. They add up to one changed
    input, x + sum of strength * (M - 1) x. Where no other operator needs W x of the unchanged input, the
    module is given the changed input in its own pass (`takes_shift`). All other changed inputs go through the
    module together, in one more pass.
    """

    def __init__(
        self, plan: BypassPlan, met: Met, x: Tensor, dropout: float = 0.0, *, apart: Sequence[Where] = ()
    ) -> None:
        self.geometry = geometry = plan.geometry
        self.places: Places | None = None
        self.strengths: Strengths = (1.0,)
        """The strength of each slot."""
        slots = () if plan.formed else tuple(plan.slots())
        wheres = [slot.where for slot in slots] or [None]
        self.wheres = [None if where in apart else where for where in wheres]
        """The `Where` of each slot."""
        self.copies = [[where in (None, at) for where in wheres] for at in (None, *apart)] if apart else []
        """For each copy of the samples, whether each slot acts on it."""
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
        if apart or (geometry.kernel and any(shifted)):
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
        for (make, rows, where), alike in items.items():
            forward = make(geometry, alike, dtype, device)
            where = None if where in apart else where
            by_slot = placed and where is None and isinstance(forward, LowRankForward)
            slots_of = tuple(item.slot for item in alike)
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
        own = set(map(id, tensors))
        read = [adding.forward.reads for adding in self.forwards]
        return all(reads is not None and own.issuperset(map(id, reads)) for reads in read)

    def fed(self, x: Tensor) -> Tensor:
        if not self.takes_shift:
            return x
        vectors = seen(x, self.geometry, self.dtype)
        change = self._turned(self.shifts, vectors, self.strengths)
        return x if change is None else (vectors + change).view(x.shape).to(x.dtype)

    def finish(self, x: Tensor, fed: Tensor, y: Tensor, run: Run) -> Tensor:
        if self.copies:
            each = [list(map(mul, self.strengths, own)) for own in self.copies]
            return torch.cat([self._total(x, y.clone(), strengths, run) for strengths in each])
        return self._total(x, y, self.strengths, run)

    def _total(self, x: Tensor, y: Tensor, strengths: Strengths, run: Run) -> Tensor:
        """`finish` at these strengths, without copies."""
        x, total = seen(x, self.geometry, self.dtype), seen(y, self.geometry, self.dtype)
        if self.operates:
            total = self._by_operators(x, total, strengths, run)
        if self.forwards:
            met = functional.dropout(x, self.dropout) if self.dropout else x
            if self.geometry.kernel:
                met, total = self.geometry.padded(met), total.contiguous()
            with in_own_dtypes(x.device):
                for adding in self.forwards:
                    # `map` runs no Python code for each slot, as a generator would.
                    if not any(map(strengths.__getitem__, adding.slots)):
                        continue
                    add = adding.forward.add
                    if adding.where is not None or adding.by_slot:
                        add = partial(self._add_placed, adding)
                    if adding.rows is None:
                        total = add(total, met, strengths)
                        continue
                    before = self.geometry.part(total, adding.rows)
                    after = add(before, met, strengths)
                    if after is not before:
                        before.copy_(after)
        if self.biases and (change := self._summed(self.biases, total, strengths)) is not None:
            total = total + change.to(self.dtype)
        return (total if total.shape == y.shape else total.view(y.shape)).to(y.dtype)

    def _by_operators(self, x: Tensor, y: Tensor, strengths: Strengths, run: Run) -> Tensor:
        """y with the changes by operators, in memory that may be written over."""
        total = y
        for bases in self.turned.values():
            total = self._blended(x, total, y, bases, strengths, run)
        changes = self._by_bases(x, y, strengths, run)
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
        return total

    def _blended(
        self, x: Tensor, total: Tensor, y: Tensor, bases: Sequence[Base], strengths: Strengths, run: Run
    ) -> Tensor:
        """total + factor * (y' - y), with y' of the input that `bases` change: y' where the factor is 1 and
        `total` is y."""
        change = self._turned(bases, x, strengths)
        if change is None:
            return total
        other = seen(run((x + change).to(self.made_for[0])), self.geometry, self.dtype)
        other = other if total is y else other + (total - y)
        factors = self._factors(bases[0].slot, y)
        return other if factors is None else torch.lerp(total, other, factors.to(other.dtype))

    def _factors(self, slot: int, y: Tensor) -> Tensor | None:
        """`_factors_of` the `Where` of a slot; None for 1."""
        where = self.wheres[slot]
        return None if where is None else self._factors_of(where, y)

    def _factors_of(self, where: Where, y: Tensor) -> Tensor:
        """The factors of a `Where`, in float32 or float64, shaped to be multiplied with an input or output y.

        Raises LycorisError where no places are set, or y has another number of tokens than they have.
        """
        kernel, places = len(self.geometry.kernel), self.places
        if places is None:
            raise LycorisError("E-places-not-set")
        samples = len(places.pictures)
        grid = tuple(y.shape[-kernel:]) if kernel else places.grid
        factors = where.over(places, grid, compute_dtype(y.dtype), y.device)
        tokens = factors.shape[1]
        if kernel:
            batch = y.shape[: -kernel - 1]
            if math.prod(batch) != samples:
                raise _other_count(f"{math.prod(batch)} samples", f"{samples}")
            return factors.view(*batch, 1, *(grid if tokens > 1 else (1,) * kernel))
        rows = y.numel() // max(y.shape[-1], 1)
        if (where.mask is None or places.everywhere) and rows % samples == 0:
            factors = factors.expand(-1, rows // samples)
        elif rows != samples * tokens:
            raise _other_count(f"{rows} tokens", f"{tokens} for each of {samples} samples: {places}")
        return factors.reshape(*y.shape[:-1], 1)

    def _at(self, slot: int, change: Tensor, y: Tensor | None = None) -> Tensor:
        """The change times the factors of its slot; y is an input or output with its places."""
        factors = self._factors(slot, change if y is None else y)
        return change if factors is None else (change * factors).to(change.dtype)

    def _add_placed(self, adding: _Adding, y: Tensor, x: Tensor, strengths: Strengths) -> Tensor:
        """`Forward.add` of these layers, with their factors over places and samples."""
        forward = adding.forward
        if adding.where is None:
            assert isinstance(forward, LowRankForward)
            factors = {
                where: self._factors_of(where, y) for where in dict.fromkeys(filter(None, self.wheres))
            }
            by_slot = [None if where is None else factors[where] for where in self.wheres]
            return forward.add(y, x, strengths, by_slot.__getitem__)
        own = self._factors_of(adding.where, y)
        if self.geometry.kernel:
            return torch.lerp(y, forward.add(y.clone(), x, strengths), own.to(y.dtype))
        # The change is linear in x, so x takes the factors: exact where they are 0 or 1.
        return forward.add(y, (x * own).to(x.dtype), strengths)

    def _summed(self, values: Sequence[tuple[Tensor, int]], y: Tensor, strengths: Strengths) -> Tensor | None:
        """The sum of strength * factor * value over vectors of the channels of y; None for nothing."""
        total: Tensor | None = None
        for value, slot in values:
            if strengths[slot] != 0.0:
                term = self._at(slot, self.geometry.per_channel(value * strengths[slot]), y)
                total = term if total is None else total + term
        return total

    def _scaled(self, y: Tensor, extra: Tensor) -> Tensor:
        """y + (y - bias) * extra; y may be written over."""
        if not recorded(y, extra):
            total = y.addcmul_(y, extra)
            return total if self.bias is None else total.addcmul_(self.bias, extra, value=-1)
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

    def _by_bases(self, x: Tensor, y: Tensor, strengths: Strengths, run: Run) -> list[_Change]:
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
                product = self.geometry.part(self._unbiased(y), base.rows)
                change = self._at(base.slot, self._on_outputs(base, product))
                changes.append((change, base.rows, strengths[base.slot]))
        for several in alike.values():
            change = self._turned(several, x, strengths)
            assert change is not None
            inputs.append(change)
            rest.append(several[0])
        for value, base in zip(self._products(inputs, run), rest, strict=True):
            change, strength = self.geometry.part(value, base.rows), strengths[base.slot]
            if base.outputs is None:
                strength = 1.0
            else:
                # outputs @ W @ inputs - W = D + (outputs - 1) (W + D), with D = W (inputs - 1).
                turned = self.geometry.part(self._unbiased(y), base.rows) + change
                change = change + self._on_outputs(base, turned)
            if base.outputs is not None or self.geometry.kernel:
                change = self._at(base.slot, change)
            changes.append((change, base.rows, strength))
        return changes

    def _products(self, inputs: Sequence[Tensor], run: Run) -> Sequence[Tensor]:
        """W x, without the bias, of several inputs, by one pass through the module."""
        if not inputs:
            return ()
        # A convolution takes one batch dimension, a linear layer any number of leading ones.
        joined = (torch.cat if self.geometry.kernel else torch.stack)(list(inputs))
        # The module takes the dtype of its own input, which may be narrower than the working dtype.
        products = self._unbiased(run(joined.to(self.made_for[0])).to(self.dtype))
        return products.chunk(len(inputs)) if self.geometry.kernel else products.unbind()

    def _unbiased(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y - self.bias

    def _on_outputs(self, base: Base, y: Tensor) -> Tensor:
        """(M - 1) y for the operator M on outputs."""
        assert base.outputs is not None
        return self.geometry.first(base.outputs.change(self.geometry.last(y)))


def seen(values: Tensor, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    """An input or output as layers see it, in `dtype`: vectors as the rows of a contiguous matrix, pictures
    with a batch dimension."""
    values = values if values.dtype == dtype else values.to(dtype)
    if kernel := geometry.kernel:
        return values[None] if values.ndim == len(kernel) + 1 else values
    values = values.contiguous()
    return values if values.ndim == 2 else values.view(-1, values.shape[-1])


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


def _other_count(got: str, expected: str) -> LycorisError:
    return LycorisError("E-masked-tokens-miscount", got=got, expected=expected)
