"""Changes of what the tensors of a file hold: values, dtypes and shapes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from .. import case
from ..case import Case
from ..containers import packed
from ..seeds import PATHS, Seed
from .keys import SUFFIXES, write

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OTHERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)
SPECIAL = (
    *(math.nan, math.inf, -math.inf, 0.0, -0.0, 3e38, -3e38, 1e30, 1e-45, 1e-30, 65504.0, 1e9, -1.0),
    *(0.5, 3e6, 1e15, 1e300),
)
NAMED = (
    *("alpha", "on_input", "bias_indices", "bias_size", "reshape_weight", "rescale", "scaled_oft", "lambda"),
)
"""Parts of the names of tensors that say how others are read."""


def _pick(rng: random.Random, seed: Seed) -> str:
    """A key: every second time one of a tensor that says how others are read, if there is one."""
    named = [key for key in seed.tensors if any(part in key for part in NAMED)]
    return rng.choice(named if named and rng.random() < 0.5 else list(seed.tensors))


def _one(change: Callable[[random.Random, Tensor], Tensor]) -> Callable[[random.Random, Seed], Case | None]:
    """A mutation of one tensor."""

    def mutate(rng: random.Random, seed: Seed) -> Case | None:
        key = _pick(rng, seed)
        return write(f"values{change.__name__}", seed, {**seed.tensors, key: change(rng, seed.tensors[key])})

    return mutate


def _special(rng: random.Random, tensor: Tensor) -> Tensor:
    """Some values become special ones."""
    flat = (tensor.double() if tensor.is_floating_point() else tensor).reshape(-1).clone()
    for at in rng.choices(range(len(flat)), k=rng.choice((1, 1, len(flat)))) if len(flat) else ():
        whole = rng.choice((0, 1, 2, 100, 127)) if flat.dtype != torch.bool else True
        flat[at] = rng.choice(SPECIAL) if flat.is_floating_point() else whole
    return flat.reshape(tensor.shape).to(rng.choice((tensor.dtype, tensor.dtype, torch.float64)))


def _filled(rng: random.Random, tensor: Tensor) -> Tensor:
    return torch.full_like(tensor.double(), rng.choice(SPECIAL)).to(rng.choice(FLOATS))


def _scaled(rng: random.Random, tensor: Tensor) -> Tensor:
    return (tensor.double() * rng.choice((1e-3, 1e3, 1e10, 1e20, 1e37, -1.0, 1e-40))).float()


def _number(rng: random.Random, tensor: Tensor) -> Tensor:
    """A number that says how others are read becomes another one, of any shape and dtype."""
    wide = torch.tensor(rng.choice((*SPECIAL, 0, 1, 2, -1, 7, 1 << 31, 1 << 62)))
    shapes = ((), (1,), (1, 1), (2,), (0,), (1,) * 20, tuple(tensor.shape))
    return wide.expand(rng.choice(shapes)).clone().to(rng.choice((*FLOATS, wide.dtype)))


def _cast(rng: random.Random, tensor: Tensor) -> Tensor:
    return tensor.to(rng.choice((*FLOATS, *OTHERS)))


def _reshaped(rng: random.Random, tensor: Tensor) -> Tensor:
    """The same values in another shape."""
    count, old = tensor.numel(), tuple(tensor.shape)
    divisor = rng.choice([n for n in range(1, count + 1) if count % n == 0] or [1])
    pair = (divisor, count // divisor)
    shapes = ((count,), (1, count), (count, 1), pair, old[::-1], (*old, 1), (1, *old), (*old, 1, 1, 1))
    return tensor.reshape(rng.choice((*shapes, (1,) * 20 + old, (divisor, 1, pair[1]), (*pair, 1, 1))))


def _resized(rng: random.Random, tensor: Tensor) -> Tensor:
    """Another size along one axis, another number of axes, or any shape."""
    sizes = list(tensor.shape)
    at = rng.randrange(len(sizes) + 1)
    sizes[at : at + rng.randrange(2)] = rng.choice(([], [0], [1], [2], [3], [5], [7], [64]))
    if rng.random() < 0.3:
        sizes = rng.choice(([], [1], [0], [0, 0], [1, 1], [3, 3], [2] * 12, drawn_shape(rng)))
    return torch.linspace(-0.5, 0.5, math.prod(sizes)).reshape(sizes).to(tensor.dtype)


def _stacked(rng: random.Random, tensor: Tensor) -> Tensor:
    """More of the same: further stages, blocks or ranks."""
    times = rng.choice((2, 3, 16, 100))
    if not tensor.ndim or tensor.numel() * times > 100_000:
        return tensor
    return tensor.repeat([times, *(1 for _ in tensor.shape[1:])])


def _transposed(rng: random.Random, tensor: Tensor) -> Tensor:
    return tensor.transpose(*rng.choices(range(tensor.ndim), k=2)) if tensor.ndim else tensor


def drawn_shape(rng: random.Random) -> list[int]:
    return [rng.choice((0, 1, 2, 3, 4, 5, 6, 12, 18)) for _ in range(rng.randrange(6))]


def _shapes(rng: random.Random, seed: Seed) -> Case | None:
    """The tensors of a layer with shapes of their own, which mostly do not go together."""
    return write(
        "values_shapes",
        seed,
        {
            key: torch.linspace(-1, 1, math.prod(shape := drawn_shape(rng))).reshape(shape)
            if rng.random() < 0.4
            else tensor
            for key, tensor in seed.tensors.items()
        },
    )


def _any_layer(rng: random.Random, seed: Seed) -> Case | None:
    """A layer of any few tensors."""
    name = "lora_unet_" + rng.choice(sorted(PATHS.values())).replace(".", "_")
    shapes = {rng.choice(SUFFIXES): drawn_shape(rng) for _ in range(rng.randrange(1, 6))}
    tensors = {f"{name}.{suffix}": torch.ones(shape) for suffix, shape in shapes.items()}
    return case.of("values_any_layer", seed, packed(tensors), ending=".safetensors")


def _wider(rng: random.Random, seed: Seed) -> Case | None:
    """The same values in float64: nothing is rounded."""
    wide = {
        key: tensor.double() if tensor.is_floating_point() and rng.random() < 0.7 else tensor
        for key, tensor in seed.tensors.items()
    }
    return write("values_wider", seed, wide, same=1.0)


def _all_factors(rng: random.Random, seed: Seed) -> Case | None:
    """All factors in a narrower dtype, or so large that their products may not be finite."""
    dtype, by = rng.choice(
        (*((dtype, 1) for dtype in FLOATS[1:3]), *((None, 10.0**n) for n in (5, 15, 19, 30)))
    )
    factors = {
        key: (tensor * by).to(dtype or tensor.dtype) if tensor.dtype == torch.float32 else tensor
        for key, tensor in seed.tensors.items()
    }
    return write("values_all_factors", seed, factors)


MUTATIONS = [
    *map(_one, (_special, _filled, _scaled, _number, _cast, _reshaped, _resized, _stacked, _transposed)),
    *(_shapes, _any_layer, _wider, _all_factors),
]
