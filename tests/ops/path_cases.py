"""Tests that every patch path must pass. The reference is the sum of deltas in float64.

A plan is all layers that change one weight, and a path is one way of computing a plan.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from layers import CASES, FEW, KINDS, WEIGHTS, factors, rand
from layers import load as layer
from rounding import assert_one_rounding, error_over_floor
from torch import Tensor

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.patch.groups import hadamard
from lycoris_ops.patch.paths import plain_torch
from lycoris_ops.patch.registry import Patch, apply_plans

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

FORMS = {
    # More ranks than a matrix library sums at once.
    "low-rank": [("lora", 512)],
    "low-rank x 8": [("lora", 64)] * 8,
    "hadamard": [("loha", 8)] * 8,
    "kronecker": [("lokr-full-low", 3)] * 8,
    "kronecker, several": [("lokr-full-full", 3), ("lokr-low-low", 3), ("lokr-full-low", 2)],
    "full": [("full", 3)] * 3,
    "sparse": [("lora-sparse", 3)] * 3,
    "dependent": [("lora-dora-out", 3), ("lora-dora-in", 3), ("oftv2", 3), ("full-set", 3)],
}
FORMS["all"] = [case for cases in FORMS.values() for case in cases]
"""Stacks of layers by the form of their changes: (kind, rank) of each layer. `all` has every form."""
OF_FORMS = [(kind, "linear-odd") for kind in dict(FORMS["all"])]
"""The kinds in FORMS, on one weight: for a path that knows forms, and nothing of kinds and kernels."""


def check(base: Tensor, pairs: list[tuple[lyc.Layer, float]]) -> Tensor:
    """Patch a copy of the weight, and return it.

    Asserts that it has changed, and that it is one rounding from the exact sum.
    """
    patched = base.clone()
    assert lyc.patch_(patched, pairs) is patched
    assert not torch.equal(patched, base)
    assert_one_rounding(patched, base, pairs)
    return patched


def in_small_parts(monkeypatch: pytest.MonkeyPatch, rows: int = 5) -> None:
    """Let plain torch work on a few rows and columns at a time."""
    monkeypatch.setattr(plain_torch, "TILE", 64)
    monkeypatch.setattr(plain_torch, "ROWS", rows)
    monkeypatch.setattr(hadamard, "ROWS", rows - 1)
    monkeypatch.setattr(hadamard, "COLUMNS", 7)


def loaded(algorithm: str, **tensors: Tensor) -> lyc.Layer:
    """A layer of an algorithm, from its tensors by key suffix."""
    return ALGORITHMS[algorithm].load(tensors)


def applied(weight: Tensor, pairs: list[tuple[lyc.Layer | lyc.Part, float]]) -> Tensor:
    """Patch the weight by the path alone, without the check for an overflow before it."""
    plan = lyc.PatchPlan.build(weight.shape, weight.device, pairs)
    apply_plans([Patch(plan, weight, plan.tensors, plan.strengths)])
    return weight


class PathCases:
    """The tests of one path. A test module derives a class from this one.

    The module must leave only its own path in the registry. It must also define a fixture `tile`, which
    lets the path work on the whole weight at once, or on a small part of it at a time.
    """

    DTYPES = (torch.float32, torch.bfloat16, torch.float16)
    """Dtypes of the weights that the path takes."""
    LAYERS = FEW
    """The kinds and weights that the path is tried on in float32: those of FEW where a path knows forms, and
    nothing of kinds and kernels."""
    ROWS = FEW
    """The kinds and weights that are tried on rows of a larger weight."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run a test that has a `dtype` argument with every dtype of the path.

        One that has `weight` too, or `kind` and `weight`, runs on those of LAYERS in float32, and on few in
        the other dtypes.
        """
        if {"weight", "dtype"} <= set(metafunc.fixturenames):
            names = [name for name in ("kind", "weight") if name in metafunc.fixturenames]
            some = {dtype: self.LAYERS if dtype == torch.float32 else FEW for dtype in self.DTYPES}
            cases = [
                dict.fromkeys((*case[-len(names) :], dtype) for case in found)
                for dtype, found in some.items()
            ]
            metafunc.parametrize((*names, "dtype"), [case for found in cases for case in found])
            return
        given = any("dtype" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
        if metafunc.function.__name__.startswith("test_rows_of"):
            metafunc.parametrize(("kind", "weight"), self.ROWS)
        elif "dtype" in metafunc.fixturenames and not given:
            metafunc.parametrize("dtype", self.DTYPES, ids=str)

    def test_one_layer(self, kind: str, weight: str, dtype: torch.dtype) -> None:
        """Each kind of layer alone on each weight is one rounding from the exact sum."""
        check(torch.randn(WEIGHTS[weight]).to(dtype), [(layer(kind, weight), -0.7)])

    @pytest.mark.usefixtures("tile")
    def test_every_kind_at_once(self, weight: str, dtype: torch.dtype) -> None:
        """All kinds that fit a weight, in one plan, are one rounding from the exact sum."""
        kinds = [kind for kind, name in CASES if name == weight]
        pairs = [
            (layer(kind, weight, rank=rank), strength)
            # Not strict: `cycle` never ends.
            for (kind, rank), strength in zip(
                itertools.product(kinds, (1, 3)), itertools.cycle((1.0, -0.5, 0.25)), strict=False
            )
        ]
        check(torch.randn(WEIGHTS[weight]).to(dtype), pairs)

    @pytest.mark.parametrize("rank", [1, 3, 5, 16, 17])
    @pytest.mark.usefixtures("tile")
    def test_any_rank(self, rank: int, dtype: torch.dtype) -> None:
        kinds = ("lora", "loha", "lokr-low-low", "lokr-full-low")
        base = torch.randn(WEIGHTS["linear-odd"]).to(dtype)
        for kind in kinds:
            check(base, [(layer(kind, "linear-odd", rank=rank), 0.6)])
        check(base, [(layer(kind, "linear-odd", rank=rank), 0.6) for kind in kinds])

    @pytest.mark.parametrize(
        ("form", "dtype"),
        # In float32 each form has its own way of adding, and in others all are added to a sum in float32.
        [*((form, torch.float32) for form in FORMS), ("all", torch.bfloat16), ("all", torch.float16)],
        ids=str,
    )
    @pytest.mark.usefixtures("tile")
    def test_a_change_that_is_small_beside_the_weight(self, form: str, dtype: torch.dtype) -> None:
        """Changes of 1e-4 of the weight are added with the error of one rounding.

        A second rounding would show at this size. It hides in larger changes.
        """
        base = torch.randn(WEIGHTS["linear-odd"]).to(dtype)
        pairs = []
        for kind, rank in FORMS[form]:
            one = layer(kind, "linear-odd", rank=rank)
            pairs.append((one, float(1e-4 * base.double().norm() / one.delta(base.double()).norm())))
        # 1 is the error of rounding the exact sum once.
        assert error_over_floor(lyc.patch_(base.clone(), pairs), base, pairs) < 1.1

    @pytest.mark.parametrize("shape", [(1, 1), (1, 130), (131, 1), (17, 260), (130, 33), (65, 129)], ids=str)
    def test_odd_sizes(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """Weights with a side of 1, or with a side just above a power of two, are patched as exactly."""
        rows, columns = shape
        pairs = [
            (loaded("lora", **{"lora_up.weight": rand(rows, 5), "lora_down.weight": rand(5, columns)}), 0.5),
            (
                loaded(
                    "loha",
                    hada_w1_a=rand(rows, 3),
                    hada_w1_b=rand(3, columns),
                    hada_w2_a=rand(rows, 7),
                    hada_w2_b=rand(7, columns),
                ),
                -1.0,
            ),
            (loaded("full", diff=rand(rows, columns)), 0.3),
        ]
        check(torch.randn(shape).to(dtype), pairs)

    @pytest.mark.parametrize("stored", [*DTYPES, torch.float64], ids=str)
    def test_factors_of_any_dtype(self, stored: torch.dtype, dtype: torch.dtype) -> None:
        """Factors may be stored in any dtype, alone or in one plan with float32 factors."""
        pairs = []
        for kind in ("lora", "loha", "lokr-low-low", "full"):
            tensors = factors(kind, "linear-odd")
            halved = {key: value if key == "alpha" else value.to(stored) for key, value in tensors.items()}
            pairs.append((ALGORITHMS[KINDS[kind].algorithm].load(halved), 0.5))
        base = torch.randn(WEIGHTS["linear-odd"]).to(dtype)
        check(base, pairs)
        check(base, [*pairs, (layer("lora", "linear-odd"), 1.0)])

    @pytest.mark.usefixtures("tile")
    def test_rows_of_a_layer_on_rows_of_a_larger_weight(self, kind: str, weight: str) -> None:
        self.check_rows(kind, weight)

    def check_rows(self, kind: str, weight: str) -> None:
        """A layer for some rows of a larger weight changes these rows and no others.

        Two windows of the layer's rows, placed side by side, must do the same. Kinds whose rows depend on
        each other cannot be cut, and must raise an error.
        """
        one, shape = layer(kind, weight), WEIGHTS[weight]
        rows = shape[0]
        large = torch.randn(2 * rows + 1, *shape[1:]).bfloat16()
        whole = lyc.patch_(large.clone(), [(lyc.Part(one, rows=(rows, 2 * rows)), 0.5)])
        assert torch.equal(whole[:rows], large[:rows]) and torch.equal(whole[2 * rows :], large[2 * rows :])
        assert_one_rounding(whole[rows : 2 * rows], large[rows : 2 * rows], [(one, 0.5)])
        half = rows // 2 - 1
        parts = [
            (lyc.Part(one, rows=(rows + half, 2 * rows), window=(half, rows)), 0.5),
            (lyc.Part(one, rows=(rows, rows + half), window=(0, half)), 0.5),
        ]
        if KINDS[kind].additive or KINDS[kind].row_by_row:
            torch.testing.assert_close(lyc.patch_(large.clone(), parts), whole)
        else:
            # One factor for both sides does not tell how many outputs the whole layer has.
            says = "does not fit|part of its rows" if kind == "singlora" else "part of its rows"
            with pytest.raises(lyc.LayerError, match=says):
                lyc.patch_(large.clone(), parts)

    @pytest.mark.parametrize("window", [(0, 5), (3, 11), (7, 8), (13, 35), (34, 35)], ids=str)
    @pytest.mark.usefixtures("tile")
    def test_windows_that_cut_the_blocks_of_a_kronecker_product(
        self, window: tuple[int, int], dtype: torch.dtype
    ) -> None:
        """A window may begin or end inside a block of LoKr. Its rows are then formed, in float32.

        The reference is those rows of the whole layer's delta.
        """
        start, stop = window
        base = torch.randn(40, 21).to(dtype)
        for kind in ("lokr-full-full", "lokr-full-low", "lokr-low-low"):
            one = layer(kind, "linear-odd")
            change = 0.5 * one.delta(torch.zeros(35, 21, dtype=torch.float64))[start:stop]
            part = lyc.Part(one, rows=(2, 2 + stop - start), window=window)
            wanted = base.double().clone()
            wanted[2 : 2 + stop - start] += change
            patched = lyc.patch_(base.clone(), [(part, 0.5)])
            if dtype == torch.float64:
                torch.testing.assert_close(patched, wanted, rtol=1e-6, atol=1e-6)
                continue
            exact = loaded("full", diff=wanted - base.double())
            assert_one_rounding(patched, base, [(exact, 1.0)])

    @pytest.mark.usefixtures("tile")
    def test_a_fused_weight_of_three(self, dtype: torch.dtype) -> None:
        """Each third of the rows has its own layers, and one more layer is for all rows.

        The thirds end inside tiles. Each third is compared with the exact sum of the layers that change it.
        """
        base = torch.randn(36, 18).to(dtype)
        layers = [
            [(layer(kind, "linear"), strength) for kind, strength in row]
            for row in (
                [("lora", 0.5), ("loha", 1.0)],
                [("lokr-low-low", -0.5), ("oft", 0.7)],
                [("lora-dora-out", 0.5), ("lora-sparse", 0.9), ("full", 0.2)],
            )
        ]
        fused = [
            (lyc.Part(one, rows=(12 * n, 12 * n + 12)), strength)
            for n, third in enumerate(layers)
            for one, strength in third
        ]
        everywhere = loaded("full", diff=rand(36, 18))
        patched = lyc.patch_(base.clone(), [*fused, (everywhere, 0.1)])
        for n, third in enumerate(layers):
            rows = slice(12 * n, 12 * n + 12)
            own = loaded("full", diff=everywhere.delta(base)[rows])
            assert_one_rounding(patched[rows], base[rows], [*third, (own, 0.1)])

    def test_rows_beside_a_layer_that_is_not_finite(self) -> None:
        """Infinite factors for some rows must not change a bit of the other rows."""
        base = torch.randn(12, 18)
        broken = ALGORITHMS["lora"](lora_up=rand(5, 2), lora_down=torch.full((2, 18), math.inf))  # type: ignore[call-arg]
        patched = applied(base.clone(), [(lyc.Part(broken, rows=(3, 8)), 1.0)])
        assert torch.equal(patched[:3], base[:3]) and torch.equal(patched[8:], base[8:])
        assert not torch.isfinite(patched[3:8]).any()

    def test_a_scale_beyond_float32_is_an_error_and_leaves_the_weight(self) -> None:
        weight, loud = torch.ones(12, 18), ALGORITHMS["lora"].load(factors("lora", "linear", alpha=1e38))
        with pytest.raises(lyc.LayerError, match="overflows"):
            lyc.patch_(weight, [(loud, 100.0)])
        assert torch.equal(weight, torch.ones(12, 18))

    @pytest.mark.usefixtures("tile")
    def test_strides(self, dtype: torch.dtype) -> None:
        """A weight need not be contiguous: it may be every second row, some of the columns, or transposed.

        The memory between the values of the weight must stay as it is.
        """
        pairs = [(layer(kind, "conv2d"), 0.5) for kind in ("lora", "loha", "lokr-full-low", "full", "oft")]
        base = torch.randn(WEIGHTS["conv2d"]).to(dtype)
        every_second = torch.zeros(24, 18, 3, 3, dtype=dtype)
        within = torch.zeros(12, 20, 3, 3, dtype=dtype)
        for whole, view in ((every_second, every_second[::2]), (within, within[:, 1:19])):
            view.copy_(base)
            assert not view.is_contiguous()
            assert_one_rounding(lyc.patch_(view, pairs), base, pairs)
            # With the view set to zero, the rest of the memory must be zero as well.
            view.zero_()
            assert torch.equal(whole, torch.zeros_like(whole))
        pairs = [(layer(kind, "linear"), 0.5) for kind in ("lora", "loha", "lokr-full-low")]
        base = torch.randn(WEIGHTS["linear"]).to(dtype)
        transposed = base.T.contiguous().T
        assert not transposed.is_contiguous()
        assert_one_rounding(lyc.patch_(transposed, pairs), base, pairs)

    def test_strength_zero_changes_no_bit(self, dtype: torch.dtype) -> None:
        """Layers of strength 0, and an empty stack, leave every bit of a weight as it is.

        A weight without rows is returned as it is.
        """
        for weight in WEIGHTS:
            base = torch.randn(WEIGHTS[weight]).to(dtype)
            pairs = [(layer(kind, name), 0.0) for kind, name in CASES if name == weight]
            assert torch.equal(lyc.patch_(base.clone(), pairs), base)
            assert torch.equal(lyc.patch_(base.clone(), []), base)
        nothing = torch.zeros(0, 18, dtype=dtype)
        assert lyc.patch_(nothing, []) is nothing

    def test_a_new_strength_needs_no_new_plan(self) -> None:
        """One plan is exact at any strengths, and applying it does not change its tensors."""
        layers = [layer(kind, "conv2d") for kind, weight in CASES if weight == "conv2d"]
        base = torch.randn(WEIGHTS["conv2d"])
        plan = lyc.PatchPlan.build(base.shape, base.device, [(one, 1.0) for one in layers])
        before = [tensor.clone() for tensor in plan.tensors]
        for strengths in ([0.5] * len(layers), [-1.0, *[0.0] * (len(layers) - 1)]):
            changed = list(zip(layers, strengths, strict=True))
            assert_one_rounding(plan.apply_(base.clone(), plan.tensors, strengths), base, changed)
        assert all(torch.equal(old, new) for old, new in zip(before, plan.tensors, strict=True))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("kind", ["full", "lokr"])
    def test_rounding_is_to_the_nearest_and_to_even(self, kind: str, dtype: torch.dtype) -> None:
        """The path rounds as torch does.

        The values are between two of the dtype, ties, overflow, NaN and both infinities.
        """
        step = torch.finfo(dtype).eps
        ones = torch.tensor([1.0, 1 + step, -1.0, 1 + 3 * step])
        parts = torch.tensor([0.0, 0.25, 0.5, 0.5 + 2**-10, 0.75, -0.25, -0.5]) * step
        values = (ones[:, None] + parts).reshape(-1)
        edge = torch.tensor([math.inf, -math.inf, math.nan, torch.finfo(dtype).max * 1.01, 0.0, 1e-7, -3e-8])
        # NaNs that careless rounding of the bits to bfloat16 would lose: the first carries over to -0, and
        # the second is an infinity without its lower half.
        nan = torch.tensor([0x7FFFFFFF, 0x7F800001], dtype=torch.int32).view(torch.float32)
        values = torch.cat([values, edge, nan])[None]
        tensors = {"diff": values} if kind == "full" else {"lokr_w1": torch.ones(1, 1), "lokr_w2": values}
        patched = applied(torch.zeros_like(values).to(dtype), [(ALGORITHMS[kind](**tensors), 1.0)])
        torch.testing.assert_close(patched, values.to(dtype), rtol=0, atol=0, equal_nan=True)

    def test_a_weight_is_enlarged_with_zeros_first(self) -> None:
        """A layer with `reshape_weight` is added to the weight enlarged with zeros."""
        tensors = {**factors("lora", "linear"), "reshape_weight": torch.tensor([12, 18])}
        one = ALGORITHMS["lora"].load(tensors)
        base = torch.randn(12, 10)
        larger = torch.cat([base, torch.zeros(12, 8)], 1)
        assert_one_rounding(lyc.patch_(base, [(one, 0.5)]), larger, [(one, 0.5)])

    def test_gradients_of_the_weight_are_left_alone(self) -> None:
        """A parameter that is patched in place stays a leaf that requires gradients."""
        weight = torch.nn.Parameter(torch.randn(WEIGHTS["linear"]))
        lyc.patch_(weight, [(layer("lora", "linear"), 1.0)])
        assert weight.requires_grad and weight.is_leaf
