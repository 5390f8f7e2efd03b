"""The patch ops against the sum of deltas in float64, at the floor of one rounding."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from layers import CASES, KINDS, WEIGHTS, factors, home
from layers import load as layer
from torch import Tensor

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.kernels import group, hadamard, registry
from lycoris_ops.kernels.paths import bfloat16_product


@pytest.fixture(autouse=True)
def no_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths, which would take every LoHa and LoKr layer and more, have tests of their own."""
    others = tuple(path for path in registry.PATHS if not path.name.startswith("numba"))
    monkeypatch.setattr(registry, "PATHS", others)


SPATIAL = [kind for kind, spec in KINDS.items() if not spec.flat]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def exact(weight: Tensor, pairs: list[tuple[lyc.Layer, float]]) -> Tensor:
    total = weight.double()
    for one, strength in pairs:
        total = total + strength * one.delta(weight.double())
    return total


def assert_one_rounding(patched: Tensor, base: Tensor, pairs: list[tuple[lyc.Layer, float]]) -> None:
    """At most half a unit in the last place away, plus what the accumulation may add to it."""
    wanted = exact(base, pairs)
    size = base.double().abs()
    for one, strength in pairs:
        size = size + abs(strength) * one.delta(base.double()).abs()
    wide = torch.float64 if patched.dtype == torch.float64 else torch.float32
    accumulation = (64 if wide == torch.float64 else 12) * torch.finfo(wide).eps * size.max()
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
    before = base.clone()
    patched = lyc.patch_(base, pairs)
    assert patched is base
    assert not torch.equal(patched, before)
    assert_one_rounding(patched, before, pairs)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("tile")
def test_every_kind_at_once(weight: str, dtype: torch.dtype) -> None:
    kinds = [kind for kind, name in CASES if name == weight]
    pairs = [
        (layer(kind, weight, rank=rank), strength)
        for (kind, rank), strength in zip(
            itertools.product(kinds, (1, 3)), itertools.cycle((1.0, -0.5, 0.25)), strict=False
        )
    ]
    base = torch.randn(WEIGHTS[weight]).to(dtype)
    assert_one_rounding(lyc.patch_(base.clone(), pairs), base, pairs)


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
    assert_one_rounding(lyc.patch_(base.clone(), pairs), base, pairs)


@pytest.mark.parametrize("rank", [8, 9], ids=["khatri-rao", "tiles"])
def test_both_ways_of_a_hadamard_product(rank: int) -> None:
    one = layer("loha", "linear-odd", rank=rank)
    plan = lyc.PatchPlan.build(WEIGHTS["linear-odd"], torch.float32, "cpu", [(one, 1.0)])
    assert (rank * rank <= hadamard.KHATRI_RAO_RANK) == ("1 by Khatri-Rao" in plan.report)
    base = torch.randn(WEIGHTS["linear-odd"])
    assert_one_rounding(lyc.patch_(base.clone(), [(one, 1.0)]), base, [(one, 1.0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("tile")
def test_any_strides(dtype: torch.dtype) -> None:
    pairs = [(layer(kind, "conv2d"), 0.5) for kind in SPATIAL]
    base = torch.randn(WEIGHTS["conv2d"]).to(dtype)
    channels_last = base.to(memory_format=torch.channels_last)
    wide = torch.zeros(12, 36, 3, 3, dtype=dtype)
    view = wide[:, ::2]
    view.copy_(base)
    for weight in (channels_last, view):
        assert not weight.is_contiguous()
        assert_one_rounding(lyc.patch_(weight, pairs), base, pairs)
    assert torch.equal(wide[:, 1::2], torch.zeros_like(wide[:, 1::2]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strength_zero_changes_no_bit(kind: str, dtype: torch.dtype) -> None:
    base = torch.randn(WEIGHTS[home(kind)]).to(dtype)
    assert torch.equal(lyc.patch_(base.clone(), [(layer(kind, home(kind)), 0.0)]), base)
    assert torch.equal(lyc.patch_(base.clone(), []), base)


def test_a_new_strength_needs_no_new_plan() -> None:
    layers = [layer(kind, "conv2d") for kind in SPATIAL]
    base = torch.randn(WEIGHTS["conv2d"])
    pairs = [(one, 1.0) for one in layers]
    plan = lyc.PatchPlan.build(base.shape, base.dtype, base.device, pairs)
    before = [tensor.clone() for tensor in plan.tensors]
    for strengths in ([0.5] * len(layers), [-1.0, *[0.0] * (len(layers) - 1)]):
        changed = list(zip(layers, strengths, strict=True))
        assert_one_rounding(plan.apply_(base.clone(), plan.tensors, strengths), base, changed)
    assert all(torch.equal(old, new) for old, new in zip(before, plan.tensors, strict=True))


def test_every_layer_sees_the_weight_as_it_was() -> None:
    """DoRA beside LoRA: the sum of both changes of the base, in either order."""
    base = torch.randn(WEIGHTS["linear"], dtype=torch.float64)
    pairs = [(layer(kind, "linear"), 1.0) for kind in ("lora", "oft", "lora-dora-out", "ia3", "full-set")]
    one = lyc.patch_(base.clone(), pairs)
    other = lyc.patch_(base.clone(), pairs[::-1])
    torch.testing.assert_close(one, exact(base, pairs), rtol=0, atol=1e-12)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "weight"), CASES, ids=[f"{k}-{w}" for k, w in CASES])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("tile")
def test_rows_of_a_layer_on_rows_of_a_larger_weight(kind: str, weight: str, dtype: torch.dtype) -> None:
    """A window of the layer meets rows of a fused weight, and nothing else is touched."""
    one, shape = layer(kind, weight), WEIGHTS[weight]
    rows = shape[0]
    large = torch.randn(2 * rows + 1, *shape[1:]).to(dtype)
    whole = lyc.patch_(large.clone(), [(lyc.Part(one, rows=(rows, 2 * rows)), 0.5)])
    assert torch.equal(whole[:rows], large[:rows]) and torch.equal(whole[2 * rows :], large[2 * rows :])
    assert_one_rounding(whole[rows : 2 * rows], large[rows : 2 * rows], [(one, 0.5)])
    separable = one.additive() is not None or kind in ROW_BY_ROW
    half = rows // 2 - 1
    parts = [
        (lyc.Part(one, rows=(rows + half, 2 * rows), window=(half, rows)), 0.5),
        (lyc.Part(one, rows=(rows, rows + half), window=(0, half)), 0.5),
    ]
    if not separable:
        with pytest.raises(lyc.LayerError, match="part of its rows"):
            lyc.patch_(large.clone(), parts)
        return
    torch.testing.assert_close(lyc.patch_(large.clone(), parts), whole)


ROW_BY_ROW = {
    "lora-dora-out",
    "loha-dora-out",
    "glora",
    "glora-core",
    "ia3",
    "ia3-peft",
    "oftv2",
    "boft-peft",
    "full-set",
}


def test_rows_of_kinds_whose_blocks_must_be_kept_whole() -> None:
    base = torch.randn(12, 18, dtype=torch.float64)
    for kind, block in (("oft", 4), ("lokr-dora-out", 4)):
        one = layer(kind, "linear", alpha=None)
        whole = lyc.patch_(base.clone(), [(one, 1.0)])
        parts = [(lyc.Part(one, (n, n + block), (n, n + block)), 1.0) for n in range(0, 12, block)]
        torch.testing.assert_close(lyc.patch_(base.clone(), parts), whole)
        with pytest.raises(lyc.LayerError, match="part of its rows"):
            lyc.patch_(base.clone(), [(lyc.Part(one, (0, 3), (0, 3)), 1.0)])


def test_swapped_halves_of_one_weight() -> None:
    """Some tools exchange the shift and the scale of a modulation layer."""
    base, one = torch.randn(12, 18, dtype=torch.float64), layer("loha", "linear")
    parts = [(lyc.Part(one, (6, 12), (0, 6)), 1.0), (lyc.Part(one, (0, 6), (6, 12)), 1.0)]
    delta = one.delta(base)
    wanted = base + torch.cat([delta[6:], delta[:6]])
    torch.testing.assert_close(lyc.patch_(base.clone(), parts), wanted, rtol=0, atol=1e-12)


def test_a_weight_is_enlarged_with_zeros_first() -> None:
    tensors = {**factors("lora", "linear"), "reshape_weight": torch.tensor([12, 18])}
    one = ALGORITHMS["lora"].load(tensors)
    base = torch.randn(12, 10, dtype=torch.float64)
    larger = torch.cat([base, torch.zeros(12, 8, dtype=torch.float64)], 1)
    patched = lyc.patch_(base, [(one, 0.5)])
    torch.testing.assert_close(patched, larger + 0.5 * one.delta(larger), rtol=0, atol=1e-12)
    with pytest.raises(lyc.LayerError, match=r"\[12, 18\].*\[12, 20\]"):
        lyc.patch_(torch.zeros(12, 20), [(one, 1.0)])


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr-full-low", "full"])
@pytest.mark.parametrize("weight", ["linear", "conv2d"])
def test_a_layer_for_the_weight_as_it_was_beside_one_that_enlarges_it(kind: str, weight: str) -> None:
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
    with pytest.raises(lyc.LayerError, match=r"depends on a weight that another layer.*enlarges.*node"):
        lyc.patch_(base, [(layer("lora-dora-out", weight), 1.0), (wide, 1.0)])


def test_a_layer_of_open_sizes_meets_the_enlarged_weight() -> None:
    tensors = {"lora_up.weight": torch.randn(12, 3), "lora_down.weight": torch.randn(3, 24)}
    wide = ALGORITHMS["lora"].load({**tensors, "reshape_weight": torch.tensor([12, 24])})
    turned = ALGORITHMS["oftv2"].load({"oft_R.weight": torch.randn(1, 3) / 4})
    base = torch.randn(12, 18, dtype=torch.float64)
    larger = torch.cat([base, torch.zeros(12, 6, dtype=torch.float64)], 1)
    wanted = larger + 0.5 * turned.delta(larger) - 1.5 * wide.delta(larger)
    for pairs in ([(turned, 0.5), (wide, -1.5)], [(wide, -1.5), (turned, 0.5)]):
        torch.testing.assert_close(lyc.patch_(base.clone(), pairs), wanted, rtol=0, atol=1e-12)


def test_a_path_that_cannot_tell_whether_it_works_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a path needs can be broken in ways that nobody thought of."""

    def broken() -> str:
        raise AssertionError("libcuda.so cannot found!")

    first = dataclasses.replace(registry.PATHS[-1], name="broken", rank=0, needs=broken)
    monkeypatch.setattr(registry, "PATHS", (first, *registry.PATHS))
    monkeypatch.setattr(registry, "_FAILED", {})
    base, pairs = torch.randn(12, 18), [(layer("lora", "linear"), 1.0)]
    assert_one_rounding(lyc.patch_(base.clone(), pairs), base, pairs)
    assert "not broken: it cannot be told" in lyc.patch_report(base, pairs)
    assert "AssertionError: libcuda.so cannot found!" in lyc.patch_report(base, pairs)


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


@pytest.fixture
def bfloat16_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any processor multiplies in bfloat16, some only slowly."""
    monkeypatch.setattr(bfloat16_product, "able", lambda instructions: True)


def chosen(base: Tensor, pairs: list[tuple[lyc.Layer | lyc.Part, float]]) -> str:
    """The path that the registry takes."""
    report = lyc.patch_report(base, pairs).splitlines()[-1]
    return report.partition(";")[0].removeprefix("path ")


@pytest.mark.usefixtures("bfloat16_processor")
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kinds", [("lora",), ("loha",), ("lora", "loha"), ("lora-tucker", "lora")])
def test_a_bfloat16_product_is_one_rounding_away(
    kinds: tuple[str, ...], stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is exact to 2^-17 of itself, beside a rounding of 2^-9 of the weight."""
    monkeypatch.setattr(bfloat16_product, "LEFT", 50)
    base = torch.randn(WEIGHTS["conv2d"]).to(torch.bfloat16)
    pairs = []
    for kind, strength in zip(kinds * 2, (0.7, -0.3, 1.0, 0.1), strict=False):
        tensors = {key: t if key == "alpha" else t.to(stored) for key, t in factors(kind, "conv2d").items()}
        pairs.append((ALGORITHMS[KINDS[kind].algorithm].load(tensors), strength))
    assert chosen(base, pairs) == "bfloat16 product"
    wanted, found = exact(base, pairs), lyc.patch_(base.clone(), pairs).double()
    changes = sum(abs(strength) * one.delta(base.double()).abs() for one, strength in pairs)
    half_ulp = torch.finfo(torch.bfloat16).eps / 2 * wanted.abs()
    assert ((found - wanted).abs() <= half_ulp + 2**-15 * changes.max()).all()


@pytest.mark.usefixtures("bfloat16_processor")
def test_a_bfloat16_product_takes_rows_apart_and_refuses_what_overlaps() -> None:
    base = torch.randn(24, 18).to(torch.bfloat16)
    one, other = layer("lora", "linear"), layer("lora", "linear")
    apart = [(lyc.Part(one, (0, 12)), 1.0), (lyc.Part(other, (12, 24)), 0.5)]
    assert chosen(base, apart) == "bfloat16 product"
    found = lyc.patch_(base.clone(), apart)
    for part, (rows, strength) in ((one, (slice(0, 12), 1.0)), (other, (slice(12, 24), 0.5))):
        wanted = exact(base[rows], [(part, strength)])
        bound = (
            torch.finfo(torch.bfloat16).eps / 2 * wanted.abs() + 2**-15 * (wanted - base[rows]).abs().max()
        )
        assert ((found[rows].double() - wanted).abs() <= bound).all()
    overlapping = [(lyc.Part(one, (0, 12)), 1.0), (lyc.Part(other, (6, 18)), 0.5)]
    report = lyc.patch_report(base, overlapping)
    assert "not bfloat16 product: layers for a part of the rows overlap" in report
    assert "not bfloat16 product: not for" in lyc.patch_report(
        base[:12], [(layer("lokr-full-low", "linear"), 1.0)]
    )
