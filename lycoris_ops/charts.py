"""Charts as pictures, drawn by Pillow: series in axes, tables of colours, and bars with names.

Everything is drawn larger than it is shown and made smaller at the end: Pillow does not smooth lines.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import LycorisError

if TYPE_CHECKING:
    from PIL.Image import Image

Point = tuple[float, float]
Stroke = Literal["line", "dashes", "dots", "line and dots", "boxes", "area"]

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22")
"""Those of one thing after the other. A tenth has the colour of the first again."""
INK, FAINT, PAPER = "#282828", "#dddddd", "#ffffff"
LARGER = 2
"""How much larger all is drawn than it is shown."""
SMALL, TEXT, TITLE = 11, 12, 14
"""The sizes of letters in pixels: ticks and legends, labels, titles."""
GAP = 6
LONGEST = 28
"""The most characters of a name that are shown."""
NAMED = 40
"""The most names along an axis."""
MANY = 500
"""From how many dots on they are small."""
LEGEND = 3
"""The most lines of a legend."""


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour. Two points after each other are corners of a box; an area is closed."""

    points: Sequence[Point]
    colour: str
    label: str = ""
    form: Stroke = "line"


@dataclass(frozen=True)
class Axes:
    """Series over two axes. `names` stand below 0, 1, ... of the axis across, in place of numbers."""

    title: str
    series: Sequence[Series]
    across: str = ""
    up: str = ""
    logarithmic: tuple[bool, bool] = (False, False)
    names: Sequence[str] = ()
    marks: Sequence[tuple[float, Series]] = ()
    """Places across of upright lines, each in the colour and form of a series without points."""
    limits: Point | None = None
    """The ends of the vertical axis; None for the smallest and largest value."""
    span: Point | None = None
    """The ends of the axis across."""


@dataclass(frozen=True)
class ColourTable:
    """Values from -1 to 1 of all pairs of names, as colours."""

    title: str
    names: Sequence[str]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Bars:
    """A name with bars below each other."""

    name: str
    bars: Sequence[tuple[float, str, str]]
    """The length and the colour of each, and the words behind it."""


def colour_of(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def shortened(name: str, longest: int = LONGEST) -> str:
    """A name, or its end where it is long: names of layers and files differ there."""
    return name if len(name) <= longest else f"...{name[3 - longest :]}"


def side_by_side(charts: Sequence[Axes | ColourTable], width: int = 1400, height: int = 420) -> Image:
    """Charts in two columns, in rows of one height; one chart alone has the whole width."""
    columns = min(2, len(charts))
    page = _Page(width, height * -(-len(charts) // columns))
    for number, chart in enumerate(charts):
        row, column = divmod(number, columns)
        cell = (width * column / columns, float(height * row), width / columns, float(height))
        if isinstance(chart, Axes):
            _draw_axes(page, chart, *cell)
        else:
            _draw_table(page, chart, *cell)
    return page.shown()


def in_rows(title: str, rows: Sequence[Bars], legend: Sequence[tuple[str, str]], width: int = 800) -> Image:
    """Rows below each other. `legend` has labels with their colours."""
    measure = _Page(1, 1)
    lines = _legend_lines(measure, [(shortened(label), colour) for label, colour in legend], width - 20)
    high = [18 if len(row.bars) < 2 else 12 * len(row.bars) + 6 for row in rows]
    top = 34.0 + 18 * len(lines)
    page = _Page(width, round(top) + sum(high) + 10)
    page.text((10, 8), title, TITLE, "la")
    _draw_legend(page, lines, 10, 30)
    left = 18 + max((page.length(shortened(row.name, 48), SMALL) for row in rows), default=0.0)
    bars = [bar for row in rows for bar in row.bars]
    right = 14 + max((page.length(words, SMALL) for _, _, words in bars), default=0.0)
    most = max((value for value, _, _ in bars), default=0.0) or 1.0
    for row, size in zip(rows, high, strict=True):
        page.text((left - 8, top + size / 2), shortened(row.name, 48), SMALL, "rm")
        each = (size - 6) / max(1, len(row.bars))
        for number, (value, colour, words) in enumerate(row.bars):
            end = left + (width - left - right) * max(0.0, value) / most
            low = top + 3 + each * number
            page.box((left, low), (max(end, left + 1), low + each - 2), colour)
            page.text((end + GAP, low + each / 2 - 1), words, SMALL, "lm")
        top += size
    return page.shown()


def png_of(picture: Image) -> bytes:
    held = io.BytesIO()
    picture.save(held, format="png")
    return held.getvalue()


def check_png(path: Path) -> None:
    """Raise LycorisError for a place that is not one of a PNG."""
    if path.suffix.lower() != ".png":
        raise LycorisError("a picture cannot be written in this form", file=str(path), expected=".png")


class _Page:
    """A picture, in the pixels that are shown."""

    def __init__(self, width: int, height: int) -> None:
        try:
            from PIL import Image, ImageDraw
        except ImportError as error:
            raise LycorisError(
                "Pillow is not installed", expected="it, to draw pictures", hint="pip install pillow"
            ) from error
        self._pillow: Any = Image
        self._image = Image.new("RGB", (width * LARGER, height * LARGER), PAPER)
        self._draw: Any = ImageDraw.Draw(self._image, "RGBA")

    def shown(self) -> Image:
        width, height = self._image.size
        return self._image.resize((width // LARGER, height // LARGER), self._pillow.Resampling.BOX)

    def length(self, text: str, size: int) -> float:
        font = _font(size)
        return self._draw.textlength(_letters(text, font), font) / LARGER

    def text(self, at: Point, text: str, size: int, anchor: str, colour: str = INK) -> None:
        font = _font(size)
        # Fonts of fixed size have no anchors.
        self._draw.text(_larger(at), _letters(text, font), colour, font, anchor=anchor)

    def upright(self, at: Point, text: str, size: int, *, above: bool) -> None:
        """A text that is read from below, which ends at a place, or with `above` has its middle there."""
        font = _font(size)
        length, high = math.ceil(self.length(text, size) * LARGER), round(1.3 * size * LARGER)
        if not text:
            return
        turned = self._pillow.new("L", (length, high))
        drawing: Any = self._draw_on(turned)
        drawing.text((0, high / 2), _letters(text, font), 255, font, anchor="lm")
        turned = turned.transpose(self._pillow.Transpose.ROTATE_90)
        x, y = _larger(at)
        place = (round(x - high / 2), round(y - length / 2 if above else y))
        self._image.paste(self._pillow.new("RGB", turned.size, INK), place, turned)

    @staticmethod
    def _draw_on(image: Any) -> Any:
        from PIL import ImageDraw

        return ImageDraw.Draw(image)

    def line(self, points: Sequence[Point], colour: str, width: float = 1.0) -> None:
        if len(points) > 1:
            wide = max(1, round(width * LARGER))
            self._draw.line([_larger(point) for point in points], fill=colour, width=wide, joint="curve")

    def dashes(self, points: Sequence[Point], colour: str, width: float = 1.0) -> None:
        """A line in parts of 4 pixels."""
        done = 0.0
        for (x, y), (to_x, to_y) in pairwise(points):
            length = math.hypot(to_x - x, to_y - y)
            at = 0.0
            while at < length:
                rest = min(4 - done % 4, length - at) or 4.0
                if int(done / 4 + 1e-9) % 2 == 0:
                    ends = [
                        (x + (to_x - x) * part / length, y + (to_y - y) * part / length)
                        for part in (at, at + rest)
                    ]
                    self.line(ends, colour, width)
                at, done = at + rest, done + rest

    def dot(self, at: Point, colour: str, radius: float) -> None:
        (x, y), r = _larger(at), radius * LARGER
        self._draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)

    def box(self, corner: Point, other: Point, colour: str) -> None:
        (x, y), (to_x, to_y) = _larger(corner), _larger(other)
        self._draw.rectangle([min(x, to_x), min(y, to_y), max(x, to_x), max(y, to_y)], fill=colour)

    def area(self, points: Sequence[Point], colour: str) -> None:
        if len(points) > 2:
            self._draw.polygon([_larger(point) for point in points], fill=f"{colour}33")


def _larger(point: Point) -> Point:
    return point[0] * LARGER, point[1] * LARGER


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size * LARGER)


def _letters(text: str, font: Any) -> str:
    """A text without letters that a font of fixed size would fail on."""
    return text if hasattr(font, "getmask2") else text.encode("latin-1", "replace").decode("latin-1")


def _legend_lines(
    page: _Page, entries: Sequence[tuple[str, str]], width: float
) -> list[list[tuple[float, str, str]]]:
    """The lines of a legend: the place, label and colour of each entry, of as many as there is room for."""
    lines: list[list[tuple[float, str, str]]] = [[]] if entries else []
    x = 0.0
    for number, (label, colour) in enumerate(entries):
        needed = 14 + page.length(label, SMALL) + 12
        if x and x + needed > width:
            if len(lines) == LEGEND:
                lines[-1].append((x, f"+ {len(entries) - number}", PAPER))
                break
            lines.append([])
            x = 0.0
        lines[-1].append((x, label, colour))
        x += needed
    return lines


def _draw_legend(
    page: _Page, lines: Sequence[Sequence[tuple[float, str, str]]], left: float, top: float
) -> None:
    for number, line in enumerate(lines):
        y = top + 18 * number + 8
        for x, label, colour in line:
            page.box((left + x, y - 4), (left + x + 9, y + 4), colour)
            page.text((left + x + 14, y), label, SMALL, "lm")


@dataclass
class _Scale:
    """A way from values to pixels, along one axis."""

    low: float
    high: float
    logarithmic: bool
    first: float = 0.0
    last: float = 1.0
    ticks: list[float] = field(default_factory=list[float])

    @classmethod
    def over(cls, values: Sequence[float], *, logarithmic: bool, limits: Point | None = None) -> _Scale:
        found = [value for value in values if math.isfinite(value) and (value > 0 or not logarithmic)]
        low, high = limits or (min(found, default=0.0), max(found, default=1.0))
        if logarithmic:
            low, high = low if low > 0 else 1e-6, high if high > 0 else 1.0
            if high <= low * 1.0001:
                low, high = low / 2, high * 2
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            within = [power for power in powers if low * 0.999 <= 10.0**power <= high * 1.001]
            step = max(1, -(-len(within) // 6))
            ticks = [10.0**power for power in within[::step]]
            if len(within) < 3:
                ticks = [10.0**power * times for power in powers for times in (1, 2, 5)]
            inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
            return cls(low, high, logarithmic=True, ticks=inside or [low, high])
        if high <= low:
            low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
        whole = all(value == int(value) for value in found)
        return cls(low, high, logarithmic=False, ticks=_even(low, high, whole=whole))

    def at(self, value: float) -> float:
        if not math.isfinite(value):
            value = self.high
        value = min(max(value, self.low), self.high)
        ends = (self.low, self.high, value)
        low, high, found = map(math.log10, ends) if self.logarithmic else ends
        return self.first + (self.last - self.first) * (found - low) / (high - low)


def _even(low: float, high: float, *, whole: bool) -> list[float]:
    """Round numbers at even distances, about five; with `whole` without fractions."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= raw * 0.999)
    step = max(step, 1.0) if whole else step
    return [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.4g}"


def _draw_axes(page: _Page, chart: Axes, left: float, top: float, width: float, height: float) -> None:
    page.text((left + 12, top + 10), chart.title, TITLE, "la")
    # Of several series of one label, the first stands for all.
    labels = {one.label: one.colour for one in reversed(chart.series) if one.label}
    entries = [(label, labels.pop(label)) for one in chart.series if (label := one.label) in labels]
    lines = _legend_lines(page, entries, width - 24)
    _draw_legend(page, lines, left + 12, top + 30)
    points = [point for one in chart.series for point in one.points]
    across = [x for x, _ in points] + [x for x, _ in chart.marks]
    span = (-0.5, len(chart.names) - 0.5) if chart.names else chart.span
    x = _Scale.over(across, logarithmic=chart.logarithmic[0], limits=span)
    y = _Scale.over([y for _, y in points], logarithmic=chart.logarithmic[1], limits=chart.limits)
    names = [shortened(name, 20) for name in chart.names]
    below = max((page.length(name, SMALL) for name in names), default=12.0) + 12 + (18 if chart.across else 0)
    beside = max((page.length(_number(tick), SMALL) for tick in y.ticks), default=0.0)
    x.first, x.last = left + beside + 38, left + width - 16
    y.first, y.last = top + height - below - 6, top + 40 + 18 * len(lines)
    page.upright((left + 14, (y.first + y.last) / 2), chart.up, TEXT, above=True)
    page.text(((x.first + x.last) / 2, top + height - 4), chart.across, TEXT, "md")
    for tick in y.ticks:
        page.line([(x.first, y.at(tick)), (x.last, y.at(tick))], FAINT)
        page.text((x.first - GAP, y.at(tick)), _number(tick), SMALL, "rm")
    if names:
        step = -(-len(names) // NAMED)
        for place in range(0, len(names), step):
            page.upright((x.at(place), y.first + GAP), names[place], SMALL, above=False)
    else:
        for tick in x.ticks:
            page.line([(x.at(tick), y.first), (x.at(tick), y.first + 3)], INK)
            page.text((x.at(tick), y.first + GAP), _number(tick), SMALL, "ma")
    for place, style in chart.marks:
        ways: dict[str, Callable[..., None]] = {"dashes": page.dashes}
        ways.get(style.form, page.line)([(x.at(place), y.first), (x.at(place), y.last)], style.colour)
    for one in chart.series:
        _draw_series(page, one, [(x.at(a), y.at(b)) for a, b in one.points])
    page.line([(x.first, y.last), (x.first, y.first), (x.last, y.first)], INK)


def _draw_series(page: _Page, one: Series, placed: Sequence[Point]) -> None:
    if one.form == "boxes":
        for corner, other in zip(placed[::2], placed[1::2], strict=True):
            page.box(corner, other, one.colour)
    elif one.form == "area":
        page.area(placed, one.colour)
    elif one.form == "dashes":
        page.dashes(placed, one.colour, 1.5)
    elif one.form != "dots":
        page.line(placed, one.colour, 1.5)
    if "dots" in one.form or (one.form == "line" and len(placed) == 1):
        radius = 2.0 if len(placed) < MANY else 1.0
        for point in placed:
            page.dot(point, one.colour, radius)


def _draw_table(
    page: _Page, chart: ColourTable, left: float, top: float, width: float, height: float
) -> None:
    page.text((left + 12, top + 10), chart.title, TITLE, "la")
    names = [shortened(name) for name in chart.names]
    longest = max((page.length(name, SMALL) for name in names), default=0.0)
    # Numbers stand for the names above the columns.
    side = min((width - longest - 60) / max(1, len(names)), (height - 70) / max(1, len(names)), 80.0)
    x, y = left + longest + 40, top + 54
    for row, (name, values) in enumerate(zip(names, chart.values, strict=True)):
        page.text((x - 8, y + (row + 0.5) * side), f"{name}  {row + 1}", SMALL, "rm")
        page.text((x + (row + 0.5) * side, y - 8), str(row + 1), SMALL, "ms")
        for column, value in enumerate(values):
            corner = (x + column * side, y + row * side)
            page.box(corner, (corner[0] + side - 1, corner[1] + side - 1), _diverging(value))
            if side >= 26:
                ink = PAPER if abs(value) > 0.65 else INK
                page.text((corner[0] + side / 2, corner[1] + side / 2), f"{value:.2f}", SMALL, "mm", ink)


def _diverging(value: float) -> str:
    """From blue at -1 over near white to red at 1; grey for what is no number."""
    if not math.isfinite(value):
        return FAINT
    end, share = ((180, 4, 38) if value > 0 else (59, 76, 192)), min(1.0, abs(value))
    return "#" + "".join(f"{round(240 + (one - 240) * share):02x}" for one in end)


def binned(points: Sequence[Point], most: int) -> Iterator[Point]:
    """The mean of each of at most so many runs of points."""
    width = max(1, -(-len(points) // most))
    for start in range(0, len(points), width):
        part = points[start : start + width]
        yield sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)
