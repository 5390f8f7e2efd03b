"""A cache of tensors, and of what holds tensors, that is bounded in bytes."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from threading import RLock
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")
Tensors = Mapping[str, Tensor]


def size_of(group: Tensors) -> int:
    """Bytes of a group of tensors."""
    return sum(tensor.nbytes for tensor in group.values())


class TensorCache:
    """Groups of tensors and other values by key, least recently used dropped first, never above `max_bytes`.

    It holds tensors in memory of their own and no file open. Safe to use from several threads.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self.max_bytes = max_bytes
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._lock = RLock()

    @property
    def nbytes(self) -> int:
        return self._bytes

    def fetch(self, key: Hashable, read: Callable[[], Tensors], *, keep: bool = True) -> Tensors:
        """The group of that key, read if it is not held; kept afterwards unless `keep` is False."""
        return self.fetch_any(key, read, size_of, keep=keep)

    def fetch_any(
        self, key: Hashable, make: Callable[[], T], size: Callable[[T], int], *, keep: bool = True
    ) -> T:
        """The same for any value whose size in bytes can be told."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
        value = make()
        if keep:
            self._put(key, value, size(value))
        return value

    def _put(self, key: Hashable, value: object, size: int) -> None:
        if size > self.max_bytes:
            return
        with self._lock:
            if key in self._held:
                self._bytes -= self._held.pop(key)[1]
            self._held[key] = (value, size)
            self._bytes += size
            while self._bytes > self.max_bytes:
                _, (_, dropped) = self._held.popitem(last=False)
                self._bytes -= dropped

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self._bytes = 0


BOUND = "LYCORIS_CACHE_MB"


def _bound() -> int:
    text = os.environ.get(BOUND, "4096")
    if not text.isdecimal():
        raise ValueError(f"the environment variable {BOUND} must be a number of megabytes, not {text!r}")
    return int(text) << 20


DEFAULT_CACHE = TensorCache(_bound())
"""What adapters use unless they are given another; LYCORIS_CACHE_MB sets its bound."""
