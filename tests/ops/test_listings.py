"""Listings of real adapter files: every key is used or reported, and every layer finds its weight.

A listing has the keys and the shapes of a file, but no values.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import cache
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch

import lycoris_ops as lyc
from lycoris_ops.names.blocks import Blocks
from lycoris_ops.names.targets import Targets
from lycoris_ops.rules.patterns import Pattern
from lycoris_ops.rules.scene import Scene
from lycoris_ops.stack.resolve import EntryResolution, families_of_model
from tests.harness.listings import Listing, listings, target, thin, write_hollow, write_random

NAMELESS = "cascade_stability_positional"
"""A file that numbers its layers and does not say which layers of the model they are."""
LISTINGS = {name: listing for name, listing in listings().items() if name != NAMELESS}
BUNDLED = "bundle_emb."
"""The beginning of the keys of an embedding that comes with an adapter. The embedding's name follows."""
STRAY = {"sdxl_onetrainer_bundle": r"_aux\.", "wan21_i2v_lightx2v": r".*\.blocks\.\d+\.diff_m$"}
"""Keys of no layer, which are reported: a slider tool's notes, and the change of `blocks.N.modulation`,
a parameter that no other file changes and the host leaves out too."""


def opened(listing: Listing, folder: Path) -> lyc.Adapter:
    """The adapter from a file with all keys of the listing and zeros for values."""
    return lyc.load_adapter(write_hollow(listing, folder / f"{listing.name}.safetensors"))


def resolved(listing: Listing, folder: Path) -> EntryResolution:
    """The adapter of a listing, resolved against the model that it is for."""
    stack = lyc.Stack([lyc.Entry(opened(listing, folder))])
    return lyc.resolve(stack, target(listing.architecture)).entries[0]


@pytest.mark.parametrize("name", LISTINGS)
def test_every_key_is_of_a_layer_or_reported(name: str, tmp_path: Path) -> None:
    adapter = opened(LISTINGS[name], tmp_path)
    # A set: kohya's OFT of a fused layer has one alpha for all its parts.
    used = {key for info in adapter.info.values() for key in info.keys.values()}
    bundled = [key for key in LISTINGS[name].keys if key.startswith(BUNDLED)]
    assert sorted([*used, *adapter.unused_keys, *bundled]) == sorted(LISTINGS[name].keys)
    assert set(adapter.embeddings) == {key.split(".")[1] for key in bundled}
    assert not adapter.unreadable
    stray = STRAY.get(name)
    assert not [key for key in adapter.unused_keys if not (stray and re.match(stray, key))]


@cache
def blocks_of(architecture: str) -> Blocks:
    return Blocks(Targets(target(architecture)))


@pytest.mark.parametrize("architecture", sorted({listing.architecture for listing in LISTINGS.values()}))
def test_blocks_share_out_the_layers_of_a_model_and_rules_know_them_by_name(architecture: str) -> None:
    blocks = blocks_of(architecture)
    assert Counter(blocks.layers) == Counter(chain.from_iterable(blocks.members.values()))
    scene = Scene(blocks, {})
    for name, members in blocks.members.items():
        pattern = Pattern.of(name)
        assert [one for one in blocks.layers if pattern.matches(scene, one)] == members, name


@pytest.mark.parametrize("name", LISTINGS)
def test_every_layer_finds_its_weight(name: str, tmp_path: Path) -> None:
    found = resolved(LISTINGS[name], tmp_path)
    assert not found.mismatches
    assert not found.absent
    assert not found.unmatched
    assert {match.layer for match in found.matches} == set(found.entry.adapter.info)
    # A fused layer too is in one block.
    blocks = blocks_of(LISTINGS[name].architecture)
    places = {(match.layer, blocks.of(match.target).block) for match in found.matches}
    assert len(places) == len(found.entry.adapter.info)
    met: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    where: dict[str, list[str]] = defaultdict(list)
    shapes = target(LISTINGS[name].architecture)
    for match in found.matches:
        rows = match.target.rows
        met[match.key, match.parameter].append(rows or (0, shapes[match.key][0]))
        where[match.layer].append(match.target.path + (f" {rows[0]}-{rows[1]}" if rows else ""))
    # No two layers meet the same rows.
    for ranges in met.values():
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(ranges)))
    # As diffusers' conversions say.
    assert {layer: where[layer] for layer in LISTINGS[name].belongs} == {
        layer: [place] for layer, place in LISTINGS[name].belongs.items()
    }


def test_layers_that_are_only_numbered_are_refused(tmp_path: Path) -> None:
    listing = listings()[NAMELESS]
    with pytest.raises(lyc.LycorisError, match=re.escape(f"{NAMELESS}.safetensors")):
        stack = lyc.Stack([lyc.Entry(opened(listing, tmp_path))])
        lyc.resolve(stack, target(listing.architecture)).check()


@pytest.mark.parametrize("name", ["flux_onetrainer_dora", "sdxl_slider", "sd15_loha_tucker"])
def test_thinned_files_are_read_whole(name: str, tmp_path: Path) -> None:
    """The files hold random values for the first two blocks and the last one of each stack.

    Alpha is the rank in each of them.
    """
    listing = thin(LISTINGS[name])
    adapter = lyc.load_adapter(write_random(listing, tmp_path / "x.safetensors"))
    assert adapter.info
    for layer in adapter.layers.values():
        assert layer.alpha == layer.rank
        assert all(torch.isfinite(tensor).all() for tensor in layer.dump().values())


@pytest.mark.parametrize("name", LISTINGS)
def test_a_file_is_never_said_to_be_for_another_family(name: str, tmp_path: Path) -> None:
    """The names or the metadata of a file tell the family of its model, or none."""
    adapter = opened(LISTINGS[name], tmp_path)
    targets = Targets(target(LISTINGS[name].architecture))
    made_for, model = adapter.families, families_of_model(targets)
    assert not made_for or not model or {*made_for} & {*model}
    if LISTINGS[name].architecture in ("sd15", "sdxl", "flux", "sd3_medium", "qwen_image", "wan21_t2v_14b"):
        assert model
