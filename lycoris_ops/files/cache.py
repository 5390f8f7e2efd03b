"""A cache, bounded in bytes, of tensors and of values that hold tensors."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from threading import RLock
from typing import Any, TypeVar

from torch import Tensor

from ..errors import LycorisError
from ..messages import phrase

T = TypeVar("T")
Tensors = Mapping[str, Tensor]


def size_of(group: Tensors) -> int:
    """Bytes of a group of tensors."""
    return sum(tensor.nbytes for tensor in group.values())


class TensorCache:
    """Groups of tensors and other values by key, in at most `max_bytes` bytes.

    Above this limit the least recently used entries are dropped first. The cache keeps no file open. It is
    safe to use from several threads.

    `max_bytes` may be a function that returns the limit. It is called when the cache is first used. With 0
    nothing is kept. Raises ValueError for a negative limit.
    """

    def __init__(self, max_bytes: int | Callable[[], int]) -> None:
        self._bound = max_bytes
        if not callable(max_bytes) and max_bytes < 0:
            raise ValueError(phrase("R-max-bytes-must-not-be", max_bytes=max_bytes))
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._lock = RLock()

    def __reduce__(self) -> Any:
        # Allows adapters to be copied and sent to other processes, where they get caches of their own.
        return "DEFAULT_CACHE" if self is DEFAULT_CACHE else (TensorCache, (self._bound,))

    @cached_property
    def max_bytes(self) -> int:
        return self._bound() if callable(self._bound) else self._bound

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def fetch(self, key: Hashable, read: Callable[[], Tensors], *, keep: bool = True) -> Tensors:
        """The group of tensors under a key. If the cache lacks it, `read` is called.

        The group that `read` returns is kept, unless `keep` is False.
        """
        return self.fetch_any(key, read, size_of, keep=keep)

    def fetch_any(
        self, key: Hashable, make: Callable[[], T], size: Callable[[T], int], *, keep: bool = True
    ) -> T:
        """The value under a key. If the cache lacks it, `make` is called. See `fetch` for `keep`.

        `size` returns the value's size in bytes.
        """
        # Get the limit before reading anything: it may be invalid.
        most = self.max_bytes
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
        # Outside the lock, so that a slow file blocks no other thread. Two threads may then make one value.
        value = make()
        # A larger value would evict every other entry, and then itself.
        if keep and (counted := size(value)) <= most:
            self._put(key, value, counted)
        return value

    def _put(self, key: Hashable, value: object, size: int) -> None:
        with self._lock:
            # Another thread may have made the same value meanwhile.
            if key in self._held:
                self._bytes -= self._held.pop(key)[1]
            self._held[key] = (value, size)
            self._bytes += size
            while self._bytes > self.max_bytes:
                _, (_, dropped) = self._held.popitem(last=False)
                self._bytes -= dropped

    def clear(self) -> None:
        """Drop everything that is held."""
        with self._lock:
            self._held.clear()
            self._bytes = 0


BOUND = "LYCORIS_CACHE_MB"
"""The environment variable that sets the bound of `DEFAULT_CACHE`, in units of 2^20 bytes."""


DEFAULT_MB = 4096
"""The default of the variable."""
DIGITS = 9
"""The most digits of the variable's value: more memory than any machine has."""


def _from_environment() -> int:
    text = os.environ.get(BOUND, str(DEFAULT_MB))
    if not text.isdecimal() or len(text) > DIGITS:
        raise LycorisError("E-cache-size-not-a-number", bound=BOUND, default_mb=DEFAULT_MB, got=repr(text))
    return int(text) << 20


DEFAULT_CACHE = TensorCache(_from_environment)
"""The cache for adapters if the caller gives none. Its limit is read from LYCORIS_CACHE_MB on first use. A
wrong value is therefore an error when an adapter is read, and not when the library is imported."""
