"""Changes of what the tensors of a file hold: values, dtypes and shapes."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from ..case import Case
from ..seeds import Seed
from .keys import write

OF = "any"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OTHERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)
SPECIAL = (
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        0.0,
        -0.0,
        3e38,
        -3e38,
        1e30,
        1e-45,
        1e-30,
        65504.0,
        1e9,
        -1.0,
    ),
    *(0.5, 3e6, 1e15, 1e300),
)
NAMED = (
    "alpha",
    "on_input",
    "bias_indices",
    "bias_size",
    "reshape_weight",
    "rescale",
    "scaled_oft",
    "lambda",
)
"""Parts of the names of tensors that say how others are read."""


def _pick(rng: random.Random, seed: Seed) -> str:
    """A key: every second time one of a tensor that says how others are read, if there is one."""
    named = [key for key in seed.tensors if any(part in key for part in NAMED)]
    return rng.choice(named if named and rng.random() < 0.5 else list(seed.tensors))


def _one(
    change: Callable[[random.Random, Tensor], Tensor | None],
) -> Callable[[random.Random, Seed], Case | None]:
    """A mutation of one tensor."""

    def mutate(rng: random.Random, seed: Seed) -> Case | None:
        key = _pick(rng, seed)
        changed = change(rng, seed.tensors[key].clone())
        if changed is None:
            return None
        return write(f"values{change.__name__}", seed, {**seed.tensors, key: changed.contiguous()})

    return mutate


def _special(rng: random.Random, tensor: Tensor) -> Tensor | None:
    """Some values become special ones."""
    wide = tensor.double() if tensor.is_floating_point() else tensor
    flat = wide.reshape(-1).clone()
    if not flat.numel():
        return None
    for _ in range(rng.choice((1, 1, flat.numel()))):
        value = rng.choice(SPECIAL)
        if flat.is_floating_point():
            flat[rng.randrange(flat.numel())] = value
        else:
            flat[rng.randrange(flat.numel())] = rng.choice((0, 1, -1, 2, 100, 127, -128)) % 128
    return flat.reshape(tensor.shape).to(rng.choice((tensor.dtype, tensor.dtype, torch.float64)))


def _filled(rng: random.Random, tensor: Tensor) -> Tensor:
    return torch.full_like(tensor.double(), rng.choice(SPECIAL)).to(rng.choice(FLOATS))


def _scaled(rng: random.Random, tensor: Tensor) -> Tensor:
    return (tensor.double() * rng.choice((1e-3, 1e3, 1e10, 1e20, 1e37, -1.0, 1e-40))).float()


def _number(rng: random.Random, tensor: Tensor) -> Tensor:
    """A number that says how others are read becomes another one, of any shape and dtype."""
    value = rng.choice((*SPECIAL, 0, 1, 2, -1, 7, 1 << 31, 1 << 62))
    wide = torch.tensor(value)
    shapes = ((), (1,), (1, 1), (2,), (0,), (1,) * 20, tuple(tensor.shape))
    return wide.expand(rng.choice(shapes)).clone().to(rng.choice((*FLOATS, wide.dtype)))


def _cast(rng: random.Random, tensor: Tensor) -> Tensor:
    return tensor.to(rng.choice((*FLOATS, *OTHERS)))


def _reshaped(rng: random.Random, tensor: Tensor) -> Tensor | None:
    """The same values in another shape."""
    count = tensor.numel()
    if not count:
        return None
    divisor = rng.choice([n for n in range(1, count + 1) if count % n == 0])
    shapes = (
        *((count,), (1, count), (count, 1), (divisor, count // divisor), tuple(tensor.shape)[::-1]),
        *((*tensor.shape, 1), (1, *tensor.shape), (*tensor.shape, 1, 1, 1), (1,) * 20 + tuple(tensor.shape)),
        *((divisor, 1, count // divisor), (divisor, count // divisor, 1, 1)),
    )
    return tensor.reshape(rng.choice(shapes))


def _resized(rng: random.Random, tensor: Tensor) -> Tensor:
    """Another size along one axis, or another number of axes."""
    sizes = list(tensor.shape)
    change = rng.randrange(4)
    if sizes and change == 0:
        sizes[rng.randrange(len(sizes))] = rng.choice((0, 1, 2, 3, 5, 7, 64))
    elif sizes and change == 1:
        del sizes[rng.randrange(len(sizes))]
    elif change == 2:
        sizes.insert(rng.randrange(len(sizes) + 1), rng.choice((0, 1, 2, 3)))
    else:
        sizes = rng.choice(([], [1], [0], [0, 0], [1, 1], [3, 3], [2] * 12))
    made = torch.linspace(
        -0.5, 0.5, max(1, int(torch.tensor(sizes, dtype=torch.int64).prod()) if sizes else 1)
    )
    count = 1
    for size in sizes:
        count *= size
    return made[:count].reshape(sizes).to(tensor.dtype)


def _stacked(rng: random.Random, tensor: Tensor) -> Tensor | None:
    """More of the same: further stages, blocks or ranks."""
    if not tensor.ndim:
        return None
    times = rng.choice((2, 3, 16, 100))
    if tensor.numel() * times > 100_000:
        return None
    return tensor.repeat([times if axis == 0 else 1 for axis in range(tensor.ndim)])


def _transposed(rng: random.Random, tensor: Tensor) -> Tensor | None:
    if tensor.ndim < 2:
        return None
    first, second = rng.sample(range(tensor.ndim), 2)
    return tensor.transpose(first, second)


def _wider(rng: random.Random, seed: Seed) -> Case | None:
    """The same values in float64: nothing is rounded."""
    tensors = {
        key: tensor.double() if tensor.is_floating_point() and rng.random() < 0.7 else tensor
        for key, tensor in seed.tensors.items()
    }
    return write("values_wider", seed, tensors, same=1.0)


def _narrow(rng: random.Random, seed: Seed) -> Case | None:
    """All factors in a narrower dtype, the change being that of the rounded values."""
    dtype = rng.choice((torch.float16, torch.bfloat16))
    tensors = {
        key: tensor.to(dtype) if tensor.dtype == torch.float32 else tensor
        for key, tensor in seed.tensors.items()
    }
    return write("values_narrow", seed, tensors)


def _all_scaled(rng: random.Random, seed: Seed) -> Case | None:
    """All factors are large: finite, with products that may not be."""
    by = rng.choice((1e5, 1e15, 1e19, 1e30))
    tensors = {
        key: tensor * by if tensor.dtype == torch.float32 else tensor for key, tensor in seed.tensors.items()
    }
    return write("values_all_scaled", seed, tensors)


MUTATIONS = [
    *(
        _one(change)
        for change in (
            _special,
            _filled,
            _scaled,
            _number,
            _cast,
            _reshaped,
            _resized,
            _stacked,
            _transposed,
        )
    ),
    _wider,
    _narrow,
    _all_scaled,
]
