"""Changes of the keys of a file: what a tensor is called, and which tensors there are."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lycoris_ops import ALGORITHMS

from .. import case
from ..case import CANARY, Case
from ..containers import packed, pickled
from ..seeds import CONTAINERS, Seed

OF = "any"
SUFFIXES = (
    *sorted({suffix for kind in ALGORITHMS.values() for suffix in kind.suffixes()}),
    "lora_A.weight",
    "lora_B.weight",
    "lora_A.default.weight",
    "lora_magnitude_vector",
    "lora.up.weight",
    "lora_E",
    "bias",
    "diff_m",
    "oft_blocks.0",
    "oft_blocks.x",
    "lora_A.other.weight",
    "norm.scale",
)
PREFIXES = (
    *("", "lora_unet_", "lora_te_", "lora_te1_", "lora_unet__", "oft_unet_", "lycoris_", "diffusion_model."),
    *("model.diffusion_model.", "text_encoders.", "unet.", "transformer.", "text_encoder.", "prior."),
    *("base_model.model.", "unet.base_model.model.", "lora_transformer_", "bundle_emb.", "."),
)
ODD = (
    *(
        "",
        ".",
        "..",
        "_",
        " ",
        "\0",
        "\n",
        "\t",
        "\x1b[2J",
        f"x\n{CANARY}",
        f"x\u2028{CANARY}",
        f"x\x85{CANARY}",
    ),
    *(
        "\ud800",
        "\U0001f600",
        "\u202e",
        "\ufeff",
        "é",
        "e\u0301",
        "%s",
        "{}",
        "{0.__class__}",
        "../..",
        "/",
        "\\",
    ),
    *("weight", "alpha", "__metadata__", "." * 300, "_" * 300, "a." * 300, "a_" * 150, "0." * 40, "x" * 5000),
    *(
        "1",
        "999999999999",
        "-1",
        "1e5",
        "blocks.0",
        "blocks.99999999999999999999",
        ".weight",
        "lora_up.weight",
    ),
)
"""Texts to put into a key, or in its place."""


def write(name: str, seed: Seed, tensors: Mapping[str, Tensor], *, same: float | None = None) -> Case:
    """The case of a seed with other tensors, in the seed's container."""
    if seed.container == "safetensors":
        blob = packed(tensors, seed.metadata)
    else:
        blob = CONTAINERS[seed.container][1](tensors)
    return case.of(name, seed, blob, same=same, tensors=tensors)


def _renamed(
    change: Callable[[random.Random, str], str],
) -> Callable[[random.Random, Seed], Case | None]:
    """A mutation that renames one tensor, or those of a whole layer."""

    def mutate(rng: random.Random, seed: Seed) -> Case | None:
        key = rng.choice(list(seed.tensors))
        new = change(rng, key)
        if rng.random() < 0.5:
            return write(
                f"keys{change.__name__}",
                seed,
                {(new if name == key else name): tensor for name, tensor in seed.tensors.items()},
            )
        # All keys that begin like this one.
        start = key[: rng.randrange(1, len(key) + 1)]
        fresh = change(rng, start)
        renamed = {
            (fresh + name[len(start) :] if name.startswith(start) else name): tensor
            for name, tensor in seed.tensors.items()
        }
        return write(f"keys{change.__name__}", seed, renamed)

    return mutate


def _odd(rng: random.Random, key: str) -> str:
    at = rng.randrange(len(key) + 1)
    return rng.choice((rng.choice(ODD), key[:at] + rng.choice(ODD) + key[at:], key + rng.choice(ODD)))


def _letter(rng: random.Random, key: str) -> str:
    if not key:
        return "x"
    at = rng.randrange(len(key))
    return key[:at] + rng.choice(("", ".", "_", key[at] * 2, chr(rng.randrange(32, 0x2000)))) + key[at + 1 :]


def _suffix(rng: random.Random, key: str) -> str:
    return (
        f"{key.rpartition('.')[0].removesuffix('.lora_up').removesuffix('.lora_down')}.{rng.choice(SUFFIXES)}"
    )


def _prefix(rng: random.Random, key: str) -> str:
    bare = key
    for prefix in PREFIXES[1:]:
        bare = bare.removeprefix(prefix)
    return rng.choice(PREFIXES) + bare


def _case(rng: random.Random, key: str) -> str:
    return rng.choice((key.upper(), key.title(), key.swapcase()))


def _separators(rng: random.Random, key: str) -> str:
    return rng.choice((key.replace(".", "_"), key.replace("_", "."), key.replace(".", ".."), key[::-1]))


def _dropped(rng: random.Random, seed: Seed) -> Case | None:
    names = rng.sample(list(seed.tensors), max(1, len(seed.tensors) - rng.choice((1, 1, 2, 3))))
    return write("keys_dropped", seed, {name: seed.tensors[name] for name in names})


def _added(rng: random.Random, seed: Seed) -> Case | None:
    key = rng.choice(list(seed.tensors))
    root = key.rpartition(".")[0]
    names = (rng.choice(ODD), f"{root}.{rng.choice(SUFFIXES)}", f"{key}.{rng.choice(SUFFIXES)}", f"{key}.x")
    shapes = ((), (1,), (12,), (3, 12), (12, 3), (2, 2, 2), (0,), (1, 12, 1, 1))
    tensors = dict(seed.tensors)
    for _ in range(rng.choice((1, 1, 3))):
        tensors.setdefault(rng.choice(names), torch.ones(rng.choice(shapes)))
    return write("keys_added", seed, tensors)


def _copied(rng: random.Random, seed: Seed) -> Case | None:
    """A layer is there twice, under two names that may mean the same weight."""
    start = rng.choice(list(seed.tensors))
    bare = next((start.removeprefix(p) for p in PREFIXES[1:] if start.startswith(p)), start)
    old = start.removesuffix(bare)
    new = rng.choice(PREFIXES)
    if new == old or not old:
        return None
    copies = {new + key.removeprefix(old): tensor.clone() for key, tensor in seed.tensors.items()}
    return write("keys_copied", seed, {**copies, **seed.tensors})


def _exchanged(rng: random.Random, seed: Seed) -> Case | None:
    one, other = rng.sample(list(seed.tensors), 2) if len(seed.tensors) > 1 else (None, None)
    if one is None or other is None:
        return None
    tensors = dict(seed.tensors)
    tensors[one], tensors[other] = tensors[other], tensors[one]
    return write("keys_exchanged", seed, tensors)


def _shuffled(rng: random.Random, seed: Seed) -> Case | None:
    """The same tensors in another order."""
    names = rng.sample(list(seed.tensors), len(seed.tensors))
    return write("keys_shuffled", seed, {name: seed.tensors[name] for name in names}, same=1.0)


def _no_text(rng: random.Random, seed: Seed) -> Case | None:
    """Keys of no text, in a pickle."""
    if seed.container == "safetensors":
        return None
    odd = rng.choice((0, None, 1.5, True, b"x", ("a", "b"), frozenset({"a"}), 10**30))
    content = {odd: torch.ones(2), **seed.tensors}
    return case.of("keys_no_text", seed, pickled(content), ending=".pt", closed=False)


MUTATIONS = [
    *(_renamed(change) for change in (_odd, _letter, _suffix, _prefix, _case, _separators)),
    _dropped,
    _added,
    _copied,
    _exchanged,
    _shuffled,
    _no_text,
]
