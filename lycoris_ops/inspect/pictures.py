"""An examination as one picture of several charts, by matplotlib."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import LycorisError
from ..files.writing import written
from .measure import KINDS, Examination, LayerMeasure

FORMS = ("png", "svg", "pdf")
COLOURS = {"attn": "C0", "mlp": "C1", "conv": "C2", "norm": "C3", "other": "C7"}
TIMES = 60
"""Into how many parts the sampling is divided for the chart of a schedule."""
LEAST = 1e-6
"""The smallest value on an axis of a logarithm."""
LONGEST = 24
"""The most characters of a name that are shown."""


def draw_examination(found: Examination, path: str | os.PathLike[str]) -> None:
    """Write the picture of an examination to a file, as PNG, SVG or PDF by its ending.

    Raises LycorisError for another ending and where matplotlib is not installed, and WriteError.
    """
    file = Path(path)
    kind = file.suffix.lower().removeprefix(".")
    if kind not in FORMS:
        raise LycorisError(
            "a picture cannot be written in this form",
            file=str(path),
            expected=" or ".join(f".{name}" for name in FORMS),
        )
    picture = examination_picture(found, kind=kind)
    with written([file], len(picture)) as (out,):
        out.write(picture)


def examination_picture(found: Examination, *, width: float = 14.0, kind: str = "png") -> bytes:
    """The charts of an examination as one picture, in the format `kind` (png, svg or pdf).

    1. The norm of each adapter's change by block, by what the layers are there.
    2. The change of each layer beside its weight, in the order of the model; without a base its norm.
    3. The spectra of the layers, with the ranks that keep 90 and 99 % of the energy.
    4. The cosines of all pairs, over all and by block, where there are several adapters.
    5. What was lost in layers that were resized, merged or extracted, where the adapter says it.
    6. Strengths over the sampling, where they follow schedules.

    Raises LycorisError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LycorisError(
            "matplotlib is not installed", expected="it, to draw pictures", hint="pip install matplotlib"
        ) from error
    charts: list[Callable[[Any, Examination], None]] = [_energy, _relative, _spectra]
    if len(found.entries) > 1:
        charts += [_cosines, _by_block]
    if any(entry.adapter.report is not None for entry in found.entries):
        charts.append(_lost)
    if any(entry.schedule for entry in found.entries):
        charts.append(_schedules)
    rows = math.ceil(len(charts) / 2)
    # matplotlib is typed in part only.
    figure: Any = Figure(figsize=(width, 4.2 * rows), layout="constrained")
    places = figure.subplots(rows, 2, squeeze=False).flatten()
    for place, chart in zip(places, charts, strict=False):
        chart(place, found)
    for place in places[len(charts) :]:
        place.axis("off")
    held = io.BytesIO()
    figure.savefig(held, format=kind)
    return held.getvalue()


def _name(text: str) -> str:
    return text if len(text) <= LONGEST else f"...{text[3 - LONGEST :]}"


def _energy(axes: Any, found: Examination) -> None:
    width = 0.8 / len(found.entries)
    for entry in range(len(found.entries)):
        bottom = [0.0] * len(found.blocks)
        for kind in (*KINDS, "other"):
            squares = dict.fromkeys(found.blocks, 0.0)
            for layer in found.layers:
                if layer.entry == entry and layer.kind == kind:
                    squares[layer.block] += layer.norm**2
            values = [squares[block] for block in found.blocks]
            if any(values):
                at = [place + (entry + 0.5) * width - 0.4 for place in range(len(values))]
                label = kind if entry == 0 else None
                shade = 1 - 0.5 * entry * width
                axes.bar(at, values, width, bottom, color=COLOURS[kind], alpha=shade, label=label)
                bottom = [one + other for one, other in zip(bottom, values, strict=True)]
    step = max(1, len(found.blocks) // 30)
    shown = range(0, len(found.blocks), step)
    axes.set_xticks(list(shown), [_name(found.blocks[at]) for at in shown], rotation=90, fontsize=7)
    axes.set(title="energy by block, adapters side by side", ylabel="||w D||^2")
    axes.legend(fontsize=7)


def _relative(axes: Any, found: Examination) -> None:
    related = any(layer.weight for layer in found.layers)
    for kind in (*KINDS, "other"):
        points = [
            (at, max(LEAST, (layer.relative or 0.0) if related else layer.norm))
            for at, layer in enumerate(found.layers)
            if layer.kind == kind
        ]
        if points:
            axes.plot(*zip(*points, strict=True), ".", color=COLOURS[kind], label=kind, markersize=4)
    axes.set_yscale("log")
    axes.set(
        title="change of each layer" + (" beside its weight" if related else ""),
        xlabel="layer, in the order of the model",
        ylabel="||w D|| / ||W||" if related else "||w D||",
    )
    axes.legend(fontsize=7)


def _spectra(axes: Any, found: Examination) -> None:
    for entry, name in enumerate(found.names):
        own = [layer for layer in found.layers if layer.entry == entry and len(layer.spectrum) > 1]
        if not own:
            continue
        ranks = range(1, max(len(layer.spectrum) for layer in own) + 1)
        ordered = [sorted(_value(layer, rank) for layer in own) for rank in ranks]
        low, middle, high = (
            [values[int(share * (len(values) - 1))] for values in ordered] for share in (0.1, 0.5, 0.9)
        )
        axes.plot(ranks, middle, color=f"C{entry}", label=_name(name))
        axes.fill_between(ranks, low, high, color=f"C{entry}", alpha=0.2, linewidth=0)
        for share, style in ((0.9, ":"), (0.99, "--")):
            kept = sorted(layer.rank_of(share) for layer in own)[len(own) // 2]
            axes.axvline(kept, color=f"C{entry}", linestyle=style, linewidth=1)
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.set(
        title="spectra: median, 10 to 90 %; 90 % of the energy at :, 99 % at --",
        xlabel="rank",
        ylabel="singular value / largest",
    )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


def _value(layer: LayerMeasure, rank: int) -> float:
    """The singular value of a rank as a share of the largest, as far down as the axis goes."""
    return max(LEAST, layer.spectrum[rank - 1]) if rank <= len(layer.spectrum) else LEAST


def _cosines(axes: Any, found: Examination) -> None:
    matrix = found.cosines()
    cosines = [[float(value) for value in row] for row in matrix]
    image = axes.imshow(cosines, vmin=-1, vmax=1, cmap="coolwarm")
    for one, row in enumerate(cosines):
        for other, value in enumerate(row):
            axes.text(other, one, f"{value:.2f}", ha="center", va="center", fontsize=8)
    names = [_name(name) for name in found.names]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(title="cosine of the changes")
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


def _by_block(axes: Any, found: Examination) -> None:
    count = len(found.entries)
    for one in range(count):
        for other in range(one + 1, count):
            values = [float(found.cosines(block)[one, other]) for block in found.blocks]
            label = f"{_name(found.names[one])} / {_name(found.names[other])}"
            axes.plot(range(len(values)), values, marker=".", linewidth=1, label=label)
    step = max(1, len(found.blocks) // 30)
    shown = range(0, len(found.blocks), step)
    axes.set_xticks(list(shown), [_name(found.blocks[at]) for at in shown], rotation=90, fontsize=7)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set(title="cosine by block", ylim=(-1.05, 1.05))
    axes.legend(fontsize=7)


def _lost(axes: Any, found: Examination) -> None:
    for entry, one in enumerate(found.entries):
        if one.adapter.report is not None:
            errors = [max(LEAST, row.error) for row in one.adapter.report.rows]
            axes.plot(range(len(errors)), errors, ".", color=f"C{entry}", label=_name(one.name))
    axes.set_yscale("log")
    axes.set(title="what was lost when it was made", xlabel="layer", ylabel="||D' - D|| / ||D||")
    axes.legend(fontsize=7)


def _schedules(axes: Any, found: Examination) -> None:
    times = [place / TIMES for place in range(TIMES + 1)]
    for entry, one in enumerate(found.entries):
        for number, stage in enumerate(one.schedule.stages if one.schedule else ()):
            for place, track in enumerate(stage):
                names = " ".join(pattern.text for pattern in track.patterns)
                values = [one.strength * track.timing.curve.at(time) for time in times]
                style = ("-", "--", ":", "-.")[(number + place) % 4]
                label = f"{_name(one.name)} {names} ({track.timing.clock})"
                axes.plot(times, values, style, color=f"C{entry}", label=label)
    axes.set(title="strength over the sampling", xlabel="share of the clock", ylabel="strength")
    axes.legend(fontsize=7)
