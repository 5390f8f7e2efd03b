"""Read JSON from untrusted files."""

from __future__ import annotations

import gc
import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ..messages import phrase
from .bounds import MAX_BRACKETS, MAX_COMMAS, MAX_JSON, MAX_QUOTES


@contextmanager
def collector_paused() -> Generator[None]:
    """Pause Python's cyclic garbage collector.

    The collector runs whenever many objects were made, and takes most of the time of parsing a large file.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def parse_json(data: bytes | str, *, unique: bool = False) -> Any:
    """Parse JSON. Bytes must be UTF-8 without a byte order mark.

    Raises ValueError, with the reason, for invalid JSON, for too deep nesting and for a text beyond the
    limits of `bounds`. With `unique` it raises ValueError for a duplicate key in a table. Without it the last
    one counts.
    """
    text = data if isinstance(data, str) else data.decode("utf-8")
    _check(len(text), "characters", MAX_JSON)
    # No text has more of these marks than characters, so short texts need no count.
    if len(text) > min(MAX_BRACKETS, MAX_COMMAS, MAX_QUOTES):
        # Count before parsing, which makes an object for each mark. A quotation mark inside a string
        # is escaped and an opening one is not, so every string is counted.
        _check(text.count("[") + text.count("{"), "brackets", MAX_BRACKETS)
        _check(text.count(","), "commas", MAX_COMMAS)
        _check(text.count('"') - text.count('\\"'), "quotation marks", MAX_QUOTES)
    try:
        with collector_paused():
            return json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError(phrase("R-nested-too-deeply")) from None


def _check(count: int, what: str, most: int) -> None:
    if count > most:
        raise ValueError(phrase("R-where-at-most-read", count=count, what=what, most=most))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary. Raises ValueError for a key given twice, which `json` would allow."""
    table = dict(pairs)
    if len(table) == len(pairs):
        return table
    # This slower loop finds the name of the key. It runs only for damaged texts.
    table.clear()
    for key, value in pairs:
        if key in table:
            raise ValueError(phrase("R-key-given-twice", key=key))
        table[key] = value
    return table
