"""Patterns of block rules: which layers a pattern matches, and similar names where it matches none."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import NamedTuple

from ..errors import RuleError
from ..expressions import search
from ..names.blocks import Blocks, Named
from .scene import Scene

GLOB = re.compile(r"[*?\[]")
KNOWN_AS = {
    "base": "te",
    "middle": "mid",
    "input": "in",
    "output": "out",
    "clip": "clip_l",
    "t5": "t5xxl",
}
"""From other tools' names of blocks, in lower case, to ours."""
GLUED = re.compile(r"(in|input|out|output|d|double|s|single|m|mid|middle)_?([0-9]{1,6})")
"""A block's name with its number glued to it: `IN04`, `OUT11`, `D00`."""
ENCODER = re.compile(r"te[1-4]?(?![a-z])|clip_|\w*t5|llama")
"""The beginnings of names of text encoders."""
NUMBER = re.compile(r"[0-9]{1,6}")
NUMBERS = re.compile(r"(.+)\.([0-9]{1,6})-(?:\1\.)?([0-9]{1,6})")
"""A range of modules in one list: `blocks.0-3`, `blocks.0-blocks.3`."""
EXPRESSION = r"/(?:\\.|(?!/\s*(?:[=:]|$))[^\\])*/"
"""A regular expression in a line. It ends at the first / after which a = or a colon comes, or nothing."""
EXPRESSION_LINE = re.compile(rf"(\s*{EXPRESSION}\s*)=(.*)")
MOST = 4096
"""The most blocks in a range. Models have some dozens."""
MOST_PATTERNS = 128
"""The most patterns in a line."""
LONGEST = 1000
"""The most characters of a glob, and of a name for which similar ones are sought. No layer's is longer."""
MOST_NEAR = 8
"""The most patterns that match nothing and get similar names. The search takes some milliseconds for each."""
FAMILIES = {"input": "in", "output": "out", "d": "double", "s": "single"}

Test = Callable[[Named, Scene | None], bool]
"""Whether a pattern matches a layer. The scene is None where there is only a path and no model."""


@dataclass(frozen=True)
class Pattern:
    """A user's text to choose layers, in block rules or for training, with its test.

    In rules a layer has the names of its blocks and its paths. In training a module has only its path, so
    block names do not work there. Case does not matter.

    - `in.4`, `mid`, `te1`, `attn.q`, `conv`: a block, a component of the model or a layer's role in its
    block;
      also under other tools' names: `IN04`, `MID`, `BASE`;
    - `in.1-4`, `IN05-OUT05`: the blocks from one to the other, in the order of the model, unless this is a
      name in the model;
    - `diffusion_model.input_blocks.4` and `input_blocks.4`: a layer, or everything within a module;
    - `*attn2*`: a glob on any of these names: `*` is any text, dots included, `?` one character;
    - `/attn[12]/`: a regular expression that is searched for in the path of a layer;
    - `*`: everything.
    """

    text: str
    test: Test

    @classmethod
    def of(cls, text: str) -> Pattern:
        """The pattern of a text in a rule.

        Raises RuleError where it is empty, an invalid regular expression or an invalid range.
        """
        if searched := _searched(text):
            return cls(text, searched)
        meant = {text.lower(), _ours(text)}
        first, dash, last = text.partition("-")
        within = _range(text, first, last) if dash else None

        def test(named: Named, scene: Scene | None) -> bool:
            for name in meant:
                if _is(name, named):
                    return True
            # diffusers' Z-Image has a layer all_x_embedder.2-1.
            if within is None or (scene and not scene.known.isdisjoint(meant)):
                return False
            return within(named, scene)

        return cls(text, test)

    @classmethod
    def of_modules(cls, text: str) -> Pattern:
        """The pattern of a text that chooses modules. Other tools' names of blocks are not recognised.

        Raises RuleError where it is empty or an invalid regular expression.
        """
        if searched := _searched(text):
            return cls(text, searched)
        path = text.lower()
        if numbers := NUMBERS.fullmatch(path):
            among = _among(numbers[1], int(numbers[2]), int(numbers[3]))
            return cls(text, lambda named, scene: _is(path, named) or among(named, scene))
        return cls(text, lambda named, _: _is(path, named))

    def matches(self, scene: Scene, named: Named) -> bool:
        """Whether it matches a layer."""
        return self.test(named, scene)

    def matches_path(self, path: str) -> bool:
        """Whether it matches the module of this path, or a module around it."""
        return self.test(Named("", frozenset(), (path.lower(),)), None)

    @property
    def is_of_encoder(self) -> bool:
        """Whether it names text encoders or one of them."""
        return ENCODER.match(_ours(self.text)) is not None

    def near(self, blocks: Blocks) -> str | None:
        """Similar names, in words, for a pattern that matches nothing in the model; None for none."""
        if len(self.text) > LONGEST:
            return None
        name = _ours(re.sub(r"-.*|[*?\[\]/]", "", self.text))
        family = name.rpartition(".")[0] or name
        if numbers := blocks.numbers(family):
            return f"the model has {spans(family, numbers)}"
        words = (
            blocks.vocabulary if name.count(".") < 2 else [path for n in blocks.layers for path in n.paths]
        )
        close = difflib.get_close_matches(name, words, n=3, cutoff=0.6)
        return f"nearest: {', '.join(close)}" if close else None


def unmet(patterns: Iterable[Pattern], scene: Scene) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The patterns that match none of the adapter's layers, in words: (notes, idle).

    Notes are for patterns that are no mistakes: the adapter lacks these layers, or there is no text encoder.
    Idle patterns match nothing in the model either; similar names are added to them.
    """
    named = scene.layers.values()
    notes: list[str] = []
    idle: list[str] = []
    for pattern in patterns:
        scene.check_time()
        if any(pattern.matches(scene, each) for each in named):
            continue
        if why := _elsewhere(pattern, scene):
            notes.append(f"{pattern.text}: {why}")
        else:
            near = pattern.near(scene.blocks) if len(idle) < MOST_NEAR else None
            idle.append(f"{pattern.text}: the model has nothing of that name" + (f"; {near}" if near else ""))
    return tuple(notes), tuple(idle)


def _elsewhere(pattern: Pattern, scene: Scene) -> str | None:
    """Why a pattern that matches none of the adapter's layers is no mistake; None where it may be one."""
    if any(pattern.matches(scene, named) for named in scene.blocks.layers):
        return "the file has no layer there"
    if pattern.is_of_encoder and not any("te" in named.names for named in scene.blocks.layers):
        return "there is no text encoder here"
    return None


def spans(family: str, numbers: Sequence[int]) -> str:
    """The blocks of a family in words: `in.0-8`."""
    low, high = min(numbers), max(numbers)
    if len(numbers) > 1 and high - low + 1 == len(numbers):
        return f"{family}.{low}-{high}"
    return ", ".join(f"{family}.{number}" for number in numbers[:8])


class Assigned(NamedTuple):
    """A line `patterns = value`. The value is still a text."""

    patterns: tuple[Pattern, ...]
    left: str
    """The text before the =."""
    right: str
    """The text after it."""


def assigned(line: str) -> Assigned | None:
    """The patterns and the value of a line; None for a line without a =. The patterns may be empty.

    A = within a regular expression is part of it. Raises RuleError, with the column, for an invalid pattern.
    """
    if expression := EXPRESSION_LINE.fullmatch(line):
        left, right = expression.groups()
    else:
        left, equals, right = line.partition("=")
        if not equals:
            return None
    patterns: list[Pattern] = []
    offset = len(left) - len(left.lstrip())
    for start, atom in atoms(left.strip()):
        try:
            patterns.append(Pattern.of(atom))
        except RuleError as error:
            raise error.at(offset + start + 1) from None
    return Assigned(tuple(patterns), left, right)


def atoms(text: str) -> Iterator[tuple[int, str]]:
    """The patterns of a text, separated by spaces or commas, each with its position in the text.

    A regular expression is one pattern, whatever is in it. Raises RuleError for more than `MOST_PATTERNS`.
    """
    if text.startswith("/"):
        yield 0, text
        return
    for count, match in enumerate(re.finditer(r"[^\s,]+", text)):
        if count == MOST_PATTERNS:
            raise RuleError("E-rule-too-many-patterns", most_patterns=MOST_PATTERNS).at(match.start() + 1)
        yield match.start(), match[0]


def _searched(text: str) -> Test | None:
    """The test of a regular expression or a glob; None for another pattern."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RuleError("E-pattern-not-text", got=repr(text))
    if not text.strip():
        raise RuleError("E-pattern-empty")
    if len(text) > 1 and text[0] == text[-1] == "/":
        # Search only paths: nobody means the block `in` by `/in/`.
        matches = search(text[1:-1])
        return lambda named, _: any(map(matches, named.paths))
    if GLOB.search(text):
        if len(text) > LONGEST:
            raise RuleError("E-glob-too-long", count=len(text), text=text[:40], longest=LONGEST)
        # Not `fnmatch`, which on Windows takes / for \.
        glob = re.compile(translate(text.lower()))
        return lambda named, _: any(map(glob.match, (*named.names, *named.paths)))
    return None


def _is(name: str, named: Named) -> bool:
    if name in named.names:
        return True
    # A loop, since a generator takes three times as long and there may be a million calls.
    start = f"{name}."
    for path in named.paths:  # noqa: SIM110
        if path == name or path.startswith(start):
            return True
    return False


def _ours(text: str) -> str:
    """A name in our own form."""
    name = text.lower()
    if glued := GLUED.fullmatch(name):
        if glued[1].startswith("m"):
            return "mid"
        return f"{FAMILIES.get(glued[1], glued[1])}.{int(glued[2])}"
    first, dot, rest = name.partition(".")
    return f"{KNOWN_AS.get(first, first)}{dot}{rest}"


def _range(text: str, first: str, last: str) -> Test:
    start = _ours(first)
    family, _, number = start.rpartition(".")
    end = f"{family}.{last}" if NUMBER.fullmatch(last) else _ours(last)
    to_family, _, to_number = end.rpartition(".")
    if not first or not last:
        raise RuleError("E-block-range-open", got=text)
    if family and family == to_family and NUMBER.fullmatch(number) and NUMBER.fullmatch(to_number):
        low, high = int(number), int(to_number)
        if low > high and "_" not in family:
            # With a _ it may be a name of the model.
            raise RuleError("E-block-range-reversed", got=text)
        return _among(family, low, high)

    def between(named: Named, scene: Scene | None) -> bool:
        positions: Mapping[str, int] = scene.blocks.positions if scene else {}
        if start not in positions or end not in positions:
            return False
        return positions[start] <= positions[named.block] <= positions[end]

    return between


def _among(family: str, low: int, high: int) -> Test:
    """The test of a range within one family, or one list of modules."""
    names = frozenset(f"{family}.{each}" for each in range(low, min(high, low + MOST) + 1))
    depth = family.count(".") + 2

    def among(named: Named, _: Scene | None) -> bool:
        starts = (".".join(path.split(".", depth)[:depth]) for path in named.paths)
        return not names.isdisjoint((*named.names, *starts))

    return among
