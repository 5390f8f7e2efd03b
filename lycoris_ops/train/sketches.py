"""Recognise the data of a training, even after they were computed again.

The same picture encoded again on a GPU does not give the same bits. So each sample is recognised by a few
random projections of its values (Johnson and Lindenstrauss, 1984). A small change of the values is a small
change of the projections. Another sample has quite different projections.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest

import torch
from torch import Tensor

Sketch = Sequence[float]
"""Projections of a sample's tensors, which identify it."""

PROJECTIONS = 4
HELD_OUT = "validation_"
"""How names of held-out data begin."""
CLOSE = 0.02
"""How much a projection may differ, as a share of the root mean square of the values. Unrelated samples
differ by about 1.4, roundings in float16 by 0.001."""


def sketches(samples: Iterable[Iterable[Tensor | str]]) -> list[Sketch]:
    """A sketch of each sample, given its tensors and texts in a fixed order."""
    # Cached: drawing takes longer than projecting, and samples come in few sizes.
    signs = lru_cache(maxsize=8)(_signs)
    return [[value for datum in sample for value in _sketch(datum, signs)] for sample in samples]


def data_changes(
    found: Mapping[str, Sequence[Sketch]], own: Mapping[str, Sequence[Sketch]]
) -> dict[str, str]:
    """How data differ from those of a state, in words, by the names of what changed.

    Empty for the same samples in any order, and for a state without sketches. Names with the same beginning,
    up to their last `_`, describe the same samples, such as `validation_latents` and `validation_captions`:
    row n of each is for sample n. Where a name has fewer rows than there are samples, they are gone through
    again, so a single row is for all.
    """
    names = [*dict.fromkeys((*found, *own))] if found else []
    changes: dict[str, str] = {}
    for beginning in dict.fromkeys(name.rpartition("_")[0] for name in names):
        group = [name for name in names if name.rpartition("_")[0] == beginning]
        changes |= _changes(group, _joined(group, found), _joined(group, own))
    return changes


_Sample = tuple[Sketch, ...]
"""The sketches of one sample, by their names in order. A name without rows has an empty sketch."""


def _joined(names: Sequence[str], data: Mapping[str, Sequence[Sketch]]) -> list[_Sample]:
    rows = [data.get(name) or [()] for name in names]
    count = max(len(data.get(name, ())) for name in names)
    return [tuple(each[number % len(each)] for each in rows) for number in range(count)]


def _changes(names: Sequence[str], theirs: Sequence[_Sample], ours: Sequence[_Sample]) -> dict[str, str]:
    _, gone, new = _paired(theirs, ours, range(len(names)))
    # With the same picture it is the same sample with another caption or mask.
    kept, gone, new = _paired(gone, new, (0,))
    counts = [f"{len(rows)} {what}" for rows, what in ((new, "new"), (gone, "gone")) if rows]
    words = {names[0]: f"{', '.join(counts)}, {len(ours)} in all"} if counts else {}
    others = Counter(
        name
        for before, now in kept
        for name, first, other in zip(names, before, now, strict=True)
        if not alike(first, other)
    )
    return words | {name: f"changed for {count} of {len(ours)}" for name, count in others.items()}


def _paired(
    theirs: Sequence[_Sample], ours: Sequence[_Sample], columns: Sequence[int]
) -> tuple[list[tuple[_Sample, _Sample]], list[_Sample], list[_Sample]]:
    """Pair the samples that are alike in these parts, of which 0 is one. Also returns the rest of both."""
    pairs: list[tuple[_Sample, _Sample]] = []
    gone: list[_Sample] = []
    left: list[_Sample] = []
    for before, now in zip_longest(theirs, ours):
        if before and now and _same(before, now, columns):
            pairs.append((before, now))
        else:
            gone += [before] if before else []
            left += [now] if now else []
    # Only samples with nearly the same first projection can be alike.
    gone.sort(key=_rank)
    ranks = [_rank(row) for row in gone]
    new: list[_Sample] = []
    for row in left:
        spread = 2 * CLOSE * row[0][1] if row[0] else 0.0
        index = bisect_left(ranks, _rank(row) - spread)
        while index < len(gone) and ranks[index] <= _rank(row) + spread:
            if _same(gone[index], row, columns):
                ranks.pop(index)
                pairs.append((gone.pop(index), row))
                break
            index += 1
        else:
            new.append(row)
    return pairs, gone, new


def _rank(row: _Sample) -> float:
    return row[0][2] if row[0] else 0.0


def _same(first: _Sample, second: _Sample, columns: Sequence[int]) -> bool:
    return all(alike(first[column], second[column]) for column in columns)


def _sketch(datum: Tensor | str, signs: Callable[[int], Iterable[Tensor]]) -> list[float]:
    """The number of values, their root mean square, and projections of about that size.

    A text gets its length, 1 and bytes of its hash.
    """
    if isinstance(datum, str):
        digest = hashlib.sha256(datum.encode()).digest()
        return [float(len(datum)), 1.0, *(float(digest[index]) for index in range(PROJECTIONS))]
    values = datum.detach().to("cpu", torch.float32).flatten()
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
