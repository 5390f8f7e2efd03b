"""The entries of a stack that rows become, and why rows cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...lycoris_ops import Entry, LycorisError, PresetFile, adapter_stamp, load_adapter, located
from ..files.loras import listed_once, lora_path
from ..host.files import shown_text
from .presets import own_presets, parsed
from .rows import Row, row_name, row_of, row_tables


@dataclass(frozen=True)
class RefusedRow:
    """Why a run stops at a row."""

    index: int
    reason: str
    """What is wrong, and what to do."""
    details: str
    """What was found, in lines; "" for nothing."""


def entry_of(index: int, row: Row, own: PresetFile) -> Entry:
    """The entry of a row. Raises LycorisError, with the row's name, for unusable files or rules."""
    with located(place=row_name(index)):
        rules = parsed(row.all_rules, own)
        return Entry(
            load_adapter(lora_path(row.file)),
            strength=row.strength_model,
            strength_clip=row.strength_clip,
            rules=rules or None,
            label=row.file,
            low_noise=load_adapter(lora_path(row.low_noise)) if row.low_noise else None,
        )


def check_row(index: int, table: Any, own: PresetFile) -> Row:
    """The row of a table; if it is on, its files are there and its rules can be read.

    Raises LycorisError, with the row's name, where this is not so. No file is opened.
    """
    with located(place=row_name(index)):
        row = row_of(table)
        if row.on:
            for file in row.files:
                adapter_stamp(lora_path(file))
            parsed(row.all_rules, own)
        return row


@listed_once()
def refused_rows(text: str) -> list[RefusedRow]:
    """The rows of a text that stop a run.

    Raises LycorisError for a text that has no rows, see `row_tables`.
    """
    own = own_presets()
    refused: list[RefusedRow] = []
    for index, table in enumerate(row_tables(text)):
        try:
            row = check_row(index, table, own)
            if row.on:
                entry_of(index, row, own)
        except LycorisError as error:
            error.place = None
            refused.append(RefusedRow(index, *map(shown_text, error.parts())))
    return refused
