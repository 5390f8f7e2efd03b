"""LoHa layers: both products of a layer are formed block by block and multiplied value by value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ...changes.forms import Hadamard
from ...maths.scratch import scratch
from .group import ROWS, Add, Factors, Group

FORM = Hadamard

COLUMNS = 320
"""Number of columns that are worked on at once on a CPU. The products of ROWS rows and these columns stay in
the second-level cache, which takes two thirds of the time of whole rows (measured on two cores)."""


@dataclass(frozen=True)
class HadamardGroup(Group):
    """W += the sum of scale_n * strength_n * (w1_a_n @ w1_b_n) * (w2_a_n @ w2_b_n).

    A term could also be one matrix product of rank r^2, of its Khatri-Rao factors. That takes r / 2 times as
    many multiplications and is slower from r = 8 on (measured on two cores).
    """

    first: int
    """Index of the first layer's w1_a in the plan's tensors; its w1_b, w2_a and w2_b follow."""
    scales: tuple[float, ...]
    slots: tuple[int, ...]
    """The place of each layer in the plan's strengths."""

    @property
    def summary(self) -> str:
        return f"{len(self.slots)} Hadamard, value by value"

    def pairs(self, tensors: Sequence[Tensor]) -> list[tuple[Factors, Factors]]:
        """Both products of every layer. The scale and the strength are in the first one."""
        products: list[tuple[Factors, Factors]] = []
        for n, (scale, slot) in enumerate(zip(self.scales, self.slots, strict=True)):
            w1_a, w1_b, w2_a, w2_b = tensors[self.first + 4 * n : self.first + 4 * n + 4]
            products.append((Factors(w1_a, w1_b, scale, slot), Factors(w2_a, w2_b, 1.0, None)))
        return products

    def bind(self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype) -> Add:
        layers = [
            (
                first.left.to(dtype) * first.factor(strengths),
                *(factor.to(dtype) for factor in (first.right, second.left, second.right)),
            )
            for first, second in self.pairs(tensors)
        ]

        def add(rows: Tensor, first: int) -> None:
            height, width = (ROWS, COLUMNS) if rows.device.type == "cpu" else rows.shape
            room = min(height, len(rows)) * min(width, rows.shape[1])
            # Allocated before the first addition: a lack of memory must not leave the weight half patched.
            held = [scratch(f"hadamard {n}", (room,), dtype, rows.device) for n in range(3)]
            for top, left in product(range(0, len(rows), height), range(0, rows.shape[1], width)):
                here = rows[top : top + height, left : left + width]
                total, w1, w2 = (buffer[: here.numel()].view(here.shape) for buffer in held)
                down, across = slice(first + top, first + top + len(here)), slice(left, left + width)
                for number, (w1_a, w1_b, w2_a, w2_b) in enumerate(layers):
                    torch.mm(w1_a[down], w1_b[:, across], out=w1)
                    torch.mm(w2_a[down], w2_b[:, across], out=w2)
                    if number:
                        total.addcmul_(w1, w2)
                    else:
                        torch.mul(w1, w2, out=total)
                here.add_(total)

        return Add(add)


def fuse(
    forms: Sequence[Hadamard], slots: Sequence[int], first: int
) -> tuple[HadamardGroup, tuple[Tensor, ...]]:
    """One group of all Hadamard forms, and their tensors."""
    group = HadamardGroup(first, tuple(form.scale for form in forms), tuple(slots))
    return group, tuple(factor for form in forms for factor in (form.w1_a, form.w1_b, form.w2_a, form.w2_b))
