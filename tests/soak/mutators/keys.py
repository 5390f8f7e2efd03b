"""Changes of the keys of a file: what a tensor is called, and which tensors there are."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lycoris_ops import ALGORITHMS

from .. import case
from ..case import Case
from ..containers import packed, pickled
from ..seeds import CONTAINERS, Seed
from .oddities import TEXTS

SUFFIXES = (
    *sorted({suffix for kind in ALGORITHMS.values() for suffix in kind.table.suffixes}),
    *("lora_A.weight", "lora_B.weight", "lora_A.default.weight", "lora_A.other.weight", "lora.up.weight"),
    *("lora_magnitude_vector", "lora_E", "bias", "diff_m", "oft_blocks.0", "oft_blocks.x", "norm.scale"),
)
PREFIXES = (
    *("", "lora_unet_", "lora_te_", "lora_te1_", "lora_unet__", "oft_unet_", "lycoris_", "diffusion_model."),
    *("model.diffusion_model.", "text_encoders.", "unet.", "transformer.", "text_encoder.", "prior."),
    *("base_model.model.", "unet.base_model.model.", "lora_transformer_", "bundle_emb.", "."),
)
ODD = (
    *TEXTS,
    *("weight", "alpha", "__metadata__", "." * 300, "_" * 300, "a." * 300, "a_" * 150, "0." * 40, "x" * 5000),
    *("1", "999999999999", "1e5", "blocks.0", "blocks.99999999999999999999", ".weight", "lora_up.weight"),
)
"""Texts to put into a key, or in its place."""


def write(name: str, seed: Seed, tensors: Mapping[str, Tensor], *, same: float | None = None) -> Case:
    """The case of a seed with other tensors, in the seed's container."""
    plain = {key: tensor.contiguous() for key, tensor in tensors.items()}
    pickling = None if seed.is_safetensors else CONTAINERS[seed.container][1]
    blob = pickling(plain) if pickling else packed(plain, seed.metadata)
    return case.of(name, seed, blob, same=same)


def _renamed(change: Callable[[random.Random, str], str]) -> Callable[[random.Random, Seed], Case | None]:
    """A mutation that renames one tensor, or all whose keys begin in the same way."""

    def mutate(rng: random.Random, seed: Seed) -> Case | None:
        key = rng.choice(list(seed.tensors))
        start = key if rng.random() < 0.5 else key[: rng.randrange(1, len(key) + 1)]
        new = change(rng, start)
        renamed = {
            (new + name[len(start) :] if name.startswith(start) else name): tensor
            for name, tensor in seed.tensors.items()
        }
        return write(f"keys{change.__name__}", seed, renamed)

    return mutate


def _odd(rng: random.Random, key: str) -> str:
    at = rng.choice((rng.randrange(len(key) + 1), len(key)))
    return rng.choice((rng.choice(ODD), key[:at] + rng.choice(ODD) + key[at:]))


def _letter(rng: random.Random, key: str) -> str:
    at = rng.randrange(len(key))
    return key[:at] + rng.choice(("", ".", "_", key[at] * 2, chr(rng.randrange(32, 0x2000)))) + key[at + 1 :]


def _suffix(rng: random.Random, key: str) -> str:
    root = key.rpartition(".")[0].removesuffix(".lora_up").removesuffix(".lora_down")
    return f"{root}.{rng.choice(SUFFIXES)}"


def _bare(key: str) -> str:
    """A key without the prefix that it has."""
    return next((key.removeprefix(prefix) for prefix in PREFIXES[1:] if key.startswith(prefix)), key)


def _prefix(rng: random.Random, key: str) -> str:
    return rng.choice(PREFIXES) + _bare(key)


def _form(rng: random.Random, key: str) -> str:
    others = (key.upper(), key.title(), key.swapcase(), key[::-1])
    return rng.choice((*others, key.replace(".", "_"), key.replace("_", "."), key.replace(".", "..")))


def _dropped(rng: random.Random, seed: Seed) -> Case | None:
    names = rng.sample(list(seed.tensors), max(1, len(seed.tensors) - rng.choice((1, 1, 2, 3))))
    return write("keys_dropped", seed, {name: seed.tensors[name] for name in names})


def _added(rng: random.Random, seed: Seed) -> Case | None:
    key = rng.choice(list(seed.tensors))
    root = key.rpartition(".")[0]
    names = (rng.choice(ODD), f"{root}.{rng.choice(SUFFIXES)}", f"{key}.{rng.choice(SUFFIXES)}", f"{key}.x")
    shapes = ((), (1,), (12,), (3, 12), (12, 3), (2, 2, 2), (0,), (1, 12, 1, 1))
    more = {rng.choice(names): torch.ones(rng.choice(shapes)) for _ in range(rng.choice((1, 1, 3)))}
    return write("keys_added", seed, {**more, **seed.tensors})


def _copied(rng: random.Random, seed: Seed) -> Case | None:
    """A layer is there twice, under two names that may mean the same weight."""
    key = rng.choice(list(seed.tensors))
    old, new = key.removesuffix(_bare(key)), rng.choice(PREFIXES)
    if new == old or not old:
        return None
    copies = {new + key.removeprefix(old): tensor.clone() for key, tensor in seed.tensors.items()}
    return write("keys_copied", seed, {**copies, **seed.tensors})


def _exchanged(rng: random.Random, seed: Seed) -> Case | None:
    one, other = rng.choice(list(seed.tensors)), rng.choice(list(seed.tensors))
    tensors = dict(seed.tensors)
    tensors[one], tensors[other] = tensors[other], tensors[one]
    return write("keys_exchanged", seed, tensors)


def _shuffled(rng: random.Random, seed: Seed) -> Case | None:
    """The same tensors in another order."""
    names = rng.sample(list(seed.tensors), len(seed.tensors))
    return write("keys_shuffled", seed, {name: seed.tensors[name] for name in names}, same=1.0)


def _no_text(rng: random.Random, seed: Seed) -> Case | None:
    """Keys of no text, in a pickle."""
    odd = rng.choice((0, None, 1.5, True, b"x", ("a", "b"), frozenset({"a"}), 10**30))
    content = {odd: torch.ones(2), **seed.tensors}
    return None if seed.is_safetensors else case.of("keys_no_text", seed, pickled(content))


MUTATIONS = [
    *(_renamed(change) for change in (_odd, _letter, _suffix, _prefix, _form)),
    *(_dropped, _added, _copied, _exchanged, _shuffled, _no_text),
]
