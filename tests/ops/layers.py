"""Random adapter layers of every kind, for tests that go over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WEIGHTS: dict[str, tuple[int, ...]] = {
    "linear": (12, 18),
    "linear-odd": (35, 21),
    "conv1d": (12, 18, 3),
    "conv2d": (12, 18, 3, 3),
    "conv2d-1x1": (12, 18, 1, 1),
    "conv2d-wide": (10, 6, 1, 5),
    "conv3d": (12, 18, 3, 1, 2),
}
"""One weight of each kind of layer that adapters exist for."""

Factors = dict[str, Tensor]


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape) / math.sqrt(shape[-1])


def lora(shape: tuple[int, ...], rank: int) -> Factors:
    ones = tuple(1 for _ in shape[2:])
    return {
        "lora_up.weight": rand(shape[0], rank, *ones),
        "lora_down.weight": rand(rank, *shape[1:]),
    }


def lora_tucker(shape: tuple[int, ...], rank: int) -> Factors:
    ones = tuple(1 for _ in shape[2:])
    return {
        "lora_up.weight": rand(shape[0], rank, *ones),
        "lora_mid.weight": rand(rank, rank, *shape[2:]),
        "lora_down.weight": rand(rank, shape[1], *ones),
    }


def loha(shape: tuple[int, ...], rank: int) -> Factors:
    flat = math.prod(shape[1:])
    return {
        "hada_w1_a": rand(shape[0], rank),
        "hada_w1_b": rand(rank, flat),
        "hada_w2_a": rand(shape[0], rank),
        "hada_w2_b": rand(rank, flat),
    }


def loha_tucker(shape: tuple[int, ...], rank: int) -> Factors:
    return {
        "hada_t1": rand(rank, rank, *shape[2:]),
        "hada_w1_a": rand(rank, shape[0]),
        "hada_w1_b": rand(rank, shape[1]),
        "hada_t2": rand(rank, rank, *shape[2:]),
        "hada_w2_a": rand(rank, shape[0]),
        "hada_w2_b": rand(rank, shape[1]),
    }


def split(size: int) -> tuple[int, int]:
    small = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return small, size // small


def lokr(shape: tuple[int, ...], rank: int, *, first: str, second: str) -> Factors:
    (outer, k), (i, j) = split(shape[0]), split(shape[1])
    kernel = shape[2:]
    factors: Factors = {}
    if first == "full":
        factors["lokr_w1"] = rand(outer, i)
    else:
        factors |= {"lokr_w1_a": rand(outer, rank), "lokr_w1_b": rand(rank, i)}
    if second == "full":
        factors["lokr_w2"] = rand(k, j, *kernel)
    elif second == "low":
        factors |= {"lokr_w2_a": rand(k, rank), "lokr_w2_b": rand(rank, j * math.prod(kernel))}
    else:
        factors |= {
            "lokr_t2": rand(rank, rank, *kernel),
            "lokr_w2_a": rand(rank, k),
            "lokr_w2_b": rand(rank, j),
        }
    return factors


@dataclass(frozen=True)
class Kind:
    algorithm: str
    make: Callable[[tuple[int, ...], int], Factors]
    needs_kernel: bool = False


def _lokr(first: str, second: str) -> Callable[[tuple[int, ...], int], Factors]:
    return lambda shape, rank: lokr(shape, rank, first=first, second=second)


KINDS: dict[str, Kind] = {
    "lora": Kind("lora", lora),
    "lora-tucker": Kind("lora", lora_tucker, needs_kernel=True),
    "loha": Kind("loha", loha),
    "loha-tucker": Kind("loha", loha_tucker, needs_kernel=True),
    **{
        f"lokr-{first}-{second}": Kind("lokr", _lokr(first, second), second == "tucker")
        for first in ("full", "low")
        for second in ("full", "low", "tucker")
    },
}
"""Every key set that an algorithm accepts, by a readable name."""

CASES = [
    (kind, weight)
    for kind, spec in KINDS.items()
    for weight, shape in WEIGHTS.items()
    if not spec.needs_kernel or len(shape) > 2
]
"""(kind, weight) names of every combination that exists."""


def factors(kind: str, weight: str, rank: int = 3, alpha: float | None = 2.0) -> Factors:
    made = KINDS[kind].make(WEIGHTS[weight], rank)
    return made if alpha is None else {**made, "alpha": torch.tensor(alpha)}
