"""bfloat16 weights on CPUs that multiply in bfloat16: one product with float32 sums, and no float32 tile.

A float32 factor is split into a bfloat16 part and a bfloat16 remainder, so that L R is
Lh Rh + Lh Rl + Ll Rh with an error of 2^-17 of the change, far below the one rounding of the weight.
The three are one product of three times the rank; a part that is exact in bfloat16, such as a factor
of a bfloat16 file at strength 1, needs no remainder.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ...algebra import flat_shape
from ..group import Product
from ..hadamard import HadamardGroup
from ..low_rank import LowRankGroup
from ..registry import Path
from ..scratch import scratch
from .torch_tiles import fill

if TYPE_CHECKING:
    from ..plan import PatchPlan

LEFT = 1 << 20
"""Elements of a left factor that are made at once."""


@cache
def _capabilities() -> dict[str, Any]:
    found = getattr(torch.cpu, "get_capabilities", None)
    return cast("dict[str, Any]", found()) if found else {}


def able(instructions: str) -> bool:
    """Whether the processor has these instructions, as far as this torch can tell."""
    return bool(_capabilities().get(instructions, False))


def _needs() -> str | None:
    if able("amx_bf16"):
        return None
    if not able("avx512_bf16"):
        return "the processor does not multiply in bfloat16"
    # 416 GFLOP/s on two Zen 4 cores, twice float32; 156 on two of a Xeon without AMX, half of float32.
    if str(_capabilities().get("cpu_name", "")).startswith("AMD"):
        return None
    return "the processor multiplies faster in float32 than in bfloat16"


def _refuses(plan: PatchPlan, weight: Tensor) -> str | None:
    if not weight.is_contiguous():
        return "the weight is not contiguous"
    # The Khatri-Rao product of a LoHa layer is worth its rank only where a product costs next to nothing.
    taken = (LowRankGroup, HadamardGroup) if able("amx_bf16") else (LowRankGroup,)
    for group, _ in plan.groups:
        if not isinstance(group, taken):
            return f"not for {group.summary}"
    spans = sorted({rows or (0, plan.final[0]) for _, rows in plan.groups})
    if any(one[1] > other[0] for one, other in itertools.pairwise(spans)):
        return "layers for a part of the rows overlap others"
    return None


def _apply(plan: PatchPlan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> None:
    products: dict[tuple[int, int], list[Product]] = {}
    for group, rows in plan.groups:
        whole = isinstance(group, HadamardGroup)
        found = group.as_products(tensors) if whole else group.products(tensors)
        products.setdefault(rows or (0, plan.final[0]), []).extend(found)
    flat = weight.view(flat_shape(plan.final))
    for rows, found in products.items():
        _add(flat[slice(*rows)], found, strengths)


def _add(flat: Tensor, products: Sequence[Product], strengths: Sequence[float]) -> None:
    ranks = [product.rank for product in products]
    wide = scratch("product right", (sum(ranks), flat.shape[1]), torch.float32, flat.device)
    start = 0
    for product, rank in zip(products, ranks, strict=True):
        fill(wide[start : start + rank], product.right, 0)
        start += rank
    high, low = _split(wide, "right")
    step = max(1, LEFT // sum(ranks))
    for first in range(0, len(flat), step):
        rows = flat[first : first + step]
        left = scratch("product left", (len(rows), sum(ranks)), torch.float32, flat.device)
        start = 0
        for product, rank in zip(products, ranks, strict=True):
            parts = tuple(part[first : first + len(rows)] for part in product.left)
            fill(left[:, start : start + rank], parts, 1, product.factor(strengths))
            start += rank
        left_high, left_low = _split(left, "left")
        lefts, rights = [left_high], [high]
        if low is not None:
            lefts.append(left_high)
            rights.append(low)
        if left_low is not None:
            lefts.append(left_low)
            rights.append(high)
        rows.addmm_(_joined(lefts, 1, "lefts"), _joined(rights, 0, "rights"))


def _split(wide: Tensor, use: str) -> tuple[Tensor, Tensor | None]:
    """The nearest bfloat16 values and what is left of them, None where nothing is."""
    high = scratch(f"{use} high", wide.shape, torch.bfloat16, wide.device).copy_(wide)
    wide.sub_(high)
    if not wide.any():
        return high, None
    return high, scratch(f"{use} low", wide.shape, torch.bfloat16, wide.device).copy_(wide)


def _joined(parts: list[Tensor], dim: int, use: str) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[dim] *= len(parts)
    out = scratch(use, shape, torch.bfloat16, parts[0].device)
    return torch.cat(parts, dim, out=out)


PATH = Path(
    name="bfloat16 product",
    rank=40,
    devices=("cpu",),
    dtypes=(torch.bfloat16,),
    apply=_apply,
    needs=_needs,
    refuses=_refuses,
)
