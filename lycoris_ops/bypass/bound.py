"""A plan on one device and in one dtype: what runs in every forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..changes.forms import Additive, Dense, LowRank
from ..changes.operators import Diagonal, moved
from ..discovery import discover
from ..maths.scaling import scaled
from ..maths.shapes import Rows
from ..maths.tensors import compute_dtype, shaped
from . import forwards
from .forwards.forward import Forward, Item, Strengths, in_own_dtypes, recorded
from .forwards.low_rank import Factors, LowRankForward
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


@dataclass(frozen=True)
class _Placed:
    """A forward pass, with its rows of the weight (None for all) and the slots of its layers' strengths."""

    forward: Forward
    rows: Rows | None
    slots: tuple[int, ...]


class BoundPlan:
    """A plan bound to a device and a working dtype: y += sum of strength * change.

    `shifts` are the operators M that change the input in one way for all outputs. They add up to one changed
    input, x + sum of strength * (M - 1) x. Where no other operator needs W x of the unchanged input, the
    module is given the changed input in its own pass (`takes_shift`). All other changed inputs go through the
    module together, in one more pass.
    """

    def __init__(self, plan: BypassPlan, met: Met, x: Tensor, dropout: float = 0.0) -> None:
        self.geometry = geometry = plan.geometry
        self.made_for = (x.dtype, x.device, dropout)
        """The dtype and device of the inputs, and the dropout."""
        self.dtype, self.dropout = working_dtype(x), dropout
        dtype, device = self.dtype, x.device
        self.bias = None if met.bias is None else geometry.per_channel(moved(met.bias, device, dtype))
        bases = moved(met.bases, device, dtype)
        self.shifts = [base for base in bases if base.outputs is None and base.rows is None]
        others = [base for base in bases if base.outputs is not None or base.rows is not None]
        self.takes_shift = bool(self.shifts) and all(base.outputs is None for base in others)
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
        items: dict[tuple[MakeForward, Rows | None], list[Item]] = {}
        for form, rows, slot in met.forms:
            if geometry.groups > 1:
                form, rows = _on_all_rows(form, rows, geometry, compute_dtype(dtype), device), None
            items.setdefault((FORWARDS[type(form)], rows), []).append(Item(moved(form, device), slot))
        self.forwards = [
            _Placed(make(geometry, found, dtype, device), rows, tuple(item.slot for item in found))
            for (make, rows), found in items.items()
        ]
        self.biases = [(moved(change, device, compute_dtype(dtype)), slot) for change, slot in met.biases]
        self.operates = bool(self.shifts or self.scales or self.others)
        """Whether there are operators on the input or the output."""
        self.shifts_alone = self.takes_shift and not (self.others or self.forwards or self.biases)
        """Whether there is nothing to do but to give the module the changed input."""
        # A plan that torch.compile traces is not kept.
        self.follows = not torch.compiler.is_compiling() and self._reads_only(plan.tensors)
        """Whether later passes see the current values of tensors that learn."""

    def _reads_only(self, tensors: Sequence[Tensor]) -> bool:
        """Whether passes read these very tensors, with their current values, and nothing else."""
        if self.operates or self.biases:
            return False
        read = [placed.forward.reads for placed in self.forwards]
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
        total = self.seen(y)
        changes: list[_Change] = []
        extra = None
        if self.operates:
            changes = self._by_operators(x, total, strengths, run)
            extra = self._on_all_outputs(strengths)
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

    def beside(self, x: Tensor, y: Tensor, strengths: Strengths, factors: Factors | None = None) -> Tensor:
        """`finish` for a plan without operators: from the module's input x and its output y.

        `factors` multiply the changes over the places of y, see `LowRankForward.add`. Only a plan whose forms
        are all low-rank takes them.
        """
        total = y
        if self.forwards:
            x, total = self.seen(x), self.seen(y)
            if self.dropout:
                x = functional.dropout(x, self.dropout)
            if self.geometry.kernel:
                x, total = self.geometry.padded(x), total.contiguous()
            with in_own_dtypes(x.device):
                for placed in self.forwards:
                    # `map` runs no Python code for each slot, as a generator would.
                    if not any(map(strengths.__getitem__, placed.slots)):
                        continue
                    add = placed.forward.add
                    if factors is not None:
                        add = partial(cast("LowRankForward", placed.forward).add, factors=factors)
                    if placed.rows is None:
                        total = add(total, x, strengths)
                        continue
                    part = self.geometry.part(total, placed.rows)
                    found = add(part, x, strengths)
                    if found is not part:
                        part.copy_(found)
        if self.biases and (change := self._bias_change(strengths)) is not None:
            total = total + self.geometry.per_channel(change.to(self.dtype))
        return (total if total.shape == y.shape else total.view(y.shape)).to(y.dtype)

    def _on_all_outputs(self, strengths: Strengths) -> Tensor | None:
        """The sum of strength * (M - 1) over `scales`, for each channel; None where nothing is scaled."""
        total: Tensor | None = None
        for extra, slot in self.scales:
            if strengths[slot] != 0.0:
                one = extra * strengths[slot]
                total = one if total is None else total + one
        return None if total is None else self.geometry.per_channel(total)

    def _scaled(self, y: Tensor, extra: Tensor) -> Tensor:
        """y + (y - bias) * extra; y may be written over."""
        if not recorded(y, extra):
            found = y.addcmul_(y, extra)
            return found if self.bias is None else found.sub_(self.bias * extra)
        return scaled(y, extra, self.bias)

    def _bias_change(self, strengths: Strengths) -> Tensor | None:
        """The change (O,) of the bias at these strengths, in float32 or float64; None for none."""
        total: Tensor | None = None
        for change, slot in self.biases:
            if strengths[slot] != 0.0:
                total = (
                    strengths[slot] * change if total is None else total.add(change, alpha=strengths[slot])
                )
        return total

    def _turned(self, bases: Sequence[Base], x: Tensor, strengths: Strengths) -> Tensor | None:
        """The sum of strength * (M - 1) x over the operators M on inputs; None where nothing is added."""
        total: Tensor | None = None
        for base in bases:
            if strengths[base.slot] != 0.0 and base.inputs is not None:
                change = self.geometry.turned(base.inputs, x) * strengths[base.slot]
                total = change if total is None else total + change
        return total

    def _by_operators(self, x: Tensor, y: Tensor, strengths: Strengths, run: Run) -> list[_Change]:
        """The changes by `shifts` and `others`."""
        others = [base for base in self.others if strengths[base.slot] != 0.0]
        inputs: list[Tensor] = []
        rest: list[tuple[Base | None, Rows | None]] = []
        """What each of `inputs` is for: (base, rows) or (None, rows).

        With a base, its operator on outputs and its strength are still to be applied. With None, the
        strengths are already in the input.
        """
        if not self.takes_shift and (change := self._turned(self.shifts, x, strengths)) is not None:
            inputs.append(change)
            rest.append((None, None))
        by_rows: dict[Rows | None, list[Base]] = {}
        for base in others:
            if base.outputs is None:
                by_rows.setdefault(base.rows, []).append(base)
            elif base.inputs is not None:
                inputs.append(self.geometry.turned(base.inputs, x))
                rest.append((base, base.rows))
        # Operators on inputs alone, for the same rows, share one changed input.
        for rows, bases in by_rows.items():
            change = self._turned(bases, x, strengths)
            assert change is not None
            inputs.append(change)
            rest.append((None, rows))
        changes: list[_Change] = []
        for value, (base, rows) in zip(self._products(inputs, run), rest, strict=True):
            part = self.geometry.part(value, rows)
            if base is None:
                changes.append((part, rows, 1.0))
                continue
            # outputs @ W @ inputs - W = part + (outputs - 1) (W + part), with part = W (inputs - 1).
            met = self.geometry.part(self._unbiased(y), rows) + part
            changes.append((part + self._on_outputs(base, met), rows, strengths[base.slot]))
        # Operators on outputs alone need no further W x: y holds it.
        for base in others:
            if base.inputs is None:
                met = self.geometry.part(self._unbiased(y), base.rows)
                changes.append((self._on_outputs(base, met), base.rows, strengths[base.slot]))
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
