"""A layer of every kind for a weight of a given shape, with random factors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def rand(*shape: int) -> Tensor:
    """Normal random values, divided by the square root of the last size so that products stay small."""
    return torch.randn(*shape) / math.sqrt(shape[-1])


def lora(shape: tuple[int, ...]) -> Tensors:
    ones = [1 for _ in shape[2:]]
    return {"lora_up.weight": rand(shape[0], 4, *ones), "lora_down.weight": rand(4, *shape[1:])}


def loha(shape: tuple[int, ...]) -> Tensors:
    flat = math.prod(shape[1:])
    return {
        name: rand(shape[0], 4) if name.endswith("a") else rand(4, flat)
        for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    }


def lokr(shape: tuple[int, ...]) -> Tensors:
    return {"lokr_w1": rand(4, 4), "lokr_w2": rand(shape[0] // 4, shape[1] // 4, *shape[2:])}


def kinds(shape: tuple[int, ...]) -> dict[str, Tensors]:
    """The tensors of a layer of every kind, by key suffix."""
    out, inputs, *kernel = shape
    ones = [1 for _ in kernel]
    return {
        "lora-dora-out": {**lora(shape), "dora_scale": 1 + rand(out, 1, *ones).abs()},
        "loha-dora-in": {**loha(shape), "dora_scale": 1 + rand(1, inputs, *ones).abs()},
        "lokr-dora-flat": {**lokr(shape), "dora_scale": 1 + torch.rand(out)},
        "glora": {
            "a1.weight": rand(inputs, 4, *ones),
            "a2.weight": rand(4, inputs, *ones),
            "b1.weight": rand(out, 4, *ones),
            "b2.weight": rand(4, inputs, *kernel),
        },
        "ia3": {"weight": rand(1, inputs, *ones) if ones else rand(inputs), "on_input": torch.tensor(1)},
        "oft": {"oft_blocks": rand(out // 8, 8, 8), "alpha": torch.tensor(0.0)},
        "oft-constrained": {
            "oft_blocks": rand(out // 8, 8, 8),
            "rescale": 1 + rand(out, *[1 for _ in shape[1:]]),
            "alpha": torch.tensor(0.002),
        },
        "boft": {"oft_blocks": rand(3, out // 10, 10, 10), "alpha": torch.tensor(0.0)},
        "oftv2": {"oft_R.weight": 0.05 * rand(math.prod(shape[1:]) // 8, 28)},
        "full": {"diff": 0.1 * rand(*shape), "diff_b": rand(out)},
        "set": {"set_weight": rand(*shape)},
        "lora-bias": {**lora(shape), "lora_B.bias": rand(out), "alpha": torch.tensor(2.0)},
    }


KINDS = tuple(kinds((8, 8)))
"""The names of the kinds."""
