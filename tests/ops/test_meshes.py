"""Four processes train as one process does, on two-dimensional device meshes too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from children import in_processes

SHORT = ("mixed: both in two, twice", "parts by sequence, sharded")


def check(folder: Path, steps: int, cases: Sequence[str]) -> None:
    """Train in four processes and in one, and compare. The four also check merging, and what is refused."""
    import mesh_task

    in_processes(folder, "mesh_task.mesh", str(steps), *cases, count=4)
    found = torch.load(folder / "0.pt", weights_only=False)
    for case in cases:
        for ours, theirs in zip(found[case], mesh_task.alone(case, steps), strict=True):
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), case


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch trains in one process only")
def test_four_processes_train_as_one(tmp_path: Path) -> None:
    """One case has layers of several kinds, the other has tensor parallelism."""
    check(tmp_path / "four", 3, SHORT)


@pytest.mark.soak
def test_each_kind_in_each_layout(tmp_path: Path) -> None:
    import mesh_task

    check(tmp_path / "four", 12, mesh_task.CASES)


@pytest.mark.soak
def test_what_transformers_divides_is_refused_and_what_it_leaves_whole_learns(tmp_path: Path) -> None:
    import llama_task

    model = llama_task.write(tmp_path / "llama")
    in_processes(tmp_path / "two", "llama_task.divided", str(model))
    for ours, alone in zip(
        torch.load(tmp_path / "two" / "0.pt"), llama_task.trained(model, "*norm"), strict=True
    ):
        assert (ours - alone).abs().max() <= 1e-5 * alone.abs().max() != 0
