"""The notation of the tables in this folder, which map other tools' names of layers to the model's layers.

A table has names on the left and their meaning on the right, which is a layer's path or some of its rows:

    "proj_out": "final_layer.linear"                   one layer
    "blocks.*.norm1": "layers.*.norm"                  `*` is a number, the same on both sides
    "text_fusion.**": "txtfusion.**"                   `**` is every path below that no other entry has
    **same("context_embedder")                         a layer with one name on both sides
    **split("attn.qkv", "to_q", "to_k", "to_v")        parts of a layer's rows, in order
    "attn.linear1_qkv": rows("linear1", 0, 3, of=4)    several such parts as one
    "norm_out.linear": swapped("modulation")           halves in the other order
    "ff.proj": fused("up", "gate")                     the rows of several layers, stacked
    **under("blocks.*", "layers.*", BLOCK)             a table for what is below a path

An entry is left out where the model does not have its layers, or where their shapes do not allow its parts.
Where two entries give one name, or name one layer, the more exact one counts: first an entry without stars,
then one with `*`, then one with `**`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ...maths.shapes import Shape


@dataclass(frozen=True)
class Slice:
    """A layer of the model by its path, or some of its rows."""

    path: str
    rows: tuple[int, int] | None = None
    """First row and end; None for all rows."""


Slices = tuple[Slice, ...]
"""The meaning of a name: one or several slices. Their rows, stacked in order, are the named layer's."""

NUMBERS = re.compile(r"[0-9*]+")
FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
"""The fused projections of an attention in diffusers, each with its parts in the order of their rows."""


@dataclass(frozen=True)
class Share:
    """Some of a layer's rows: the parts from `first` up to but not including `end`, out of `of` parts.

    The default is the whole layer. The parts have equal numbers of rows, unless one of these is given:

    - `like` is the path of another layer. Each part but the last has as many rows as that layer, and the last
      has the rest.
    - `output` is the path of the projection after an attention. The parts are the attention's query, key and
      value. Key and value can have fewer rows (see `qkv_ends`).
    """

    path: str
    first: int = 0
    end: int = 1
    of: int = 1
    like: str | None = None
    output: str | None = None

    def through(self, change: Callable[[str], str]) -> Share:
        """The same share with every path in it changed."""
        like, output = self.like and change(self.like), self.output and change(self.output)
        return replace(self, path=change(self.path), like=like, output=output)

    def precedes(self, other: Share) -> bool:
        """Whether the rows of `other` are the next rows of the same layer."""
        return replace(self, first=self.end, end=other.end) == other


Shares = tuple[Share, ...]
"""Rows of one or several layers, stacked."""
Meaning = str | Shares
"""The right side of a table's entry: the path of a layer, or shares."""
Table = Mapping[str, Meaning]
Naming = Table | Callable[[Mapping[str, Shape]], Table]
"""A table, or a function that makes one where the names depend on the model's layers."""


def same(*paths: str) -> dict[str, Meaning]:
    """Layers with one name on both sides."""
    return {path: path for path in paths}


def split(path: str, *names: str, like: str | None = None, output: str | None = None) -> dict[str, Meaning]:
    """A name for each of the parts of a layer, in the order of their rows. like, output: see `Share`."""
    return {name: rows(path, n, n + 1, len(names), like, output) for n, name in enumerate(names)}


def rows(
    path: str, first: int, end: int, of: int, like: str | None = None, output: str | None = None
) -> Meaning:
    """Some of the parts of a layer, see `Share`."""
    return (Share(path, first, end, of, like, output),)


def swapped(path: str) -> Meaning:
    """A layer with its two halves exchanged: scale and shift, where the model has shift and scale."""
    return (Share(path, 1, 2, 2), Share(path, 0, 1, 2))


def fused(*paths: str) -> Meaning:
    """One layer, where the model has several with these paths."""
    return tuple(Share(path) for path in paths)


def under(theirs: str, ours: str, table: Table) -> dict[str, Meaning]:
    """A table with its names below the path `theirs`, and its meanings below the model's path `ours`."""
    return {
        f"{theirs}.{name}": tuple(share.through(lambda path: f"{ours}.{path}") for share in _shares(meaning))
        for name, meaning in table.items()
    }


EMBEDDER = {"linear_1": "in_layer", "linear_2": "out_layer"}
"""The two layers of an embedder, in diffusers and in the original code of Flux and its relatives."""
SEQUENCE = {"linear_1": "0", "linear_2": "2"}
"""The same where the original code has them in a sequence, with an activation between them."""


@dataclass(frozen=True)
class Layout:
    """The layers of one architecture: how to recognise it, and other tools' names for them."""

    marks: tuple[str, ...]
    """Paths, with `*` for a number. A model that has all of them is of this architecture.

    If a model fits several layouts, the one with most marks counts.
    """
    diffusers: Naming = field(default_factory=dict[str, Meaning])
    """The layers of diffusers' model, each under one name. No two names share a row of the model."""
    others: Naming = field(default_factory=dict[str, Meaning])
    """Other tools' names. Names of fused layers and numbered parts are derived from diffusers' names."""
    spellings: Mapping[str, str] = field(default_factory=dict[str, str])
    """Maps other paths that the model's own layers can have in files to the paths in the tables."""
    lokr: Naming = field(default_factory=dict[str, Meaning])
    """The layers of diffusers' model when it holds LoKr: all projections that the class can fuse are fused.

    Empty where diffusers reads no LoKr for the model.
    """
    component: str = "transformer"
    """What diffusers' pipelines call the model: transformer, unet or prior."""
    encoders: tuple[str, ...] = ()
    """Its text encoders in the order of diffusers' pipeline; () for the usual order of those present."""
    kohya_has_diffusers: bool = False
    """Whether kohya-ss writes diffusers' names for this model, in place of the original ones."""


def qkv_ends(fused: Shape, output: Shape) -> tuple[int, ...]:
    """The ends of the rows of query, key and value in a fused weight; () where the shapes do not show them.

    fused (q + 2 kv, I, ...), output (O, q, ...): the query has q rows, key and value have kv rows each. In
    grouped attention kv is smaller than q.
    """
    if len(fused) < 2 or len(output) < 2:
        return ()
    count, query = fused[0], output[1]
    key = (count - query) // 2
    return (query, query + key, count) if query + 2 * key == count and 0 < key <= query else ()


@dataclass(frozen=True)
class Model:
    """A model's layers, under the paths that the tables of its layout use."""

    layout: Layout
    paths: Mapping[str, Shape]
    """The paths that the model itself has."""
    shapes: Mapping[str, Shape]
    real: Mapping[str, str]
    """Maps paths in the tables to the model's own, where the two differ."""
    forms: Mapping[str, list[str]]
    """The paths of `shapes` by their form, see `_by_form`."""

    def in_diffusers(self) -> Mapping[str, Slices]:
        """diffusers' names, with the slices that they mean. No two names share a row of a weight."""
        return self._sliced(self._expanded(self.layout.diffusers))

    def in_diffusers_with_lokr(self) -> Mapping[str, Slices]:
        """The same where diffusers' model holds LoKr."""
        return self._sliced(self._expanded(self.layout.lokr))

    def elsewhere(self) -> Mapping[str, Slices]:
        """All other names that are not paths of the model."""
        known, others = self._expanded(self.layout.diffusers), self._expanded(self.layout.others)
        # Both spellings of every layer that has two.
        spelled = {**self._expanded(self.layout.spellings), **{path: (Share(path),) for path in self.real}}
        more = {**_counted(known), **_following({**others, **known}), **others, **spelled}
        return self._sliced({n: p for n, p in more.items() if n not in known and n not in self.paths})

    def _expanded(self, rows: Naming) -> dict[str, Shares]:
        """The entries of a table whose layers the model has, with numbers and paths in place of the stars."""
        table = rows(self.shapes) if callable(rows) else rows
        entries: dict[str, Shares] = {}
        named: set[str] = set()
        # From exact to general: skip names and layers that a more exact entry has.
        for stars in ("", "*", "**"):
            exact = dict(entries)
            for name, meaning in table.items():
                if _stars(name) == stars:
                    for filled, shares in self._filled(name, _shares(meaning)):
                        paths = {share.path for share in shares}
                        if filled not in exact and paths <= self.shapes.keys() and not paths & named:
                            entries[filled] = shares
            named = {share.path for shares in entries.values() for share in shares}
        return entries

    def _filled(self, name: str, shares: Shares) -> Iterator[tuple[str, Shares]]:
        """Repeat an entry for each layer of the model that its stars match."""
        if name.endswith("**"):
            root = _regex(shares[0].path.removesuffix("**"))
            for path in self.shapes:
                if match := root.match(path):
                    rest = path[match.end() :]
                    yield _fill(name.removesuffix("**"), match.groups()) + rest, (Share(path),)
            return
        for numbers in _matches(shares[0].path, self.forms):
            filled = tuple(share.through(lambda path, n=numbers: _fill(path, n)) for share in shares)
            yield _fill(name, numbers), filled

    def _sliced(self, names: Mapping[str, Shares]) -> dict[str, Slices]:
        """Names with the slices that they mean, without names whose rows the shapes do not show."""
        meanings: dict[str, Slices] = {}
        for name, shares in names.items():
            # Only layers with the same inputs can be fused. In cross-attention, keys can have other inputs
            # than queries.
            columns = {self.shapes[share.path][1:] if self.shapes[share.path] else None for share in shares}
            if len(shares) > 1 and (len(columns) > 1 or None in columns):
                continue
            targets = [self._slice(share) for share in shares]
            known = tuple(target for target in targets if target)
            if len(known) == len(shares):
                meanings[name] = known
        return meanings

    def _slice(self, share: Share) -> Slice | None:
        path = self.real.get(share.path, share.path)
        if (share.first, share.end) == (0, share.of):
            return Slice(path)
        bounds = self._bounds(share)
        return Slice(path, (bounds[share.first], bounds[share.end])) if bounds else None

    def _bounds(self, share: Share) -> tuple[int, ...]:
        """The first row of each part of a layer, and the last end; () where the shapes do not show them."""
        shape = self.shapes[share.path]
        if share.output is not None:
            ends = qkv_ends(shape, self.shapes.get(share.output, ()))
            return (0, *ends) if ends else ()
        like = shape if share.like is None else self.shapes.get(share.like, ())
        if not shape or not like or (share.like is None and shape[0] % share.of):
            return ()
        unit = like[0] if share.like else shape[0] // share.of
        bounds = (*(n * unit for n in range(share.of)), shape[0])
        # With `like`, there may be no rows left for the last part.
        return bounds if bounds[-2] < bounds[-1] else ()


def recognised(layouts: Iterable[Layout], shapes: Mapping[str, Shape]) -> Model | None:
    """The model, in the layout with the most marks among those that fit; None where no layout fits.

    An unknown shape is (); names that depend on it (parts of a layer's rows) are then left out.
    """
    forms = _by_form(shapes)
    for layout in sorted(layouts, key=lambda layout: len(layout.marks), reverse=True):
        # Marks without stars first: a look-up of them rules out most models.
        exact = [mark for mark in layout.marks if "*" not in mark]
        if shapes.keys() >= set(exact) and all(_fits(mark, forms) for mark in layout.marks):
            return _respelled(layout, shapes, forms)
    return None


def _respelled(layout: Layout, shapes: Mapping[str, Shape], forms: Mapping[str, list[str]]) -> Model:
    """The model with its layers under the paths that the tables use."""
    real: dict[str, str] = {}
    for theirs, ours in layout.spellings.items():
        for numbers in _matches(theirs, forms):
            path = _fill(ours, numbers)
            if path not in shapes:
                real[path] = _fill(theirs, numbers)
    if not real:
        return Model(layout, shapes, shapes, real, forms)
    ours = {path: ours for ours, path in real.items()}
    respelled = {ours.get(path, path): shape for path, shape in shapes.items()}
    return Model(layout, shapes, respelled, real, _by_form(respelled))


def _counted(names: Mapping[str, Shares]) -> dict[str, Shares]:
    """OneTrainer's names of the parts of a layer: the layer's path and the number of the part, from 0."""
    split = [shares[0] for shares in names.values() if len(shares) == 1 and shares[0].of > 1]
    return {f"{share.path}.{share.first}": (share,) for share in split}


def _following(names: Mapping[str, Shares]) -> dict[str, Shares]:
    """diffusers' names of fused projections, and `to_out` for `to_out.0`: some tools leave out the index."""
    usual: dict[str, Shares] = {}
    for name, shares in names.items():
        parent, _, last = name.rpartition(".")
        if name.endswith(".to_out.0"):
            usual[parent] = shares
        for together, apart in FUSED.items():
            children = [names.get(f"{parent}.{child}", ()) for child in apart]
            if last == apart[-1] and all(children):
                usual[f"{parent}.{together}"] = _merged(share for child in children for share in child)
    return usual


def _merged(shares: Iterator[Share]) -> Shares:
    """Join shares that are neighbours in one layer."""
    merged = [next(shares)]
    for share in shares:
        if merged[-1].precedes(share):
            merged[-1] = replace(merged[-1], end=share.end)
        else:
            merged.append(share)
    return tuple(merged)


def _shares(meaning: Meaning) -> Shares:
    return (Share(meaning),) if isinstance(meaning, str) else meaning


def _stars(name: str) -> str:
    """The kind of stars in a name: none, `*` or `**`."""
    return "**" if name.endswith("**") else "*" if "*" in name else ""


def _fits(pattern: str, forms: Mapping[str, list[str]]) -> bool:
    return next(_matches(pattern, forms), None) is not None


def _matches(pattern: str, forms: Mapping[str, list[str]]) -> Iterator[tuple[str, ...]]:
    """For each path that a pattern fits, the numbers at its stars."""
    regex = _regex(pattern)
    for path in forms.get(_form(pattern), ()):
        if match := regex.fullmatch(path):
            yield match.groups()


def _by_form(paths: Iterable[str]) -> dict[str, list[str]]:
    """Paths by their form, see `_form`. A pattern can fit paths of its own form only."""
    forms: dict[str, list[str]] = {}
    for path in paths:
        forms.setdefault(_form(path), []).append(path)
    return forms


def _form(path: str) -> str:
    """A path or a pattern with `#` for every number and star."""
    return NUMBERS.sub("#", path)


@lru_cache(maxsize=10_000)
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", r"(\d+)"))


def _fill(pattern: str, numbers: tuple[str, ...]) -> str:
    """A pattern with numbers in place of its stars."""
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern
