"""What every test gets: a fixed seed, and buffers that start as NaN instead of by luck as zero."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.empty called from lycoris_ops is filled with NaN, so that an unwritten element shows."""
    real = torch.empty

    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = real(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if "lycoris_ops" in caller and tensor.is_floating_point():
            tensor.fill_(torch.nan)
        return tensor

    monkeypatch.setattr(torch, "empty", empty)
    yield
