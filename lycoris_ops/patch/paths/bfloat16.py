"""LoRA on bfloat16 weights, on CPUs that multiply bfloat16 matrices: one product, summed in float32.

The product is added to the weight directly, without a float32 copy of the weight.

A float32 factor is split into three bfloat16 parts: each is the remainder that the parts before it leave,
rounded to bfloat16. Together they hold all 24 bits of the factor. So L R is the sum of L_i R_j with i and j
from 0 to 2. Products with i + j > 2 are too small to show in float32 and are left out. The others are joined
into one product of a larger rank. A factor that fits exactly in fewer parts, such as the left one of a
bfloat16 file, is split into fewer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from ...maths.shapes import flat_shape
from ..groups.group import Factors, PathPlan, joined
from ..groups.low_rank import LowRankGroup
from ..registry import PatchPath, one_by_one

PARTS = 3
"""Number of bfloat16 parts that hold a float32 value: 8 bits each, of 24."""


@cache
def able(instructions: str) -> bool:
    """Whether torch reports that the processor has these instructions; False where torch cannot report it."""
    found = getattr(torch.cpu, "get_capabilities", None)
    return bool(found and cast("dict[str, Any]", found()).get(instructions, False))


def _needs() -> str | None:
    # The split multiplies the rank, by three for a bfloat16 file. AMX is fast enough for that. AVX512-BF16 is
    # not: it is at most twice as fast as float32.
    return None if able("amx_bf16") else "the processor cannot multiply bfloat16 matrices (no AMX)"


def _refuses(plan: PathPlan, weight: Tensor) -> str | None:
    if not weight.is_contiguous():
        return "the weight is not contiguous"
    for group, _ in plan.groups:
        if not isinstance(group, LowRankGroup):
            return f"only for LoRA layers, not for {group.summary}"
    # Each span of rows is added by a product of its own: rows in two spans would be rounded twice.
    spans = sorted({rows or (0, plan.final[0]) for _, rows in plan.groups})
    if any(one[1] > other[0] for one, other in itertools.pairwise(spans)):
        return "layers for a part of the rows overlap layers for other rows"
    return None


def _apply(plan: PathPlan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> None:
    products: dict[tuple[int, int], list[Factors]] = {}
    for group, rows in plan.groups:
        products.setdefault(rows or (0, plan.final[0]), []).extend(group.products(tensors))
    flat = weight.view(flat_shape(plan.final))
    # All memory is allocated before the first addition: a lack of memory must not leave the weight
    # half patched.
    made = [(rows, *_parts(found, strengths)) for rows, found in products.items()]
    for rows, left, right in made:
        flat[slice(*rows)].addmm_(left, right)


def _parts(products: Sequence[Factors], strengths: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The bfloat16 factors (O, r) and (r, K) of the one product. r is the rank times the number of pairs of
    parts."""
    lefts, rights = (_split(side) for side in joined(products, strengths, torch.float32, "bfloat16"))
    pairs = [(i, j) for i in range(len(lefts)) for j in range(len(rights)) if i + j < PARTS]
    return torch.cat([lefts[i] for i, _ in pairs], 1), torch.cat([rights[j] for _, j in pairs])


def _split(wide: Tensor) -> list[Tensor]:
    """Split a float32 tensor into as few bfloat16 parts as hold it, at most PARTS. Overwrites the tensor."""
    parts: list[Tensor] = []
    while len(parts) < PARTS and (not parts or bool(wide.any())):
        parts.append(wide.bfloat16())
        wide.sub_(parts[-1])
    return parts


PATH = PatchPath(
    name="bfloat16 product",
    priority=40,
    devices=("cpu",),
    dtypes=(torch.bfloat16,),
    apply=one_by_one(_apply),
    needs=_needs,
    refuses=_refuses,
)
