"""Every architecture of the host, under every name that its community's adapters use for its layers.

The names come from other software that is run on tiny models. The changes are sums and products of small
whole numbers, so that the exact weight is known.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hosting import Host, Patched, calculated, clip_of, needs, patcher
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.harness import dialects, encoder_names, in_diffusers, zoo
from tests.harness.dialects import DIALECTS, Names
from tools import coverage

pytestmark = pytest.mark.host

STRENGTH = 0.5
COUNTED: dict[coverage.Case, tuple[int, int]] = {}
"""Layers that the tests of this file have found. The page of coverage need not count them again."""


def applied(host: Host, on: Patched, path: Path, layers: int) -> Patched:
    """Apply the adapter by the node. The report must say that every layer was applied."""
    adapter = host.ops.load_adapter(path)
    stack = host.ops.Stack([host.ops.Entry(adapter, strength=STRENGTH, strength_clip=STRENGTH)])
    patched = host.apply(on, stack, strict=True, clip=on.clip is not None)
    assert f"applied {layers} of {layers} layers" in patched.report, patched.report
    return patched


def assert_exact(patched: Patched, changes: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Assert that these weights are patched by these changes, and that no other weight is patched.

    The result of the host's own call of a patch is compared with the sum in float64.
    """
    assert set(patched.patches) == set(changes)
    for key, change in changes.items():
        weight = state[key]
        found = calculated(patched.patches, key, weight)
        exact = weight.double() + STRENGTH * change
        bound = 2 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert found.dtype == torch.float32 and found.shape == weight.shape
        assert (found.double() - exact).abs().max() <= bound, key
        assert change.any(), key


def check(host: Host, architecture: str, named: Names, tensors: tuple[str, ...], folder: Path) -> None:
    """Assert that an adapter with these names changes the host's model as its layers say."""
    model = dialects.model_of(architecture)
    file, changes = dialects.adapter(named, tensors)
    save_file(file, folder / "adapter.safetensors")
    patched = applied(host, Patched(patcher(model), None), folder / "adapter.safetensors", len(named))
    shapes = dialects.shapes_of(architecture)
    assert_exact(patched, dialects.summed(named, changes, shapes), model.state_dict())


def test_no_architecture_of_the_host_is_left_out(host: Host) -> None:
    from comfy.supported_models import models

    if not all(zoo.supported(architecture) for architecture in zoo.SPECIES):
        pytest.skip("an older host has fewer architectures")
    tested = {species.config for species in zoo.SPECIES.values()}
    assert set(zoo.SAME_LAYERS.values()) <= set(zoo.SPECIES)
    assert tested.isdisjoint(zoo.SAME_LAYERS) and tested.isdisjoint(zoo.NOT_GENERATORS)
    named = tested | set(zoo.SAME_LAYERS) | set(zoo.NOT_GENERATORS)
    assert {model.__name__ for model in models} == named


@pytest.mark.parametrize(
    ("architecture", "dialect"),
    [
        pytest.param(*case, marks=() if dialects.usual(case) else pytest.mark.soak)
        for case in dialects.cases()
    ],
)
def test_every_layer_is_found_and_patched_exactly(
    host: Host, tmp_path: Path, architecture: str, dialect: str
) -> None:
    needs(architecture)
    named = dialects.names(architecture, dialect)
    assert len(named) >= 2
    check(host, architecture, named, DIALECTS[dialect].tensors, tmp_path)
    COUNTED[architecture, dialect] = len(named), len(named)


@pytest.mark.parametrize(
    ("architecture", "dialect", "wrapper"),
    [
        # Every run has each architecture with one of the two.
        pytest.param(name, *how, marks=() if (row + column) % 2 == 0 else pytest.mark.soak)
        for row, name in enumerate(in_diffusers.DIFFUSERS)
        for column, how in enumerate((("kohya", ""), ("SimpleTuner LyCORIS", "model.diffusion_model.")))
    ],
)
def test_every_layer_is_merged_exactly_into_a_published_file(
    host: Host, tmp_path: Path, architecture: str, dialect: str, wrapper: str
) -> None:
    """The library merges an adapter into a file without the host.

    In published checkpoints the names, and some of the weights, differ from those of a loaded model.
    """
    needs(architecture)
    named = dialects.names(architecture, dialect)
    file, changes = dialects.adapter(named, DIALECTS[dialect].tensors)
    save_file(file, tmp_path / "adapter.safetensors")
    total = dialects.summed(named, changes, dialects.shapes_of(architecture))
    base = {key: value for key, value in dialects.model_of(architecture).state_dict().items() if value.ndim}
    merged = {key: value.double() + total.get(key, 0.0) for key, value in base.items()}
    save_file(in_diffusers.published(architecture, base, wrapper), tmp_path / "base.safetensors")
    stack = host.ops.Stack([host.ops.Entry(host.ops.load_adapter(tmp_path / "adapter.safetensors"))])
    host.ops.merge_checkpoint(
        tmp_path / "base.safetensors", stack, tmp_path / "merged.safetensors", strict=True
    )
    found = load_file(tmp_path / "merged.safetensors")
    assert total and found
    for key, exact in in_diffusers.published(architecture, merged, wrapper).items():
        bound = 2 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert (found[key].double() - exact).abs().max() <= bound, key


@pytest.mark.parametrize("architecture", zoo.SPECIES)
def test_the_names_of_the_hosts_own_map_are_found(host: Host, tmp_path: Path, architecture: str) -> None:
    """A name of the host's own map that a dialect also has must mean the same there.

    An adapter with the remaining names must be applied exactly.
    """
    needs(architecture)
    named, proven = dialects.host_names(architecture), dialects.proven(architecture)
    # With fewer names the map was not read right.
    assert len(named) >= 20
    for name in set(named) & set(proven):
        assert named[name].same(proven[name]), name
    for tensors, mark in ((dialects.PROCESSORS, True), (dialects.PEFT, False)):
        left = {
            name: where
            for name, where in named.items()
            if name not in proven and (".processor." in name) is mark
        }
        for group in dialects.apart(left):
            check(host, architecture, group, tensors, tmp_path)


def check_encoders(
    host: Host, architecture: str, named: Names, tensors: tuple[str, ...], folder: Path
) -> None:
    """Assert that an adapter with these names changes the host's text encoders as its layers say."""
    model = encoder_names.encoders_of(architecture)
    file, changes = dialects.adapter(named, tensors)
    save_file(file, folder / "adapter.safetensors")
    on = Patched(patcher(torch.nn.Module()), clip_of(model))
    patched = applied(host, on, folder / "adapter.safetensors", len(named))
    state = model.state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert_exact(patched, dialects.summed(named, changes, shapes), state)


@pytest.mark.parametrize(("architecture", "tool"), encoder_names.encoder_cases())
def test_every_layer_of_the_text_encoders_is_found_and_patched_exactly(
    host: Host, tmp_path: Path, architecture: str, tool: str
) -> None:
    named, tensors = encoder_names.encoder_names(architecture, tool)
    assert len(named) >= 14
    check_encoders(host, architecture, named, tensors, tmp_path)


@pytest.mark.parametrize("architecture", zoo.ENCODERS)
def test_the_names_of_the_hosts_own_map_of_text_encoders_are_found(
    host: Host, tmp_path: Path, architecture: str
) -> None:
    named = encoder_names.host_encoder_names(architecture)
    assert len(named) >= 14
    for group in dialects.apart(named):
        check_encoders(host, architecture, group, dialects.PEFT, tmp_path)


# It counts all that the tests above take in turns.
@pytest.mark.soak
def test_the_page_of_coverage_is_what_these_tests_find(host: Host) -> None:
    if not all(zoo.supported(architecture) for architecture in zoo.SPECIES):
        pytest.skip("an older host has fewer architectures")
    models = coverage.measured(host.ops, dialects.cases(), coverage.count, COUNTED)
    encoders = coverage.measured(host.ops, encoder_names.encoder_cases(), coverage.count_encoders, {})
    assert coverage.PAGE.read_text(encoding="utf-8") == coverage.page(models, encoders), coverage.__doc__


@pytest.mark.parametrize("architecture", zoo.SPECIES)
def test_each_block_name_addresses_what_it_says(host: Host, architecture: str) -> None:
    """A numbered block is what stands below one number in the model. All blocks together are the model."""
    import re

    needs(architecture)
    ops = importlib.import_module(f"{host.ops.__name__}.names.blocks")
    targets = importlib.import_module(f"{host.ops.__name__}.names.targets")
    scenes = importlib.import_module(f"{host.ops.__name__}.rules.scene")
    found = targets.Targets(targets.known_shapes(dialects.shapes_of(architecture)))
    blocks = ops.Blocks(found)
    scene = scenes.Scene(blocks, {target.key: blocks.of(target) for target in found.all})
    below: dict[str, set[str]] = {}
    for target in found.all:
        # The path up to the outermost number with a name behind it.
        start = re.match(r"(.+?)\.(?:block)?\d+(?:\.\d+)*(?=\.\D)", target.path)
        below.setdefault(start[0] if start else "", set()).add(target.key)
    for name, (block, *_) in blocks.members.items():
        weights = host.ops.Rules.parse(f"{name} = 0").on(scene).of
        members = {key for key, weight in weights.items() if weight == 0.0}
        assert members == {key for key, named in scene.layers.items() if named.block == name}, name
        if block.numbers:
            assert name.endswith(".".join(map(str, block.numbers)))
            groups = [start for start, keys in below.items() if start and keys & members]
            assert set().union(*(below[start] for start in groups)) <= members or block.family in (
                "in",
                "out",
            ), name
            numbers = {
                tuple(re.findall(r"(?:\.|block)(\d+)(?=\.|$)", start))[: len(block.numbers)]
                for start in groups
            }
            assert numbers <= {tuple(map(str, block.numbers))}, name
    assert sum(map(len, blocks.members.values())) == len(found.all)
    assert len(blocks.members) > 4
