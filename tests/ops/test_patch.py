"""The patch ops against the sum of deltas in float64, at the floor of one rounding."""

from __future__ import annotations

import itertools

import pytest
import torch
from layers import CASES, KINDS, WEIGHTS, factors
from torch import Tensor

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.kernels import group, hadamard

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def layer(kind: str, weight: str, rank: int = 3) -> lyc.Layer:
    return ALGORITHMS[KINDS[kind].algorithm].load(factors(kind, weight, rank))


def exact(weight: Tensor, pairs: list[tuple[lyc.Layer, float]]) -> Tensor:
    total = weight.double()
    for one, strength in pairs:
        total = total + strength * one.delta(weight.double())
    return total


def assert_one_rounding(patched: Tensor, wanted: Tensor) -> None:
    """At most half a unit in the last place away, plus what float32 accumulation may add to it."""
    accumulation = 8 * torch.finfo(torch.float32).eps * wanted.abs().max()
    if patched.dtype == torch.float64:
        accumulation = 64 * torch.finfo(torch.float64).eps * wanted.abs().max()
    half_ulp = torch.finfo(patched.dtype).eps / 2 * wanted.abs()
    tiny = torch.finfo(patched.dtype).smallest_normal * torch.finfo(patched.dtype).eps
    assert torch.isfinite(patched).all()
    assert ((patched.double() - wanted).abs() <= half_ulp + accumulation + tiny).all()


@pytest.fixture(params=[None, 64, 7], ids=["one-tile", "tiles", "row-tiles"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(group, "TILE", request.param)


@pytest.mark.parametrize(("kind", "weight"), CASES, ids=[f"{k}-{w}" for k, w in CASES])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("tile")
def test_one_layer(kind: str, weight: str, dtype: torch.dtype) -> None:
    base = torch.randn(WEIGHTS[weight]).to(dtype)
    pairs = [(layer(kind, weight), -0.7)]
    before, wanted = base.clone(), exact(base, pairs)
    patched = lyc.patch_(base, pairs)
    assert patched is base
    assert not torch.equal(patched, before)
    assert_one_rounding(patched, wanted)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("tile")
def test_every_kind_at_once(weight: str, dtype: torch.dtype) -> None:
    kinds = [kind for kind, name in CASES if name == weight]
    pairs = [
        (layer(kind, weight, rank), strength)
        for (kind, rank), strength in zip(
            itertools.product(kinds, (1, 3)), itertools.cycle((1.0, -0.5, 0.25)), strict=False
        )
    ]
    base = torch.randn(WEIGHTS[weight]).to(dtype)
    assert_one_rounding(lyc.patch_(base.clone(), pairs), exact(base, pairs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_factors_of_several_dtypes_in_one_group(dtype: torch.dtype) -> None:
    pairs = []
    for stored in (torch.float16, torch.bfloat16, torch.float32):
        tensors = {
            key: tensor if key == "alpha" else tensor.to(stored)
            for key, tensor in factors("lora", "linear").items()
        }
        pairs.append((ALGORITHMS["lora"].load(tensors), 0.5))
    base = torch.randn(WEIGHTS["linear"]).to(dtype)
    assert_one_rounding(lyc.patch_(base.clone(), pairs), exact(base, pairs))


@pytest.mark.parametrize("rank", [8, 9], ids=["khatri-rao", "tiles"])
def test_both_ways_of_a_hadamard_product(rank: int) -> None:
    one = layer("loha", "linear-odd", rank)
    plan = lyc.PatchPlan.build(WEIGHTS["linear-odd"], torch.float32, "cpu", [(one, 1.0)])
    assert (rank * rank <= hadamard.KHATRI_RAO_RANK) == ("1 by Khatri-Rao" in plan.report)
    base = torch.randn(WEIGHTS["linear-odd"])
    assert_one_rounding(lyc.patch_(base.clone(), [(one, 1.0)]), exact(base, [(one, 1.0)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("tile")
def test_any_strides(dtype: torch.dtype) -> None:
    pairs = [(layer(kind, "conv2d"), 0.5) for kind in KINDS]
    base = torch.randn(WEIGHTS["conv2d"]).to(dtype)
    wanted = exact(base, pairs)
    channels_last = base.to(memory_format=torch.channels_last)
    wide = torch.zeros(12, 36, 3, 3, dtype=dtype)
    view = wide[:, ::2]
    view.copy_(base)
    for weight in (channels_last, view):
        assert not weight.is_contiguous()
        assert_one_rounding(lyc.patch_(weight, pairs), wanted)
    assert torch.equal(wide[:, 1::2], torch.zeros_like(wide[:, 1::2]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strength_zero_changes_no_bit(kind: str, dtype: torch.dtype) -> None:
    base = torch.randn(WEIGHTS["conv2d"]).to(dtype)
    assert torch.equal(lyc.patch_(base.clone(), [(layer(kind, "conv2d"), 0.0)]), base)
    assert torch.equal(lyc.patch_(base.clone(), []), base)


def test_a_new_strength_needs_no_new_plan() -> None:
    layers = [layer(kind, "conv2d") for kind in KINDS]
    base = torch.randn(WEIGHTS["conv2d"])
    pairs = [(one, 1.0) for one in layers]
    plan = lyc.PatchPlan.build(base.shape, base.dtype, base.device, pairs)
    before = [tensor.clone() for tensor in plan.tensors]
    for strengths in ([0.5] * len(layers), [-1.0, *[0.0] * (len(layers) - 1)]):
        wanted = exact(base, list(zip(layers, strengths, strict=True)))
        assert_one_rounding(plan.apply_(base.clone(), plan.tensors, strengths), wanted)
    assert all(torch.equal(old, new) for old, new in zip(before, plan.tensors, strict=True))


def test_a_plan_refuses_another_shape() -> None:
    plan = lyc.PatchPlan.build((12, 18), torch.float32, "cpu", [(layer("lora", "linear"), 1.0)])
    with pytest.raises(lyc.LayerError, match=r"\[18, 12\].*\[12, 18\]"):
        plan.apply_(torch.zeros(18, 12), plan.tensors, plan.strengths)


def test_a_weight_of_integers_is_refused() -> None:
    with pytest.raises(lyc.LayerError, match="int8"):
        lyc.patch_(torch.zeros(12, 18, dtype=torch.int8), [(layer("lora", "linear"), 1.0)])


def test_gradients_of_the_weight_are_left_alone() -> None:
    weight = torch.nn.Parameter(torch.randn(WEIGHTS["linear"]))
    lyc.patch_(weight, [(layer("lora", "linear"), 1.0)])
    assert weight.requires_grad and weight.is_leaf
