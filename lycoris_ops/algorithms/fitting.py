"""Approximate a change by layers: the wanted change, and the nearest layers of one kind.

A layer with the change D' **keeps** the energy ||D||^2 - ||D - D'||^2 of a change D. For a nearest layer,
D - D' is orthogonal to D', so it keeps the energy of D'.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..changes.factors import joined
from ..changes.forms import Additive, Kronecker, Spanned, add_up, product
from ..maths.decompositions import (
    SETTLED,
    Pause,
    Span,
    Triples,
    kronecker_triples,
    leading_span,
    nearest_kroneckers,
    no_pause,
    span_of_product,
    triples_of,
)
from ..maths.shapes import Shape, flat_shape
from ..maths.tensors import CPU, energy, energy_of, fetched
from .base import Layer

ROUNDING = 1e-6
"""Singular values below this share of the largest one are float32 rounding."""
FACTORED = 0.5
"""Changes up to this share of the highest possible rank are decomposed from their factors. If all triples are
wanted, the rank does not matter."""


@dataclass(eq=False)
class Delta:
    """A change to a weight of `shape`, as a sum of forms, with decompositions that several kinds use.

    - `forms` are () where only the bias changes. `bias` (O,) is its change; None where there is none.
    - `own` is the layer that makes exactly this change, where there is one. It is `bound` if that depends on
      the weight or bias, so that it is this change only on this model.
    - `largest` is the highest rank to consider.
    - `scale` is the alpha / rank that a new layer gets.
    - `noise` is the root mean square of the rounding error of each value; None to estimate it.
    - `split` is the shape (l, i) of a first Kronecker factor that is worth trying. If `factor` is given, it
      is the only LoKr factor to try.
    - `tucker` asks for a Tucker core on convolutions.
    - `seed` seeds the random bases, and `settled` is as in `maths.decompositions.leading_triples`.
    - Everything is computed on `device`. `pause` is called now and then in long computations.
    """

    forms: Sequence[Additive]
    shape: Shape
    _: KW_ONLY
    bias: Tensor | None = None
    own: Layer | None = None
    bound: bool = False
    largest: int = 128
    scale: float = 1.0
    noise: float | None = 0.0
    split: tuple[int, int] | None = None
    factor: int | None = None
    tucker: bool = False
    seed: int = 0
    settled: float = SETTLED
    device: torch.device = CPU
    pause: Pause = no_pause

    @cached_property
    def values(self) -> Tensor:
        """The change itself in the shape of the weight, float32."""
        self.pause()
        return add_up(self.forms, torch.float32, self.device).reshape(self.shape)

    @cached_property
    def energy(self) -> float:
        """||D||^2, the sum of all squares."""
        if self._kronecker is not None:
            first, other = fetched(*map(energy, self._kronecker))
            return float(first * other)
        return energy_of(self.values if self._span is None else self._found[1])

    @property
    def triples(self) -> Triples:
        """The leading singular triples U (O, r), S (r,), V^T (r, K) of the matrix, r at most `largest`,
        without those indistinguishable from rounding of the sources. S is in float64 on the CPU.
        """
        left, values, right = self._triples
        count = self.significant
        return left[:, :count], values[:count], right[:count]

    @property
    def spectrum(self) -> Tensor:
        """The leading singular values, including those indistinguishable from rounding."""
        return self._triples[1]

    @property
    def kept(self) -> tuple[float, ...]:
        """The energy that the first 1, 2, ... `triples` keep."""
        return running(self.spectrum[: self.significant].square())

    @cached_property
    def significant(self) -> int:
        """How many of the leading singular values are above the noise."""
        values = self.spectrum
        if not len(values) or float(values[0]) == 0.0:
            return 0
        edges = torch.full_like(values, ROUNDING * float(values[0]))
        if self.noise != 0.0:
            edges = edges.maximum(self._edges(values))
        below = (values <= edges).nonzero()
        return int(below[0]) if len(below) else len(values)

    def _edges(self, values: Tensor) -> Tensor:
        """For each singular value, the largest value that noise could have if this and all smaller ones were
        noise.

        The edge is lam(b) sqrt(n) sigma with n = max(O, K), b = min(O, K) / n and lam^2 = 2 (b + 1) + 8 b /
        (b + 1 + sqrt(b^2 + 14 b + 1)). The noise variance sigma^2 is at most the energy of the remaining
        values divided by its degrees of freedom.

        Source: Gavish and Donoho, "The Optimal Hard Threshold for Singular Values is 4 / sqrt(3)"
        (1305.5870), eq. 11.
        """
        rows, columns = flat_shape(self.shape)
        rest = (self.energy - values.square().cumsum(0) + values.square()).clamp(min=0)
        left = torch.arange(len(values), dtype=torch.float64)
        variance = rest / ((rows - left) * (columns - left))
        if self.noise is not None:
            variance = variance.clamp(max=self.noise**2)
        longest = max(rows, columns)
        ratio = min(rows, columns) / longest
        square = 2 * (ratio + 1) + 8 * ratio / (ratio + 1 + math.sqrt(ratio**2 + 14 * ratio + 1))
        return (variance * square * longest).sqrt()

    @cached_property
    def variance(self) -> float:
        """The variance of the noise in each value; 0 where the sources are exact."""
        if self.noise == 0.0 or len(self.shape) < 2:
            return 0.0
        values = self.spectrum
        rows, columns = flat_shape(self.shape)
        count = self.significant
        rest = max(0.0, self.energy - energy_of(values[:count]))
        noise = rest / max(1, (rows - count) * (columns - count))
        return noise if self.noise is None else min(noise, self.noise**2)

    @property
    def signal(self) -> float:
        """The energy of the change minus the energy of the noise."""
        return max(0.0, self.energy - self.variance * math.prod(self.shape))

    @property
    def complete(self) -> bool:
        """Whether all components above the noise are among the `triples`."""
        count = len(self._triples[1])
        exists = min(flat_shape(self.shape))
        if self._kronecker is not None:
            exists = math.prod(min(factor.shape) for factor in self._kronecker)
        elif self._span is not None:
            exists = min(self._span.core.shape)
        return self.significant < count or count == exists

    def outers(self, splits: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
        """For each split (rows, columns) the nearest Kronecker product: w1, of norm 1, and w2 (k, j, ...)."""
        own: Any = None if self._kronecker is None else tuple(self._kronecker[0].shape)
        others = [split for split in splits if split != own]
        options: dict[str, Any] = {"seed": self.seed, "settled": self.settled, "pause": self.pause}
        nearest = nearest_kroneckers(self.values, others, **options) if others else []
        products = dict(zip(others, nearest, strict=True))
        if self._kronecker is not None and own is not None:
            w1, w2 = self._kronecker
            size = energy(w1).sqrt()
            inner = (self.shape[0] // own[0], self.shape[1] // own[1], *self.shape[2:])
            products[own] = w1 / size.clamp_min(1e-30), (w2 * size).reshape(inner)
        return [products[split] for split in splits]

    @cached_property
    def _kronecker(self) -> tuple[Tensor, Tensor] | None:
        """w1 (l, i) and w2 (k, j * prod(kernel)) if the change is a single Kronecker product."""
        form = self.forms[0] if len(self.forms) == 1 else None
        if not isinstance(form, Kronecker) or form.rows is not None or form.columns is not None:
            return None
        w1, w2 = (product(factor, torch.float32, self.device) for factor in (form.w1, form.w2))
        return w1 * form.scale, w2

    @cached_property
    def _span(self) -> Span | None:
        """The change as a span with a small core if it has small factors, else None."""
        self.pause()
        form = self.forms[0] if len(self.forms) == 1 else None
        if isinstance(form, Spanned):
            return form.span
        highest = min(flat_shape(self.shape))
        # Where all triples are wanted, decomposing the matrix itself is never less work.
        most = highest if self.largest >= highest else int(FACTORED * highest)
        factors = joined(self.forms, most, self.device)
        return None if factors is None else span_of_product(*factors)

    @property
    def _triples(self) -> Triples:
        left, values, right = self._found
        return left[:, : self.largest], values[: self.largest], right[: self.largest]

    @cached_property
    def _found(self) -> Triples:
        """The `largest` leading singular triples, and further ones where these take no more work."""
        if self._kronecker is not None:
            return kronecker_triples(*self._kronecker, self.largest)
        span = self._span
        if span is None:
            span = leading_span(
                self.values.reshape(flat_shape(self.shape)),
                self.largest,
                seed=self.seed,
                settled=self.settled,
                total=self.energy if self.settled else None,
                pause=self.pause,
            )
        return triples_of(span)[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Offer:
    """The layers of one kind that are nearest to a change, one for each size: what each costs and keeps."""

    algorithm: str
    ranks: tuple[int | None, ...]
    """None stands for a layer without a rank."""
    kept: tuple[float, ...]
    """The energy that each keeps, as defined above: of a gradient, the gain of a layer (`ranks.offers`)."""
    parameters: tuple[int, ...]
    make: Callable[[int], Layer] | None = None
    """Makes the layer for an index in `ranks`, with float32 factors and the scale of the `Delta`. It must not
    refer to the `Delta` or to slices of its triples, because that would keep the whole change in memory. None
    in a probe, whose layers start from `start`."""
    tensors: int = 1
    """How many tensors each has in a file, including alpha."""
    held: int = 0
    """Bytes of the tensors that `make` needs."""
    factor: int | None = None
    """The LoKr factor for `Lokr.init`; None if no factor gives this split."""
    start: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """The nonzero factors of the start from which layers of this kind gain most, see `Planned`."""
    sums: Tensor | None = None
    """With D a gradient: for each of `ranks`, what it adds to the sum of the absolute gradients of the
    factors that are zero at `start`. None for kinds without a start."""
    first_steps: tuple[float, ...] = ()
    """With D a gradient, the running sums of `sums`: the fall of the loss in Adam's first step, divided by
    the learning rate. Only offers of a probe have them."""
    own: bool = False
    """Whether it is the layer that makes the change already, not a new one."""
    complete: bool = True
    """Whether no rank above the last of `ranks` would keep more."""

    @classmethod
    def whole(cls, algorithm: str, delta: Delta, make: Callable[[Tensor], Layer]) -> Offer:
        """A layer that holds the change itself; `make` gets its values."""
        energy, values = delta.energy, delta.values
        return cls(
            algorithm=algorithm,
            ranks=(None,),
            kept=(energy,),
            parameters=(math.prod(delta.shape),),
            # A copy, because training or a caller may write to it.
            make=lambda index: make(values.clone()),
            held=4 * math.prod(delta.shape),
        )

    def layer(self, index: int) -> Layer:
        """The layer for an index in `ranks`."""
        assert self.make is not None
        return self.make(index)


def running(values: Tensor) -> tuple[float, ...]:
    """The sums of the first 1, 2, ... values, which are on the CPU."""
    # torch has no type for `tolist`.
    return tuple(cast("list[float]", cast("Any", values.cumsum(0)).tolist()))


class Fitted(Layer):
    """A kind whose layers can approximate a given change."""

    whole: ClassVar[bool] = False
    """Whether its layers hold the change itself, including its noise."""

    @classmethod
    @abstractmethod
    def fit(cls, delta: Delta) -> tuple[Offer, ...]:
        """The layers of this kind nearest to a change, one for each size; () if none suits."""
