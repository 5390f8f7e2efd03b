"""Plain torch on any device: parts of the weight that stay in the cache, and the sum of all changes of
each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...maths.scratch import scratch
from ...maths.shapes import flat_shape
from ...maths.tensors import compute_dtype
from ..groups.group import ROWS, Add, Factors, Plan, joined, placed
from ..registry import PatchPath

SHALLOW = 64
"""Rank up to which a product is summed in registers before it is added: libraries cut larger ones into blocks
(OpenBLAS from 256 on), and add each block by itself."""

TILE = 1 << 20
"""Values of a part, in whole rows: 4 MB in float32 stay in the cache, and smaller parts lose more to the cost
of calls than they win (measured on two cores: 1 to 2 M is best)."""


def parts(rows: int, columns: int) -> Iterator[slice]:
    """The rows of the parts of a weight, the largest first."""
    step = max(ROWS, TILE // columns // ROWS * ROWS)
    for row in range(0, rows, step):
        yield slice(row, min(rows, row + step))


def _apply(plan: Plan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> None:
    if not weight.numel():
        return
    dtype = compute_dtype(weight.dtype)
    adds: list[Add] = []
    products: dict[tuple[int, int] | None, list[Factors]] = {}
    for group, rows in plan.groups:
        products.setdefault(rows, []).extend(group.products(tensors))
        add = group.bind(tensors, strengths, dtype, weight if rows is None else weight[slice(*rows)])
        if add:
            adds.append(add if rows is None else placed(add, *rows))
    for number, (rows, found) in enumerate(products.items()):
        if found:
            add = _one_product(found, strengths, dtype, f"product {number}")
            adds.append(add if rows is None else placed(add, *rows))
    # The first one is written, and not every group does that without zeros to add to.
    adds.sort(key=lambda one: one.clears)
    if adds and weight.is_contiguous():
        _add_to(weight.view(flat_shape(plan.final)), adds, dtype)
    elif adds:
        copy = weight.contiguous()
        _add_to(copy.view(flat_shape(plan.final)), adds, dtype)
        weight.copy_(copy)


def _add_to(flat: Tensor, adds: Sequence[Add], dtype: torch.dtype) -> None:
    first, *others = adds
    alone = not others and first.once
    for rows in parts(*flat.shape):
        here, row = flat[rows], rows.start
        if flat.dtype != dtype:
            # What is rounded is the narrow result: beside it float32 has room for the weight and the sum in
            # one.
            total = scratch("sum", here.shape, dtype, flat.device).copy_(here)
            for add in adds:
                add.add(total, row)
            here.copy_(total)
        elif alone:
            first.add(here, row)
        else:
            # The changes are small beside the weight: summed apart, they are rounded to it once.
            total = scratch("sum", here.shape, dtype, flat.device)
            first.write(total, row)
            for add in others:
                add.add(total, row)
            here.add_(total)


def _one_product(
    products: Sequence[Factors], strengths: Sequence[float], dtype: torch.dtype, use: str
) -> Add:
    """All products as one: [left_1 ... left_n] @ [right_1; ...; right_n]."""
    left, right = joined(products, strengths, dtype, use)

    def here(part: Tensor, row: int) -> Tensor:
        return left[row : row + len(part)]

    return Add(
        add=lambda part, row: part.addmm_(here(part, row), right),
        write=lambda part, row: torch.mm(here(part, row), right, out=part),
        once=left.shape[1] <= SHALLOW,
    )


PATH = PatchPath(
    name="torch",
    rank=100,
    devices=("cpu", "cuda", "mps", "xpu", "npu", "mlu", "privateuseone"),
    dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    apply=_apply,
    needs=lambda: None,
)
