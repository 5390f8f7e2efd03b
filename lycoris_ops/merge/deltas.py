"""The input of a merge method: the changes that several adapters make to one weight."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..algorithms.fitting import FACTORED, Delta
from ..changes.factors import joined
from ..changes.forms import Additive, LowRank, Spanned, add_up
from ..maths.decompositions import Pause, Triples, balanced, no_pause, qr, singular
from ..maths.tensors import CPU, fetched, wide

ROWS = 512
"""How many rows of a matrix are converted to float64 at once."""


@dataclass(eq=False)
class Deltas:
    """The changes D_1 to D_T, (O, K), that T adapters make to one weight, with their strengths w_1 to w_T.

    `shape` is (O, K), K = I * prod(kernel). `names` are the names of the adapters; () for their numbers.
    `entries` are their numbers among all that are merged.
    `seed` is for methods that draw random numbers: an adapter's numbers depend only on the seed, `layer` and
    its name, not on order, device or the other adapters. Everything is float32 on `device`, inner products
    are `wide`. `pause` is called now and then in long computations.
    """

    forms: Sequence[Sequence[Additive]]
    strengths: Sequence[float]
    shape: tuple[int, int]
    _: KW_ONLY
    layer: str = ""
    names: Sequence[str] = ()
    entries: Sequence[int] = ()
    seed: int = 0
    device: torch.device = CPU
    pause: Pause = no_pause
    highest: int = 0
    """The highest possible rank of a change; 0 for min(O, K)."""
    bases: tuple[Tensor, Tensor] | None = None
    """For changes in the span of others, see `inner`: the bases of the outputs (O, R) and inputs (K, R)."""
    _inner: Deltas | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.highest = self.highest or min(self.shape)

    @property
    def count(self) -> int:
        return len(self.forms)

    @cached_property
    def factors(self) -> tuple[tuple[Tensor, Tensor], ...] | None:
        """up (O, r_i) and down (r_i, K) of each change.

        None where a change has no factors, or where the ranks of all adapters together exceed the share
        FACTORED of the highest possible rank: then the matrix itself takes less work.
        """
        most = int(FACTORED * self.highest)
        pairs: list[tuple[Tensor, Tensor]] = []
        for forms in self.forms:
            factors = joined(forms, most, self.device)
            if factors is None:
                return None
            most -= len(factors[1])
            pairs.append(factors)
        return tuple(pairs)

    def inner(self) -> Deltas:
        """The changes as U^T D_i V, (R, R), where U (O, R) and V (K, R) are bases of all outputs and inputs.

        For methods to which it does not matter how outputs or inputs are turned: what they merge there is
        `lifted` again. It is on the CPU. Without factors these are the changes themselves.
        """
        if self.factors is None or self.bases is not None:
            return self
        if self._inner is None:
            self.pause()
            left, up = qr(torch.cat([up for up, _ in self.factors], 1))
            right, down = qr(torch.cat([down for _, down in self.factors]).T)
            up, down = fetched(up, down)
            forms: list[list[Additive]] = []
            start = 0
            for _, own in self.factors:
                stop = start + len(own)
                forms.append([LowRank(up[:, start:stop], down[:, start:stop].T, 1.0)])
                start = stop
            shape = len(up), len(down)
            self._inner = replace(
                self, forms=forms, shape=shape, device=CPU, highest=self.highest, bases=(left, right)
            )
        return self._inner

    def lifted(self, forms: Sequence[Additive]) -> list[Additive]:
        """The sum of forms of the `inner` changes as a form of the weight's."""
        if self.bases is None or not forms:
            return list(forms)
        left, right = self.bases
        return [Spanned.of(left, add_up(forms, torch.float64, CPU), right.T)]

    def dense(self, index: int) -> Tensor:
        """D_i without its strength. Each call computes it again."""
        self.pause()
        dtype = torch.float32 if self.bases is None else torch.float64
        return add_up(self.forms[index], dtype, self.device).reshape(self.shape)

    def weighted(self) -> list[Tensor]:
        """All w_i D_i."""
        return [self.strengths[index] * self.dense(index) for index in range(self.count)]

    def gram(self) -> Tensor:
        """<D_i, D_j> (T, T) in float64, on the CPU.

        The products are `wide`: float32 would give a wrong norm for the difference of two similar changes.
        """
        if self.bases is None and self.factors is not None:
            if self.device.type == "cpu":
                return self._gram_of(self.factors)
            return self.inner().gram()
        matrices = [self.dense(index) for index in range(self.count)]
        totals: list[Tensor] = []
        for start in range(0, self.shape[0], ROWS):
            self.pause()
            rows = wide(torch.stack([matrix[start : start + ROWS].flatten() for matrix in matrices]))
            totals.append(rows @ rows.T)
        return torch.stack(totals).cpu().double().sum(0)

    def _gram_of(self, factors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """`gram` from products of the factors, which costs less than `inner`."""
        up = wide(torch.cat([up for up, _ in factors], 1))
        down = wide(torch.cat([down for _, down in factors]))
        products = (up.T @ up) * (down @ down.T)
        sizes = torch.tensor([len(down) for _, down in factors])
        own = torch.eye(self.count, dtype=products.dtype).repeat_interleave(sizes, 0)
        return own.T @ products @ own

    def summed(self, coefficients: Sequence[float]) -> list[Additive]:
        """sum of c_i D_i, in the span of all where they have factors."""
        inner = self.inner()
        return inner.lifted(inner.combined(coefficients))

    def combined(self, coefficients: Sequence[float]) -> list[Additive]:
        """sum of c_i D_i, exactly: the forms themselves, each times its coefficient."""
        return [
            form if coefficient == 1.0 else form.times(coefficient)
            for forms, coefficient in zip(self.forms, coefficients, strict=True)
            if coefficient != 0.0
            for form in forms
        ]

    def triples(self) -> list[Triples]:
        """The singular triples of each D_i, without rounding noise."""
        return [self.triples_of(forms) for forms in self.forms]

    def triples_of(self, forms: Sequence[Additive]) -> Triples:
        """All singular triples of a sum of forms, without rounding noise."""
        largest = min(self.shape)
        delta = Delta(forms, self.shape, largest=largest, settled=0.0, device=self.device, pause=self.pause)
        return delta.triples

    def principal(self) -> tuple[Tensor, Tensor]:
        """Q_U (O, R) and Q_V (K, R'), bases for the outputs and for the inputs of all changes.

        They come from the balanced factors U sqrt(S) and sqrt(S) V^T, so it does not matter how an adapter
        divides the size of its change between its two factors.
        """
        pairs = [balanced(*triples) for triples in self.triples()]
        ups = torch.cat([up for up, _ in pairs], 1)
        downs = torch.cat([down for _, down in pairs])
        # Singular vectors, which do not depend on the order of the adapters.
        return singular(ups)[0], singular(downs.T)[0]

    def generator(self, index: int) -> torch.Generator:
        """The random generator for one adapter, on the CPU."""
        name = self.names[index] if self.names else index
        said = f"{self.seed}\0{self.layer}\0{name}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(said).digest()[:8], "little") >> 1)


def of_triples(left: Tensor, values: Tensor, right: Tensor) -> LowRank:
    """U S V^T as a form."""
    return LowRank(left * values.to(left), right, 1.0)
