"""Two processes train as one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_task

import lycoris_ops as lyc

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch trains in one process only")
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    """Broken off and resumed as well. Five batches leave the second process without one now and then."""
    folder = tmp_path / "two"
    folder.mkdir()
    command = [sys.executable, train_task.__file__]
    running = [
        subprocess.Popen(
            [*command, str(rank), "2", str(folder)], cwd=ROOT, env=child_environment(), stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    for one in running:
        _, errors = one.communicate(timeout=120)
        assert one.returncode == 0, errors.decode()
    (tmp_path / "one").mkdir()
    net = lyc.create_lycoris(train_task.model(), rank=2, seed=0)
    lyc.train_network(
        net,
        train_task.batches(5, 1),
        train_task.loss,
        train_task.options(tmp_path / "one", 2, 6),
        validation=train_task.batches(2, 2),
    )
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2))
    for ours, theirs, wanted in zip(first, second, net.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-7)
    one, two = (lyc.load_adapter(tmp_path / name / "out.safetensors").layers for name in ("one", "two"))
    for name, layer in one.items():
        for key, tensor in layer.tensors().items():
            torch.testing.assert_close(two[name].tensors()[key], tensor, rtol=1e-5, atol=1e-7)


def child_environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
