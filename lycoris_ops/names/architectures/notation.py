"""The notation of the tables in this folder: what another tool's name of a layer means in the model.

A table has names on the left and their meaning on the right, which is a layer's path or some of its rows:

    "proj_out": "final_layer.linear"                   one layer
    "blocks.*.norm1": "layers.*.norm"                  `*` is a number, the same on both sides
    "text_fusion.**": "txtfusion.**"                   `**` is every path below that no other row has
    **same("context_embedder")                         a layer with one name on both sides
    **split("attn.qkv", "to_q", "to_k", "to_v")        parts of a layer's rows, in order
    "attn.linear1_qkv": rows("linear1", 0, 3, of=4)    several such parts
    "norm_out.linear": swapped("modulation")           halves in the other order
    "ff.proj": fused("up", "gate")                     layers one after the other
    **under("blocks.*", "layers.*", BLOCK)             a table for what is below a path

Rows that a model does not have, or that its shapes do not allow, are left out. Where rows of a table name
the same thing, the more exact one counts: one without `*` before one with it, and that before `**`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ...maths.shapes import Shape
from .base import Aliases, Place, Places

FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
"""What diffusers calls an attention's projections once they are fused, in the order of their rows."""


@dataclass(frozen=True)
class Share:
    """Of a layer whose rows are `of` parts, those from `first` to before `end`; the whole by default.

    The parts are of equal size. With `like` each but the last has as many rows as that layer has; with
    `output` they are query, key and value of an attention whose output is that layer.
    """

    path: str
    first: int = 0
    end: int = 1
    of: int = 1
    like: str | None = None
    output: str | None = None

    def through(self, change: Callable[[str], str]) -> Share:
        """With every path changed."""
        like, output = self.like and change(self.like), self.output and change(self.output)
        return replace(self, path=change(self.path), like=like, output=output)

    def precedes(self, other: Share) -> bool:
        """Whether the other's rows are the next ones of the same layer."""
        return replace(self, first=self.end, end=other.end) == other


Shares = tuple[Share, ...]
Meaning = str | Shares
Table = Mapping[str, Meaning]
Naming = Table | Callable[[Mapping[str, Shape]], Table]
"""A table, or what makes one for a model's layers: where their number decides names."""


def same(*paths: str) -> dict[str, Meaning]:
    """Layers that have one name on both sides."""
    return {path: path for path in paths}


def split(path: str, *names: str, like: str | None = None, output: str | None = None) -> dict[str, Meaning]:
    """Names of the parts of a layer, in order."""
    return {name: rows(path, n, n + 1, len(names), like, output) for n, name in enumerate(names)}


def rows(
    path: str, first: int, end: int, of: int, like: str | None = None, output: str | None = None
) -> Meaning:
    """Some of the parts of a layer."""
    return (Share(path, first, end, of, like, output),)


def swapped(path: str) -> Meaning:
    """A layer with its halves in the other order: scale and shift, where the model has shift and scale."""
    return (Share(path, 1, 2, 2), Share(path, 0, 1, 2))


def fused(*paths: str) -> Meaning:
    """One layer, where the model has several."""
    return tuple(Share(path) for path in paths)


def under(theirs: str, ours: str, table: Table) -> dict[str, Meaning]:
    """A table for what is below one path of ours, which is another one for them."""
    return {
        f"{theirs}.{name}": tuple(part.through(lambda path: f"{ours}.{path}") for part in _parts(meaning))
        for name, meaning in table.items()
    }


@dataclass(frozen=True)
class Layout:
    """The layers of one architecture: how to know it, and what other tools call them."""

    marks: tuple[str, ...]
    """Paths, `*` for a number, that together no other architecture has."""
    diffusers: Naming = field(default_factory=dict[str, Meaning])
    """The layers of diffusers' own model; each of them once, and no rows of ours in two."""
    others: Naming = field(default_factory=dict[str, Meaning])
    """Other names, whosever they are. Fused ones and numbered parts follow from diffusers' without a row."""
    spellings: Mapping[str, str] = field(default_factory=dict[str, str])
    """Other paths that files of the model itself can have, to those that the tables are written in."""


def names_of(*layouts: Layout) -> tuple[Aliases, Aliases]:
    """`diffusers` and `aliases` of a module, both by the first layout that a model is of."""

    def diffusers(shapes: Mapping[str, Shape]) -> Mapping[str, Places]:
        model = _recognised(layouts, shapes)
        return model.placed(model.diffusers()) if model else {}

    def aliases(shapes: Mapping[str, Shape]) -> Mapping[str, Places]:
        model = _recognised(layouts, shapes)
        if model is None:
            return {}
        known, others = model.diffusers(), model.expanded(model.layout.others)
        more = {**_counted(known), **_following({**others, **known}), **others, **model.spelled()}
        new = {name: parts for name, parts in more.items() if name not in known and name not in shapes}
        return model.placed(new)

    return diffusers, aliases


def qkv_ends(fused: Shape, output: Shape) -> tuple[int, ...]:
    """Where the rows of query, key and value end; nothing where the shapes do not tell.

    Fused (q + 2 kv, I, ...), output (O, q, ...): fewer key than query rows is grouped attention.
    """
    if len(fused) < 2 or len(output) < 2:
        return ()
    count, query = fused[0], output[1]
    key = (count - query) // 2
    return (query, query + key, count) if query + 2 * key == count and 0 < key <= query else ()


@dataclass(frozen=True)
class _Model:
    """A model's layers, by the paths that a layout's tables have for them."""

    layout: Layout
    shapes: Mapping[str, Shape]
    real: Mapping[str, str]
    """Paths that the model itself spells in another way."""
    forms: Mapping[str, list[str]]

    def diffusers(self) -> dict[str, Shares]:
        return self.expanded(self.layout.diffusers)

    def spelled(self) -> dict[str, Shares]:
        """Every layer that has two spellings under both."""
        ours = {path: (Share(path),) for path in self.real}
        return {**self.expanded(self.layout.spellings), **ours}

    def expanded(self, rows: Naming) -> dict[str, Shares]:
        """The rows of a table that the model has all layers of, with numbers and paths for the stars."""
        table = rows(self.shapes) if callable(rows) else rows
        found: dict[str, Shares] = {}
        named: set[str] = set()
        for stars in ("", "*", "**"):
            exact = dict(found)
            for name, meaning in table.items():
                if _stars(name) == stars:
                    for filled, parts in self._filled(name, _parts(meaning)):
                        paths = {part.path for part in parts}
                        if filled not in exact and paths <= self.shapes.keys() and not paths & named:
                            found[filled] = parts
            named = {part.path for parts in found.values() for part in parts}
        return found

    def _filled(self, name: str, parts: Shares) -> Iterator[tuple[str, Shares]]:
        if name.endswith("**"):
            root = _regex(parts[0].path.removesuffix("**"))
            for path in self.shapes:
                if match := root.match(path):
                    rest = path[match.end() :]
                    yield _fill(name.removesuffix("**"), match.groups()) + rest, (Share(path),)
            return
        for numbers in _matches(parts[0].path, self.forms):
            filled = tuple(part.through(lambda path, n=numbers: _fill(path, n)) for part in parts)
            yield _fill(name, numbers), filled

    def placed(self, names: Mapping[str, Shares]) -> dict[str, Places]:
        """Names with the rows they mean, where the shapes tell them."""
        found: dict[str, Places] = {}
        for name, parts in names.items():
            # Layers are one only where they have the same columns: keys of something else than the queries
            # have others.
            columns = {self.shapes[part.path][1:] if self.shapes[part.path] else None for part in parts}
            if len(parts) > 1 and (len(columns) > 1 or None in columns):
                continue
            places = [self._place(part) for part in parts]
            known = tuple(place for place in places if place)
            if len(known) == len(parts):
                found[name] = known
        return found

    def _place(self, part: Share) -> Place | None:
        path = self.real.get(part.path, part.path)
        if (part.first, part.end) == (0, part.of):
            return Place(path)
        bounds = self._bounds(part)
        return Place(path, (bounds[part.first], bounds[part.end])) if bounds else None

    def _bounds(self, part: Share) -> tuple[int, ...]:
        """Where the parts of a layer begin and the last one ends; nothing where the shapes do not tell."""
        shape = self.shapes[part.path]
        if part.output is not None:
            ends = qkv_ends(shape, self.shapes.get(part.output, ()))
            return (0, *ends) if ends else ()
        like = shape if part.like is None else self.shapes.get(part.like, ())
        if not shape or not like or (part.like is None and shape[0] % part.of):
            return ()
        unit = like[0] if part.like else shape[0] // part.of
        bounds = (*(n * unit for n in range(part.of)), shape[0])
        return bounds if bounds[-2] < bounds[-1] else ()


def _recognised(layouts: tuple[Layout, ...], shapes: Mapping[str, Shape]) -> _Model | None:
    """The model by its layout; None where it is of another architecture."""
    for layout in layouts:
        exact = [mark for mark in layout.marks if "*" not in mark]
        if shapes.keys() >= set(exact):
            forms = _forms(shapes)
            if all(next(_matches(mark, forms), None) is not None for mark in layout.marks):
                return _respelled(layout, shapes, forms)
    return None


def _respelled(layout: Layout, shapes: Mapping[str, Shape], forms: Mapping[str, list[str]]) -> _Model:
    real: dict[str, str] = {}
    for theirs, ours in layout.spellings.items():
        for numbers in _matches(theirs, forms):
            path = _fill(ours, numbers)
            if path not in shapes:
                real[path] = _fill(theirs, numbers)
    if not real:
        return _Model(layout, shapes, real, forms)
    ours = {path: ours for ours, path in real.items()}
    respelled = {ours.get(path, path): shape for path, shape in shapes.items()}
    return _Model(layout, respelled, real, _forms(respelled))


def _counted(names: Mapping[str, Shares]) -> dict[str, Shares]:
    """OneTrainer's names of the parts of a layer, which are its path and a number."""
    split = [parts[0] for parts in names.values() if len(parts) == 1 and parts[0].of > 1]
    return {f"{part.path}.{part.first}": (part,) for part in split}


def _following(names: Mapping[str, Shares]) -> dict[str, Shares]:
    """diffusers' fused projections, and `to_out` for `to_out.0`, whose list index some tools drop."""
    found: dict[str, Shares] = {}
    for name, parts in names.items():
        parent, _, last = name.rpartition(".")
        if name.endswith(".to_out.0"):
            found[parent] = parts
        for together, apart in FUSED.items():
            children = [names.get(f"{parent}.{child}", ()) for child in apart]
            if last == apart[-1] and all(children):
                found[f"{parent}.{together}"] = _merged(part for child in children for part in child)
    return found


def _merged(parts: Iterator[Share]) -> Shares:
    merged = [next(parts)]
    for part in parts:
        if merged[-1].precedes(part):
            merged[-1] = replace(merged[-1], end=part.end)
        else:
            merged.append(part)
    return tuple(merged)


def _parts(meaning: Meaning) -> Shares:
    return (Share(meaning),) if isinstance(meaning, str) else meaning


def _stars(name: str) -> str:
    return "**" if name.endswith("**") else "*" if "*" in name else ""


def _forms(paths: Mapping[str, object]) -> dict[str, list[str]]:
    """Paths by what they are apart from their numbers."""
    forms: dict[str, list[str]] = {}
    for path in paths:
        forms.setdefault(_form(path), []).append(path)
    return forms


@lru_cache(maxsize=10_000)
def _form(path: str) -> str:
    return re.sub(r"\d+|\*", "#", path)


def _matches(pattern: str, forms: Mapping[str, list[str]]) -> Iterator[tuple[str, ...]]:
    """The numbers for the stars of a pattern that make it a path."""
    regex = _regex(pattern)
    for path in forms.get(_form(pattern), ()):
        if match := regex.fullmatch(path):
            yield match.groups()


@lru_cache(maxsize=10_000)
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", r"(\d+)"))


def _fill(pattern: str, numbers: tuple[str, ...]) -> str:
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern
