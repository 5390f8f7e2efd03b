"""The fixed-point path: its result against float64 and the bound that its rounding of factors implies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from layers import load, rand
from path_cases import DTYPES, by_three_threads, loaded
from test_patch import assert_one_rounding
from torch import Tensor

import lycoris_ops as lyc
from lycoris_ops.kernels import numba_calls, registry
from lycoris_ops.kernels.paths import bfloat16_product, numba_fixed


def missing() -> str | None:
    """Why the path cannot run here; numba can be told to compile for less than the processor is."""
    told = "numba compiles for another processor"
    return numba_fixed.PATH.needs() or (None if numba_calls.kernels("fixed").ABLE else told)


pytestmark = pytest.mark.skipif(missing() is not None, reason=f"the path cannot run: {missing()}")
GROUP, LARGEST = 32, 8191
SHAPES = [(1, 1), (1, 130), (131, 1), (12, 32), (13, 33), (24, 513), (130, 96)]


@pytest.fixture(autouse=True)
def no_other_path(monkeypatch: pytest.MonkeyPatch) -> None:
    path = dataclasses.replace(numba_fixed.PATH, refuses=lambda plan, weight: None)
    monkeypatch.setattr(registry, "PATHS", (path,))


@pytest.fixture(params=[False, True], ids=["whole", "small"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, or a few rows at a time on three threads."""
    if request.param:
        monkeypatch.setattr(numba_calls, "LEFT", 50)
        by_three_threads(monkeypatch)


def lora(up: Tensor, down: Tensor) -> lyc.Layer:
    return loaded("lora", **{"lora_up.weight": up, "lora_down.weight": down})


def rounding(left: Tensor, right: Tensor) -> Tensor:
    """How far the product of two factors can be off, in float64, each value by half a step of its group."""
    level = (right.abs().mean(1) * right.abs().amax(1)).sqrt().clamp(min=1e-300)
    left, right = left * level, right / level[:, None]
    total = torch.zeros(left.shape[0], right.shape[1], dtype=torch.float64)
    for start in range(0, left.shape[1], GROUP):
        one, two = left[:, start : start + GROUP].abs(), right[start : start + GROUP].abs()
        down = one.amax(1, keepdim=True) / (2 * LARGEST)
        across = two.amax(0, keepdim=True) / (2 * LARGEST)
        total += down * two.sum(0, keepdim=True) + one.sum(1, keepdim=True) * across
        total += len(two) * down * across
    # Levels are powers of two; and what float32 adds, in the scales and the sum.
    return 4.0 * total + 2**-22 * (left.abs() @ right.abs())


def check(base: Tensor, pairs: list[tuple[lyc.Layer, float]]) -> None:
    patched = lyc.patch_(base.clone(), pairs)
    exact = base.double() + sum(strength * one.delta(base.double()) for one, strength in pairs)
    ups = [strength * one.dump()["lora_up.weight"].double() for one, strength in pairs]
    downs = [one.dump()["lora_down.weight"].double() for one, _ in pairs]
    off = rounding(torch.cat(ups, 1), torch.cat(downs))
    # bfloat16 has 8 bits: half of the last one of the larger of both.
    half = torch.maximum(exact.abs() + off, torch.tensor(1e-30)).log2().floor().exp2() * 2**-8
    assert ((patched.double() - exact).abs() <= half + off).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3, 31, 32, 33, 64, 67])
@pytest.mark.usefixtures("small")
def test_any_size_and_rank(shape: tuple[int, int], rank: int) -> None:
    rows, columns = shape
    base = torch.randn(shape).bfloat16()
    check(base, [(lora(rand(rows, rank), rand(rank, columns)), 0.7)])


@pytest.mark.parametrize("stored", [*DTYPES, torch.float64], ids=str)
def test_factors_of_any_dtype_and_several_layers(stored: torch.dtype) -> None:
    base = torch.randn(37, 70).bfloat16()
    layers = [
        lora(10.0**n * rand(37, rank), 10.0**-n * rand(rank, 70)) for n, rank in enumerate((1, 7, 16, 40), -2)
    ]
    stored_so = [
        type(one).load({key: value.to(stored) for key, value in one.dump().items() if key != "alpha"})
        for one in layers
    ]
    check(base, [(one, 0.3 * n - 0.5) for n, one in enumerate(stored_so)])
    check(base, [(layers[0], 1.0), *[(one, -0.5) for one in stored_so]])


def spread(count: int, size: float) -> Tensor:
    return (size * torch.randn(count)).exp()


def normal() -> tuple[Tensor, Tensor]:
    return rand(240, 128), rand(128, 320)


def ranks_on_the_left() -> tuple[Tensor, Tensor]:
    return rand(240, 128) * spread(128, 4.0), rand(128, 320)


def ranks_against_each_other() -> tuple[Tensor, Tensor]:
    """What is large on one side is as much smaller on the other."""
    sizes = spread(128, 4.0)
    return rand(240, 128) * sizes, rand(128, 320) / sizes[:, None]


def layers_against_each_other() -> tuple[Tensor, Tensor]:
    left, right = normal()
    left[:, ::2], right[::2] = 1e4 * left[:, ::2], 1e-4 * right[::2]
    return left, right


def columns_that_stand_out() -> tuple[Tensor, Tensor]:
    """In one rank each."""
    left, right = normal()
    for rank in range(0, 128, 8):
        right[rank, rank] *= 1000
    return left, right


def rows_with_little_in_them() -> tuple[Tensor, Tensor]:
    left, right = normal()
    for rank in range(0, 128, 8):
        right[rank] *= torch.rand(320) < 0.02
    return left, right


@pytest.mark.parametrize(
    ("make", "at_most"),
    [
        (normal, 1.01),
        (ranks_on_the_left, 1.05),
        (ranks_against_each_other, 1.01),
        (layers_against_each_other, 1.01),
        (columns_that_stand_out, 1.05),
        (rows_with_little_in_them, 1.05),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_error_stays_near_that_of_one_rounding(
    make: Callable[[], tuple[Tensor, Tensor]], at_most: float
) -> None:
    """Even of a change as large as the weight."""
    left, right = make()
    left = left / (left @ right).std()
    base = torch.randn(240, 320).bfloat16()
    exact = base.double() + left.double() @ right.double()
    error = (lyc.patch_(base.clone(), [(lora(left, right), 1.0)]).double() - exact).norm()
    assert error <= at_most * (exact.bfloat16().double() - exact).norm()


def test_nothing_added_leaves_every_value_as_it_is() -> None:
    """A NaN stays one, whatever its bits; subnormal numbers stay."""
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16).view(256, 256)
    nothing = lora(torch.zeros(256, 32), rand(32, 256))
    patched = lyc.patch_(every.clone(), [(nothing, 1.0)])
    torch.testing.assert_close(patched, every, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_factor_shows_where_it_reaches(broken: float) -> None:
    base, up, down = torch.randn(40, 70).bfloat16(), rand(40, 33), rand(33, 70)
    up[3, 5], down[32, 9] = broken, broken
    patched = lyc.patch_(base.clone(), [(lora(up, down), 1.0)])
    reached = torch.zeros(40, 70, dtype=torch.bool)
    reached[3], reached[:, 9] = True, True
    assert torch.equal(~patched.isfinite(), reached)


def test_very_small_and_very_large_factors() -> None:
    base = torch.randn(20, 40).bfloat16()
    for size in (1e-35, 1e-20, 1e20, 1e35):
        check(base, [(lora(size * rand(20, 32), rand(32, 40) / size), 0.5)])
    tiny = lora(1e-36 * rand(20, 32), rand(32, 40))
    assert torch.equal(lyc.patch_(base.clone(), [(tiny, 1.0)]), base)


@pytest.mark.usefixtures("small")
def test_layers_for_some_rows() -> None:
    base = torch.randn(60, 48).bfloat16()
    one, two = lora(rand(24, 20), rand(20, 48)), lora(rand(60, 16), rand(16, 48))
    patched = lyc.patch_(base.clone(), [(lyc.Part(one, (12, 36)), 0.5), (two, 0.25)])
    change = 0.25 * two.delta(base.double())
    change[12:36] += 0.5 * one.delta(base[12:36].double())
    exact = base.double() + change
    assert (patched.double() - exact).norm() <= 1.02 * (exact.bfloat16().double() - exact).norm()


def test_what_is_left_to_other_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PATHS", (numba_fixed.PATH,))
    monkeypatch.setattr(bfloat16_product, "able", lambda one: one == "avx512_vnni")
    short = torch.zeros(12, 18, dtype=torch.bfloat16)

    def report(base: Tensor, *kinds: str, rank: int = 32) -> str:
        pairs = [(load(kind, "linear", rank=rank), 1.0) for kind in kinds]
        return lyc.patch_report(base, pairs).splitlines()[-1]

    assert report(short, "lora") == "path numba fixed-point"
    assert report(short, "lora", "lora", rank=16) == "path numba fixed-point"
    assert "the ranks are less than 32 together" in report(short, "lora", rank=31)
    assert "for LoRA alone" in report(short, "lora", "loha")
    assert "not for float16" in report(short.half(), "lora")
    assert "the weight is not contiguous" in report(short.T.contiguous().T, "lora")
    raw = torch.zeros(12 * 18 * 2 + 1, dtype=torch.uint8).numpy()[1:]
    assert "the weight is not aligned" in report(
        torch.frombuffer(raw, dtype=torch.bfloat16).view(12, 18), "lora"
    )
    monkeypatch.setattr(bfloat16_product, "able", lambda one: one in ("avx512_vnni", "amx_bf16"))
    assert "the processor multiplies faster in bfloat16" in report(short, "lora")
    monkeypatch.setattr(bfloat16_product, "able", lambda one: False)
    assert "the processor has no products of 16-bit integers" in report(short, "lora")


def test_a_numba_that_compiles_for_less_is_left_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PATHS", registry._discover())
    monkeypatch.setattr(registry, "_FAILED", {})
    monkeypatch.setattr(numba_calls.kernels("fixed"), "ABLE", False)
    numba_fixed._kernel.cache_clear()
    base, pairs = torch.randn(12, 18).bfloat16(), [(load("lora", "linear", rank=32), 0.5)]
    with pytest.warns(UserWarning, match="numba is told to compile for less than the processor is"):
        assert_one_rounding(lyc.patch_(base.clone(), pairs), base, pairs)
    assert "not numba fixed-point: it failed" in lyc.patch_report(base, pairs)
