"""Patched weights in the real host. The reference is base + the sum of strength * delta, in float64.

A delta is what the software that wrote the file computes in its own forward pass.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hosting import Host, Patched, calculated, load, unload

from tests.harness.adapters import RECIPES, Deltas, LayerName, deltas, host_keys
from tests.harness.assets import adapter_file, assets

pytestmark = pytest.mark.host
SAMPLED = (
    "conv_in",
    "time_embedding.linear_1",
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.1.resnets.0.conv_shortcut",
    "text_model.encoder.layers.3.mlp.fc1",
    "text_model.encoder.layers.11.self_attn.q_proj",
)
"""One layer of every kind that the recipes adapt."""

BLEND = (("lora", 0.8, 0.7), ("loha", -0.5, 0.6), ("lokr", 1.2, -0.9))
"""(recipe, model strength, text-encoder strength) of a stack."""


@pytest.fixture(autouse=True)
def nothing_loaded(host: Host) -> None:
    """Unload all models. Clones share their weights, which an earlier test may have patched."""
    unload()


@cache
def recipe_deltas(recipe: str) -> Deltas:
    file = assets() / "loras" / adapter_file(RECIPES[recipe])
    return deltas(RECIPES[recipe], file)


@pytest.fixture(scope="module")
def keys(host: Host) -> dict[LayerName, str]:
    """The host's key of each layer."""
    return host_keys()


@cache
def measured(recipe: str, name: LayerName) -> torch.Tensor:
    """A delta that several tests need. It is measured once."""
    return recipe_deltas(recipe)[name]


def wanted(weight: torch.Tensor, name: LayerName, entries: tuple[tuple[str, float, float], ...]) -> Any:
    """The exact weight, in float64, after these recipes at these strengths."""
    total = weight.double()
    for recipe, strength, strength_clip in entries:
        if name in recipe_deltas(recipe):
            chosen = strength if name.component == "unet" else strength_clip
            total = total + chosen * measured(recipe, name)
    return total


def assert_float32_exact(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Assert that a weight differs from the exact one only by a few roundings in float32."""
    assert found.dtype == torch.float32
    error = (found.double() - exact).abs().max() / exact.abs().max()
    assert error < 4 * torch.finfo(torch.float32).eps, error


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_kind_patches_its_layers_exactly(
    host: Host, plain: Patched, keys: dict[LayerName, str], recipe: str
) -> None:
    entries = ((recipe, 0.7, -0.6),)
    patched = host.apply(plain, host.stack(*entries))
    assert set(patched.patches) == {keys[name] for name in recipe_deltas(recipe)}
    chosen = [name for name in recipe_deltas(recipe) if name.path in SAMPLED]
    # A text encoder has few of the sampled layers.
    assert len(chosen) >= (1 if recipe == "peft_te_lora" else 5)
    for name in chosen:
        weight = plain.patcher_of(keys[name]).model_state_dict()[keys[name]].float()
        exact = wanted(weight, name, entries)
        assert_float32_exact(calculated(patched.patches, keys[name], weight), exact)
        # An adapter with hardly any effect would show nothing.
        assert (exact - weight).norm() > 0.02 * weight.norm()


def test_the_loaded_model_holds_the_exact_weights_and_gives_them_back(
    host: Host, plain: Patched, keys: dict[LayerName, str]
) -> None:
    """A full load patches the weights with which the sampler multiplies.

    Unloading must bring every weight back, bit by bit.
    """
    patched = host.apply(plain, host.stack(*BLEND))
    chosen = {keys[name]: name for name in recipe_deltas("lora") if name.path in SAMPLED}
    state = {**plain.model.model_state_dict(), **plain.clip.patcher.model_state_dict()}
    before = {key: state[key].clone() for key in chosen}
    assert len(chosen) == len(SAMPLED)
    load(patched.model, patched.clip.patcher)
    live = {**patched.model.model_state_dict(), **patched.clip.patcher.model_state_dict()}
    for key, name in chosen.items():
        exact = wanted(before[key], name, BLEND)
        # The text encoder is kept in float16, whatever the file: one rounding more.
        bound = torch.finfo(live[key].dtype).eps * exact.abs().clamp_min(1e-3) + 1e-6
        beyond = ((live[key].double() - exact).abs() > bound).sum().item()
        assert beyond == 0, key
        assert not torch.equal(live[key], before[key])
    unload()
    after = {**plain.model.model_state_dict(), **plain.clip.patcher.model_state_dict()}
    assert all(torch.equal(after[key], weight) for key, weight in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_low_vram_path_is_one_rounding_away(
    host: Host, plain: Patched, keys: dict[LayerName, str], dtype: torch.dtype
) -> None:
    """The host asks for the size of a patch, moves its tensors elsewhere, and calls it in a forward pass."""
    from comfy.model_patcher import LowVramPatch

    patched = host.apply(plain, host.stack(*BLEND))
    sampled = [name for name in recipe_deltas("lora") if name.path in SAMPLED]
    assert len(sampled) == len(SAMPLED)
    for key, name in ((keys[name], name) for name in sampled):
        low = LowVramPatch(key, patched.patcher_of(key).patches)
        # Newer hosts move a patch's tensors to a buffer first.
        if hasattr(low, "memory_required"):
            size = low.memory_required()
            held = sum(tensor.nbytes for tensor in patched.patches[key][0][1].weights[1])
            # The host aligns each tensor in its buffer.
            assert held <= size <= held + 2048 * len(patched.patches[key][0][1].weights[1])
            low.prepare(torch.empty(size, dtype=torch.uint8), None)
        weight = plain.patcher_of(key).model_state_dict()[key].to(dtype)
        exact = wanted(weight, name, BLEND)
        found = low(weight.clone())
        assert found.dtype == dtype
        half_ulp = torch.finfo(dtype).eps / 2 * exact.abs()
        accumulation = 8 * torch.finfo(torch.float32).eps * exact.abs().max()
        tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert ((found.double() - exact).abs() <= half_ulp + accumulation + tiny).all(), key


def test_a_patch_is_one_object_in_the_form_the_host_can_rebuild(host: Host, plain: Patched) -> None:
    """The host copies a patch by its keys and its nested tuples of tensors, and must get the same patch."""
    patched = host.apply(plain, host.stack(*BLEND, *BLEND))
    assert patched.patches
    for key, patches in patched.patches.items():
        (entry,) = patches
        strength, patch, strength_model, offset, function = entry
        assert (strength, strength_model, offset, function) == (1.0, 1.0, None, None)
        plan, tensors, strengths = patch.weights
        assert plan.tensors == () and len(strengths) == 6
        assert all(type(tensor) is torch.Tensor and tensor.is_contiguous() for tensor in tensors), key
        assert all(type(value) is float for value in strengths)
        rebuilt = type(patch)(patch.loaded_keys, (plan, tuple(t.clone() for t in tensors), strengths))
        if not key.endswith(("to_q.weight", "conv_in.weight", "fc1.weight")):
            continue
        weight = torch.zeros(plan.shape)
        first = patch.calculate_weight(weight.clone(), key, 1.0, 1.0, None, None)
        assert torch.equal(first, rebuilt.calculate_weight(weight.clone(), key, 1.0, 1.0, None, None))


def test_another_node_can_scale_the_whole_patch(
    host: Host, plain: Patched, keys: dict[LayerName, str]
) -> None:
    """Model merging passes on the pack's patches with a strength of its own."""
    (name,) = (n for n in recipe_deltas("lora") if n.path == "down_blocks.0.resnets.0.conv1")
    patched = host.apply(plain, host.stack(*BLEND))
    weight = plain.model.model_state_dict()[keys[name]].float()
    half = plain.model.clone()
    half.add_patches({keys[name]: patched.patches[keys[name]][0][1]}, 0.5, 1.0)
    found = calculated(half.patches, keys[name], weight)
    assert_float32_exact(found, (weight.double() + wanted(weight, name, BLEND)) / 2)
