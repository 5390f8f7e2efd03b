"""Draw an examination as charts in one picture, and the blocks of a model as bars."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from ..charts import (
    INK,
    Axes,
    Bars,
    ColourTable,
    Point,
    Series,
    check_png,
    colour_of,
    in_rows,
    png_of,
    shortened,
    side_by_side,
)
from ..files.writing import new_files
from ..stack.survey import Survey
from .measure import KINDS, Examination, LayerMeasure

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = {kind: colour_of(number) for number, kind in enumerate(KINDS)} | {"other": "#7f7f7f"}
TIMES = 60
"""How many points of the sampling a schedule's chart shows."""
LEAST = 1e-6
"""The smallest value on a logarithmic axis."""


def draw_examination(found: Examination, path: str | os.PathLike[str]) -> None:
    """Write the picture of an examination to a PNG file.

    Raises LycorisError for another ending or without Pillow, and WriteError if it cannot be written.
    """
    file = Path(path)
    check_png(file)
    picture = png_of(examination_picture(found))
    with new_files([file], len(picture)) as (out,):
        out.write(picture)


def examination_picture(found: Examination) -> Image:
    """The charts of an examination as one picture. Raises LycorisError where Pillow is not installed."""
    return side_by_side(examination_charts(found))


def examination_charts(found: Examination) -> list[Axes | ColourTable]:
    """The charts of an examination.

    1. The norm of each adapter's change by block and kind of layer.
    2. The change of each layer beside its weight, in the order of the model; without a base its norm.
    3. The spectra of the layers, with the ranks that keep 90 and 99 % of the energy.
    4. The cosines of all pairs, over all and by block, where there are several adapters.
    5. What was lost in layers that were resized, merged or extracted, where the adapter says it.
    6. Strengths over the sampling, where they follow schedules.
    """
    charts: list[Axes | ColourTable] = [_energy(found), _relative(found), _spectra(found)]
    if len(found.entries) > 1:
        cosines = [[float(value) for value in row] for row in found.cosines()]
        charts += [
            ColourTable("cosine of the changes", [_named(name) for name in found.names], cosines),
            _by_block(found),
        ]
    if any(entry.adapter.report is not None for entry in found.entries):
        charts.append(_lost(found))
    if any(entry.schedule for entry in found.entries):
        charts.append(_schedules(found))
    return charts


def blocks_picture(found: Survey) -> Image:
    """Bars for each block's share of each adapter's change; without adapters, for its share of the
    weights."""
    title = "share of the squared norm of the change, by block" if found.adapters else "weights by block"
    legend = [(_named(one.entry.name), colour_of(number)) for number, one in enumerate(found.adapters)]
    return in_rows(title, block_rows(found), legend)


def block_rows(found: Survey) -> list[Bars]:
    if not found.adapters:
        return [Bars(name, [(count, colour_of(0), str(count))]) for name, count in found.blocks.items()]
    shares = {name: [one.share(name) for one in found.adapters] for name in found.blocks}
    return [
        Bars(name, [(share, colour_of(number), f"{share:.1%}") for number, share in enumerate(each)])
        for name, each in shares.items()
    ]


def _named(name: str) -> str:
    """A name without the ending that all files have."""
    return shortened(name.removesuffix(".safetensors"))


def _energy(found: Examination) -> Axes:
    places = {block: place for place, block in enumerate(found.blocks)}
    squares: dict[tuple[str, int, int], float] = defaultdict(float)
    for layer in found.layers:
        squares[layer.kind, layer.entry, places[layer.block]] += layer.norm**2
    width = 0.8 / len(found.entries)
    bottoms: dict[tuple[int, int], float] = defaultdict(float)
    series: list[Series] = []
    for kind in (*KINDS, "other"):
        corners: list[Point] = []
        for (_, entry, place), value in ((key, value) for key, value in squares.items() if key[0] == kind):
            left, bottom = place - 0.4 + entry * width, bottoms[entry, place]
            bottoms[entry, place] += value
            corners += [(left, bottom), (left + 0.9 * width, bottom + value)]
        if corners:
            series.append(Series(corners, COLOURS[kind], kind, "boxes"))
    title = "energy by block" + (", adapters side by side" if len(found.entries) > 1 else "")
    most = max(bottoms.values(), default=1.0)
    return Axes(title, series, up="||w D||^2", names=found.blocks, limits=(0.0, most))


def _relative(found: Examination) -> Axes:
    related = any(layer.weight for layer in found.layers)
    series: list[Series] = []
    for kind in (*KINDS, "other"):
        points = [
            (float(at), max(LEAST, (layer.relative or 0.0) if related else layer.norm))
            for at, layer in enumerate(found.layers)
            if layer.kind == kind
        ]
        if points:
            series.append(Series(points, COLOURS[kind], kind, "dots"))
    return Axes(
        "change of each layer" + (" beside its weight" if related else ""),
        series,
        across="layer, in the order of the model",
        up="||w D|| / ||W||" if related else "||w D||",
        logarithmic=(False, True),
    )


def _spectra(found: Examination) -> Axes:
    series: list[Series] = []
    marks: list[tuple[float, Series]] = []
    for entry, name in enumerate(found.names):
        own = [layer for layer in found.layers if layer.entry == entry and len(layer.spectrum) > 1]
        if not own:
            continue
        colour = colour_of(entry)
        ranks = range(1, max(len(layer.spectrum) for layer in own) + 1)
        ordered = [sorted(_value(layer, rank) for layer in own) for rank in ranks]
        low, middle, high = (
            [
                (float(rank), values[int(share * (len(values) - 1))])
                for rank, values in zip(ranks, ordered, strict=True)
            ]
            for share in (0.1, 0.5, 0.9)
        )
        series += [Series([*low, *reversed(high)], colour, form="area"), Series(middle, colour, _named(name))]
        for share, style in ((0.9, Series((), colour, form="dashes")), (0.99, Series((), colour))):
            kept = sorted(layer.rank_of(share) for layer in own)[len(own) // 2]
            marks.append((kept, style))
    return Axes(
        "spectra: median, and 10 to 90 % of the layers",
        series,
        across="rank; upright: where 90 % (dashed) and 99 % of the energy are kept",
        up="singular value / largest",
        logarithmic=(True, True),
        marks=marks,
    )


def _value(layer: LayerMeasure, rank: int) -> float:
    """The singular value of a rank as a share of the largest, no less than the end of the axis."""
    return max(LEAST, layer.spectrum[rank - 1]) if rank <= len(layer.spectrum) else LEAST


def _by_block(found: Examination) -> Axes:
    found_by = [found.cosines(block) for block in found.blocks]
    series = [Series([(-0.5, 0.0), (len(found.blocks) - 0.5, 0.0)], INK)]
    for number, (one, other) in enumerate(combinations(range(len(found.entries)), 2)):
        points = [(float(place), float(cosines[one, other])) for place, cosines in enumerate(found_by)]
        label = f"{one + 1} and {other + 1}"
        series.append(Series(points, colour_of(number), label, "line and dots"))
    return Axes(
        "cosine by block, by the numbers beside the names", series, names=found.blocks, limits=(-1.0, 1.0)
    )


def _lost(found: Examination) -> Axes:
    series = [
        Series(
            [(float(at), max(LEAST, row.error)) for at, row in enumerate(one.adapter.report.rows)],
            colour_of(entry),
            _named(one.name),
            "dots",
        )
        for entry, one in enumerate(found.entries)
        if one.adapter.report is not None
    ]
    return Axes(
        "what was lost when it was made", series, "layer", "||D' - D|| / ||D||", logarithmic=(False, True)
    )


def _schedules(found: Examination) -> Axes:
    return Axes("strength over the sampling", list(_curves(found)), "share of the clock", "strength")


def _curves(found: Examination) -> Iterator[Series]:
    times = [place / TIMES for place in range(TIMES + 1)]
    for entry, one in enumerate(found.entries):
        tracks = [track for stage in (one.schedule.stages if one.schedule else ()) for track in stage]
        for number, track in enumerate(tracks):
            names = " ".join(pattern.text for pattern in track.patterns)
            points = [(time, one.strength * track.timing.curve.at(time)) for time in times]
            label = f"{_named(one.name)} {names} ({track.timing.clock})"
            yield Series(points, colour_of(entry), label, "dashes" if number % 2 else "line")
