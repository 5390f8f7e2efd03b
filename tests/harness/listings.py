"""Key and shape listings of adapter files found in public, and of the models they are for.

A listing is a TOML file in `listings/`, a model one in `listings/targets/`. A key is a template: each
{...} holds alternatives, words or ranges of numbers, `blocks.{0-18}.{img,txt}_attn.qkv`. Where a
listing comes from stands in its `source`, and in `origin` how far to trust it:

    file     read off a real file
    sample   the developers of the source wrote it after real files
    log      a real file's names, as far as a public log shows them
    derived  no file seen: put together from the code that names the layers

`shapes` is "listed" where the source gives them and "inferred" where they are the model's own, with
the rank or factor that `note` states.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

import tomllib
import torch
from safetensors.torch import save_file

from .base import Init, header_bytes

Shape = tuple[int, ...]
FOLDER = Path(__file__).with_name("listings")
ALTERNATIVES = re.compile(r"\{([^{}]+)\}")
RANGE = re.compile(r"(\d+)-(\d+)")
RANKED = {
    "lora_down.weight": 0,
    "lora_A.weight": 0,
    "hada_w1_b": 0,
    "lokr_w2_b": 0,
    "lokr_w1_b": 0,
}
"""Tensors whose shape tells a layer's rank, and the axis that is as long as the rank."""
BLOCK = re.compile(r"(?<!input_)(?<!output_)(?<!down_)(?<!up_)(?:blocks?|layers)[._](\d+)(?=[._])")
"""A block's number within a stack of equal blocks; the levels of a UNet are no such stack."""


@dataclass(frozen=True)
class Listing:
    """One adapter file: its keys with their shapes, and what is known of it."""

    name: str
    source: str
    origin: Literal["file", "sample", "log", "derived"]
    licence: str
    software: str
    architecture: str
    partial: bool
    shapes: Literal["listed", "inferred"]
    keys: Mapping[str, Shape]
    metadata: Mapping[str, str]
    values: Mapping[str, float]
    """Scalars whose value is known."""
    belongs: Mapping[str, str] = field(default_factory=dict[str, str])
    """Where some layers belong, by diffusers' conversions (Apache-2.0).

    Each has the path in the model, and the first of its rows and the end where it is not all of them."""
    note: str = ""


def expand(template: str) -> Iterator[str]:
    """The keys that a template stands for."""
    match = ALTERNATIVES.search(template)
    if match is None:
        yield template
        return
    before, after = template[: match.start()], template[match.end() :]
    for item in match[1].split(","):
        numbers = RANGE.fullmatch(item)
        words = range(int(numbers[1]), int(numbers[2]) + 1) if numbers else (item,)
        for word in words:
            yield from expand(f"{before}{word}{after}")


@cache
def listings() -> Mapping[str, Listing]:
    """Every listing by its name. Raises ValueError for a template that repeats a key."""
    return {path.stem: _read(path) for path in sorted(FOLDER.glob("*.toml"))}


@cache
def target(architecture: str) -> Mapping[str, Shape]:
    """The keys and shapes of a model's weights, in the host's layout with its prefixes."""
    path = FOLDER / "targets" / f"{architecture}.toml"
    return _expanded(path, tomllib.loads(path.read_text(encoding="utf-8"))["keys"])


def thin(listing: Listing) -> Listing:
    """The listing with the first two blocks and the last one of each stack; all other keys stay."""
    stacks: dict[str, set[int]] = defaultdict(set)
    for key in listing.keys:
        if match := BLOCK.search(key):
            stacks[key[: match.start(1)]].add(int(match[1]))
    kept: dict[str, Shape] = {}
    for key, shape in listing.keys.items():
        match = BLOCK.search(key)
        if match:
            numbers = sorted(stacks[key[: match.start(1)]])
            if int(match[1]) not in {*numbers[:2], numbers[-1]}:
                continue
        kept[key] = shape
    return replace(listing, keys=kept, partial=listing.partial or len(kept) < len(listing.keys))


def write_hollow(listing: Listing, path: Path) -> Path:
    """Write a file of all keys at full size. Its values are zeros that take no room on the disk."""
    layout = {key: Init(shape, "zero") for key, shape in listing.keys.items()}
    header = header_bytes(layout, torch.bfloat16, listing.metadata)
    with path.open("wb") as file:
        file.write(header)
        # Makes the file longer without writing anything.
        file.truncate(len(header) + 2 * sum(map(math.prod, listing.keys.values())))
    return path


def write_random(listing: Listing, path: Path) -> Path:
    """Write a file of small normal values in bfloat16.

    Alpha and other scalars have the value that is known, else the layer's rank, else 1. The shapes are the
    real ones: `thin` a large listing first.
    """
    generator = torch.Generator().manual_seed(0)
    ranks = {
        key.removesuffix(f".{suffix}"): shape[axis]
        for key, shape in listing.keys.items()
        for suffix, axis in RANKED.items()
        if key.endswith(f".{suffix}")
    }
    tensors: dict[str, torch.Tensor] = {}
    for key, shape in listing.keys.items():
        if shape:
            values = torch.empty(shape).normal_(std=0.01, generator=generator)
        else:
            layer = key.rpartition(".")[0]
            values = torch.tensor(float(listing.values.get(key, ranks.get(layer, 1))))
        tensors[key] = values.to(torch.bfloat16)
    save_file(tensors, path, dict(listing.metadata) or None)
    return path


def _read(path: Path) -> Listing:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    keys = _expanded(path, table.pop("keys"))
    values = {key: value for name, value in table.pop("values", {}).items() for key in expand(name)}
    metadata = table.pop("metadata", {})
    return Listing(name=path.stem, keys=keys, values=values, metadata=metadata, **table)


def _expanded(path: Path, templates: Mapping[str, list[int]]) -> dict[str, Shape]:
    keys: dict[str, Shape] = {}
    for template, shape in templates.items():
        for key in expand(template):
            if key in keys:
                raise ValueError(f"{path.name}: two templates mean the key {key}")
            keys[key] = tuple(shape)
    return keys
