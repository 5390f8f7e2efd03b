"""LoRA on bfloat16 weights, on CPUs that multiply in bfloat16: one product with float32 sums, and no tile.

A float32 factor is the sum of three bfloat16 parts, the nearest value to what is left of it each time, which
hold all of its 24 bits. So L R = sum of L_i R_j, where those with i + j > 2 are below what float32 holds. All
of them are one product of a larger rank. A factor that is exact in fewer parts, such as the right one of a
bfloat16 file, needs no more.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from ...maths.shapes import flat_shape
from ..groups.group import Factors, Plan, joined
from ..groups.low_rank import LowRankGroup
from ..registry import PatchPath

PARTS = 3
"""bfloat16 holds 8 bits of a value, float32 holds 24."""


@cache
def able(instructions: str) -> bool:
    """Whether the processor has these instructions, as far as this torch can tell."""
    found = getattr(torch.cpu, "get_capabilities", None)
    return bool(found and cast("dict[str, Any]", found()).get(instructions, False))


def _needs() -> str | None:
    # Three times the rank: AMX is worth it, AVX512-BF16 is not, which is at most twice as fast as float32.
    return None if able("amx_bf16") else "the processor has no products of bfloat16 matrices (AMX)"


def _refuses(plan: Plan, weight: Tensor) -> str | None:
    if not weight.is_contiguous():
        return "the weight is not contiguous"
    for group, _ in plan.groups:
        if not isinstance(group, LowRankGroup):
            return f"not for {group.summary}"
    spans = sorted({rows or (0, plan.final[0]) for _, rows in plan.groups})
    if any(one[1] > other[0] for one, other in itertools.pairwise(spans)):
        return "layers for a part of the rows overlap others"
    return None


def _apply(plan: Plan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> None:
    products: dict[tuple[int, int], list[Factors]] = {}
    for group, rows in plan.groups:
        products.setdefault(rows or (0, plan.final[0]), []).extend(group.products(tensors))
    flat = weight.view(flat_shape(plan.final))
    made = [(rows, *_parts(found, strengths)) for rows, found in products.items()]
    for rows, left, right in made:
        flat[slice(*rows)].addmm_(left, right)


def _parts(products: Sequence[Factors], strengths: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The two sides of the product of all parts."""
    lefts, rights = (_split(side) for side in joined(products, strengths, torch.float32, "bfloat16"))
    pairs = [(i, j) for i in range(len(lefts)) for j in range(len(rights)) if i + j < PARTS]
    return torch.cat([lefts[i] for i, _ in pairs], 1), torch.cat([rights[j] for _, j in pairs])


def _split(wide: Tensor) -> list[Tensor]:
    """The bfloat16 parts of a float32 tensor, which is overwritten; as few as hold it."""
    parts: list[Tensor] = []
    while len(parts) < PARTS and (not parts or bool(wide.any())):
        parts.append(wide.bfloat16())
        wide.sub_(parts[-1])
    return parts


PATH = PatchPath(
    name="bfloat16 product",
    rank=40,
    devices=("cpu",),
    dtypes=(torch.bfloat16,),
    apply=_apply,
    needs=_needs,
    refuses=_refuses,
)
