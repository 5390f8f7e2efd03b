"""Draw an examination as charts below each other, and the blocks of a model as bars."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

from ..charts import (
    INK,
    THIN,
    WIDTH,
    Axes,
    BarRow,
    ColourTable,
    Picture,
    Point,
    Series,
    below_each_other,
    colour_of,
    in_rows,
    write_png,
)
from ..messages import phrase
from ..report.blocks import blocks_verdict
from ..report.words import plain_name
from ..stack.survey import Survey
from .measure import ENOUGH, KINDS, Examination, LayerMeasure
from .words import examination_verdict

COLOURS = {kind: colour_of(number) for number, kind in enumerate(KINDS)} | {"other": "#8c8c8c"}
TIMES = 60
"""The steps along a schedule's chart."""
LEAST = 1e-6
"""The smallest value on a logarithmic axis."""
PAIRS = 3
"""The most pairs of adapters that are compared block by block."""


def draw_examination(found: Examination, path: str | os.PathLike[str]) -> None:
    """Write the picture of an examination to a PNG file.

    Raises LycorisError for another ending or without Pillow, and WriteError if it cannot be written.
    """
    write_png(Path(path), lambda: examination_picture(found))


def examination_picture(found: Examination) -> Picture:
    """The charts of an examination as one picture. Several adapters have a colour each, in all charts."""
    several = len(found.entries) > 1
    legend = [(name, colour_of(entry)) for entry, name in enumerate(_names(found))] if several else []
    return below_each_other(examination_verdict(found), legend, examination_charts(found))


def examination_charts(examined: Examination) -> list[Axes | ColourTable]:
    """The charts of an examination.

    1. How large the change is in each block.
    2. The change of each layer relative to its weight, in the order of the model; without a base its norm.
    3. What lower ranks would keep of the layers.
    4. With several adapters, the cosines of all pairs, and those of the strongest pairs by block.
    5. What each layer lost when it was resized, merged or extracted, if an adapter was made in this session.
    6. Strengths over the sampling, if there are schedules.
    """
    charts: list[Axes | ColourTable] = [_by_block(examined), _relative(examined)]
    if ranked := _kept(examined):
        charts.append(ranked)
    if len(examined.entries) > 1:
        cosines = [[float(value) for value in row] for row in examined.cosines()]
        charts += [ColourTable(phrase("R-chart-alike"), _names(examined), cosines), _pairs(examined)]
    if any(entry.adapter.report is not None for entry in examined.entries):
        charts.append(_lost(examined))
    if any(entry.schedule for entry in examined.entries):
        title = phrase("R-chart-strengths")
        charts.append(Axes(title, list(_curves(examined)), phrase("R-chart-clock")))
    return charts


def blocks_picture(found: Survey) -> Picture:
    """Bars for each block's share of each adapter's change; without adapters, for its number of weights."""
    legend = [(plain_name(own.entry.name), colour_of(number)) for number, own in enumerate(found.adapters)]
    title = phrase("R-chart-block-shares" if found.adapters else "R-chart-block-weights")
    return in_rows(blocks_verdict(found), title, block_rows(found), legend)


def block_rows(survey: Survey) -> list[BarRow]:
    if not survey.adapters:
        return [BarRow(name, [(count, colour_of(0), str(count))]) for name, count in survey.blocks.items()]
    shares = {name: [adapter.share(name) for adapter in survey.adapters] for name in survey.blocks}
    return [
        BarRow(name, [(share, colour_of(number), f"{share:.1%}") for number, share in enumerate(each)])
        for name, each in shares.items()
    ]


def _names(examined: Examination) -> list[str]:
    return [plain_name(name) for name in examined.names]


def _groups(examined: Examination) -> Iterator[tuple[str, str, list[tuple[int, LayerMeasure]]]]:
    """Groups (label, colour, layers with their numbers): by kind for one adapter, else by adapter.

    Groups by adapter have no label: the legend of all charts names them.
    """
    layers = list(enumerate(examined.layers))
    if len(examined.entries) > 1:
        for entry in range(len(examined.entries)):
            yield "", colour_of(entry), [numbered for numbered in layers if numbered[1].entry == entry]
        return
    for kind in (*KINDS, "other"):
        if own := [numbered for numbered in layers if numbered[1].kind == kind]:
            yield kind, COLOURS[kind], own


def _by_block(examined: Examination) -> Axes:
    """The norm in each block; for one adapter, the shares of the squared norm, stacked by kind."""
    positions = {block: position for position, block in enumerate(examined.blocks)}
    count = len(examined.entries)
    series: list[Series] = []
    if count == 1:
        total = sum(layer.norm**2 for layer in examined.layers) or 1.0
        bottoms: dict[int, float] = defaultdict(float)
        for label, colour, own in _groups(examined):
            squares: dict[int, float] = defaultdict(float)
            for _, layer in own:
                squares[positions[layer.block]] += layer.norm**2 / total
            series.append(Series(_boxes(squares, -0.4, 0.8, bottoms), colour, label, "boxes"))
            for index, value in squares.items():
                bottoms[index] += value
        most = max(bottoms.values(), default=0.0) or 1.0
        title = phrase("R-chart-kinds")
        return Axes(title, series, names=examined.blocks, limits=(0.0, most), percent=True)
    width = 0.8 / count
    thin = THIN * count * len(examined.blocks) > WIDTH
    for entry in range(count):
        norms = {positions[block]: norm for block, norm in examined.norms(entry).items()}
        if thin:
            points = sorted((float(position), norm) for position, norm in norms.items())
            series.append(Series(points, colour_of(entry), form="line and dots"))
        else:
            left = -0.4 + entry * width
            series.append(Series(_boxes(norms, left, 0.9 * width, {}), colour_of(entry), form="boxes"))
    most = max((y for each in series for _, y in each.points), default=0.0) or 1.0
    title = phrase("R-chart-block-sizes")
    return Axes(title, series, names=examined.blocks, limits=(0.0, most))


def _boxes(
    heights: Mapping[int, float], left: float, width: float, bottoms: Mapping[int, float]
) -> list[Point]:
    """Two corners of a box at each position."""
    corners: list[Point] = []
    for position, height in heights.items():
        bottom = bottoms.get(position, 0.0)
        corners += [(position + left, bottom), (position + left + width, bottom + height)]
    return corners


def _relative(examined: Examination) -> Axes:
    related = any(layer.weight for layer in examined.layers)
    series = [
        Series(
            [
                (float(at), max(LEAST, (layer.relative or 0.0) if related else layer.norm))
                for at, layer in own
            ],
            colour,
            label,
            "dots",
        )
        for label, colour, own in _groups(examined)
    ]
    return Axes(
        phrase("R-chart-layers-relative" if related else "R-chart-layers"),
        series,
        across=phrase("R-chart-layer-order"),
        logarithmic=(False, True),
        percent=related,
    )


def _kept(examined: Examination) -> Axes | None:
    """What each rank would keep of each adapter's layers; None where no adapter has a rank."""
    series: list[Series] = []
    marks: list[tuple[float, Series]] = []
    most = 1
    for entry, colour in enumerate(map(colour_of, range(len(examined.entries)))):
        own = [layer for layer in examined.layers if layer.entry == entry and len(layer.spectrum) > 1]
        if not own:
            continue
        count = max(len(layer.spectrum) for layer in own)
        most = max(most, count)
        ordered = [sorted(each) for each in zip(*(layer.kept(count) for layer in own), strict=True)]
        low, middle, high = (
            [(float(rank), values[int(share * (len(values) - 1))]) for rank, values in enumerate(ordered, 1)]
            for share in (0.1, 0.5, 0.9)
        )
        series += [Series([*low, *reversed(high)], colour, form="area"), Series(middle, colour)]
        marks.append((float(examined.enough(entry) or 1), Series((), colour, form="dashes")))
    if not series:
        return None
    return Axes(
        phrase("R-chart-kept"),
        series,
        across=phrase("R-chart-rank", share=ENOUGH),
        logarithmic=(True, False),
        ticks=[2.0**power for power in range(most.bit_length())],
        marks=marks,
        limits=(0.0, 1.0),
        percent=True,
    )


def _pairs(examined: Examination) -> Axes:
    """The cosines by block, for the pairs that are most alike or opposed in some block."""
    by_block = [examined.cosines(block) for block in examined.blocks]
    pairs = list(combinations(range(len(examined.entries)), 2))
    strongest = sorted(pairs, key=lambda pair: -max(abs(float(like[pair])) for like in by_block))[:PAIRS]
    series = [Series([(-0.5, 0.0), (len(examined.blocks) - 0.5, 0.0)], INK)]
    names = _names(examined)
    for number, pair in enumerate(sorted(strongest)):
        points = [(float(position), float(cosines[pair])) for position, cosines in enumerate(by_block)]
        label = phrase("R-both", first=names[pair[0]], second=names[pair[1]])
        # Not the colours of the adapters themselves.
        series.append(Series(points, colour_of(len(names) + number), label, "line and dots"))
    title = phrase("R-chart-alike-blocks")
    if len(pairs) > PAIRS:
        title = phrase("R-chart-alike-strongest", pairs=PAIRS)
    return Axes(title, series, names=examined.blocks, limits=(-1.0, 1.0))


def _lost(examined: Examination) -> Axes:
    several = len(examined.entries) > 1
    series = [
        Series(
            [(float(at), max(LEAST, row.error)) for at, row in enumerate(each.adapter.report.rows)],
            colour_of(entry),
            "" if several else plain_name(each.name),
            "dots",
        )
        for entry, each in enumerate(examined.entries)
        if each.adapter.report is not None
    ]
    return Axes(
        phrase("R-chart-lost"),
        series,
        phrase("R-chart-layer"),
        logarithmic=(False, True),
        percent=True,
    )


def _curves(examined: Examination) -> Iterator[Series]:
    times = [step / TIMES for step in range(TIMES + 1)]
    for entry, each in enumerate(examined.entries):
        tracks = [track for stage in (each.schedule.stages if each.schedule else ()) for track in stage]
        for number, track in enumerate(tracks):
            names = " ".join(pattern.text for pattern in track.patterns)
            points = [(time, each.strength * track.timing.curve.at(time)) for time in times]
            label = f"{plain_name(each.name)} {names} ({track.timing.clock})"
            yield Series(points, colour_of(entry), label, "dashes" if number % 2 else "line")
