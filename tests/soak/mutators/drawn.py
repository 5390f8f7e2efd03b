"""Files that hypothesis draws: tables, names, shapes and objects of any form."""

from __future__ import annotations

import json
import random
from typing import Any, TypeVar

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from torch import Tensor

from .. import case
from ..case import Case
from ..containers import METADATA, NAMES, joined, packed, pickled
from ..seeds import PATHS, Seed
from .keys import PREFIXES, SUFFIXES, write
from .metadata import FIELDS, KNOWN

OF = "any"
T = TypeVar("T")
EXAMPLES = 6
"""How many examples are drawn for one: the first ones are the simplest there are."""

TEXT = st.text(max_size=12) | st.text(
    st.characters(exclude_categories=()), max_size=6
)  # The second has lone surrogates.
WHOLE = st.integers(-3, 40) | st.integers() | st.sampled_from([1 << 31, 1 << 63, 1 << 64, 10**30])
PLAIN = st.none() | st.booleans() | WHOLE | st.floats() | TEXT
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=8
)
SIZE = st.sampled_from([1, 2, 3, 4, 12, 18]) | st.integers(0, 6)
SHAPE = st.lists(SIZE, max_size=5)
PATH = st.sampled_from(sorted(PATHS.values())) | st.text(st.sampled_from("abx.0_ "), min_size=1, max_size=20)
KEY = (
    st.tuples(st.sampled_from(PREFIXES), PATH, st.sampled_from(SUFFIXES)).map(
        lambda parts: f"{parts[0]}{parts[1]}.{parts[2]}"
    )
    | TEXT
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(sorted(NAMES)) | TEXT,
        "shape": SHAPE | st.lists(WHOLE, max_size=3) | JSON,
        "data_offsets": st.tuples(st.integers(0, 64), st.integers(0, 64)) | JSON,
        "x": JSON,
    },
)
HEADER = st.dictionaries(KEY, ENTRY | JSON, max_size=5)
CONFIG = st.dictionaries(st.sampled_from(FIELDS) | TEXT, JSON, max_size=8)


def draw(strategy: st.SearchStrategy[T], rng: random.Random) -> T:
    """A value of the strategy, which the state of the generator determines."""
    drawn: list[T] = []

    @seeded(rng.getrandbits(64))
    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def keep(value: T) -> None:
        drawn.append(value)

    keep()
    return drawn[-1]


def _tensor(rng: random.Random, shape: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    return torch.randn(shape, generator=generator)


def _header(rng: random.Random, seed: Seed) -> Case | None:
    if seed.container != "safetensors":
        return None
    header = dict(draw(HEADER, rng))
    if rng.random() < 0.5:
        header = {**seed.parts[0], **header}
    text = json.dumps(header)
    return case.of("drawn_header", seed, joined(text, seed.parts[1]), closed=False)


def _metadata(rng: random.Random, seed: Seed) -> Case | None:
    if seed.container != "safetensors":
        return None
    table = draw(st.dictionaries(st.sampled_from(KNOWN) | TEXT, TEXT | JSON.map(json.dumps), max_size=5), rng)
    blob = joined(json.dumps({METADATA: {**seed.metadata, **table}, **_entries(seed)}), seed.parts[1])
    return case.of("drawn_metadata", seed, blob, closed=False)


def _entries(seed: Seed) -> dict[str, Any]:
    return {name: entry for name, entry in seed.parts[0].items() if name != METADATA}


def _config(rng: random.Random, seed: Seed) -> Case | None:
    table = {**(seed.config or {}), **draw(CONFIG, rng)}
    return case.of("drawn_config", seed, seed.blob, closed=False, config=json.dumps(table).encode())


def _config_text(rng: random.Random, seed: Seed) -> Case | None:
    return case.of(
        "drawn_config_text", seed, seed.blob, closed=False, config=draw(st.binary(max_size=60), rng)
    )


def _names(rng: random.Random, seed: Seed) -> Case | None:
    keys = draw(st.lists(KEY, min_size=len(seed.tensors), max_size=len(seed.tensors), unique=True), rng)
    return write("drawn_names", seed, dict(zip(keys, seed.tensors.values(), strict=True)))


def _layer(rng: random.Random, seed: Seed) -> Case | None:
    """The tensors of a seed's layer with shapes of their own, which mostly do not go together."""
    shapes = draw(st.lists(SHAPE, min_size=len(seed.tensors), max_size=len(seed.tensors)), rng)
    tensors = {
        key: _tensor(rng, shape) if rng.random() < 0.4 else tensor
        for (key, tensor), shape in zip(seed.tensors.items(), shapes, strict=True)
    }
    return write("drawn_layer", seed, tensors)


def _suffixes(rng: random.Random, seed: Seed) -> Case | None:
    """A layer of any few tensors."""
    path = rng.choice(sorted(PATHS.values()))
    wanted = draw(st.dictionaries(st.sampled_from(SUFFIXES), SHAPE, min_size=1, max_size=5), rng)
    tensors = {
        f"lora_unet_{path.replace('.', '_')}.{name}": _tensor(rng, shape) for name, shape in wanted.items()
    }
    return case.of("drawn_suffixes", seed, packed(tensors), closed=False, ending=".safetensors")


def _object(rng: random.Random, seed: Seed) -> Case | None:
    if seed.container == "safetensors":
        return None
    leaves = PLAIN | st.binary(max_size=5) | SHAPE.map(torch.ones)
    names = KEY | st.integers() | st.sampled_from(["state_dict", *seed.tensors])
    content: Any = draw(
        st.recursive(
            leaves,
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(names, inner, max_size=4)
                | st.dictionaries(names, inner, max_size=3).map(lambda table: {"state_dict": table})
            ),
            max_leaves=8,
        ),
        rng,
    )
    if isinstance(content, dict) and rng.random() < 0.7:
        content = {**seed.tensors, **content}
    try:
        blob = pickled(content)
    except UnicodeEncodeError:
        # No pickle of the older protocol holds a lone surrogate.
        return None
    return case.of("drawn_object", seed, blob, closed=False)


MUTATIONS = [_header, _metadata, _config, _config_text, _names, _layer, _suffixes, _object]
