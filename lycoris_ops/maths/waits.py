"""Let much work wait for a device together.

Work that needs values of a device is written as a generator: it yields tensors, gets them on the CPU, and
returns its result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Generic, TypeVar, cast

from torch import Tensor

from .tensors import fetched

T = TypeVar("T")
Asking = Generator[Sequence[Tensor], list[Tensor], T]
"""Work that asks for tensors and returns a T."""
TOGETHER = 256 << 20
"""The most bytes of changes, or of gradients, whose work waits together."""


def together(work: Iterable[tuple[int, Asking[T]]]) -> Iterator[T]:
    """The results of much work, in order. Each comes with the bytes that it takes, see TOGETHER.

    Each runs until it asks for tensors of a device. Then the next one starts, up to TOGETHER bytes. What all
    of them ask for is fetched with one wait. On the CPU each ends before the next one starts.
    """
    running: deque[_Running[T]] = deque()
    for size, one in work:
        while running and size + sum(each.size for each in running) > TOGETHER:
            _answer(running)
            yield from _ended(running)
        running.append(_Running(size, one))
        yield from _ended(running)
    while running:
        _answer(running)
        yield from _ended(running)


def alone(work: Asking[T]) -> T:
    """The result of work that waits by itself."""
    (found,) = together([(0, work)])
    return found


def answered(found: T | Asking[T]) -> Asking[T]:
    """The result of a function that may ask for tensors."""
    return (yield from cast("Asking[T]", found)) if isinstance(found, Generator) else found


class _Running(Generic[T]):
    """Work that has started."""

    def __init__(self, size: int, work: Asking[T]) -> None:
        self.size = size
        self.asked: Sequence[Tensor] = ()
        self.ended: list[T] = []
        """The result, once there is one."""
        self._work = work
        self._run(lambda: next(work))

    def answer(self, found: list[Tensor]) -> None:
        self._run(lambda: self._work.send(found))

    def _run(self, step: Callable[[], Sequence[Tensor]]) -> None:
        try:
            self.asked = step()
            while all(one.device.type == "cpu" for one in self.asked):
                self.asked = self._work.send(fetched(*self.asked))
        except StopIteration as end:
            self.asked = ()
            self.ended.append(end.value)


def _answer(running: Iterable[_Running[T]]) -> None:
    waiting = [one for one in running if not one.ended]
    found = iter(fetched(*(tensor for one in waiting for tensor in one.asked)))
    for one in waiting:
        one.answer([next(found) for _ in one.asked])


def _ended(running: deque[_Running[T]]) -> Iterator[T]:
    while running and running[0].ended:
        yield from running.popleft().ended
