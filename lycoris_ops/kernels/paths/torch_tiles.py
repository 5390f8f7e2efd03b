"""Plain torch on any device: tiles that stay in the cache, one matrix product and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ...algebra import compute_dtype, flat_shape
from ..group import Add, Group, Product, placed, row_tiles
from ..registry import Path
from ..scratch import scratch

if TYPE_CHECKING:
    from ..plan import PatchPlan

Bind = Callable[[Group, Sequence[Tensor], Sequence[float], torch.dtype, Tensor], Add | None]


def apply_tiles(
    plan: PatchPlan,
    weight: Tensor,
    tensors: Sequence[Tensor],
    strengths: Sequence[float],
    binds: Mapping[type[Group], Bind],
) -> None:
    """Add every group to tiles of the weight, in place, the sum formed in float32 and rounded once.

    `binds` takes whole groups of some types over, in place of their own `products` and `bind`.
    """
    dtype = compute_dtype(weight.dtype)
    count, columns = flat_shape(plan.final)
    tiles = row_tiles(count, columns)
    if not tiles:
        return
    adds: list[Add] = []
    products: dict[tuple[int, int] | None, list[Product]] = {}
    for group, rows in plan.groups:
        met = weight if rows is None else weight[slice(*rows)]
        if bind := binds.get(type(group)):
            add = bind(group, tensors, strengths, dtype, met)
        else:
            products.setdefault(rows, []).extend(group.products(tensors))
            add = group.bind(tensors, strengths, dtype, met)
        if add:
            adds.append(add if rows is None else placed(add, *rows))
    # A product of matrices sums before it adds: where nothing else does, it is rounded once by itself.
    alone = not adds and list(products) == [None]
    for number, (rows, found) in enumerate(products.items()):
        if found:
            use = f"product {number}"
            add = _one_product(found, strengths, dtype, use, tiles[0][1])
            adds.append(add if rows is None else placed(add, *rows))
    in_place = weight.dtype == dtype and weight.is_contiguous()
    if alone and in_place:
        flat = weight.view(count, columns)
        for first, last in tiles:
            for add in adds:
                add(flat[first:last], first)
        return
    buffer = scratch("tile", (tiles[0][1], columns), dtype, weight.device)
    for first, last in tiles:
        piece, tile = weight[first:last], buffer[: last - first]
        shaped = tile.view(piece.shape)
        if in_place:
            # The changes are small beside the weight: summed apart, they are rounded to it once.
            tile.zero_()
        else:
            shaped.copy_(piece)
        for add in adds:
            add(tile, first)
        if in_place:
            piece.add_(shaped)
        else:
            piece.copy_(shaped)


def _one_product(
    products: Sequence[Product], strengths: Sequence[float], dtype: torch.dtype, use: str, height: int
) -> Add:
    """All products as one: [L_1 ... L_n] @ [R_1; ...; R_n], the left side made tile by tile.

    `height` is that of the highest tile: what a tile needs is there before the weight changes.
    """
    ranks = [product.rank for product in products]
    lefts = [tuple(part.to(dtype) for part in product.left) for product in products]
    columns, device = products[0].right[0].shape[1], products[0].right[0].device
    right = scratch(f"{use} right", (sum(ranks), columns), dtype, device)
    held = scratch(f"{use} left", (height, sum(ranks)), dtype, device)
    start = 0
    for product, rank in zip(products, ranks, strict=True):
        fill(right[start : start + rank], product.right, 0, product.factor(strengths))
        start += rank

    def add(rows: Tensor, first: int) -> None:
        left = held[: len(rows)]
        start = 0
        for parts, rank in zip(lefts, ranks, strict=True):
            fill(left[:, start : start + rank], tuple(part[first : first + len(rows)] for part in parts), 1)
            start += rank
        rows.addmm_(left, right)

    return add


def fill(out: Tensor, parts: tuple[Tensor, ...], axis: int, factor: float = 1.0) -> None:
    """out = factor * part, or factor times the Khatri-Rao product of two parts along `axis`."""
    if len(parts) == 1:
        out.copy_(parts[0])
        if factor != 1.0:
            out.mul_(factor)
        return
    one, two = (part.to(out.dtype) for part in parts)
    shaped = cast("Tensor", out.unflatten(axis, (one.shape[axis], two.shape[axis])))
    scaled = two if factor == 1.0 else two * factor
    torch.mul(one.unsqueeze(axis + 1), scaled.unsqueeze(axis), out=shaped)


def _apply(plan: PatchPlan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> None:
    apply_tiles(plan, weight, tensors, strengths, {})


PATH = Path(
    name="torch",
    rank=100,
    devices=("cpu", "cuda", "mps", "xpu", "npu", "mlu", "privateuseone"),
    dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    apply=_apply,
    needs=lambda: None,
)
