"""For every test: a fixed random seed, and NaN in memory that the library allocates unset."""

from __future__ import annotations

import gc
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

LONG = (
    *("test_architectures", "test_save_adapter", "test_pack", "test_weights", "test_triton"),
    *("test_training_workflow", "test_training_nodes", "test_training_pairs"),
)
MANY, SHARE = 100, 3
"""Of a test of more cases than this each run has every third one, and `make soak` has the others."""
SCRATCH = "lycoris_ops.maths.scratch"

# Python looks for circles after every 700 new objects, among them all that imports have made.
gc.set_threshold(20_000, 20, 20)

# For each device that is not there, torch notes where in the code a seed was set, in a millisecond.
for missing in (torch.cuda, torch.xpu, torch.mtia):
    if not missing.is_available():
        vars(missing)["manual_seed_all"] = lambda seed: None

# At the first use of a device torch notes which of its functions make tensors. Only then may `poisoned`
# replace one: with another noted in its place, a model on the device "meta" would get all of its memory.
with torch.device("cpu"):
    torch.empty(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes, so that processes which take whole files end together, and
    leave most cases of tests with many to the soak."""
    items.sort(key=lambda item: item.path.stem not in LONG)
    several = Counter(_test_of(item) for item in items)
    for item in items:
        # By chance, and the same ones in each run: cases are in the order of their parameters.
        if several[_test_of(item)] > MANY and zlib.crc32(item.nodeid.encode()) % SHARE:
            item.add_marker("soak")


def _test_of(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def pytest_collection_finish() -> None:
    """Keep what the imports have made out of Python's search for circles, which walks over all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Leave it to the system when files reach the disk: a large one takes seconds, and there are thousands.

    `tests/ops/test_writing.py` checks when files are synced, for what is to survive a power cut.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@cache
def scratch_modules(_loaded: int) -> list[Any]:
    """The library's modules of buffers, looked for anew when more modules are loaded.

    The host loads the pack under another name, so there may be two.
    """
    return [module for name, module in list(sys.modules.items()) if name.endswith(SCRATCH)]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill tensors that lycoris_ops makes by torch.empty with 0xFF bytes, which are NaN in every float type.

    Fresh memory is often zero by luck. With NaN in it, a value that is read before it is written shows in
    the result.
    """
    # Buffers that are kept from earlier tests hold finite numbers.
    for module in scratch_modules(len(sys.modules)):
        module.forget()
    real = torch.empty

    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = real(*args, **kwargs)
        # By the caller: torch and other packages get their memory as ever. No bool has a byte of 0xFF.
        if "lycoris_ops" in sys._getframe(1).f_globals.get("__name__", "") and tensor.dtype != torch.bool:
            tensor.reshape(-1).view(torch.uint8).fill_(0xFF)
        return tensor

    monkeypatch.setattr(torch, "empty", empty)
