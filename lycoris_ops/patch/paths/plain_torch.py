"""Plain torch on any device: a weight is patched in parts that are small enough to stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...maths.scratch import scratch, tile
from ...maths.shapes import flat_shape
from ...maths.tensors import compute_dtype
from ..groups.group import ROWS, Add, Factors, PathPlan, placed
from ..registry import PatchPath, one_by_one

SHALLOW = 64
"""Products up to this rank may be added to a weight directly, because the result is rounded once. Matrix
libraries sum over a small rank in registers before they add. They cut a larger rank into blocks (OpenBLAS
from 256 on) and add the product of each block separately."""

TILE = 1 << 20
"""Number of values of a part, which consists of whole rows. 4 MB in float32 stay in the cache. Smaller parts
lose more to the cost of calls than they gain (measured on two cores: 1 to 2 M values are best)."""


def parts(flat: Tensor) -> Iterator[slice]:
    """The rows of each part of a weight (O, K), the largest first."""
    rows, columns = flat.shape
    step = max(ROWS, tile(flat.device, TILE) // columns // ROWS * ROWS)
    for row in range(0, rows, step):
        yield slice(row, min(rows, row + step))


def _apply(plan: PathPlan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> None:
    if not weight.numel():
        return
    dtype = compute_dtype(weight.dtype)
    adds: list[Add] = []
    products: dict[tuple[int, int] | None, list[Factors]] = {}
    for group, rows in plan.groups:
        products.setdefault(rows, []).extend(group.products(tensors))
        add = group.bind(tensors, strengths, dtype)
        if add:
            adds.append(add if rows is None else placed(add, *rows))
    for number, (rows, members) in enumerate(products.items()):
        if members:
            add = _one_product(members, strengths, dtype, f"product {number}")
            adds.append(add if rows is None else placed(add, *rows))
    # Where changes are summed in a buffer, the first one overwrites it. Changes that would have to set the
    # buffer to zero for this go last.
    adds.sort(key=lambda adding: adding.clears)
    if adds and weight.is_contiguous():
        _add_to(weight.view(flat_shape(plan.final)), adds, dtype)
    elif adds:
        copy = weight.contiguous()
        _add_to(copy.view(flat_shape(plan.final)), adds, dtype)
        weight.copy_(copy)


def _add_to(flat: Tensor, adds: Sequence[Add], dtype: torch.dtype) -> None:
    first, *others = adds
    alone = not others and first.once and flat.dtype == dtype
    largest = next(parts(flat))
    # Allocated before the first addition: a lack of memory must not leave the weight half patched.
    buffer = None if alone else scratch("sum", flat[largest].shape, dtype, flat.device)
    for rows in parts(flat):
        here, row = flat[rows], rows.start
        if buffer is None:
            first.add(here, row)
            continue
        total = buffer[: len(here)]
        if flat.dtype != dtype:
            # Float32 is precise enough to add the changes to the weight one by one: what counts is the
            # rounding of the result to the weight's dtype.
            total.copy_(here)
            for add in adds:
                add.add(total, row)
            here.copy_(total)
        else:
            # The changes are small beside the weight. Added one by one, each would be rounded to the weight's
            # precision, so they are summed first.
            first.write(total, row)
            for add in others:
                add.add(total, row)
            here.add_(total)


def _one_product(
    products: Sequence[Factors], strengths: Sequence[float], dtype: torch.dtype, use: str
) -> Add:
    """All products as one matrix product: [left_1 ... left_n] @ [right_1; ...; right_n].

    The right factors are multiplied by scales and strengths. Both matrices are buffers, valid until the next
    call with the same `use` in this thread.
    """
    rank, device = sum(product.rank for product in products), products[0].left.device
    left = scratch(f"{use} left", (len(products[0].left), rank), dtype, device)
    right = scratch(f"{use} right", (rank, products[0].right.shape[1]), dtype, device)
    start = 0
    for product in products:
        place = slice(start, start + product.rank)
        left[:, place].copy_(product.left)
        right[place].copy_(product.right)
        factor = product.factor(strengths)
        if factor != 1.0:
            right[place].mul_(factor)
        start += product.rank

    def here(chunk: Tensor, row: int) -> Tensor:
        return left[row : row + len(chunk)]

    return Add(
        add=lambda chunk, row: chunk.addmm_(here(chunk, row), right),
        write=lambda chunk, row: torch.mm(here(chunk, row), right, out=chunk),
        once=left.shape[1] <= SHALLOW,
    )


PATH = PatchPath(
    name="torch",
    priority=100,
    devices=("cpu", "cuda", "mps", "xpu", "npu", "mlu", "privateuseone"),
    dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    apply=one_by_one(_apply),
    needs=lambda: None,
)
