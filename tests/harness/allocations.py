"""Simulates a device whose memory runs out at a chosen allocation."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class MemoryRunsOut(TorchDispatchMode):
    """Counts the operations that allocate a tensor, from 1, and raises torch's own error at number `at`."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A result that aliases an argument is a view of it, or the argument changed in place: no allocation.
        if any(result.alias_info is None for result in func._schema.returns):
            self.made += 1
            if self.made == self.at:
                raise torch.cuda.OutOfMemoryError(f"out of memory: allocation {self.at}, {func}")
        return func(*args, **(kwargs or {}))
