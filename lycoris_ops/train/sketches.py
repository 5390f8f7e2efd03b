"""Recognise the data of a training, even after they were computed again.

The same picture encoded again on a GPU does not give the same bits. So each sample is recognised by a few
random projections of its values (Johnson and Lindenstrauss, 1984). A small change of the values is a small
change of the projections. Another sample has quite different projections.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import TrainError

Sketch = Sequence[float]
"""Projections of a sample's tensors, which identify it."""

PROJECTIONS = 4
CLOSE = 0.02
"""How much a projection may differ, as a share of the root mean square of the values. Unrelated samples
differ by about 1.4, roundings in float16 by 0.001."""


def sketches(samples: Iterable[Iterable[Tensor | str]]) -> list[Sketch]:
    """A sketch of each sample, given its tensors and texts in a fixed order."""
    # Cached: drawing takes longer than projecting, and samples come in few sizes.
    signs = lru_cache(maxsize=8)(_signs)
    return [[value for part in sample for value in _sketch(part, signs)] for sample in samples]


def check_data(
    found: Mapping[str, Sequence[Sketch]], own: Mapping[str, Sequence[Sketch]], file: str | None
) -> None:
    """Raise TrainError, with the first difference, if a state is from a training on other data. A state
    without sketches always passes.
    """
    if not found:
        return
    hint = "Give the same data in the same order, or begin a new training"
    problem = "the data differ from those that the training began with"
    for name in dict.fromkeys((*found, *own)):
        theirs, ours = found.get(name, ()), own.get(name, ())
        if len(theirs) != len(ours):
            raise TrainError(
                problem, file=file, key=name, got=f"{len(ours)}", expected=f"{len(theirs)}", hint=hint
            )
        for number, pair in enumerate(zip(theirs, ours, strict=True), 1):
            if not alike(*pair):
                where = f"{name}, number {number} of {len(ours)}"
                raise TrainError(problem, file=file, key=where, got="another sample", hint=hint)


def _sketch(part: Tensor | str, signs: Callable[[int], Iterable[Tensor]]) -> list[float]:
    """The number of values, their root mean square, and projections of about that size.

    A text gets its length, 1 and bytes of its hash.
    """
    if isinstance(part, str):
        digest = hashlib.sha256(part.encode()).digest()
        return [float(len(part)), 1.0, *(float(digest[index]) for index in range(PROJECTIONS))]
    values = part.detach().to("cpu", torch.float32).flatten()
    count = values.numel()
    size = float(values.square().mean().sqrt()) if count else 0.0
    return [float(count), size, *(float(values @ own) / max(1, count) ** 0.5 for own in signs(count))]


def _signs(count: int) -> list[Tensor]:
    """The projection directions for this many values, always the same."""
    draw = torch.Generator().manual_seed(count)
    return [
        torch.randint(0, 2, (count,), generator=draw, dtype=torch.float32) * 2 - 1 for _ in range(PROJECTIONS)
    ]


def alike(first: Sketch, second: Sketch) -> bool:
    """Whether two sketches are of the same sample."""
    size = PROJECTIONS + 2
    if len(first) != len(second):
        return False
    for start in range(0, len(first), size):
        a, b = first[start : start + size], second[start : start + size]
        if a[0] != b[0] or any(
            abs(x - y) > CLOSE * max(a[1], b[1]) for x, y in zip(a[1:], b[1:], strict=True)
        ):
            return False
    return True
