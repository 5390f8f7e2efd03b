"""The blocks of a model as bars that can be set, and what one adapter does in each of them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import fsum
from threading import Lock
from typing import Literal, NamedTuple

from torch import Tensor

from ..errors import RuleError
from ..maths.shapes import Shape
from ..names.blocks import ATTENTION, BESIDE, FEED_FORWARD, Blocks, Named
from ..names.targets import ENCODERS, WEIGHT, host_name
from ..reading.adapter import Adapter
from ..rules.rules import Rules
from ..rules.scene import Scene
from .bar_lines import BarLines
from .resolve import resolve
from .stack import Entry, Stack
from .survey import blocks_of, size_of

KINDS = ("video", "audio", "attn", "mlp", "conv", "norm")
PARTS = ("attn.q", "attn.k", "attn.v", "attn.out")
OWN, LONGEST = 10, 16
"""At most OWN of the model's own words for kinds of layers get bars, each shorter than LONGEST letters."""
GLUED = re.compile(r"_(\d+)(?:_|$)")
"""The number of a block in a name in kohya's style."""

Sort = Literal["blocks", "beside", "text", "kinds"]


@dataclass(frozen=True)
class Bar:
    """A name that rules may weight, and the layers that it stands for."""

    name: str
    members: tuple[Named, ...]
    """The model's layers."""
    layers: tuple[str, ...]
    """The adapter's layers, by their names in its file."""


@dataclass(frozen=True)
class BarGroup:
    """Bars that belong together: a list of blocks, a text encoder, layers in no list, or kinds of layers."""

    name: str
    sort: Sort
    bars: tuple[Bar, ...]


class BarWeight(NamedTuple):
    """The weight that rules give the layers of a bar."""

    mean: float
    least: float
    most: float


class Weighed(NamedTuple):
    """The effect of rules on the bars."""

    weights: Mapping[str, BarWeight]
    """By the name of the bar."""
    idle: tuple[str, ...]
    """Patterns that match nothing in the model."""


class Bars:
    """The bars of one adapter on one model.

    `blocks` are the model's, see `blocks_of`; None stands for a model with just the layers of the adapter's
    file, under their names in the file. Layers that the model lacks are left out. Raises MatchError as
    `resolve` does. `read` reads weights for changes that depend on them, as in `survey`.
    """

    def __init__(
        self,
        adapter: Adapter,
        blocks: Blocks | None,
        *,
        read: Callable[[str], Tensor | None] | None = None,
    ) -> None:
        self._read = read
        self._known = blocks is not None
        self.blocks = blocks or blocks_of(dict(_shapes(adapter)))
        self._entry = Entry(adapter)
        (resolution,) = resolve(Stack([self._entry]), self.blocks.targets.shapes).entries
        self.matches = resolution.matches
        self.mine = {match.layer: self.blocks.of(match.target, match.layer) for match in resolution.matches}
        self.groups = tuple(self._blocks()) + self._kinds()
        self.unmeasured = 0
        """How many changes are not measured, because their weights could not be read."""
        self.done = 0
        self._squares: dict[str, float] = {}
        self._lock = Lock()

    @property
    def bars(self) -> Iterator[Bar]:
        return (bar for group in self.groups for bar in group.bars)

    def _blocks(self) -> Iterator[BarGroup]:
        own: dict[str, list[str]] = {}
        for layer, named in self.mine.items():
            own.setdefault(named.block, []).append(layer)
        adapted = {block.partition(".")[0] for block in own}
        groups: dict[tuple[Sort, str], list[Bar]] = {}
        for block, members in self.blocks.members.items():
            bar = Bar(block, tuple(members), tuple(own.get(block, ())))
            sort, name = _group(block, members[0])
            # A list stays whole, but single layers and whole encoders that the file lacks are left out.
            listed = sort == "blocks" or (members[0].family and name in adapted)
            if listed or bar.layers or not self.mine:
                groups.setdefault((sort, name), []).append(bar)
        order: tuple[Sort, ...] = ("blocks", "beside", "text")
        for sort, name in sorted(groups, key=lambda key: order.index(key[0])):
            yield BarGroup(name, sort, tuple(groups[sort, name]))

    def _kinds(self) -> tuple[BarGroup, ...]:
        words = dict.fromkeys(name for named in self.blocks.layers for name in sorted(named.names))
        own = [word for word in words if word not in KINDS and "." not in word and _is_kind(word)]
        bars: list[Bar] = []
        seen: set[tuple[int, ...]] = set()
        # Without the model, its own words are not known: a file may have other names.
        for name in (*KINDS, *PARTS, *own[:OWN]) if self._known else KINDS:
            members = tuple(named for named in self.blocks.layers if name in named.names)
            layers = tuple(layer for layer, named in self.mine.items() if name in named.names)
            same = tuple(map(id, members))
            if not members or same in seen or (name not in KINDS and not layers):
                continue
            seen.add(same)
            bars.append(Bar(name, members, layers))
        return (BarGroup("kinds", "kinds", tuple(bars)),) if bars else ()

    def measure(self, seconds: float) -> bool:
        """Measure more of the adapter's changes, until `seconds` are over; return whether all are measured.

        Raises LycorisError for a layer that cannot be read, at this and every later call.
        """
        end = time.monotonic() + seconds
        with self._lock:
            while self.done < len(self.matches):
                match = self.matches[self.done]
                size = size_of(self._entry, match, self._read)
                self.unmeasured += size is None
                self._squares[match.layer] = self._squares.get(match.layer, 0.0) + (size or 0.0) ** 2
                self.done += 1
                if time.monotonic() > end:
                    break
        return self.done == len(self.matches)

    def share(self, bar: Bar) -> float:
        """The share of a bar, from 0 to 1, in the squared norm of all that is measured so far."""
        total = fsum(self._squares.values())
        return fsum(self._squares.get(layer, 0.0) for layer in bar.layers) / total if total else 0.0

    def weighed(self, rules: Rules) -> Weighed:
        """The weights that rules give each bar: to the adapter's layers in it, or else to the model's layers.

        Raises RuleError for a line that fits neither the model nor the file.
        """
        mine = rules.on(Scene(self.blocks, self.mine))
        without = {bar.name: bar.members for bar in self.bars if not bar.layers}
        others = {f"{name}#{at}": member for name, held in without.items() for at, member in enumerate(held)}
        rest = rules.on(Scene(self.blocks, others)).of
        weights: dict[str, BarWeight] = {}
        for bar in self.bars:
            values = [mine.of[layer] for layer in bar.layers]
            values = values or [rest[f"{bar.name}#{at}"] for at in range(len(bar.members))]
            weights[bar.name] = BarWeight(fsum(values) / len(values), min(values), max(values))
        return Weighed(weights, mine.idle)

    def painted(self, text: str, weights: Mapping[str, float]) -> str:
        """The text of rules after some bars have been set, by their names.

        What bars cannot say stays as it is written, before the lines of the bars.
        """
        lines = self._lines(text)
        lines.set(weights)
        return str(lines)

    def kinds_of(self, text: str) -> tuple[str, Mapping[str, float]]:
        """A text of rules without the lines at its end that scale kinds, and the factor of each kind there.

        The bars of the kinds show these factors. The lines before them keep their numbers.
        """
        lines = self._lines(text)
        return lines.without_kinds, lines.kinds

    def _lines(self, text: str) -> BarLines:
        names: dict[bool, list[str]] = {False: [], True: []}
        for group in self.groups:
            names[group.sort == "kinds"] += [bar.name for bar in group.bars]
        return BarLines.read(text, names[False], names[True])

    def fitting(self, presets: Mapping[str, str]) -> dict[str, str]:
        """The presets, by name, that name only blocks of the model."""
        first = {block: members[0] for block, members in self.blocks.members.items()}
        scene = Scene(self.blocks, first)

        def fits(text: str) -> bool:
            try:
                return not Rules.parse(text, presets).on(scene).idle
            except RuleError:
                return False

        return {name: text for name, text in presets.items() if fits(text)}


def _is_kind(word: str) -> bool:
    """Whether a name is the model's own word for attention or feed-forward, and short enough for a label."""
    said = ATTENTION.search(word) or FEED_FORWARD.fullmatch(word)
    return said is not None and len(word) < LONGEST and not BESIDE.search(word)


def _group(block: str, named: Named) -> tuple[Sort, str]:
    if "te" in named.names:
        return "text", block.partition(".")[0]
    return ("blocks", named.family) if named.family else ("beside", "beside")


def _shapes(adapter: Adapter) -> Iterable[tuple[str, Shape]]:
    """Keys and shapes of a model that has just the layers of an adapter."""
    for info in adapter.info.values():
        named = info.named
        # In names in kohya's style the numbers of blocks are between underscores.
        path = named.path if "." in named.path else GLUED.sub(r".\1.", named.path).strip(".")
        encoder = ENCODERS[named.encoder or 1][0] if named.component == "te" else None
        yield (
            f"{host_name(path, named.component, encoder)}{WEIGHT}",
            tuple(size or 1 for size in info.shape or ()),
        )
