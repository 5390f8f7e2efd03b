"""A layer of every kind for a weight of a given shape, with random factors: larger ones than `layers` has."""

from __future__ import annotations

import math

import torch

from tests.ops import layers
from tests.ops.layers import Factors, rand

RANK = 4


def lora(shape: tuple[int, ...]) -> Factors:
    return layers.lora(shape, RANK)


def loha(shape: tuple[int, ...]) -> Factors:
    return layers.loha(shape, RANK)


def lokr(shape: tuple[int, ...]) -> Factors:
    return {"lokr_w1": rand(4, 4), "lokr_w2": rand(shape[0] // 4, shape[1] // 4, *shape[2:])}


def kinds(shape: tuple[int, ...]) -> dict[str, Factors]:
    """The tensors of a layer of every kind, by key suffix."""
    out, inputs, *kernel = shape
    ones = [1 for _ in kernel]
    plain = {"alpha": torch.tensor(0.0)}
    return {
        "lora-dora-out": {**lora(shape), "dora_scale": 1 + rand(out, 1, *ones).abs()},
        "loha-dora-in": {**loha(shape), "dora_scale": 1 + rand(1, inputs, *ones).abs()},
        "lokr-dora-flat": {**lokr(shape), "dora_scale": 1 + torch.rand(out)},
        "glora": layers.glora(shape, RANK),
        "ia3": {"weight": rand(1, inputs, *ones) if ones else rand(inputs), "on_input": torch.tensor(1)},
        "oft": {"oft_blocks": rand(out // 8, 8, 8), **plain},
        "oft-constrained": {
            "oft_blocks": rand(out // 8, 8, 8),
            "rescale": 1 + rand(out, *[1 for _ in shape[1:]]),
            "alpha": torch.tensor(0.002),
        },
        "boft": {"oft_blocks": rand(3, out // 10, 10, 10), **plain},
        "oftv2": {"oft_R.weight": 0.05 * rand(math.prod(shape[1:]) // 8, 28)},
        "full": {"diff": 0.1 * rand(*shape), "diff_b": rand(out)},
        "set": {"set_weight": rand(*shape)},
        "lora-bias": {**lora(shape), "lora_B.bias": rand(out), "alpha": torch.tensor(2.0)},
    }


KINDS = tuple(kinds((8, 8)))
"""The names of the kinds."""
