"""A cache of tensors that is bounded in bytes."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from threading import RLock

from torch import Tensor

Tensors = Mapping[str, Tensor]


class TensorCache:
    """Groups of tensors by key, least recently used dropped first, never above `max_bytes`.

    It holds tensors in memory of their own and no file open. Safe to use from several threads.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self.max_bytes = max_bytes
        self._groups: OrderedDict[Hashable, Tensors] = OrderedDict()
        self._bytes = 0
        self._lock = RLock()

    @property
    def nbytes(self) -> int:
        return self._bytes

    def fetch(self, key: Hashable, read: Callable[[], Tensors], *, keep: bool = True) -> Tensors:
        """The group of that key, read if it is not held; kept afterwards unless `keep` is False."""
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
        group = read()
        if keep:
            self._put(key, group)
        return group

    def _put(self, key: Hashable, group: Tensors) -> None:
        size = _size(group)
        if size > self.max_bytes:
            return
        with self._lock:
            if key in self._groups:
                self._bytes -= _size(self._groups.pop(key))
            self._groups[key] = group
            self._bytes += size
            while self._bytes > self.max_bytes:
                _, dropped = self._groups.popitem(last=False)
                self._bytes -= _size(dropped)

    def clear(self) -> None:
        with self._lock:
            self._groups.clear()
            self._bytes = 0


def _size(group: Tensors) -> int:
    return sum(tensor.nbytes for tensor in group.values())


BOUND = "LYCORIS_CACHE_MB"


def _bound() -> int:
    text = os.environ.get(BOUND, "4096")
    if not text.isdecimal():
        raise ValueError(f"the environment variable {BOUND} must be a number of megabytes, not {text!r}")
    return int(text) << 20


DEFAULT_CACHE = TensorCache(_bound())
"""What adapters use unless they are given another; LYCORIS_CACHE_MB sets its bound."""
