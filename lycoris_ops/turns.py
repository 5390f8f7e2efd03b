"""The batches of one of several processes, without reading the batches of the others where possible."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, cast

REPLACED = frozenset({"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"})
"""The arguments of a data loader that define its batches."""
LASTING = frozenset({"persistent_workers", "pin_memory_device"})
"""Arguments that a loader of one epoch does not need, or that newer versions of torch warn about."""


class Turn(NamedTuple):
    """One process's batch in a turn. In each turn every process takes one batch."""

    batch: Any
    counts: bool
    """False if the last turn has too few batches, so that this batch repeats the first batch of the turn."""
    of: int
    """The number of batches of all processes in this turn."""


def turns(batches: Iterable[Any], rank: int, count: int, start: int = 0) -> Iterator[Turn]:
    """The turns of process `rank` of n = `count`. It takes every n-th batch, after skipping `start % n`
    batches.

    The batches of other processes are not read if `batches` is a sequence or torch's loader of a map-style
    data set. A loader with a `DistributedSampler` gives only the process's own batches.
    """
    if count == 1 or shared_out(batches, count):
        return (Turn(batch, True, count) for batch in iter(batches))
    start %= count
    if isinstance(batches, Sequence):
        indices = _Indices(range(start, len(batches)), rank, count)
        return _sized((batches[index] for index in indices), indices)
    if _has_indices(batches):
        loader: Any = batches
        by_batch = loader.batch_sampler is not None
        sampler = loader.batch_sampler if by_batch else loader.sampler
        indices = _Indices(sampler, rank, count, start)
        return _sized(iter(_with_indices(loader, indices, by_batch=by_batch)), indices)
    return _turns(islice(iter(batches), start, None), rank, count)


def shared_out(batches: Iterable[Any], count: int) -> bool:
    """Whether the batches are already the share of one process, with equal shares for all processes."""
    if count == 1:
        return False
    from torch.utils.data import DistributedSampler

    return isinstance(getattr(batches, "sampler", None), DistributedSampler)


class _Indices:
    """The indices of a sampler for the batches of one process."""

    def __init__(self, every: Iterable[Any], rank: int, count: int, start: int = 0) -> None:
        self.every, self.rank, self.count, self.start = every, rank, count, start
        self.sizes: deque[int] = deque()
        """`Turn.of` for each index that a loader has taken, but whose batch is still to come."""

    def __iter__(self) -> Iterator[Any]:
        for turn in _turns(islice(self.every, self.start, None), self.rank, self.count):
            self.sizes.append(turn.of)
            yield turn.batch


def _turns(batches: Iterator[Any], rank: int, count: int) -> Iterator[Turn]:
    """The turns of a process that reads all batches."""
    while group := list(islice(batches, count)):
        counts = rank < len(group)
        yield Turn(group[rank if counts else 0], counts, len(group))


def _sized(batches: Iterator[Any], indices: _Indices) -> Iterator[Turn]:
    for batch in batches:
        of = indices.sizes.popleft()
        yield Turn(batch, indices.rank < of, of)


def _has_indices(batches: Iterable[Any]) -> bool:
    from torch.utils.data import DataLoader, IterableDataset

    return type(batches) is DataLoader and not isinstance(cast("Any", batches).dataset, IterableDataset)


def _with_indices(loader: Any, indices: _Indices, *, by_batch: bool) -> Iterable[Any]:
    """A copy of a loader that gives only the batches at these indices."""
    from torch.utils.data import DataLoader

    known = inspect.signature(DataLoader).parameters.keys() - REPLACED - LASTING
    alike = {name: getattr(loader, name) for name in known if hasattr(loader, name)}
    own: dict[str, Any] = {"batch_sampler": indices} if by_batch else {"sampler": indices, "batch_size": None}
    return DataLoader(**alike, **own)
