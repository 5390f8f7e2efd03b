"""The outcome of judging adapters at several strengths, in words and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..charts import ColourTable, Picture, below_each_other, shortened
from ..messages import phrase
from ..ranks.plan import table
from ..report.words import NAME

Place = tuple[int, int]
"""The indices of an adapter and of a strength."""
ALONE: Place = (-1, -1)
"""The place of the model without any adapter."""
BEST, BESIDE = 2.5, 1.0
"""The widths of the frames around the best pair and around its neighbours."""
LINES = 12
"""The most lines of a table in words."""


def mean(values: Sequence[float]) -> float:
    """The mean; infinite where a value is not finite."""
    average = sum(values) / len(values) if values else math.inf
    return average if math.isfinite(average) else math.inf


@dataclass(frozen=True)
class Judgement:
    """The losses of adapters at several strengths on the same draws, see `judge`."""

    names: tuple[str, ...]
    strengths: tuple[float, ...]
    losses: Mapping[Place, Sequence[float]]
    """For each place, and for `ALONE`, its losses on the first draws. A place that dropped out has fewer."""
    draws: int
    """How many draws there are."""
    chosen: Place | None = None
    """The best by another measure, among the pairs that the loss cannot tell apart."""
    because: str = ""
    """Why it was chosen, in words."""

    @property
    def best(self) -> Place:
        """The `chosen` pair, else the pair with the lowest loss among those measured on the most draws."""
        if self.chosen is not None:
            return self.chosen
        own = [pair for pair in self.losses if pair != ALONE]
        return min(own, key=lambda pair: (-len(self.losses[pair]), mean(self.losses[pair])))

    @property
    def spent(self) -> float:
        """The number of passes made, as a share of all places on all draws."""
        return sum(map(len, self.losses.values())) / (self.draws * len(self.losses))

    def behind(self, pair: Place) -> tuple[float, float]:
        """How far the loss of a place is above the best's, and the standard error of this difference.

        These are mean(d) and std(d) / sqrt(n) for the differences d on the n draws that both have. With one
        draw the error is infinite, except for the best itself. Where a loss is not finite, the difference is
        infinite and the error 0.
        """
        pairs = list(zip(self.losses[pair], self.losses[self.best], strict=False))
        differences = [first - other for first, other in pairs]
        count, middle = len(differences), mean(differences)
        if not math.isfinite(middle):
            return math.inf, 0.0
        if count < 2:
            return middle, 0.0 if pair == self.best else math.inf
        square = sum((difference - middle) ** 2 for difference in differences) / (count - 1)
        return middle, math.sqrt(square / count)

    def loss(self, pair: Place) -> float:
        """The loss of the best, plus the mean difference of the place from it on the draws that both have."""
        return mean(self.losses[self.best]) + self.behind(pair)[0]

    @property
    def alike(self) -> list[Place]:
        """The pairs whose loss is above the best one's by at most the standard error of the difference. The
        best comes first, then the others by their loss."""
        adapted = (pair for pair in self.losses if pair != ALONE)
        near = [pair for pair in adapted if (both := self.behind(pair))[0] <= both[1] < math.inf]
        return sorted(near, key=lambda pair: (pair != self.best, self.behind(pair)[0]))

    @property
    def helps(self) -> bool:
        """Whether the best is better than the model alone."""
        return self.behind(ALONE)[0] > 0

    @property
    def at_edge(self) -> bool:
        """Whether the best strength is the lowest or highest of several, so that one further out may be
        better."""
        column = self.best[1]
        return len(self.strengths) > 1 and self.strengths[column] in (
            min(self.strengths),
            max(self.strengths),
        )

    def called(self, pair: Place) -> str:
        if pair == ALONE:
            return phrase("R-model-alone")
        return phrase("R-at", names=shortened(self.names[pair[0]], NAME), strengths=self.strengths[pair[1]])

    def verdict(self) -> str:
        """The best pair, in a sentence."""
        own, alone = self.loss(self.best), self.loss(ALONE)
        if not self.helps:
            return phrase(
                "R-no-adapter-better-than-model", alone=alone, called=self.called(self.best), own=own
            )
        gain = phrase("R-below-model-alone", value=1 - own / alone) if math.isfinite(alone) and alone else ""
        others = len(self.alike) - 1
        same = phrase("R-good-within-noise", others=others)
        because = f"; {self.because}" if self.because else ""
        return phrase(
            "R-best-held-out-loss",
            called=self.called(self.best),
            own=own,
            gain=gain,
            same=same * (others > 0),
            because=because,
        )

    def __str__(self) -> str:
        """The verdict, and a table of the best pairs."""
        order = sorted(self.losses, key=lambda pair: (pair != self.best, self.behind(pair)[0]))
        shown = order[:LINES] if ALONE in order[:LINES] else [*order[: LINES - 1], ALONE]
        head = ("adapter", "strength", "loss", phrase("R-above-best"), "draws")
        rows: list[tuple[str, ...]] = []
        for each in shown:
            far, error = self.behind(each)
            name = phrase("R-model-alone") if each == ALONE else shortened(self.names[each[0]], NAME)
            strength = "" if each == ALONE else f"{self.strengths[each[1]]:g}"
            above = f"{far:.2g} ± {error:.1g}" if math.isfinite(far + error) else f"{far:.2g}"
            draws = str(len(self.losses[each]))
            rows.append((name, strength, f"{self.loss(each):.4g}", "" if each == self.best else above, draws))
        cost = phrase(
            "R-model-alone-each-on-up", count=len(self.losses) - 1, draws=self.draws, spent=self.spent
        )
        edge = [phrase("R-best-strength-lowest-or-highest")] * self.at_edge
        return "\n".join([self.verdict(), *edge, cost, *table((head, *rows), texts=1)])


def judgement_picture(found: Judgement, beside: Mapping[Place, Mapping[str, float]] | None = None) -> Picture:
    """The losses as colours, with a row for each adapter and a column for each strength.

    One colour is for losses below the model's own, stronger the further they are; the other is for losses
    above it. The best pair has a frame, and its neighbours have thin ones. A second table shows `beside`:
    further numbers of some places by name, such as how near their pictures are to the data.
    """
    alone, best = found.loss(ALONE), found.best
    finite = [found.loss(pair) for pair in found.losses if math.isfinite(found.loss(pair))]
    most = max((abs(loss - alone) for loss in finite), default=0.0) if math.isfinite(alone) else 0.0
    order = sorted(range(len(found.strengths)), key=lambda column: found.strengths[column])

    def value(pair: Place) -> float:
        loss = found.loss(pair)
        return (loss - alone) / most if most and math.isfinite(loss) else math.nan

    pairs = [[(row, column) for column in order] for row in range(len(found.names))]
    middle = order.index(best[1])
    frames = {
        (row, column): BEST if (row, column) == (best[0], middle) else BESIDE
        for row in range(len(found.names))
        for column in range(len(order))
        if abs(row - best[0]) <= 1 and abs(column - middle) <= 1
    }
    losses = ColourTable(
        phrase("R-held-out-loss-strength"),
        found.names,
        [[value(pair) for pair in row] for row in pairs],
        columns=[f"{found.strengths[column]:g}" for column in order],
        words=[[f"{found.loss(pair):.3g}" for pair in row] for row in pairs],
        frames=frames,
    )
    further = [_further(found, beside)] if beside else []
    return below_each_other(found.verdict(), [], [losses, *further])


def _further(judgement: Judgement, beside: Mapping[Place, Mapping[str, float]]) -> ColourTable:
    rows = [list(values.values()) for values in beside.values()]
    pairs = list(beside)
    return ColourTable(
        phrase("R-pictures-best"),
        [judgement.called(pair) for pair in pairs],
        rows,
        columns=list(beside[pairs[0]]),
        words=[[f"{value:.3f}" for value in row] for row in rows],
        frames={(pairs.index(judgement.best), 0): BEST} if judgement.best in pairs else {},
    )
