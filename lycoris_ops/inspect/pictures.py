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


def examination_charts(found: Examination) -> list[Axes | ColourTable]:
    """The charts of an examination.

    1. How large the change is in each block.
    2. The change of each layer relative to its weight, in the order of the model; without a base its norm.
    3. What lower ranks would keep of the layers.
    4. With several adapters, the cosines of all pairs, and those of the strongest pairs by block.
    5. What each layer lost when it was resized, merged or extracted, if an adapter was made in this session.
    6. Strengths over the sampling, if there are schedules.
    """
    charts: list[Axes | ColourTable] = [_by_block(found), _relative(found)]
    if ranked := _kept(found):
        charts.append(ranked)
    if len(found.entries) > 1:
        cosines = [[float(value) for value in row] for row in found.cosines()]
        title = "how alike: 1 the same, 0 unrelated, -1 opposed"
        charts += [ColourTable(title, _names(found), cosines), _pairs(found)]
    if any(entry.adapter.report is not None for entry in found.entries):
        charts.append(_lost(found))
    if any(entry.schedule for entry in found.entries):
        charts.append(Axes("strength over the sampling", list(_curves(found)), "share of the clock"))
    return charts


def blocks_picture(found: Survey) -> Picture:
    """Bars for each block's share of each adapter's change; without adapters, for its number of weights."""
    legend = [(plain_name(one.entry.name), colour_of(number)) for number, one in enumerate(found.adapters)]
    title = "share of the change in each block" if found.adapters else "weights in each block"
    return in_rows(blocks_verdict(found), title, block_rows(found), legend)


def block_rows(found: Survey) -> list[BarRow]:
    if not found.adapters:
        return [BarRow(name, [(count, colour_of(0), str(count))]) for name, count in found.blocks.items()]
    shares = {name: [one.share(name) for one in found.adapters] for name in found.blocks}
    return [
        BarRow(name, [(share, colour_of(number), f"{share:.1%}") for number, share in enumerate(each)])
        for name, each in shares.items()
    ]


def _names(found: Examination) -> list[str]:
    return [plain_name(name) for name in found.names]


def _groups(found: Examination) -> Iterator[tuple[str, str, list[tuple[int, LayerMeasure]]]]:
    """Groups (label, colour, layers with their places): by kind for one adapter, else by adapter.

    Groups by adapter have no label: the legend of all charts names them.
    """
    layers = list(enumerate(found.layers))
    if len(found.entries) > 1:
        for entry in range(len(found.entries)):
            yield "", colour_of(entry), [one for one in layers if one[1].entry == entry]
        return
    for kind in (*KINDS, "other"):
        if own := [one for one in layers if one[1].kind == kind]:
            yield kind, COLOURS[kind], own


def _by_block(found: Examination) -> Axes:
    """The norm in each block; for one adapter, the shares of the squared norm, stacked by kind."""
    places = {block: place for place, block in enumerate(found.blocks)}
    count = len(found.entries)
    series: list[Series] = []
    if count == 1:
        total = sum(layer.norm**2 for layer in found.layers) or 1.0
        bottoms: dict[int, float] = defaultdict(float)
        for label, colour, own in _groups(found):
            squares: dict[int, float] = defaultdict(float)
            for _, layer in own:
                squares[places[layer.block]] += layer.norm**2 / total
            series.append(Series(_boxes(squares, -0.4, 0.8, bottoms), colour, label, "boxes"))
            for place, value in squares.items():
                bottoms[place] += value
        most = max(bottoms.values(), default=0.0) or 1.0
        title = "share of the change in each block, by kind of layer"
        return Axes(title, series, names=found.blocks, limits=(0.0, most), percent=True)
    width = 0.8 / count
    thin = THIN * count * len(found.blocks) > WIDTH
    for entry in range(count):
        norms = {places[block]: norm for block, norm in found.norms(entry).items()}
        if thin:
            points = sorted((float(place), norm) for place, norm in norms.items())
            series.append(Series(points, colour_of(entry), form="line and dots"))
        else:
            left = -0.4 + entry * width
            series.append(Series(_boxes(norms, left, 0.9 * width, {}), colour_of(entry), form="boxes"))
    most = max((y for one in series for _, y in one.points), default=0.0) or 1.0
    title = "size of the change in each block, at the strengths"
    return Axes(title, series, names=found.blocks, limits=(0.0, most))


def _boxes(
    heights: Mapping[int, float], left: float, width: float, bottoms: Mapping[int, float]
) -> list[Point]:
    """Two corners of a box at each place."""
    corners: list[Point] = []
    for place, height in heights.items():
        bottom = bottoms.get(place, 0.0)
        corners += [(place + left, bottom), (place + left + width, bottom + height)]
    return corners


def _relative(found: Examination) -> Axes:
    related = any(layer.weight for layer in found.layers)
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
        for label, colour, own in _groups(found)
    ]
    return Axes(
        "change of each layer, relative to its weight" if related else "size of the change of each layer",
        series,
        across="layer, in the order of the model",
        logarithmic=(False, True),
        percent=related,
    )


def _kept(found: Examination) -> Axes | None:
    """What each rank would keep of each adapter's layers; None where no adapter has a rank."""
    series: list[Series] = []
    marks: list[tuple[float, Series]] = []
    most = 1
    for entry, colour in enumerate(map(colour_of, range(len(found.entries)))):
        own = [layer for layer in found.layers if layer.entry == entry and len(layer.spectrum) > 1]
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
        marks.append((float(found.enough(entry) or 1), Series((), colour, form="dashes")))
    if not series:
        return None
    return Axes(
        "what a lower rank would keep; shaded: 8 of 10 layers",
        series,
        across=f"rank; dashed: keeps {ENOUGH:.0%} in 9 of 10 layers",
        logarithmic=(True, False),
        ticks=[2.0**power for power in range(most.bit_length())],
        marks=marks,
        limits=(0.0, 1.0),
        percent=True,
    )


def _pairs(found: Examination) -> Axes:
    """The cosines by block, for the pairs that are most alike or opposed in some block."""
    by_block = [found.cosines(block) for block in found.blocks]
    pairs = list(combinations(range(len(found.entries)), 2))
    strongest = sorted(pairs, key=lambda pair: -max(abs(float(one[pair])) for one in by_block))[:PAIRS]
    series = [Series([(-0.5, 0.0), (len(found.blocks) - 0.5, 0.0)], INK)]
    names = _names(found)
    for number, pair in enumerate(sorted(strongest)):
        points = [(float(place), float(cosines[pair])) for place, cosines in enumerate(by_block)]
        label = " and ".join(names[entry] for entry in pair)
        # Not the colours of the adapters themselves.
        series.append(Series(points, colour_of(len(names) + number), label, "line and dots"))
    more = f", the {PAIRS} strongest pairs" if len(pairs) > PAIRS else ""
    return Axes(f"how alike in each block{more}", series, names=found.blocks, limits=(-1.0, 1.0))


def _lost(found: Examination) -> Axes:
    several = len(found.entries) > 1
    series = [
        Series(
            [(float(at), max(LEAST, row.error)) for at, row in enumerate(one.adapter.report.rows)],
            colour_of(entry),
            "" if several else plain_name(one.name),
            "dots",
        )
        for entry, one in enumerate(found.entries)
        if one.adapter.report is not None
    ]
    return Axes(
        "what each layer lost when the file was made",
        series,
        "layer",
        logarithmic=(False, True),
        percent=True,
    )


def _curves(found: Examination) -> Iterator[Series]:
    times = [place / TIMES for place in range(TIMES + 1)]
    for entry, one in enumerate(found.entries):
        tracks = [track for stage in (one.schedule.stages if one.schedule else ()) for track in stage]
        for number, track in enumerate(tracks):
            names = " ".join(pattern.text for pattern in track.patterns)
            points = [(time, one.strength * track.timing.curve.at(time)) for time in times]
            label = f"{plain_name(one.name)} {names} ({track.timing.clock})"
            yield Series(points, colour_of(entry), label, "dashes" if number % 2 else "line")
