"""Give a training its batches, and keep the position from which a later run resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import TrainError
from ..maths.chance import Chance
from ..processes import Copies
from ..turns import Turn, shared_out, turns
from .tensors import mapped

Batches = Iterable[Any] | Callable[[int], Iterable[Any]]
"""The batches of each epoch: an iterable, or a function from the epoch's number to an iterable."""

DataPosition = tuple[int, int]
"""A position in the data: the epoch, and how many of its batches were used."""


def batches_of(batches: Batches, epoch: int) -> Iterable[Any]:
    """The batches of an epoch."""
    return batches(epoch) if callable(batches) else batches


@dataclass
class StepBatches:
    """The batches of one step."""

    own: list[Any] = field(default_factory=list[Any])
    beside: list[Any] = field(default_factory=list[Any])
    """Batches of other processes that this process runs too, because a sharded model needs all processes."""
    of: int = 0
    """How many batches the step has in all processes together."""


class Feed:
    """Gives each copy of a model its own batches of all epochs, in groups.

    An iterable is iterated anew in each epoch, with random numbers of its own (see `Chance`), so that a
    loader shuffles in the same way in a resumed run. To reach a position, the
    batches before it are read again.
    """

    def __init__(self, batches: Batches, seed: int, copies: Copies, position: DataPosition = (0, 0)) -> None:
        self._batches = batches
        self._seed = seed
        self._copies = copies
        self._once = isinstance(batches, Iterator)
        self._begin(*position)
        self._used = position[1] % copies.count
        while self._used < position[1] and self._next() is not None:
            pass

    @property
    def position(self) -> DataPosition:
        return self._epoch, self._used

    def take(self, most: int) -> StepBatches:
        """The next batches, at most `most` for each copy. A group never holds two epochs' batches.

        Raises TrainError where an epoch has no batch.
        """
        group = self._some(most)
        if not group.of:
            self._end()
            self._begin(self._epoch + 1)
            group = self._some(most)
        if not group.of:
            self._end()
        return group

    def _begin(self, epoch: int, start: int = 0) -> None:
        self._epoch, self._used = epoch, 0
        self._chance = Chance(self._seed, "data", epoch)
        with self._chance.drawn():
            batches = batches_of(self._batches, epoch)
            count, index = self._copies.count, self._copies.index
            if shared_out(batches, count):
                cast("Any", batches).sampler.set_epoch(epoch)
            self._rest = turns(batches, index, count, start)

    def _some(self, most: int) -> StepBatches:
        step = StepBatches()
        for _ in range(most):
            turn = self._next()
            if turn is None:
                break
            (step.own if turn.counts else step.beside).append(turn.batch)
            step.of += turn.of
        return step

    def _next(self) -> Turn | None:
        with self._chance.drawn():
            turn = next(self._rest, None)
        self._used += turn.of if turn else 0
        return turn

    def _end(self) -> None:
        """Raise TrainError if the epoch was empty, or came from an iterator, which has no second one."""
        if self._used == 0:
            raise _no_batches(self._epoch)
        if self._once:
            raise TrainError("E-batches-ended", used=self._used)


def steps_of(batches: Batches, epochs: int, accumulation: int, copies: int) -> int:
    """The steps of so many epochs if each of `copies` copies of a model takes `accumulation` batches a step.

    Raises TrainError where the batches have no length, or where there are none.
    """
    epoch = batches_of(batches, 0)
    try:
        share = copies if shared_out(epoch, copies) else 1
        count = share * len(cast("Any", epoch))
    except TypeError:
        raise TrainError("E-epoch-steps-unknown", key="epochs") from None
    if not count:
        raise _no_batches()
    return epochs * -(-count // (accumulation * copies))


def first_of(batches: Batches, seed: int) -> Any:
    """The first batch of a training with this seed. Raises TrainError where there is none."""
    with Chance(seed, "data", 0).drawn():
        for batch in batches_of(batches, 0):
            return batch
    raise _no_batches()


def no_validation() -> TrainError:
    """The error where there are no batches to validate with."""
    return TrainError("E-validation-batches-empty")


def _no_batches(epoch: int = 0) -> TrainError:
    return TrainError("E-epoch-without-batches", epoch=epoch + 1)


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors of a batch, in lists, tuples and mappings too."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(cast("Mapping[Any, Any]", batch).values())
    if isinstance(batch, (list, tuple)):
        return [tensor for member in cast("Sequence[Any]", batch) for tensor in tensors_of(member)]
    return []


def times_larger(batch: Any, first: Any) -> float:
    """How many times as many values a batch holds as `first`. At least 1, and 1 without tensors to count."""
    own, other = (sum(tensor.numel() for tensor in tensors_of(value)) for value in (batch, first))
    return max(1.0, own / other) if other else 1.0


def moved(batch: Any, device: torch.device | str | None) -> Any:
    """A batch with its tensors on a device, in lists, tuples and mappings too."""
    return batch if device is None else mapped(batch, lambda tensor: tensor.to(device, non_blocking=True))
