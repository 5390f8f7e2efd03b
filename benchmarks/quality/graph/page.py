"""The part of docs/quality.md on what nodes train in the graph."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ..curves import reached
from ..tables import count, table
from .rows import RECIPE, SEARCHED_AT, SEEDS, SHAPES, STEPS, Key, Row
from .ways import BATCH, ITSELF, WAYS

NAME, SIZE = "LoRA by hand", 4
"""The way and the size whose loss others are compared with."""
SIGNS = {"": "", "<": "at most ", ">": "over "}

ABOUT = """\
## In the graph

A flow transformer of FLUX.1's layout (1.5 M) that ComfyUI itself builds, trained by the benchmark on drawn
shapes, bright on black. Nodes train adapters of it on {pictures} pictures of another kind, hatched and dark
on a ground that fades, {batch} in a step. ComfyUI then patches the model with what each node gave, and the
loss is measured: the mean square error of the velocity on {held} other pictures, at fixed noise and evenly
spaced times. Without an adapter it is {before:.4f}. "By theirs" is the loss that ComfyUI's trainer minimises:
the mean square error of the denoised latent, at the times of its schedule.

Rates are the best of half decades after {last} steps, on pictures of their own; "edge" marks those that are
not yet between two worse ones. "Usual rate" is what `lycoris_ops.train.rates` gives for these layers, where
searches begin too: 1e-4, which the node takes for models of this layout, is for models 24 times as wide.
All other settings are the defaults of the nodes, such as a constant rate, except in "cosine", and in
ComfyUI's trainer an alpha of 1, and bfloat16 in "as set". That trainer also trains all norms and biases,
beside LoRA on all layers; this pack's trains the layers that are usual for the model, except in "all layers".
"Plan" is Plan LyCORIS Ranks before Train LoRA / LyCORIS; "x 4" is LoRA of rank 4, or as many numbers. A
plan on all layers has no norms and no biases, and its x 4 counts the norms. "Steps" is how many a way needs
at this size for the loss of {name} x {size} after {last} steps. "Share" is how many numbers it needs for
that loss, over all its sizes, as a share of the numbers of {name} x {size}. "By theirs" and seconds are
after {last} steps; seconds are CPU time, plan and search included, on one core of
{machines}.
Figures are of one seed; those with a standard deviation are means of up to {seeds}.

On all layers a plan reaches the loss of LoRA with norms and biases, or of ComfyUI's trainer, with a quarter
of their numbers and in as many steps. This is partly because it has no norms and no biases: LoRA without them
needs half as many numbers as with them for the same loss. It is 8 % above a plan of its size, which is no
more than its spread over seeds.

`python -m benchmarks.quality.graph.run` trains the missing rows.
"""
Groups = Mapping[tuple[str, int], Mapping[int, Sequence[Row]]]
"""The rows at the best rate, by way and size and then by the number of steps."""


def grouped(rows: Mapping[Key, Row]) -> Groups:
    found: dict[tuple[str, int], dict[int, list[Row]]] = {}
    for way in WAYS:
        for size in way.sizes:
            of_way = (RECIPE, way.name, size)
            own = [row for row in rows.values() if (row.key.recipe, row.key.way, row.key.size) == of_way]
            if way.start is not ITSELF:
                tuned = [row for row in own if (row.key.seed, row.key.steps) == (SEEDS[0], SEARCHED_AT)]
                step = min(tuned, key=lambda row: row.tune).key.step if tuned else None
                own = [row for row in own if row.key.step == step]
            by_steps = {steps: [row for row in own if row.key.steps == steps] for steps in STEPS}
            if by_steps[SEARCHED_AT]:
                found[of_way[1:]] = {steps: rows for steps, rows in by_steps.items() if rows}
    return found


def section(rows: Mapping[Key, Row]) -> str:
    """The text and its table. Raises KeyError where the way NAME has no rows."""
    rows = {key: row for key, row in rows.items() if key.recipe == RECIPE}
    groups = grouped(rows)
    target = groups[NAME, SIZE][SEARCHED_AT]
    wanted, whole = mean(target), target[0].numbers
    points: dict[str, list[tuple[float, float]]] = {}
    for (name, _), by_steps in groups.items():
        own = by_steps[SEARCHED_AT]
        points.setdefault(name, []).append((own[0].numbers, mean(own)))
    lines: list[Sequence[str]] = []
    for (name, size), by_steps in groups.items():
        ends = by_steps[SEARCHED_AT]
        first = name not in {line[0] for line in lines}
        bound, steps = reached(
            [(steps, mean(own)) for steps, own in by_steps.items()], wanted, logarithmic=True
        )
        sign, numbers = reached(points[name], wanted, logarithmic=True)
        step = ends[0].key.step
        lines.append(
            (
                name,
                f"x {size}",
                count(ends[0].numbers),
                "its own" if step is None else f"{10 ** (step / 4):.1e}{edge(rows, ends[0].key)}",
                *(spread(by_steps.get(steps, ())) for steps in STEPS),
                f"{statistics.fmean(row.as_theirs for row in ends):.4f}",
                f"{SIGNS[bound]}{steps:.0f}",
                f"{SIGNS[sign]}{numbers / whole:.2f}" if first else "",
                f"{statistics.fmean(row.seconds for row in ends):.0f}",
            )
        )
    about = ABOUT.format(
        pictures=SHAPES.pictures["train"],
        held=SHAPES.pictures["test"],
        batch=BATCH,
        before=next(iter(rows.values())).before,
        name=NAME,
        size=SIZE,
        last=SEARCHED_AT,
        machines=" and of ".join(sorted({row.machine for row in rows.values()})),
        seeds=len(SEEDS),
    )
    titles = ("trained by", "size", "numbers", "rate", *(f"after {steps} steps" for steps in STEPS))
    titles = (*titles, "by theirs", "steps", "share", "seconds")
    return f"{about}\n{table(titles, lines)}"


def edge(rows: Mapping[Key, Row], best: Key) -> str:
    """A mark where the best rate is not yet between two that were tried and are worse."""
    tried = [key.step for key in rows if (key.way, key.size, key.steps) == (best.way, best.size, best.steps)]
    steps = [step for step in tried if step is not None]
    return "" if best.step is not None and min(steps) < best.step < max(steps) else " (edge)"


def mean(rows: Sequence[Row]) -> float:
    return statistics.fmean(row.test for row in rows)


def spread(rows: Sequence[Row]) -> str:
    """The mean loss with its standard deviation, where there is more than one."""
    if not rows:
        return "–"
    return f"{mean(rows):.4f}" + (
        f" ± {statistics.stdev(row.test for row in rows):.4f}" if len(rows) > 1 else ""
    )
