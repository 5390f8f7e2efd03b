"""Convert between our stacks and LORA_STACK, which other packs pass from node to node.

A LORA_STACK is a list of (name, model strength, text-encoder strength), each name relative to a loras
folder. Efficiency Nodes introduced it, and Comfyroll, Easy-Use, Lora-Manager and others follow it. Some of
them pass None in place of an empty list, rows with the name "None", tables in place of tuples, or further
values at the end of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...lycoris_ops import Adapter, Entry, LycorisError, Phrase, Shape, Stack, load_adapter, located, weighted
from ..files.loras import lora_path, relative_name

NOTHING = (None, "", "None")
"""What packs write if no file is chosen."""
FORM = "(name, model strength, text-encoder strength)"
LoraTuple = tuple[str, float, float]


def is_lora_stack(value: object) -> bool:
    return isinstance(value, (list, tuple))


def from_lora_stack(value: Sequence[Any] | None) -> Stack:
    """The stack that a LORA_STACK means. Raises LycorisError for a row of another form, with its number."""
    entries = [_entry(number, row) for number, row in enumerate(value or (), start=1)]
    return Stack(entry for entry in entries if entry is not None)


def _entry(number: int, row: Any) -> Entry | None:
    with located(place=Phrase("R-row-of-lora-stack", {"number": number})):
        name, *strengths = _parts(row)
        if name in NOTHING:
            return None
        numbers = [_number(value) for value in strengths]
        path = lora_path(name)
        label = relative_name(path) or ""
        return Entry(load_adapter(path), strength=numbers[0], strength_clip=numbers[1], label=label)


def _parts(row: Any) -> tuple[Any, Any, Any]:
    if isinstance(row, Mapping):
        # LoRA-Optimizer's tables: `lora` in them is the loaded file, and a table without a name is a setting.
        strength = row.get("strength", 1.0)
        return row.get("name"), strength, row.get("clip_strength", strength)
    if not isinstance(row, (list, tuple)) or len(row) < 3 or not isinstance(row[0], (str, type(None))):
        raise LycorisError("E-lora-stack-row-unusable", got=str(row), expected=FORM)
    return row[0], row[1], row[2]


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise LycorisError("E-lora-stack-strength-not-finite", got=str(value), expected=FORM)
    return number


def to_lora_stack(stack: Stack) -> list[LoraTuple]:
    """The rows of a LORA_STACK that load the same adapters.

    Raises LycorisError for an adapter whose file is in no loras folder, and for an entry with block rules, a
    schedule, a mask, strengths by picture or a pair of files: a LORA_STACK cannot hold these.
    """
    return [(_name(entry), float(entry.strength), float(entry.strength_of("te"))) for entry in stack]


def _name(entry: Entry) -> str:
    adapter = entry.adapter
    for what, held in (
        ("block rules", entry.rules),
        ("a schedule", entry.schedule),
        ("a mask", entry.mask),
        ("a strength for each picture", entry.factors),
        ("a pair of files", entry.low_noise),
    ):
        if held is not None:
            raise LycorisError(
                "E-lora-stack-cannot-hold",
                file=adapter.name,
                what=what,
                got=getattr(held, "name", None) or str(held),
            )
    name = relative_name(adapter.path)
    if name is None:
        raise LycorisError("E-lora-stack-files-only", file=adapter.name, got=adapter.path)
    return name


def only_adapter(stack: Stack, holder: str, model: Mapping[str, Shape] | None) -> Adapter:
    """The adapter of a stack of one, with its strengths and block rules multiplied in.

    `holder` says what will hold the adapter, such as "an adapter file", for the error. `model` has the keys
    and shapes of the adapter's model. Raises LycorisError if the stack has none or several, or if `weighted`
    cannot multiply them in.
    """
    if len(stack) != 1:
        names = ", ".join(entry.name for entry in stack) or "none"
        raise LycorisError("E-stack-of-several", holder=holder, count=len(stack), names=names)
    (entry,) = stack
    return weighted(entry, model)
