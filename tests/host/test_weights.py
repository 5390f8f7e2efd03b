"""Patched weights in the real host. The reference is base + the sum of strength * delta, in float64.

The adapters are as other software wrote them, and a delta is the library's alone: that it is the software's
own is for the tests of conformance.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosting import Host, Patched, calculated, in_low_vram, load, unload

pytestmark = pytest.mark.host
BLEND = (("lora", 0.8, 0.7), ("loha", -0.5, 0.6), ("lokr", 1.2, -0.9))
"""(recipe, model strength, text-encoder strength) of a stack."""


@pytest.fixture(autouse=True)
def nothing_loaded(host: Host) -> None:
    """Unload all models. Clones share their weights, which an earlier test may have patched."""
    unload()


def state_of(patched: Patched) -> dict[str, torch.Tensor]:
    return {**patched.model.model_state_dict(), **patched.clip.patcher.model_state_dict()}


class Reference:
    """The exact weights that a stack makes, in float64."""

    def __init__(self, host: Host, plain: Patched, stack: Any) -> None:
        shapes = {key: tuple(weight.shape) for key, weight in state_of(plain).items()}
        self.pairs = host.ops.resolve(stack, shapes).pairs()

    def of(self, key: str, weight: torch.Tensor) -> torch.Tensor:
        total = weight.double()
        for entry, match in self.pairs[key]:
            total = total + match.strength * match.read(entry.adapter).delta(weight.double())
        return total

    def some(self, step: int) -> list[str]:
        """Every so many keys, in the order of the model, which has layers of all kinds by turns."""
        return list(self.pairs)[::step]


def assert_float32_exact(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Assert that a weight differs from the exact one only by a few roundings in float32."""
    assert found.dtype == torch.float32
    error = (found.double() - exact).abs().max() / exact.abs().max()
    assert error < 4 * torch.finfo(torch.float32).eps, error


def test_the_loaded_model_holds_the_exact_weights_and_gives_them_back(host: Host, plain: Patched) -> None:
    """A full load patches the weights with which the sampler multiplies.

    Unloading must bring every weight back, bit by bit.
    """
    stack = host.stack(*BLEND)
    reference, patched = Reference(host, plain, stack), host.apply(plain, stack)
    before = {key: state_of(plain)[key].clone() for key in reference.some(9)}
    load(patched.model, patched.clip.patcher)
    live = state_of(patched)
    for key, weight in before.items():
        exact = reference.of(key, weight)
        # The text encoder is kept in float16, whatever the file: one rounding more.
        bound = torch.finfo(live[key].dtype).eps * exact.abs().clamp_min(1e-3) + 1e-6
        assert ((live[key].double() - exact).abs() <= bound).all(), key
        assert not torch.equal(live[key], weight)
    unload()
    after = state_of(plain)
    assert all(torch.equal(after[key], weight) for key, weight in before.items())


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
        low = in_low_vram(patched, key)
        if hasattr(low, "memory_required"):
            held = sum(tensor.nbytes for tensor in tensors)
            # The host aligns each tensor in its buffer.
            assert held <= low.memory_required() <= held + 2048 * len(tensors)
        weight = torch.zeros(plan.shape)
        first = patch.calculate_weight(weight.clone(), key, 1.0, 1.0, None, None)
        assert torch.equal(first, rebuilt.calculate_weight(weight.clone(), key, 1.0, 1.0, None, None))


def test_another_node_can_scale_the_whole_patch(host: Host, plain: Patched) -> None:
    """Model merging passes on the pack's patches with a strength of its own."""
    stack = host.stack(*BLEND)
    reference, patched = Reference(host, plain, stack), host.apply(plain, stack)
    key = "diffusion_model.input_blocks.1.0.in_layers.2.weight"
    weight = state_of(plain)[key].float()
    half = plain.model.clone()
    half.add_patches({key: patched.patches[key][0][1]}, 0.5, 1.0)
    found = calculated(half.patches, key, weight)
    assert_float32_exact(found, (weight.double() + reference.of(key, weight)) / 2)
