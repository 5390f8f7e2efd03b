"""Rows from texts of other packs: rgthree's Power Lora Loader, LORA_STACK, Lora-Manager, and prompts' tags.

Each row is a table with our fields, not yet checked.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any

from ...lycoris_ops import LycorisError, Phrase
from ..files.loras import is_lora
from .lora_stack import NOTHING
from .typed import read_number

Table = Mapping[str, Any]

# ("name", 0.8, 0.7) with quotes of either kind, as Python and JSON write it.
TUPLE = re.compile(
    r"""[\[(]\s*(?:"((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)')\s*,\s*([^,]*),\s*([^,)\]]*)""", re.DOTALL
)
BEGUN = re.compile(r"""[\[(]\s*["']""")
"""Where a row begins."""
TAG = re.compile(r"<\s*(lora|lyco)\s*:([^<>]*)(>?)", re.IGNORECASE)
PLACES = {"lora": ("unet", "te"), "lyco": ("te", "unet", "dyn")}
"""What the unnamed numbers of a tag mean, in their order, to the packs that read such tags."""
KNOWN = ("te", "unet", "lbw")
"""The names in a tag that a row can hold."""
MOST_ROWS = 1000
"""The most rows that a text may have."""
MOST_PARTS = 32
"""The most parts between the colons of a tag."""
DRIVE = re.compile(r"\s*[A-Za-z]:[\\/]")


def rows_of(value: Any, fields: Collection[str]) -> list[Table]:
    """The rows anywhere in a value of JSON, in their order there.

    A table whose names are all among `fields` is a row of our own.
    """
    rows, left = list[Table](), [value]
    while left:
        value_left = left.pop()
        if isinstance(value_left, list) and _is_triple(value_left):
            rows.append(_row(*value_left[:3]))
        elif isinstance(value_left, list):
            left += reversed(value_left)
        elif isinstance(value_left, dict):
            row = _named(value_left, fields)
            if row is None:
                left += reversed(value_left.values())
            else:
                rows.append(row)
        check_count(len(rows))
    return _chosen(rows)


def tags_in(text: str) -> list[Table]:
    """The rows of the tags in a text. Raises LycorisError for a tag that says more than a row can hold."""
    tags = list(islice(TAG.finditer(text), MOST_ROWS + 1))
    check_count(len(tags))
    return _chosen([_tag(number, *tag.group(0, 1, 2, 3)) for number, tag in enumerate(tags, start=1)])


def check_count(rows: int) -> None:
    """Raise LycorisError for more than `MOST_ROWS` rows."""
    if rows > MOST_ROWS:
        raise LycorisError("E-rows-too-many", most_rows=MOST_ROWS)


def tuples_in(text: str) -> list[Table]:
    """The rows of a LORA_STACK as Python writes it. Raises LycorisError for a row without two strengths."""
    rows = [row.groups() for row in islice(TUPLE.finditer(text), MOST_ROWS + 1)]
    check_count(len(rows))
    if rows and len(rows) != len(BEGUN.findall(text)):
        raise LycorisError("E-lora-stack-row-unreadable", rows=len(BEGUN.findall(text)), readable=len(rows))
    return _chosen([_row(_unescaped(a or b), *strengths) for a, b, *strengths in rows])


def _chosen(rows: list[Table]) -> list[Table]:
    return [row for row in rows if row["file"] not in NOTHING]


def _row(file: str | None, model: Any, clip: Any, on: Any = True) -> Table:
    row = {"on": bool(on), "file": file, "strength_model": 1 if model is None else model}
    return row if clip is None else {**row, "strength_clip": clip}


def _is_triple(value: list[Any]) -> bool:
    """Whether this is a row of a LORA_STACK."""
    if len(value) < 3 or not isinstance(value[0], (str, type(None))):
        return False
    return all(type(number) in (int, float) for number in value[1:3])


def _named(value: dict[str, Any], fields: Collection[str]) -> Table | None:
    """The row of a table in one of the forms that are known, None for any other table."""
    lora, name, file = (value.get(field) for field in ("lora", "name", "file"))
    if isinstance(lora, str):  # rgthree's
        return _row(lora, value.get("strength"), value.get("strengthTwo"), value.get("on", True))
    if isinstance(name, str) and "strength" in value:  # Lora-Manager's
        active = value.get("active")
        return _row(name, value["strength"], value.get("clipStrength"), active is None or active)
    return value if isinstance(file, str) and value.keys() <= set(fields) else None


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _tag(number: int, tag: str, kind: str, body: str, end: str) -> Table:
    """The row of `<lora:name:...>` or `<lyco:name:...>`."""
    name, arguments = _split(body)
    named, plain = dict[str, str](), list[str]()
    for argument in arguments:
        key, mark, value = argument.partition("=")
        if mark:
            named[key.strip().lower()] = value.strip()
        else:
            plain.append(argument)
    free = [name for name in PLACES[kind.lower()] if name not in named]
    arguments_given = {**named, **dict(zip(free, plain, strict=False))}
    rules, _, more = arguments_given.get("lbw", "").partition(";")
    beyond = [*sorted(arguments_given.keys() - KNOWN), *plain[len(free) :], *filter(None, [more.strip()])]
    if beyond or not end:
        raise LycorisError(
            "E-tag-argument-unknown" if beyond else "E-tag-without-end",
            place=Phrase("R-row", {"number": number}),
            got=tag,
            argument=beyond[0] if beyond else None,
        )
    # Those packs take 1 for the text encoder if only the model's strength is named.
    te = arguments_given.get("te", "1" if "unet" in named else None)
    return {**_row(name, arguments_given.get("unet", te), te), "rules": rules.strip()}


def _split(body: str) -> tuple[str, list[str]]:
    """The name in a tag, and its arguments. A path of Windows or a file's own name may have colons."""
    segments = body.split(":", MOST_PARTS)
    first = 2 if DRIVE.match(body) else 1
    for end in range(first, len(segments) + 1):
        name, arguments = ":".join(segments[:end]).strip(), segments[end:]
        readable = all("=" in argument or read_number(argument) is not None for argument in arguments)
        if readable and (end == first or is_lora(name)):
            return name, arguments
    return ":".join(segments[:first]).strip(), segments[first:]
