"""The Triton kernel against the sum of deltas in float64, run by Triton's interpreter on the CPU.

`test_triton.py` runs this file in a process with TRITON_INTERPRET=1, which Triton reads when it is imported.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from layers import WEIGHTS
from layers import load as layer
from path_cases import OF_FORMS, PathCases

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
        terms = triton_fused.terms_of(plan, weight, plan.tensors, plan.strengths)
        table = triton_fused.tabulate(terms, weight.device)
        assert len(table.fields) == count + 1
        assert {part.data_ptr() for part in table.kept} == {part.data_ptr() for part in plan.tensors}
        compiled.add(tuple(triton_fused.launch_options(35, 21, weight.dtype, "ampere", table).items()))
    assert len(compiled) == 1
