"""Move the first change towards the second, each value by at most a bound."""

from __future__ import annotations

from collections.abc import Sequence

from ...changes.forms import Additive, Dense
from ..deltas import Deltas
from ..elements import by_tiles
from ..method import MergeMethod, Option, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = a + clip(b - a, -t, t) for each value, with a = w_1 D_1 and b = w_2 D_2."""
    if deltas.count == 1:
        return deltas.combined(deltas.strengths)
    first, second = deltas.weighted()
    most = options["t"]
    moved = by_tiles(
        [first, second], lambda tile: tile[0] + (tile[1] - tile[0]).clamp(-most, most), deltas.pause
    )
    return [Dense(moved)]


METHOD = MergeMethod(
    name="nearswap",
    merge=merge,
    source="mergekit (nearswap), after the merge of Alcoholics-Not-Anonymous",
    factors=False,
    options=(
        Option(
            "t",
            0.001,
            "How far a value may move towards the second adapter's. 0 keeps the first one.",
            0,
            1e6,
        ),
    ),
    adapters=(2, 2),
    ordered=True,
    alone=lambda strength, _: strength,
)
