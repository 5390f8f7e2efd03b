"""The blocks of a model, inferred from the names of its layers, and the names that rules use for them.

A family of blocks is the path before the outermost number in the path of a layer: `double_blocks` for
`double_blocks.3.img_attn.qkv`. A plain sequence (`time_embed.0`) is no family: nothing follows its numbers.
Families have short names (`double`) where these are unique in the model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import NamedTuple

from ..maths.shapes import Shape
from .architectures import ARCHITECTURES, signals_of
from .targets import Target, Targets, host_name

SHORT = {path: short for record in ARCHITECTURES.values() for path, short in record.lists.items()}
"""Short names of lists of blocks, where these cannot be derived from the lists' paths, as in a UNet."""
NUMBER = re.compile(r"(?:block|layer)?(\d+)")
"""The number of a block, as a word of a path. Cosmos 1 has `blocks.block7`."""
LIST = re.compile(r"(?:_stream)?_(?:blocks?|layers|resblocks)$")
"""The end of a family's name that only says that it is a list: `double_blocks`, `double_layers`."""
GENERIC = frozenset({"block", "blocks", "layer", "layers", "resblocks", "encoders"})
"""Names of families that say nothing. The name of the module around the family is used instead."""
WHOLE = {"unet": "unet", None: "unet", "te": "te"}
"""The name that stands for all layers of a component of a model, by the component."""

BESIDE = re.compile(r"norm|adaln|modulation", re.IGNORECASE)
"""A word for a layer outside attention and feed-forward, though it may contain their names: `attn_norm`."""
ATTENTION = re.compile(r"attn|attention(?!s)", re.IGNORECASE)
"""Attention, in the name of a module or of its class. A UNet's `attentions` are whole transformers."""
FEED_FORWARD = re.compile(r"(?:\w+_)?(?:mlp|ffn?|feed_?forward|densereludense)(?:_\w+)?\d*", re.IGNORECASE)
SAID = {
    "attn": ATTENTION,
    "mlp": re.compile(r"(?:^|[._])(?:mlp|ffn?|feed_?forward)", re.IGNORECASE),
    "conv": re.compile(r"conv|in_layers|out_layers", re.IGNORECASE),
}
"""The kinds of layers by their paths, which may have underscores for dots."""
PROJECTION = re.compile(r"(?:w\d*)?(q|k|v|qkv|kv|qk|o|out|query|key|value)")
"""The word for the role of a layer in an attention."""
MEANT = {"query": "q", "key": "k", "value": "v", "o": "out"}
QKV_END = re.compile(r"(?:^|[._])(?:to_|add_)?([qkv])(?:_proj|_linear)?$")
"""The end of an adapter's name for a layer that is rows of a fused weight in the model."""


class Named(NamedTuple):
    """How rules can name a layer."""

    block: str
    """Its block, under a name that no other block of the model has."""
    names: frozenset[str]
    """Short names, in small letters: of its blocks, its component of the model and its role in its block."""
    paths: tuple[str, ...]
    """Its name and path, in small letters. Beginnings of these name it too."""
    family: str = ""
    """The short name of its block's family; "" for what is in no numbered block."""
    numbers: tuple[int, ...] = ()
    """The numbers of its block in the family."""

    def number_in(self, family: str) -> int | None:
        """The number of its block in the family of this short name; None outside of it."""
        start = f"{family}."
        ends = (name.removeprefix(start) for name in self.names if name.startswith(start))
        return next((int(end) for end in ends if end.isdigit()), None)


class _Position(NamedTuple):
    """Where a path is among the families of its component of the model."""

    family: str
    """The full path of the family; "" for none."""
    numbers: tuple[int, ...]
    rest: tuple[str, ...]
    """The words of the path after the numbers; all its words where it is in no family."""


class Blocks:
    """The blocks of a model, and the names of its layers in rules."""

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        paths: dict[tuple[str | None, str | None], list[str]] = {}
        for target in targets.all:
            paths.setdefault((target.component, target.encoder), []).append(target.path)
        self._components = {component: _Component(of_part) for component, of_part in paths.items()}
        self._numbers: dict[str, list[int]] = {}
        for number in range(1, 5):
            encoder = targets.encoder_of(number)
            if encoder is not None:
                self._numbers.setdefault(encoder, []).append(number)
        self._named: dict[tuple[str, str], Named] = {}

    def of(self, target: Target, layer: str = "") -> Named:
        """How rules can name a target. `layer` is the adapter's own name for it, which can say more."""
        key = (target.key, target.path)
        if key not in self._named:
            self._named[key] = self._name(target)
        named = self._named[key]
        end = QKV_END.search(layer.lower()) if target.rows is not None and "attn" in named.names else None
        return named._replace(names=named.names | {f"attn.{end[1]}"}) if end else named

    @cached_property
    def layers(self) -> tuple[Named, ...]:
        """All layers of the model."""
        return tuple(self.of(target) for target in self.targets.all)

    @cached_property
    def members(self) -> Mapping[str, list[Named]]:
        """The layers of each block, in the model's order, text encoders last. Each layer is in one block."""
        members: dict[str, list[Named]] = {}
        together: dict[str, tuple[bool, str]] = {}
        for target, named in zip(self.targets.all, self.layers, strict=True):
            of_text = target.component == "te"
            group = named.block.partition(".")[0] if of_text else named.family or named.block
            together.setdefault(named.block, (of_text, group))
            members.setdefault(named.block, []).append(named)
        groups = {group: number for number, group in enumerate(dict.fromkeys(together.values()))}

        def order(block: str) -> tuple[bool, int, tuple[int, ...]]:
            return together[block][0], groups[together[block]], members[block][0].numbers

        return {block: members[block] for block in sorted(members, key=order)}

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """The position of each block in the model's order."""
        return {block: number for number, block in enumerate(self.members)}

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every short name that some layer has."""
        return tuple(dict.fromkeys(name for named in self.layers for name in sorted(named.names)))

    def numbers(self, family: str) -> tuple[int, ...]:
        """The numbers of the blocks of the family with this short name; () where there is none."""
        numbers = {named.number_in(family) for named in self.layers}
        return tuple(sorted(number for number in numbers if number is not None))

    def _name(self, target: Target) -> Named:
        component = self._components[target.component, target.encoder]
        outermost = component.position(target.path)
        family = component.short.get(outermost.family, "")
        numbers = outermost.numbers[:1] if outermost.family in SHORT else outermost.numbers
        if family == "mid":
            numbers = ()
        names = {WHOLE[target.component]}
        if target.component == "te":
            roots = [target.encoder or "te", "te"]
            roots += [f"te{number}" for number in self._numbers.get(target.encoder or "", ())]
            names.update(roots)
            # In names, the number of a main family's block comes right after the text encoder: `te1.3`.
            within = (
                []
                if family and outermost.family == component.main
                else [family or component.alone(outermost.rest)]
            )
            starts = [".".join((root, *within)) for root in roots]
            block = ".".join((starts[0], *map(str, numbers)))
        elif family:
            starts = [family, outermost.family]
            block = ".".join((family, *map(str, numbers)))
        else:
            starts = []
            block = self._alone(component, outermost)
        names.update(starts)
        for start in starts:
            names.update(_counted(start, outermost.numbers))
        if family:
            names.update(_elements(outermost.rest))
        names.update(_kinds(target, self.targets.shape_of(target)))
        if target.component != "te" and (signal := component.signals.get(target.path)):
            names.add(signal)
        full = host_name(target.path, target.component or "unet", target.encoder)
        paths = (full, target.path) if component.is_clear(outermost) else (full,)
        lower = (text.lower() for text in dict.fromkeys(paths))
        return Named(block, frozenset(name.lower() for name in names), tuple(lower), family, numbers)

    def _alone(self, component: _Component, outermost: _Position) -> str:
        """The block of a diffusion model's layer that is in no family."""
        alone = component.alone(outermost.rest)
        if alone in self.targets.encoders:
            # The host has single parameters beside its text encoders: `clip_l.logit_scale`.
            return ".".join(outermost.rest)
        return alone if component.is_clear(outermost) else host_name(alone, "unet")


class _Component:
    """The families of blocks in one component of a model: in the diffusion model, or in one text encoder."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = paths

    @cached_property
    def signals(self) -> Mapping[str, str]:
        """See `signals_of`."""
        return signals_of(self.paths)

    @cached_property
    def families(self) -> Mapping[str, int]:
        """The number of blocks of each family, by the family's full path."""
        numbers: dict[str, set[tuple[int, ...]]] = {}
        named: set[str] = set()
        for path in self.paths:
            if outermost := _outermost(path):
                numbers.setdefault(outermost.family, set()).add(outermost.numbers)
                if outermost.rest:
                    named.add(outermost.family)
        return {family: len(numbers[family]) for family in numbers if family in named}

    @cached_property
    def main(self) -> str:
        """The family with the most blocks, those of vision towers left out; "" for none."""
        of_text = [family for family in self.families if "vis" not in family]
        return max(of_text, key=lambda family: self.families[family], default="")

    @cached_property
    def short(self) -> Mapping[str, str]:
        """The short name of each family, by its full path. No two short names are equal."""
        wanted = {family: list(_shorter(family)) for family in self.families}
        # How many families want a name first, or have it as their full path.
        taken = Counter(chain.from_iterable({names[0], names[-1]} for names in wanted.values()))
        return {
            family: next((name for name in names if taken[name] == (name in (names[0], names[-1]))), family)
            for family, names in wanted.items()
        }

    @cached_property
    def _foreign(self) -> frozenset[str]:
        """Short names that are not the first word of their families' paths, such as a UNet's `out`."""
        return frozenset(
            short
            for family, short in self.short.items()
            if family != short and not family.startswith(f"{short}.")
        )

    @cached_property
    def _ancestors(self) -> frozenset[str]:
        return frozenset(start for family in self.families for start in _starts(family.split(".")))

    def position(self, path: str) -> _Position:
        outermost = _outermost(path)
        if outermost and outermost.family in self.families:
            return outermost
        return _Position("", (), tuple(path.split(".")))

    def is_clear(self, outermost: _Position) -> bool:
        """Whether a path cannot be mistaken for a block's short name, as a UNet's last layer `out.2` can."""
        first = outermost.family.partition(".")[0] if outermost.family else outermost.rest[0]
        return first not in self._foreign

    def alone(self, words: tuple[str, ...]) -> str:
        """The block of a path that is in no family: its shortest beginning that begins no family's path."""
        return next((start for start in _starts(words) if start not in self._ancestors), ".".join(words))


def _outermost(path: str) -> _Position | None:
    """The words of a path before, in and after its outermost numbers."""
    words = path.split(".")
    for first in range(1, len(words)):
        if not NUMBER.fullmatch(words[first]):
            continue
        end = first + 1
        while end < len(words) and words[end].isdigit():
            end += 1
        numbers = tuple(int(NUMBER.sub(r"\1", word)) for word in words[first:end])
        return _Position(".".join(words[:first]), numbers, tuple(words[end:]))
    return None


def block_in_path(path: str) -> str | None:
    """The block in the path of a layer, such as `double_blocks.3`, without its model; None for none.

    In kohya's names underscores replace the dots: `double_blocks_3`.
    """
    mark = "." if "." in path else "_"
    outermost = _outermost(path.replace(mark, "."))
    if outermost is None or not outermost.rest:
        return None
    numbers = 1 if outermost.family.replace(".", mark) in SHORT else len(outermost.numbers)
    return mark.join(path.split(mark)[: outermost.family.count(".") + 1 + numbers])


def kind_in_path(path: str) -> str | None:
    """The kind of a layer from its path alone: attn, mlp, norm or conv; None where the path does not say."""
    if BESIDE.search(path):
        return "norm" if "norm" in path.lower() else None
    return next((kind for kind, said in SAID.items() if said.search(path)), None)


def _shorter(family: str) -> Iterator[str]:
    """Names for a family, the shortest first; the last is its full path."""
    *parents, last = family.split(".")
    if family in SHORT:
        yield SHORT[family]
    elif last not in GENERIC:
        yield LIST.sub("", last)
    if parents and parents[-1] not in GENERIC:
        yield LIST.sub("", parents[-1])
    yield family


def _starts(words: Iterable[str]) -> Iterator[str]:
    start = ""
    for word in words:
        start = f"{start}.{word}" if start else word
        yield start


def _counted(root: str, numbers: tuple[int, ...]) -> Iterator[str]:
    """The names of a block from broad to narrow: `down.0`, `down.0.3`."""
    return (f"{root}.{start}" for start in _starts(map(str, numbers)))


def _elements(rest: tuple[str, ...]) -> Iterator[str]:
    """The names of a layer's role in its block: `attn`, `attn.q`, `mlp`, and the model's own words for
    these."""
    for index, word in enumerate(rest):
        if BESIDE.search(word):
            continue
        if ATTENTION.search(word):
            for name in ("attn", word):
                yield name
                yield from (f"{name}.{end}" for end in _projections(rest[index + 1 :]))
            return
        if FEED_FORWARD.fullmatch(word):
            yield from ("mlp", word)
            return


def _projections(rest: tuple[str, ...]) -> Iterator[str]:
    if any(BESIDE.search(segment) for segment in rest):
        return
    words = [word for segment in rest for word in segment.lower().split("_")]
    projections = [match[1] for word in words if (match := PROJECTION.fullmatch(word))]
    if projections:
        yield MEANT.get(projections[0], projections[0])
    elif words == ["proj"]:
        yield "out"


def _kinds(target: Target, shape: Shape) -> Iterator[str]:
    """`conv` for a convolution and `norm` for a norm."""
    if target.key.endswith(".weight") and len(shape) > 2:
        yield "conv"
    last = target.path.rpartition(".")[2].lower()
    if (target.key.endswith(".weight") and len(shape) == 1) or ("norm" in last and len(shape) < 2):
        yield "norm"
