"""T-LoRA: a change of the singular triples that the adapter started from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..changes.forms import LowRank
from ..changes.operators import Sides
from ..errors import LayerError
from ..maths.decompositions import singular
from ..maths.tensors import is_finite
from ..messages import Phrase
from .axes import Table
from .base import Layer
from .checks import scale

Q, P, LAMBDA = "q_layer.weight", "p_layer.weight", "lambda_layer"

STARTS: dict[str, Callable[[int, int], int]] = {
    "principal": lambda rank, known: 0,
    "last": lambda rank, known: known - rank,
    "middle": lambda rank, known: (known - rank) // 2,
}
"""For each `sig_type`, a function of (rank, known). It returns the index of the first of an adapter's `rank`
consecutive singular triples, among `known` triples in descending order."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Tlora(Layer):
    """delta = alpha / r * (P diag(l) Q - P0 diag(l0) Q0), with P0, l0, Q0 from the SVD of W.

    p_layer (O, r), q_layer (r, I), lambda_layer (1, r) or (r,). The file does not hold P0, l0 and Q0:
    they are singular triples of the base weight. `sig_type` says which: the r largest ("principal"), the
    r smallest ("last") or the r in the middle ("middle"). The change is exact only on the very model that
    the adapter was trained on. The source does not define a convolution with a kernel above 1.

    Source: Soboleva et al., "T-LoRA" (2507.05964), section 3.3; layout by LyCORIS 4.
    """

    algorithm: ClassVar[str] = "tlora"
    in_comfy: ClassVar[bool] = False
    table: ClassVar[Table] = Table(
        {LAMBDA: "<r>, value", Q: "r I k*, value", P: "O r 1*, value"},
        alpha="scales",
    )

    q_layer: Tensor
    p_layer: Tensor
    lambda_layer: Tensor
    sig_type: Literal["principal", "last", "middle"] | None = None

    @property
    def reads_weight(self) -> bool:
        return True

    def check_fit(self, shape: Sequence[int]) -> None:
        super().check_fit(shape)
        # Raises before any weight is changed.
        self._start()

    def sides(self, weight: Tensor) -> Sides:
        start = self._start()
        up, down, values = (
            factor.to(weight.device, weight.dtype)
            for factor in (self.p_layer.flatten(1), self.q_layer.flatten(1), self.lambda_layer.flatten())
        )
        rank = len(down)
        flat = weight.reshape(weight.shape[0], -1)
        if not is_finite(flat):
            raise LayerError("E-tlora-start-not-computable")
        left, middle, right = singular(flat)
        # A weight smaller than the rank has fewer triples.
        known = min(rank, len(middle))
        first = start(known, len(middle))
        kept = slice(first, first + known)
        factor = scale(self.alpha, rank)
        after = LowRank(up * values, down, factor)
        before = LowRank(left[:, kept] * middle[kept], right[kept], -factor)
        return Sides(beside=(after, before))

    def _start(self) -> Callable[[int, int], int]:
        if self.sig_type is None or self.sig_type not in STARTS:
            raise LayerError(
                "E-tlora-start-unknown",
                starts=" or ".join(STARTS),
                got=f"sig_type = {self.sig_type}" if self.sig_type else Phrase("R-no-sig-type"),
            )
        return STARTS[self.sig_type]
