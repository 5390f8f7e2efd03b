"""Patching by plain torch.

The reference is the sum of deltas in float64. A patched weight is at most one rounding away from it.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from layers import FEW, MIXED, WEIGHTS
from layers import load as layer
from path_cases import PathCases, in_small_parts
from rounding import assert_one_rounding, exact

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.patch import registry
from lycoris_ops.patch.paths import plain_torch


@pytest.fixture
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave plain torch as the only path."""
    monkeypatch.setattr(registry, "PATHS", (plain_torch.PATH,))


@pytest.fixture(params=[None, 5, 2], ids=["one-part", "parts", "few-rows"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch a weight as a whole, in parts of five rows, or in parts of two."""
    if request.param:
        in_small_parts(monkeypatch, request.param)


@pytest.mark.usefixtures("torch_alone")
class TestTorch(PathCases):
    """The tests of every path, for plain torch, which takes every weight."""

    DTYPES = (torch.float64, *PathCases.DTYPES)
    LAYERS = MIXED

    @pytest.mark.parametrize(("kind", "weight"), [case for case in MIXED if case not in FEW])
    def test_rows_on_another_weight(self, kind: str, weight: str) -> None:
        self.check_rows(kind, weight)


def test_every_layer_sees_the_weight_as_it_was() -> None:
    """Some of these layers depend on the weight. Each must see the base, in whatever order they come."""
    base = torch.randn(WEIGHTS["linear"], dtype=torch.float64)
    pairs = [(layer(kind, "linear"), 1.0) for kind in ("lora", "oft", "lora-dora-out", "ia3", "full-set")]
    one = lyc.patch_(base.clone(), pairs)
    other = lyc.patch_(base.clone(), pairs[::-1])
    torch.testing.assert_close(one, exact(base, pairs), rtol=0, atol=1e-12)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr-full-low", "full"])
@pytest.mark.parametrize("weight", ["linear", "conv2d"])
def test_a_layer_for_the_weight_as_it_was_beside_one_that_enlarges_it(kind: str, weight: str) -> None:
    """The smaller layer changes the part that was the weight before, in either order of the two layers."""
    out, inputs, *kernel = WEIGHTS[weight]
    larger = (out + 2, inputs + 5, *kernel)
    ones = [1 for _ in kernel]
    tensors = {"lora_up.weight": torch.randn(out + 2, 3, *ones)}
    tensors |= {"lora_down.weight": torch.randn(3, inputs + 5, *kernel)}
    wide = ALGORITHMS["lora"].load({**tensors, "reshape_weight": torch.tensor(larger)})
    small = layer(kind, weight)
    base = torch.randn(WEIGHTS[weight], dtype=torch.float64)
    wanted = torch.zeros(larger, dtype=torch.float64)
    wanted[:out, :inputs] = base + 0.5 * small.delta(base)
    wanted += -1.5 * wide.delta(torch.zeros(larger, dtype=torch.float64))
    pairs = [(small, 0.5), (wide, -1.5)]
    for stack in (pairs, pairs[::-1]):
        torch.testing.assert_close(lyc.patch_(base.clone(), stack), wanted, rtol=0, atol=1e-6)
    with pytest.raises(lyc.LayerError, match=r"depends on a weight that another layer.*enlarges.*alone"):
        lyc.patch_(base, [(layer("lora-dora-out", weight), 1.0), (wide, 1.0)])


def test_a_layer_of_open_sizes_meets_the_enlarged_weight() -> None:
    """This rotation is one block for all inputs, so it fits any number of inputs.

    It must rotate the inputs of the enlarged weight.
    """
    tensors = {"lora_up.weight": torch.randn(12, 3), "lora_down.weight": torch.randn(3, 24)}
    wide = ALGORITHMS["lora"].load({**tensors, "reshape_weight": torch.tensor([12, 24])})
    turned = ALGORITHMS["oftv2"].load({"oft_R.weight": torch.randn(1, 3) / 4})
    base = torch.randn(12, 18, dtype=torch.float64)
    larger = torch.cat([base, torch.zeros(12, 6, dtype=torch.float64)], 1)
    wanted = larger + 0.5 * turned.delta(larger) - 1.5 * wide.delta(larger)
    for pairs in ([(turned, 0.5), (wide, -1.5)], [(wide, -1.5), (turned, 0.5)]):
        torch.testing.assert_close(lyc.patch_(base.clone(), pairs), wanted, rtol=0, atol=1e-12)


def test_a_path_that_cannot_tell_whether_it_works_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a path needs can be broken in ways that nobody thought of.

    Whatever error shows this, another path patches the weight, and the report has the error.
    """

    def broken() -> str:
        # What Triton says where there is no driver.
        raise AssertionError("libcuda.so cannot found!")

    first = dataclasses.replace(registry.PATHS[-1], name="broken", priority=0, needs=broken)
    monkeypatch.setattr(registry, "PATHS", (first, *registry.PATHS))
    monkeypatch.setattr(registry, "_FAILED", {})
    base, pairs = torch.randn(12, 18), [(layer("lora", "linear"), 1.0)]
    assert_one_rounding(lyc.patch_(base.clone(), pairs), base, pairs)
    assert "not broken: its own check failed" in lyc.patch_report(base, pairs)
    assert "AssertionError: libcuda.so cannot found!" in lyc.patch_report(base, pairs)


def test_a_plan_refuses_another_shape() -> None:
    plan = lyc.PatchPlan.build((12, 18), "cpu", [(layer("lora", "linear"), 1.0)])
    with pytest.raises(lyc.LayerError, match=r"\[18, 12\].*\[12, 18\]"):
        plan.apply_(torch.zeros(18, 12), plan.tensors, plan.strengths)


def test_a_weight_of_integers_is_refused() -> None:
    with pytest.raises(lyc.LayerError, match="int8"):
        lyc.patch_(torch.zeros(12, 18, dtype=torch.int8), [(layer("lora", "linear"), 1.0)])
