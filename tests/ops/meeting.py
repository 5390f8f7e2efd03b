"""Run a task in several processes that see each other: `meeting.py COUNT FOLDER module.function WORD...`.

The task is called with the number of its process, the folder and the words.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, cast

import torch


def meet(rank: int, count: int, folder: str, task: str, *words: str) -> None:
    """One of the processes."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count
    )
    module, _, name = task.rpartition(".")
    getattr(importlib.import_module(module), name)(rank, folder, *words)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run(count: int, folder: str, task: str, *words: str) -> None:
    # All take over what this one has imported, with what torch imports at the first step of an optimiser and
    # at the first operation on a divided tensor.
    for module in (task.rpartition(".")[0], "torch._dynamo", "torch.distributed.fsdp"):
        importlib.import_module(module)
    way = "fork" if sys.platform == "linux" else "spawn"
    cast("Any", torch.multiprocessing).start_processes(
        meet, (count, folder, task, *words), count, start_method=way
    )


if __name__ == "__main__":
    size, *rest = sys.argv[1:]
    run(int(size), *rest)
