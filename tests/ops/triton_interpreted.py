"""The Triton kernel against the sum of deltas in float64, run by Triton's interpreter on the CPU.

`test_triton.py` runs this file in a process with TRITON_INTERPRET=1, which Triton reads when it is imported.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from layers import WEIGHTS
from layers import load as layer
from path_cases import OF_FORMS, PathCases
from torch import Tensor

import lycoris_ops as lyc
from lycoris_ops.patch import registry
from lycoris_ops.patch.paths import triton as triton_fused
from lycoris_ops.patch.paths.triton import Tile


@pytest.fixture(autouse=True)
def no_other_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave Triton as the only path, so that what the kernel cannot do raises an error."""
    assert triton_fused.INTERPRETED
    monkeypatch.setattr(registry, "PATHS", (triton_fused.PATH,))


class TestKernel(PathCases):
    """The tests of every path, for the Triton kernel with the tiles of its own table."""

    DTYPES = (torch.float32,)
    ROWS = OF_FORMS

    @pytest.fixture
    def tile(self) -> None:
        """Leave the tiles as they are."""


class TestSmallTiles(PathCases):
    """The same with tiles so small that a weight has many. One dtype shows how a weight is divided."""

    DTYPES = (torch.bfloat16,)

    @pytest.fixture
    def tile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give all weights the same small tiles."""
        small = {key: dict.fromkeys(tiles, Tile(16, 16, 4)) for key, tiles in triton_fused.TILES.items()}
        monkeypatch.setattr(triton_fused, "TILES", small)


def test_strides_that_are_refused() -> None:
    pairs = [(layer("lora", "conv2d"), 0.5)]
    for weight in (
        torch.zeros(WEIGHTS["conv2d"]).to(memory_format=torch.channels_last),
        torch.zeros(12, 36, 3, 3)[:, ::2],
    ):
        assert "no common stride" in lyc.patch_report(weight, pairs)
        with pytest.raises(lyc.LayerError, match="no common stride"):
            lyc.patch_(weight, pairs)


def test_double_precision_is_refused() -> None:
    weight, pairs = torch.zeros(12, 18, dtype=torch.float64), [(layer("lora", "linear"), 1.0)]
    assert "not triton: not for float64" in lyc.patch_report(weight, pairs)


def test_nothing_is_copied_and_nothing_compiled_anew() -> None:
    """The kernel's table points to the plan's own tensors, and other layers need no other compiled kernel.

    The number of layers and their ranks are only data to the kernel.
    """
    weight = torch.randn(WEIGHTS["linear-odd"])
    compiled = set()
    for count, kind in itertools.product((1, 2, 7), ("lora", "full")):
        layers = [layer(kind, "linear-odd", rank=n + 1) for n in range(count)]
        pairs = [(layer("loha", "linear-odd"), 1.0), *((one, 0.5) for one in layers)]
        plan = lyc.PatchPlan.build(weight.shape, weight.device, pairs)
        terms = triton_fused.terms_of(registry.Patch(plan, weight, plan.tensors, plan.strengths))
        table = triton_fused.tabulate(terms, weight.data_ptr())
        assert table.number == count + 1
        assert {part.data_ptr() for part in table.kept} == {part.data_ptr() for part in plan.tensors}
        compiled.add(tuple(triton_fused.launch_options(35, 21, weight.dtype, "ampere", table).items()))
    assert len(compiled) == 1


KINDS = ("lora", "loha", "lokr-full-low", "full", "oft")
"""One of each form that the kernel adds itself, and one that torch forms."""


def test_many_weights_at_once_get_the_same_bits_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all forms and dtypes, layers for rows, weights with two layers, and transposed ones."""
    sizes: list[int] = []
    kernel = triton_fused._kernel()  # pyright: ignore[reportPrivateUsage]

    class Counted:
        def __getitem__(self, grid: tuple[int, int]) -> Any:
            sizes.append(grid[1])
            return kernel[grid]

    monkeypatch.setattr(triton_fused, "_kernel", Counted)
    work: list[tuple[lyc.PatchPlan, Tensor, str]] = []

    def add(kind: str, weight: Tensor, *parts: lyc.Layer | lyc.Part) -> None:
        plan = lyc.PatchPlan.build(weight.shape, "cpu", [(part, 0.5) for part in parts])
        work.append((plan, weight, kind))

    for kind, dtype, _ in itertools.product(KINDS, triton_fused.PATH.dtypes, range(2)):
        add(kind, torch.randn(12, 18).to(dtype), layer(kind, "linear"))
    for rows in ((3, 15), (0, 12)):
        own = layer("lokr-full-low", "linear")
        add("rows", torch.randn(18, 18).half(), lyc.Part(own, rows=rows))
        add("transposed", torch.randn(18, 12).T, own, layer("loha", "linear"))
        add("not at a multiple of 16 bytes", torch.randn(217)[1:].view(12, 18), own)
    alone = [weight.clone() for _, weight, _ in work]
    for (plan, _, _), weight in zip(work, alone, strict=True):
        plan.apply_(weight, plan.tensors, plan.strengths)
    assert set(sizes) == {1}
    sizes.clear()
    found = lyc.PatchPlan.apply_all(work)
    # Alone are oft, whose change torch forms, and the last ones of `work`. For the kernel lora and full are
    # alike.
    assert sorted(sizes) == [1] * (2 * 3 + 2) + [2] * (2 * 3 + 2) + [4] * 3
    for one, other, (_, weight, kind) in zip(found, alone, work, strict=True):
        assert one is weight and torch.equal(one, other), kind
