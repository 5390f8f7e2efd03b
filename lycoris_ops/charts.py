"""Draw charts one below another: series over axes, colour tables and rows of bars.

Most charts are as wide as a node of a graph. Pillow draws an image on white, at twice its displayed size. In
an SVG for a page, lines and labels have the colour of the page's text.
"""

from __future__ import annotations

import io
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from .errors import LycorisError
from .files.writing import new_files

if TYPE_CHECKING:
    from PIL.Image import Image

Point = tuple[float, float]
Value = TypeVar("Value")
Stroke = Literal["line", "dashes", "dots", "line and dots", "boxes", "area"]

COLOURS = ("#4a90d9", "#e0872f", "#43a76b", "#d9534f", "#9a72cf", "#a87b5f", "#d774b4", "#2fa5b5", "#a3a13a")
"""The colours of series, in order, for white and dark pages. The tenth series has the first colour again."""
OPPOSED, ALIKE = "#5b8ff0", "#e5655f"
"""The colours of -1 and of 1."""
INK, PAPER = "#282828", "#ffffff"
FAINT = 0.18
"""The opacity of grid lines."""
WIDTH = 400
"""The displayed width of a picture in pixels."""
PLOT = 96
"""The height of a plot without its labels."""
SHARP = 2
"""The pixels of an image for each displayed pixel."""
LARGER = 2
"""Images are drawn this many times larger than needed and then reduced, because Pillow does not smooth
lines."""
SMALL, TITLE = 11, 13
"""Font sizes in pixels: of text in charts, and of titles."""
EDGE, GAP = 10, 5
LINE = 16
"""The height of a line of a legend, and of a row of bars."""
CELL = 40
"""The smallest width of a column of bars."""
MANY = 500
"""With this many dots or more, each dot is drawn small."""
THIN = 1.5
"""The smallest width of a bar in a row of bars side by side."""
OVER = 0.6
"""The opacity of a share of 1 in `Planes`."""
STEPS = 8
"""How many levels the shares of a plane are rounded to."""
WORD = re.compile(r"\s*(?:[\u2e80-\uffef]|[^\s\u2e80-\uffef]+)")
"""What stays on one line, with the space before it: a word, or an East Asian letter."""
WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "malgun.ttf",
    "AppleSDGothicNeo.ttc",
    "Hiragino Sans GB.ttc",
    "DejaVuSans.ttf",
    "arial.ttf",
)
"""System fonts, for characters that Pillow's own font lacks."""


@dataclass(frozen=True)
class Series:
    """Points drawn in one colour. With boxes, each pair of points gives opposite corners. An area is
    closed."""

    points: Sequence[Point]
    colour: str
    label: str = ""
    form: Stroke = "line"


@dataclass(frozen=True)
class Axes:
    """Series over two axes. `names` label 0, 1, ... of the horizontal axis in place of numbers."""

    title: str
    series: Sequence[Series]
    across: str = ""
    logarithmic: tuple[bool, bool] = (False, False)
    names: Sequence[str] = ()
    ticks: Sequence[float] = ()
    """The ticks of the horizontal axis; () for round numbers."""
    marks: Sequence[tuple[float, Series]] = ()
    """Vertical lines: the place of each on the horizontal axis, and a series for its colour and line
    style."""
    limits: Point | None = None
    """The ends of the vertical axis; None for the smallest and largest value."""
    span: Point | None = None
    """The ends of the horizontal axis; None for the smallest and largest value."""
    percent: bool = False
    """Whether the values are shares, written in per cent."""


@dataclass(frozen=True)
class ColourTable:
    """Values from -1 to 1 as colours, with a row for each name.

    Without `columns`, the columns have the names of the rows, and there is a value for each pair of names.
    """

    title: str
    names: Sequence[str]
    values: Sequence[Sequence[float]]
    columns: Sequence[str] = ()
    words: Sequence[Sequence[str]] = ()
    """Texts in the cells in place of the values."""
    frames: Mapping[tuple[int, int], float] = field(default_factory=dict[tuple[int, int], float])
    """The width of a frame around a cell, by row and column."""


@dataclass(frozen=True)
class Planes:
    """Planes side by side. Each has layers of shares, one colour for each layer, drawn on top of each
    other."""

    titles: Sequence[str]
    """The title of each plane."""
    shares: Sequence[Sequence[tuple[Sequence[Sequence[float]], str]]]
    """The layers of each plane: shares (rows, columns) from 0 to 1, and a colour. All planes have one
    shape."""


@dataclass(frozen=True)
class BarRow:
    """A name with bars side by side, one in each column."""

    name: str
    bars: Sequence[tuple[float, str, str]]
    """The length, colour and label of each bar."""


Legend = Sequence[tuple[str, str]]
"""Labels with their colours."""


class Canvas(Protocol):
    """A surface for charts, measured in displayed pixels."""

    def text(
        self,
        at: Point,
        text: str,
        size: int = SMALL,
        anchor: str = "lm",
        full: str = "",
        *,
        upright: bool = False,
    ) -> None:
        """Draw a text so that its `anchor` is at the point `at`.

        The first letter of the anchor is `l`, `m` or `r` for left, middle or right. The second is `a`, `m` or
        `s` for top, middle or baseline. `full` is the whole text if `text` is shortened. An upright text
        reads upwards.
        """
        ...

    def line(self, points: Sequence[Point], colour: str, width: float = 1.0, share: float = 1.0) -> None: ...

    def dashes(self, points: Sequence[Point], colour: str, width: float = 1.0) -> None: ...

    def dot(self, at: Point, colour: str, radius: float) -> None: ...

    def area(self, points: Sequence[Point], colour: str, share: float = 1.0) -> None:
        """Fill a polygon; `share` is the opacity."""
        ...


@dataclass(frozen=True)
class Panel:
    """A full-width part of a picture: its height, and a function that draws it at a given distance from the
    top."""

    height: float
    draw: Callable[[Canvas, float], None]


@dataclass(frozen=True)
class Picture:
    """A picture of panels, one below another. Every output needs Pillow, and raises LycorisError without
    it."""

    verdict: str
    """What the picture shows, in a sentence. An image begins with it; a page shows it beside the drawing."""
    parts: Sequence[Panel]
    width: int = WIDTH

    def image(self) -> Image:
        panels = [_words(self.verdict, self.width), *self.parts] if self.verdict else self.parts
        page = _Raster(self.width, _height(panels))
        _draw(page, panels)
        return page.shown()

    def png(self) -> bytes:
        held = io.BytesIO()
        self.image().save(held, format="png")
        return held.getvalue()

    def svg(self) -> str:
        """The picture as SVG for a page. Names in it are escaped."""
        page = _Vector()
        _draw(page, self.parts)
        size = f'viewBox="0 0 {self.width} {_height(self.parts)}"'
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(page.elements)}</svg>'


def _height(panels: Sequence[Panel]) -> int:
    return math.ceil(sum(panel.height for panel in panels)) + EDGE


def _draw(page: Canvas, panels: Sequence[Panel]) -> None:
    top = 0.0
    for panel in panels:
        panel.draw(page, top)
        top += panel.height


def colour_of(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def below_each_other(verdict: str, legend: Legend, charts: Sequence[Axes | ColourTable]) -> Picture:
    """Charts below one legend, which may be empty."""
    drawn = [_axes(chart) if isinstance(chart, Axes) else _table(chart) for chart in charts]
    return Picture(verdict, [*_legends(legend, WIDTH), *drawn])


def of_planes(verdict: str, names: Legend, planes: Planes, width: int) -> Picture:
    """Planes, and below them a legend with one name a line."""
    return Picture(verdict, [_planes(planes, width), *(_legend([name], width) for name in names)], width)


def in_rows(verdict: str, title: str, rows: Sequence[BarRow], legend: Legend) -> Picture:
    """Rows of bars. With many columns the picture is wider than `WIDTH`."""
    columns = max((len(row.bars) for row in rows), default=0)
    longest = max((length_of(row.name) for row in rows), default=0.0)
    left = EDGE + min(longest, 0.45 * WIDTH) + 8
    words = max((length_of(words) for row in rows for _, _, words in row.bars), default=0.0) + 2 * GAP
    width = max(WIDTH, math.ceil(left + columns * max(CELL, words) + EDGE))
    cell = (width - left - EDGE) / max(1, columns)
    most = max((value for row in rows for value, _, _ in row.bars), default=0.0) or 1.0

    def drawn(row: BarRow) -> Panel:
        def draw(page: Canvas, top: float) -> None:
            middle = top + LINE / 2
            name = fitted(row.name, left - EDGE - 8)
            page.text((left - 8, middle), name, anchor="rm", full=row.name)
            for number, (value, colour, words) in enumerate(row.bars):
                start = left + number * cell
                end = start + max(1.0, (cell - 4) * max(0.0, value) / most)
                page.area(_corners((start, top + 1), (end, top + LINE - 2)), colour, 0.6)
                page.text((start + GAP, middle), words)

        return Panel(LINE, draw)

    head = [_words(title, width), *_legends(legend, width)]
    return Picture(verdict, [*head, *(drawn(row) for row in rows)], width)


def check_png(path: Path) -> None:
    """Raise LycorisError for a path that does not end in .png."""
    if path.suffix.lower() != ".png":
        raise LycorisError("E-picture-form-unknown", file=str(path))


def write_png(path: Path, draw: Callable[[], Picture]) -> None:
    """Write the picture that `draw` makes as PNG.

    Raises LycorisError, before drawing, for a path that does not end in .png. Raises LycorisError without
    Pillow, and WriteError where the file cannot be written.
    """
    check_png(path)
    data = draw().png()
    with new_files([path], len(data)) as (file,):
        file.write(data)


def length_of(text: str, size: int = SMALL) -> float:
    """The width of a text. East Asian letters, which the font may lack, count as wide as they are high."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    rest = "".join(letter for letter in text if unicodedata.east_asian_width(letter) not in "WF")
    font = _font(size * LARGER * SHARP)
    return font.getlength(_letters(rest, font)) / (LARGER * SHARP) + wide * size


def fitted(text: str, width: float, size: int = SMALL) -> str:
    """A text that fits a width. A longer text loses its middle, because names differ at their ends."""
    if length_of(text, size) <= width:
        return text
    kept = len(text) - 1
    while kept > 2 and length_of(shortened(text, kept), size) > width:
        kept -= 1
    return shortened(text, kept)


def shortened(text: str, longest: int) -> str:
    """A text of at most `longest` letters. A longer text loses its middle."""
    first = (longest - 1) // 3
    return text if len(text) <= longest else f"{text[:first]}…{text[len(text) - (longest - 1 - first) :]}"


def binned(points: Sequence[Point], most: int) -> Iterator[Point]:
    """The means of successive runs of points, at most `most` of them."""
    width = max(1, -(-len(points) // most))
    for start in range(0, len(points), width):
        run = points[start : start + width]
        yield sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)


def _pillow(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"PIL.{name}")
    except ImportError as error:
        raise LycorisError("E-pillow-not-installed") from error


class _Raster:
    """A canvas for an image."""

    def __init__(self, width: int, height: int) -> None:
        size = (width * LARGER * SHARP, height * LARGER * SHARP)
        self._image = _pillow("Image").new("RGB", size, PAPER)
        self._draw = _pillow("ImageDraw").Draw(self._image, "RGBA")

    def shown(self) -> Image:
        width, height = self._image.size
        return self._image.resize((width // LARGER, height // LARGER), _pillow("Image").Resampling.BOX)

    def text(
        self,
        at: Point,
        text: str,
        size: int = SMALL,
        anchor: str = "lm",
        full: str = "",
        *,
        upright: bool = False,
    ) -> None:
        del full
        font = text_font(text, size * LARGER * SHARP)
        shown = _letters(text, font)
        if not upright:
            # Bitmap fonts have no anchors.
            self._draw.text(_larger(at), shown, INK, font, anchor=anchor)
            return
        length, high = math.ceil(font.getlength(shown)) or 1, round(1.3 * size * LARGER * SHARP)
        images = _pillow("Image")
        mask = images.new("L", (length, high))
        _pillow("ImageDraw").Draw(mask).text((0, high / 2), shown, 255, font, anchor="lm")
        mask = mask.transpose(images.Transpose.ROTATE_90)
        x, y = _larger(at)
        self._image.paste(images.new("RGB", mask.size, INK), (round(x - high / 2), round(y)), mask)

    def line(self, points: Sequence[Point], colour: str, width: float = 1.0, share: float = 1.0) -> None:
        if len(points) > 1:
            wide = max(1, round(width * LARGER * SHARP))
            self._draw.line(
                [_larger(point) for point in points], fill=_of(colour, share), width=wide, joint="curve"
            )

    def dashes(self, points: Sequence[Point], colour: str, width: float = 1.0) -> None:
        """Dashes and gaps of 4 pixels."""
        done = 0.0
        for (x, y), (to_x, to_y) in pairwise(points):
            length = math.hypot(to_x - x, to_y - y)
            at = 0.0
            while at < length:
                rest = min(4 - done % 4, length - at) or 4.0
                if int(done / 4 + 1e-9) % 2 == 0:
                    ends = [
                        (x + (to_x - x) * along / length, y + (to_y - y) * along / length)
                        for along in (at, at + rest)
                    ]
                    self.line(ends, colour, width)
                at, done = at + rest, done + rest

    def dot(self, at: Point, colour: str, radius: float) -> None:
        (x, y), r = _larger(at), radius * LARGER * SHARP
        self._draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)

    def area(self, points: Sequence[Point], colour: str, share: float = 1.0) -> None:
        if len(points) > 2:
            self._draw.polygon([_larger(point) for point in points], fill=_of(colour, share))


class _Vector:
    """A canvas for an SVG. Ink becomes the colour of the page's text."""

    def __init__(self) -> None:
        self.elements: list[str] = []

    def text(
        self,
        at: Point,
        text: str,
        size: int = SMALL,
        anchor: str = "lm",
        full: str = "",
        *,
        upright: bool = False,
    ) -> None:
        x, y = at
        side, line = anchor
        text_anchor = {"l": "start", "m": "middle", "r": "end"}["r" if upright else side]
        down = {"a": 0.8, "m": 0.36, "s": 0.0}[line] * size
        if upright:
            where = f'transform="translate({x + down:.1f},{y:.1f}) rotate(-90)"'
        else:
            where = f'x="{x:.1f}" y="{y + down:.1f}"'
        hint = f"<title>{escape(full)}</title>" if full not in ("", text) else ""
        # The page's font may be wider than the one that was measured.
        long = f'textLength="{length_of(text, size):.1f}" lengthAdjust="spacingAndGlyphs"'
        style = f'font-size="{size}" text-anchor="{text_anchor}" fill="currentColor" {long}'
        self.elements.append(f"<text {where} {style}>{hint}{escape(text)}</text>")

    def line(self, points: Sequence[Point], colour: str, width: float = 1.0, share: float = 1.0) -> None:
        self._line(points, colour, width, f' stroke-opacity="{share:.2f}"' if share < 1 else "")

    def dashes(self, points: Sequence[Point], colour: str, width: float = 1.0) -> None:
        self._line(points, colour, width, ' stroke-dasharray="4"')

    def _line(self, points: Sequence[Point], colour: str, width: float, more: str) -> None:
        style = f'fill="none" stroke="{_themed(colour)}" stroke-width="{width}"{more}'
        self.elements.append(f'<polyline points="{_places(points)}" {style}/>')

    def dot(self, at: Point, colour: str, radius: float) -> None:
        self.elements.append(
            f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius}" fill="{_themed(colour)}"/>'
        )

    def area(self, points: Sequence[Point], colour: str, share: float = 1.0) -> None:
        style = f'fill="{_themed(colour)}" fill-opacity="{share:.2f}"'
        self.elements.append(f'<polygon points="{_places(points)}" {style}/>')


def _themed(colour: str) -> str:
    return "currentColor" if colour == INK else colour


def _places(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _of(colour: str, share: float) -> str:
    return f"{colour}{round(255 * share):02x}"


def _larger(point: Point) -> Point:
    return point[0] * LARGER * SHARP, point[1] * LARGER * SHARP


def _corners(corner: Point, other: Point) -> list[Point]:
    return [corner, (other[0], corner[1]), other, (corner[0], other[1])]


def text_font(text: str, pixels: float) -> Any:
    """A font of this size: Pillow's own, or a system font for a text with characters that Pillow's lacks."""
    return _font(pixels) if text.isascii() else _wide_font("".join(sorted(set(text))), pixels)


@lru_cache(maxsize=8)
def _font(pixels: float) -> Any:
    return _pillow("ImageFont").load_default(pixels)


@lru_cache(maxsize=64)
def _wide_font(letters: str, pixels: float) -> Any:
    """The first of WIDE_FONTS that has these letters, else the first on this machine, else Pillow's own."""
    fonts = [font for name in WIDE_FONTS if (font := _system_font(name, pixels)) is not None]
    return next((font for font in fonts if _has(font, letters)), fonts[0] if fonts else _font(pixels))


@lru_cache(maxsize=64)
def _system_font(name: str, pixels: float) -> Any:
    try:
        return _pillow("ImageFont").truetype(name, pixels)
    except OSError:
        return None


def _has(font: Any, letters: str) -> bool:
    """Whether a font has these letters. A font draws one and the same sign for every letter that it lacks."""
    unknown = bytes(font.getmask("\U0010fffe"))
    return all(bytes(font.getmask(letter)) != unknown for letter in letters if not letter.isspace())


def _letters(text: str, font: Any) -> str:
    """The text with ? in place of letters that a bitmap font cannot draw."""
    return text if hasattr(font, "getmask2") else text.encode("latin-1", "replace").decode("latin-1")


def _legends(entries: Legend, width: int) -> list[Panel]:
    return [_legend(entries, width)] if entries else []


def _words(text: str, width: int) -> Panel:
    """A text, wrapped into lines."""
    lines = [""]
    for word in WORD.findall(text):
        longer = (lines[-1] + word).strip()
        if lines[-1] and length_of(longer, TITLE) > width - 2 * EDGE:
            lines.append(fitted(word.strip(), width - 2 * EDGE, TITLE))
        else:
            lines[-1] = fitted(longer, width - 2 * EDGE, TITLE)

    def draw(page: Canvas, top: float) -> None:
        for number, line in enumerate(lines):
            page.text((EDGE, top + EDGE + 18 * number), line, TITLE, "la")

    return Panel(EDGE + 18 * len(lines), draw)


def _legend(entries: Legend, width: float) -> Panel:
    """Labels with their colours, wrapped into lines."""
    placed: list[tuple[float, int, str, str]] = []
    x, line = float(EDGE), 0
    for label, colour in entries:
        needed = 14 + min(length_of(label), width - 2 * EDGE - 14)
        if x > EDGE and x + needed > width - EDGE:
            x, line = float(EDGE), line + 1
        placed.append((x, line, label, colour))
        x += needed + 12

    def draw(page: Canvas, top: float) -> None:
        for x, line, label, colour in placed:
            y = top + LINE * line + 10
            page.area(_corners((x, y - 4), (x + 9, y + 4)), colour)
            page.text((x + 14, y), fitted(label, width - 2 * EDGE - 14), full=label)

    return Panel(LINE * (line + 1) + 6, draw)


@dataclass
class _Scale:
    """Maps values to pixels along one axis."""

    low: float
    high: float
    logarithmic: bool
    first: float = 0.0
    last: float = 1.0
    ticks: list[float] = field(default_factory=list[float])

    @classmethod
    def over(cls, values: Sequence[float], *, logarithmic: bool, limits: Point | None = None) -> _Scale:
        finite = [value for value in values if math.isfinite(value) and (value > 0 or not logarithmic)]
        low, high = limits or (min(finite, default=0.0), max(finite, default=1.0))
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
        integers = all(value == int(value) for value in finite) and limits is None
        return cls(low, high, logarithmic=False, ticks=_even(low, high, integers=integers))

    def at(self, value: float) -> float:
        if not math.isfinite(value):
            value = self.high
        value = min(max(value, self.low), self.high)
        ends = (self.low, self.high, value)
        low, high, position = map(math.log10, ends) if self.logarithmic else ends
        return self.first + (self.last - self.first) * (position - low) / (high - low)


def _even(low: float, high: float, *, integers: bool) -> list[float]:
    """About five evenly spaced round numbers; whole numbers only with `integers`."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= raw * 0.999)
    step = max(step, 1.0) if integers else step
    return [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _number(value: float, *, percent: bool = False) -> str:
    return f"{100 * value:.4g} %" if percent else f"{value:.4g}"


def _axes(chart: Axes) -> Panel:
    # Series that share a label get one entry, in the colour of the first.
    labels = {series.label: series.colour for series in reversed(chart.series) if series.label}
    entries = [(label, labels.pop(label)) for series in chart.series if (label := series.label) in labels]
    head = [_words(chart.title, WIDTH), *_legends(entries, WIDTH)]
    points = [point for series in chart.series for point in series.points]
    across = [x for x, _ in points] + [x for x, _ in chart.marks]
    span = (-0.5, len(chart.names) - 0.5) if chart.names else chart.span
    x = _Scale.over(across, logarithmic=chart.logarithmic[0], limits=span)
    y = _Scale.over([y for _, y in points], logarithmic=chart.logarithmic[1], limits=chart.limits)
    beside = max((length_of(_number(tick, percent=chart.percent)) for tick in y.ticks), default=0.0)
    names = [fitted(name, 90) for name in chart.names]
    below = max(map(length_of, names), default=10.0) + 2 * GAP + (15 if chart.across else 0)
    x.first, x.last = EDGE + beside + GAP, WIDTH - EDGE - 6.0
    over = sum(panel.height for panel in head) + 8

    def draw(page: Canvas, top: float) -> None:
        at = top
        for panel in head:
            panel.draw(page, at)
            at += panel.height
        y.last, y.first = top + over, top + over + PLOT
        for tick in y.ticks:
            page.line([(x.first, y.at(tick)), (x.last, y.at(tick))], INK, share=FAINT)
            page.text((x.first - GAP, y.at(tick)), _number(tick, percent=chart.percent), anchor="rm")
        if names:
            step = math.ceil(12 * len(names) / (x.last - x.first))
            for index in range(0, len(names), step):
                where = (x.at(index), y.first + GAP)
                page.text(where, names[index], full=chart.names[index], upright=True)
        else:
            last = -math.inf
            for tick in chart.ticks or x.ticks:
                words = _number(tick)
                half = length_of(words) / 2
                page.line([(x.at(tick), y.first), (x.at(tick), y.first + 3)], INK)
                if x.at(tick) - half > last + GAP:
                    page.text((min(x.at(tick), WIDTH - GAP - half), y.first + GAP), words, anchor="ma")
                    last = x.at(tick) + half
        if chart.across:
            page.text(((x.first + x.last) / 2, y.first + below), chart.across, anchor="ms")
        for index, style in chart.marks:
            stroke = page.dashes if style.form == "dashes" else page.line
            stroke([(x.at(index), y.first), (x.at(index), y.last)], style.colour)
        for series in chart.series:
            _draw_series(page, series, [(x.at(a), y.at(b)) for a, b in series.points])
        page.line([(x.first, y.last), (x.first, y.first), (x.last, y.first)], INK)

    return Panel(over + PLOT + below + 6, draw)


def _draw_series(page: Canvas, series: Series, placed: Sequence[Point]) -> None:
    if series.form == "boxes":
        for corner, other in zip(placed[::2], placed[1::2], strict=True):
            page.area(_corners(corner, other), series.colour)
    elif series.form == "area":
        page.area(placed, series.colour, 0.2)
    elif series.form == "dashes":
        page.dashes(placed, series.colour, 1.5)
    elif series.form != "dots":
        page.line(placed, series.colour, 1.5)
    if "dots" in series.form or (series.form == "line" and len(placed) == 1):
        radius = 2.0 if len(placed) < MANY else 1.0
        for point in placed:
            page.dot(point, series.colour, radius)


def _table(chart: ColourTable) -> Panel:
    title = _words(chart.title, WIDTH)
    longest = max(map(length_of, chart.names), default=0.0)
    # Above the columns, numbers stand for the names.
    numbers = [] if chart.columns else [str(index + 1) for index in range(len(chart.names))]
    columns = chart.columns or numbers
    count = max(1, len(columns))
    left = EDGE + min(longest, 0.4 * WIDTH) + (24 if numbers else 8)
    across = min((WIDTH - left - EDGE) / count, 64.0)
    down = min(across, 20.0)
    over = title.height + LINE + 4

    def draw(page: Canvas, top: float) -> None:
        title.draw(page, top)
        for column, name in enumerate(columns):
            where = (left + (column + 0.5) * across, top + over - 4)
            page.text(where, fitted(name, across), anchor="ms", full=name)
        for row, (name, values) in enumerate(zip(chart.names, chart.values, strict=True)):
            middle = top + over + (row + 0.5) * down
            beside = left - (22 if numbers else 6)
            page.text((beside, middle), fitted(name, beside - EDGE), anchor="rm", full=name)
            for number in numbers[row : row + 1]:
                page.text((left - 8, middle), number, anchor="rm")
            for column, value in enumerate(values):
                corner = (left + column * across, top + over + row * down)
                end = (corner[0] + across - 1, corner[1] + down - 1)
                if math.isfinite(value):
                    colour = ALIKE if value > 0 else OPPOSED
                    page.area(_corners(corner, end), colour, max(0.06, min(1.0, abs(value))))
                words = chart.words[row][column] if chart.words else f"{round(value, 2) + 0.0:.2f}"
                if across >= 26 and length_of(words) <= across:
                    page.text((corner[0] + across / 2, middle), words, anchor="mm")
        for (row, column), width in chart.frames.items():
            corner = (left + column * across, top + over + row * down)
            around = _corners(corner, (corner[0] + across - 1, corner[1] + down - 1))
            page.line([*around, *around[:2]], INK, width)

    return Panel(over + len(chart.names) * down + 8, draw)


def _planes(chart: Planes, width: int) -> Panel:
    count = len(chart.shares)
    rows, columns = len(chart.shares[0][0][0]), len(chart.shares[0][0][0][0])
    across = (width - 2 * EDGE - GAP * (count - 1)) / count
    side = min(across / columns, width / rows)
    over = EDGE + (LINE if any(chart.titles) else 0)

    def draw(page: Canvas, top: float) -> None:
        for index, (title, layers) in enumerate(zip(chart.titles, chart.shares, strict=True)):
            left = EDGE + index * (across + GAP) + (across - side * columns) / 2
            page.text((left, top + EDGE + LINE / 2), fitted(title, across))
            for shares, colour in layers:
                steps = [tuple(round(STEPS * min(1.0, max(0.0, v))) for v in values) for values in shares]
                for first, last, row in _runs(steps):
                    for start, end, step in _runs(row):
                        corner = (left + start * side, top + over + first * side)
                        other = (left + end * side, top + over + last * side)
                        if step:
                            page.area(_corners(corner, other), colour, OVER * step / STEPS)
            box = _corners((left, top + over), (left + side * columns, top + over + side * rows))
            page.line([*box, box[0]], INK, share=2 * FAINT)

    return Panel(over + side * rows + GAP, draw)


def _runs(values: Sequence[Value]) -> Iterator[tuple[int, int, Value]]:
    """The start, end and value of each run of equal values."""
    ends = [index for index in range(1, len(values)) if values[index] != values[index - 1]]
    return ((start, end, values[start]) for start, end in pairwise((0, *ends, len(values))))
