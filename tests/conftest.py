"""Fixtures for every test: a fixed random seed, and NaN in memory that the library allocates unset."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill tensors that lycoris_ops makes by torch.empty with 0xFF bytes, which are NaN in every float type.

    Fresh memory is often zero by luck. With NaN in it, a value that is read before it is written shows in
    the result.
    """
    for name, module in list(sys.modules.items()):
        # Buffers that are kept from earlier tests hold finite numbers. The host loads the pack under another
        # name, so this module may be there twice.
        if name.endswith("lycoris_ops.maths.scratch"):
            module.forget()
    real = torch.empty

    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = real(*args, **kwargs)
        # By the caller: torch and other packages get their memory as ever. No bool has a byte of 0xFF.
        if "lycoris_ops" in sys._getframe(1).f_globals.get("__name__", "") and tensor.dtype != torch.bool:
            tensor.reshape(-1).view(torch.uint8).fill_(0xFF)
        return tensor

    monkeypatch.setattr(torch, "empty", empty)
