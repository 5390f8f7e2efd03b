"""A plan whose strengths differ over places and samples, on one device and in one dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..changes.forms import Additive, LowRank
from ..changes.place import Places, Where
from ..errors import LycorisError
from ..maths.shapes import Rows
from ..maths.tensors import compute_dtype
from .bound import BoundPlan, Run
from .forwards.forward import Strengths, recorded
from .plan import BypassPlan, Met


class PlacedPlan:
    """A plan whose layers have the factors of several `Where`s: y + sum of factor * (y' - y).

    y' is the module's output y changed by the layers of one `Where` alone. Where all factors are 0, the
    result is y. Where one is 1 and all others are 0, it is that y' in every bit, if the device rounds the
    columns of a product alike whatever is beside them.

    It has the methods of a `BoundPlan`. `places` is set before each pass. `apart` is for a module whose
    tokens have no place but whose output is used at all places, such as keys and values made of a text. The
    factors of each `Where` in it are not applied. The output holds the samples with all other layers,
    followed by the samples once more for each of `apart`.
    """

    def __init__(
        self, plan: BypassPlan, met: Met, x: Tensor, dropout: float = 0.0, *, apart: Sequence[Where] = ()
    ) -> None:
        (stage,) = plan.stages
        slots: dict[Where | None, set[int]] = {None: set()}
        for number, slot in enumerate(stage.slots()):
            slots.setdefault(slot.where, set()).add(number)
        self.geometry = plan.geometry
        self.apart = tuple(apart)
        self.places: Places | None = None
        self.thin: dict[int, Where | None] = {}
        """The slots of low-rank layers: one pair of products has them all, with their factors on down x."""
        joined: list[tuple[Additive, Rows | None, int]] = []
        for where, found in slots.items():
            own = met.only(found)
            if self._is_thin(own):
                self.thin |= dict.fromkeys(found, where)
                joined += own.forms
                slots[where] = set()
        self.parts = [
            (where, BoundPlan(plan, met.only(found), x, dropout), found)
            for where, found in slots.items()
            if where is None or found
        ]
        """Each `Where` with its other layers and their slots. None, for strengths that do not differ, is
        first."""
        self.joined = BoundPlan(plan, Met(tuple(joined), (), ()), x, dropout)
        self.made_for = (x.dtype, x.device, dropout)
        bounds = [*(bound for _, bound, _ in self.parts), self.joined]
        self.operates = any(bound.operates for bound in bounds)
        self.follows = all(bound.follows for bound in bounds)
        self.shares_shift = (
            not (self.geometry.kernel or self.apart)
            and any(bound.takes_shift for bound in bounds)
            and all(bound.takes_shift or not bound.operates for bound in bounds)
        )
        """Whether the module is given one changed input for all places, in its own pass: blending a linear
        layer's input token by token blends its output too."""

    def _is_thin(self, met: Met) -> bool:
        """Whether factors can be applied to the down x of all layers."""
        low = all(isinstance(form, LowRank) for form, _, _ in met.forms)
        return low and not (met.bases or met.biases or self.apart or self.geometry.groups > 1)

    def given(self, x: Tensor, strengths: Strengths) -> tuple[Tensor, Tensor]:
        """As `BoundPlan.given`."""
        seen, first = self.parts[0][1].given(x, strengths)
        if not self.shares_shift:
            return seen, seen
        total = first
        for where, bound, _ in self.parts[1:]:
            _, found = bound.given(x, strengths)
            if found is not seen and where is not None:
                total = _blended(total, seen, found, self._factors(where, seen))
        return seen, total

    def seen(self, x: Tensor) -> Tensor:
        """As `BoundPlan.seen`."""
        return self.parts[0][1].seen(x)

    def finish(self, x: Tensor, y: Tensor, strengths: Strengths, run: Run) -> Tensor:
        """As `BoundPlan.finish`."""
        base, total = y, y
        made: dict[Where, Tensor] = {}
        live = [
            (where, bound)
            for where, bound, slots in self.parts
            if any(strengths[slot] for slot in slots) and not (self.shares_shift and bound.shifts_alone)
        ]
        for where, bound in live:
            if not bound.operates and not self.apart:
                total = self._beside(where, bound, x, total if total is not base else y.clone(), strengths)
                continue
            met = base.clone()
            if bound.takes_shift and not self.shares_shift:
                _, given = bound.given(x, strengths)
                met = run(given.view(x.shape).to(self.made_for[0]))
            found = bound.finish(x, met, strengths, run).view(base.shape)
            if where is None:
                total = found
            elif where in self.apart:
                made[where] = found
            else:
                total = _blended(total, base, found, self._factors(where, base))
        if not self.apart:
            return self._thinly(x, total, strengths)
        return torch.cat([total, *(_joined(total, base, made.get(where, base)) for where in self.apart)])

    def beside(self, x: Tensor, y: Tensor, strengths: Strengths) -> Tensor:
        """As `BoundPlan.beside`."""
        if self.apart:
            return self.finish(x, y, strengths, _never)
        for where, bound, slots in self.parts:
            if any(strengths[slot] for slot in slots):
                y = self._beside(where, bound, x, y, strengths)
        return self._thinly(x, y, strengths)

    def _thinly(self, x: Tensor, y: Tensor, strengths: Strengths) -> Tensor:
        """y plus the changes of the `thin` layers; y may be written over."""
        if not any(strengths[slot] for slot in self.thin):
            return y
        flat: dict[Where, Tensor] = {}
        for where in dict.fromkeys(self.thin.values()):
            if where is not None:
                factors = self._factors(where, y, compute_dtype(y.dtype))
                flat[where] = factors if self.geometry.kernel else factors.reshape(-1, 1)
        by_slot = {slot: flat[where] for slot, where in self.thin.items() if where is not None}
        return self.joined.beside(x, y, strengths, by_slot.get)

    def _beside(
        self, where: Where | None, bound: BoundPlan, x: Tensor, y: Tensor, strengths: Strengths
    ) -> Tensor:
        """y plus the changes of the additive layers for one `Where`; y may be written over."""
        if where is None:
            return bound.beside(x, y, strengths)
        if not (self.geometry.kernel or bound.biases):
            # The change is linear in x, so x takes the factors: exact where they are 0 or 1.
            return bound.beside(
                (x * self._factors(where, x, compute_dtype(x.dtype))).to(x.dtype), y, strengths
            )
        return torch.lerp(y, bound.beside(x, y.clone(), strengths), self._factors(where, y))

    def _factors(self, where: Where, y: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The factors of a `Where`, shaped to be multiplied with an input or output y of the module.

        Raises LycorisError where y has another number of tokens than `places` says.
        """
        places = self.places
        if places is None:
            raise LycorisError(
                "the strength of a layer differs over places, but no places are set",
                expected="`Bypass.places` to be set before a pass",
            )
        kernel, samples = len(self.geometry.kernel), len(places.pictures)
        grid = tuple(y.shape[-kernel:]) if kernel else places.grid
        found = where.over(places, grid, dtype or y.dtype, y.device)
        if kernel:
            batch = y.shape[: -kernel - 1]
            if math.prod(batch) != samples:
                raise _other_count(f"{math.prod(batch)} samples", f"{samples}")
            return found.view(*batch, 1, *(grid if found.shape[1] > 1 else (1,) * kernel))
        rows = y.numel() // max(y.shape[-1], 1)
        tokens = found.shape[1]
        if (where.mask is None or places.everywhere) and rows % samples == 0:
            found = found.expand(-1, rows // samples)
        elif rows != samples * tokens:
            raise _other_count(f"{rows} tokens", f"{tokens} for each of {samples} samples: {places}")
        return found.reshape(*y.shape[:-1], 1)


def _blended(total: Tensor, base: Tensor, found: Tensor, factors: Tensor) -> Tensor:
    """total + factors * (found - base): `found` in every bit where factors are 1 and `total` is `base`."""
    joined = _joined(total, base, found)
    if recorded(total, joined, factors):
        return torch.lerp(total, joined, factors)
    # `found` is not used again, and fresh memory of its size takes as long as the sum.
    return torch.lerp(total, joined, factors, out=joined)


def _joined(total: Tensor, base: Tensor, found: Tensor) -> Tensor:
    """found + (total - base)."""
    return found if total is base else found + (total - base)


def _never(x: Tensor) -> Tensor:
    raise AssertionError("only operators need a further pass")


def _other_count(got: str, expected: str) -> LycorisError:
    return LycorisError(
        "a layer with a mask got a different number of tokens than its places have",
        got=got,
        expected=expected,
        hint="Take the mask away, or the layer out of the stack by a rule of weight 0",
    )
