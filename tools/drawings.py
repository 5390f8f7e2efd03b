"""Draws the pictures of the pages: `python -m tools.drawings`, in the environment.

What each merge method makes of two changes, and the curves of schedules. All values are the library's own. A
test draws them again. Other pictures there were drawn once, and show nothing that is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

import torch
from torch import Tensor

import lycoris_ops as lyc
from tests.harness.facts import ROOT

FOLDER = ROOT / "docs" / "pictures"
FIRST, SECOND, RESULT, GREY = "#4a90d9", "#e0872f", "#43a76b", "#8a8f98"
"""The colours of the first change, of the second one, of what is made of them, and of what only helps."""
# Inside a page the text has the page's colour. By itself a picture follows the system.
STYLE = "<style>.drawing{color:#24292f}@media(prefers-color-scheme:dark){.drawing{color:#e6e8eb}}</style>"

Point = tuple[float, float]


@dataclass
class Drawing:
    """Lines, arrows, bars and words in pixels, from the top left."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def line(self, points: Sequence[Point], colour: str = GREY, width: float = 1, dash: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashes}/>'
        )

    def arrow(self, start: Point, end: Point, colour: str, width: float = 2.5) -> None:
        along = complex(end[0] - start[0], end[1] - start[1])
        if abs(along) < 1:
            return
        tip, unit = complex(*end), along / abs(along)
        self.line([start, (end[0] - 6 * unit.real, end[1] - 6 * unit.imag)], colour, width)
        corners = [tip, tip - 11 * unit + 5j * unit, tip - 11 * unit - 5j * unit]
        path = " ".join(f"{one.real:.1f},{one.imag:.1f}" for one in corners)
        self.parts.append(f'<polygon points="{path}" fill="{colour}"/>')

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2" fill="{colour}"'
            ' fill-opacity="1"/>'
        )

    def words(self, x: float, y: float, text: str, colour: str = "currentColor") -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="start">{escape(text)}</text>'
        )

    def svg(self) -> str:
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" {size}'
            ' role="img" font-family="sans-serif" font-size="13">\n'
            f"{STYLE}<title>{escape(self.title)}</title>\n" + "\n".join(self.parts) + "\n</svg>\n"
        )


def merged(method: str, first: Tensor, second: Tensor, **options: float | str) -> Tensor:
    """What a method makes of two changes at strength 1."""
    adapters = [
        lyc.adapter_of_tensors({"layer.diff": change.float()}, name=name)
        for name, change in (("first", first), ("second", second))
    ]
    made = lyc.merge_adapters([(adapter, 1.0) for adapter in adapters], method, **options)
    (layer,) = made.layers.values()
    return layer.delta(torch.zeros(first.shape))


def arrows(
    title: str, shown: Sequence[tuple[Point, str, str]], helps: Sequence[tuple[Point, Point]] = ()
) -> Drawing:
    """Changes as arrows of a plane, with their names; `helps` are dashed lines."""
    drawing = Drawing(400, 220, title)
    right = max(x for (x, _), _, _ in shown)
    heights = [0.0, *(y for (_, y), _, _ in shown)]
    low, high = min(heights), max(heights)
    scale = min(105.0, 280 / right, 180 / (high - low))

    def place(x: float, y: float) -> Point:
        return (20 + x * scale, 205 + (low - y) * scale)

    for start, end in helps:
        drawing.line([place(*start), place(*end)], dash="4 4")
    for end, name, colour in shown:
        drawing.arrow(place(0, 0), place(*end), colour, 4 if colour == RESULT else 2.5)
        x, y = place(*end)
        drawing.words(x + 8, y + 4, name, colour)
    return drawing


def rows(title: str, shown: Sequence[tuple[str, Tensor, str]]) -> Drawing:
    """Values as bars, a row for each change."""
    drawing, high = Drawing(400, 62 * len(shown) + 8, title), 26.0
    most = max(float(values.abs().max()) for _, values, _ in shown)
    for row, (name, values, colour) in enumerate(shown):
        middle = 34 + 62 * row
        drawing.words(0, middle + 4, name, colour)
        step = 320 / len(values)
        drawing.line([(76, middle), (396, middle)])
        for place, value in enumerate(values.tolist()):
            tall = high * abs(value) / most
            top = middle - tall if value > 0 else middle
            drawing.box(76 + place * step + 1, top, step - 2, tall, colour)
    return drawing


PLANE = (torch.tensor([[1.5, 0.25]]), torch.tensor([[0.55, 1.3]]))
"""Two changes of a layer with two weights."""


def in_plane(method: str, **options: float) -> Drawing:
    first, second = PLANE
    names = (
        (first, "first", FIRST),
        (second, "second", SECOND),
        (merged(method, *PLANE, **options), "result", RESULT),
    )
    ends = [((float(one[0, 0]), float(one[0, 1])), name, colour) for one, name, colour in names]
    (a, b, r) = (end for end, _, _ in ends)
    helps: list[tuple[Point, Point]] = []
    if method == "sum":
        helps = [(a, r), (b, r)]
    if method in ("average", "model_stock", "slerp", "karcher"):
        helps = [(a, b)]
    if method == "regression":
        helps = [(a, r), (b, r)]
    return arrows(f"{method}: two changes as arrows, and what is made of them", ends, helps)


def by_value(method: str, **options: float | str) -> Drawing:
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(2, 1, 20, generator=generator).clamp(-1.9, 1.9).sinh()).unbind()
    result = merged(method, first, second, **options)
    return rows(
        f"{method}: twenty values of two changes, and what is made of them",
        [("first", first[0], FIRST), ("second", second[0], SECOND), ("result", result[0], RESULT)],
    )


def low_rank() -> tuple[Tensor, Tensor]:
    """Two changes of rank 2 that share some of their directions."""
    generator = torch.Generator().manual_seed(3)
    one, other = torch.randn(2, 6, 6, generator=generator)
    ups, downs = torch.linalg.qr(one)[0], torch.linalg.qr(other)[0]
    mixed = ups[:, 1] * 0.8 + ups[:, 2] * 0.6
    first = 2.0 * torch.outer(ups[:, 0], downs[0]) + 1.0 * torch.outer(ups[:, 1], downs[1])
    second = 1.6 * torch.outer(mixed, downs[1]) + 0.5 * torch.outer(ups[:, 3], downs[2])
    return first, second


def in_directions(method: str, **options: float | str) -> Drawing:
    """A method that works in directions that the changes share: the values there."""
    first, second = low_rank()
    left = torch.linalg.svd(torch.cat([first, second], 1))[0][:, :4]
    right = torch.linalg.svd(torch.cat([first, second], 0))[2][:4].T
    result = merged(method, first, second, **options)
    cores = [(left.T @ one @ right).flatten() for one in (first, second, result)]
    names = ("first", "second", "result")
    return rows(
        f"{method}: two changes in the directions that they have, and what is made of them",
        list(zip(names, cores, (FIRST, SECOND, RESULT), strict=True)),
    )


def strengths() -> Drawing:
    """The strengths of the directions of a sum, and of what Iso makes of it."""
    first, second = low_rank()
    values = [torch.linalg.svdvals(one)[:4] for one in (first + second, merged("iso", first, second))]
    return rows(
        "iso: how strong the directions of the sum are, before and after",
        [("sum", values[0], GREY), ("result", values[1], RESULT)],
    )


def turned() -> Drawing:
    """The directions of two changes, and how TSV-M turns them away from each other."""
    one, other = torch.tensor([1.0, 0.2, 0, 0]), torch.tensor([0.75, 0.8, 0, 0])
    one, other = one / one.norm(), other / other.norm()
    ends: list[tuple[Point, str, str]] = [
        ((float(end[0]), float(end[1])), name, GREY) for end, name in ((one, "first"), (other, "second"))
    ]
    adapters = [
        lyc.adapter_of_tensors({"layer.diff": torch.outer(end, end)}, name=name)
        for end, name in ((one, "first"), (other, "second"))
    ]
    parts = lyc.orthogonal_adapters([(adapter, 1.0) for adapter in adapters])
    for adapter, name, colour in zip(parts, ("first", "second"), (FIRST, SECOND), strict=True):
        (layer,) = adapter.layers.values()
        direction = torch.linalg.svd(layer.delta(torch.zeros(4, 4)))[2][0]
        direction = direction * direction.sum().sign()
        ends.append(((float(direction[0]), float(direction[1])), f"{name}, turned", colour))
    return arrows("tsv: the directions of two changes, and how they are turned to be orthogonal", ends)


MERGES: dict[str, Callable[[], Drawing]] = {
    **{
        name: lambda name=name: in_plane(name)
        for name in ("sum", "average", "slerp", "karcher", "model_stock", "regression")
    },
    "tsv": turned,
    "iso": strengths,
    "knots": lambda: in_directions("knots", density=0.4),
    "core_space": lambda: in_directions("core_space", density=0.4),
    "ties": lambda: by_value("ties", density=0.5),
    "dare": lambda: by_value("dare", density=0.5),
    "della": lambda: by_value("della", density=0.5, epsilon=0.3),
    "breadcrumbs": lambda: by_value("breadcrumbs", density=0.6, gamma=0.15),
    "magnitude_prune": lambda: by_value("magnitude_prune", density=0.4),
    "sce": lambda: by_value("sce", select=0.5),
    "nearswap": lambda: by_value("nearswap", t=0.4),
}
"""How each method is drawn."""

CURVES = (
    "linear 1 0",
    "ease in 0 1",
    "ease out 0 1",
    "ease in-out 0 1",
    "pulse 0.25 0.75",
    "off after 0.5",
    "on after 0.3",
    "constant 0.7",
    "0:0.2, 0.5:0.8, 1:1",
)


def curves() -> Drawing:
    drawing = Drawing(600, 372, "The curves of schedules, each from the first step to the last")
    for index, text in enumerate(CURVES):
        left, top = 200 * (index % 3) + 10, 124 * (index // 3) + 26
        drawing.words(left, top - 10, text)
        drawing.line([(left, top), (left, top + 80), (left + 170, top + 80)])
        curve = lyc.Curve.parse(text)
        times = [place / 200 for place in range(201)]
        drawing.line(
            [(left + 170 * time, top + 80 - 75 * curve.at(time)) for time in times], RESULT, width=2.5
        )
    return drawing


def drawings() -> Iterator[tuple[str, Drawing]]:
    """Each picture by its name."""
    for method in lyc.merge_methods():
        yield f"merge-{method}", MERGES[method]()
    yield "curves", curves()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, drawing in drawings():
        (FOLDER / f"{name}.svg").write_text(drawing.svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
