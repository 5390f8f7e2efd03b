"""What the architectures' tables are written in: patterns of paths, and the rows that a name means.

In a pattern `*` stands for one part of a path or some of it (`blocks.*.attn`, `blocks.block*`); what it
stood for goes, in order, into the other name. A pattern also covers what is below the path it names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ...algebra import Shape
from .base import Aliases, Place, Places

FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
"""What diffusers calls an attention's projections once they are fused, in the order of their rows."""


def below(ours: str, theirs: str, table: Mapping[str, str]) -> dict[str, str]:
    """The rows of a table for the layers of a block, put below the block's own two names."""
    return {f"{ours}.{path}": f"{theirs}.{name}" for path, name in table.items()}


def renamed(shapes: Mapping[str, Shape], table: Mapping[str, str]) -> dict[str, Places]:
    """Pattern of a path to its other name; the first row that covers a path counts."""
    rows = [(_compiled(pattern), name) for pattern, name in table.items()]
    found: dict[str, Places] = {}
    for path in shapes:
        match, name = next(((m, name) for regex, name in rows if (m := regex.fullmatch(path))), (None, ""))
        if match:
            found[_filled(name, match.groups()[:-1]) + match[match.re.groups]] = (Place(path),)
    return found


def split_qkv(
    shapes: Mapping[str, Shape], fused: str, output: str, names: tuple[str, str, str]
) -> dict[str, Places]:
    """Names of query, key and value for a weight that holds their rows, one after the other.

    `output` is the projection after the attention: it has a column for every row of the query.
    """
    found: dict[str, Places] = {}
    for path, stood_for in _matches(shapes, fused):
        ends = qkv_ends(shapes[path], shapes.get(_filled(output, stood_for), ()))
        for name, first, end in zip(names, (0, *ends), ends, strict=False):
            found[_filled(name, stood_for)] = (Place(path, (first, end)),)
    return found


def qkv_ends(fused: Shape, output: Shape) -> tuple[int, ...]:
    """Where the rows of query, key and value end; nothing where the shapes do not tell.

    Fused (q + 2 kv, I, ...), output (O, q, ...): fewer key than query rows is grouped attention.
    """
    if len(fused) < 2 or len(output) < 2:
        return ()
    rows, query = fused[0], output[1]
    key = (rows - query) // 2
    return (query, query + key, rows) if query + 2 * key == rows and 0 < key <= query else ()


def split_evenly(shapes: Mapping[str, Shape], fused: str, names: Sequence[str]) -> dict[str, Places]:
    """Names of as many parts of equal size as there are names, one after the other in one weight."""
    found: dict[str, Places] = {}
    for path, stood_for in _matches(shapes, fused):
        rows = shapes[path][0] if shapes[path] else 0
        size = rows // len(names)
        if size and size * len(names) == rows:
            for number, name in enumerate(names):
                place = Place(path, (number * size, (number + 1) * size))
                found[_filled(name, stood_for)] = (place,)
    return found


def swapped(shapes: Mapping[str, Shape], table: Mapping[str, str]) -> dict[str, Places]:
    """Names of layers whose rows are ours with the second half first."""
    found: dict[str, Places] = {}
    for pattern, name in table.items():
        for path, stood_for in _matches(shapes, pattern):
            if shapes[path] and shapes[path][0] % 2 == 0:
                end = shapes[path][0]
                places = (Place(path, (end // 2, end)), Place(path, (0, end // 2)))
                found[_filled(name, stood_for)] = places
    return found


def gathered(shapes: Mapping[str, Shape], *tables: Mapping[str, Places]) -> dict[str, Places]:
    """The tables as one, without names that are a real path."""
    return {name: places for table in tables for name, places in table.items() if name not in shapes}


def following(diffusers: Aliases) -> Aliases:
    """The names that follow from diffusers' own ones, where other tools have no names of theirs."""
    return lambda shapes: followed(shapes, diffusers(shapes))


def followed(shapes: Mapping[str, Shape], names: Mapping[str, Places]) -> dict[str, Places]:
    """The names that follow from diffusers' own ones.

    They are its fused projections, and `to_out` for `to_out.0`, whose list index some tools drop.
    """
    found: dict[str, Places] = {}
    for name, places in names.items():
        parent, _, last = name.rpartition(".")
        if name.endswith(".to_out.0"):
            found[parent] = places
        for fused, parts in FUSED.items():
            if last == parts[-1]:
                found |= _fused(shapes, names, f"{parent}.{fused}", [f"{parent}.{part}" for part in parts])
    return {name: places for name, places in found.items() if name not in names and name not in shapes}


def completed(shapes: Mapping[str, Shape], *tables: Mapping[str, Places]) -> dict[str, Places]:
    """The tables as one, without names that are a real path, and the names that follow from theirs."""
    names = gathered(shapes, *tables)
    return {**names, **followed(shapes, names)}


def joined(shapes: Mapping[str, Shape], places: Sequence[Place]) -> Places:
    """Places with those that follow one another in one weight made one, and the whole of it whole."""
    merged: list[Place] = []
    for place in places:
        last = merged[-1] if merged else None
        if last and last.rows and place.rows and last.path == place.path and last.rows[1] == place.rows[0]:
            merged[-1] = Place(place.path, (last.rows[0], place.rows[1]))
        else:
            merged.append(place)
    return tuple(
        Place(place.path) if place.rows == (0, *shapes[place.path][:1]) else place for place in merged
    )


def _fused(
    shapes: Mapping[str, Shape], names: Mapping[str, Places], fused: str, parts: Sequence[str]
) -> dict[str, Places]:
    if not all(part in names for part in parts):
        return {}
    places = [place for part in parts for place in names[part]]
    # Keys and values of something else than the queries have other columns: nobody can fuse those.
    columns = {shapes[place.path][1:] for place in places}
    return {fused: joined(shapes, places)} if len(columns) == 1 and () not in columns else {}


def _matches(shapes: Mapping[str, Shape], pattern: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    regex = _compiled(pattern)
    for path in shapes:
        match = regex.fullmatch(path)
        if match and not match[regex.groups]:
            yield path, match.groups()[:-1]


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", r"([^.]+)") + r"((?:\..+)?)")


def _filled(name: str, stood_for: Sequence[str]) -> str:
    pieces = name.split("*")
    return "".join(piece + part for piece, part in zip(pieces, (*stood_for, ""), strict=True))
