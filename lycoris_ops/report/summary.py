"""What an adapter file holds, as data and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..adapters.adapter import Adapter
from ..names.dialects import split_prefix
from ..stack.resolve import PART_NAMES, EntryResolution

SHOWN = 12
"""Metadata and keys that are written out in words; the data has all of them."""
LONG = 60
"""Characters of a metadata value that are written out in words."""
FIRST = ("ss_", "modelspec.", "format", "lycoris_")
"""Metadata that say the most about an adapter, by how they begin."""


def summary(adapter: Adapter) -> dict[str, Any]:
    """Kinds, ranks, alphas, dtypes, parts, metadata and what is not read."""
    alphas = adapter.alphas()
    kinds: dict[str, dict[str, Any]] = {}
    for name, info in adapter.info.items():
        kind = kinds.setdefault(
            info.algorithm.algorithm, {"layers": 0, "ranks": Counter(), "alphas": Counter()}
        )
        kind["layers"] += 1
        kind["ranks"]["none" if info.rank is None else str(info.rank)] += 1
        kind["alphas"]["none" if alphas[name] is None else f"{alphas[name]:g}"] += 1
    dtypes = Counter(info.dtype for info in adapter.file.tensors.values())
    return {
        "file": adapter.path,
        "size": adapter.file.fingerprint.size,
        "dialect": adapter.dialect,
        "layers": len(adapter.info),
        "kinds": kinds,
        "parts": dict(Counter(_part_of(name) for name in adapter.info)),
        "dtypes": dict(dtypes),
        "metadata": dict(adapter.metadata),
        "unreadable": dict(adapter.unreadable),
        "unused_keys": list(adapter.unused_keys),
        "embeddings": list(adapter.embeddings),
    }


def matched(entry: EntryResolution) -> dict[str, Any]:
    """What of an adapter meets a model, as data."""
    return {
        "applied": entry.count(),
        "mismatches": {bad.layer: [bad.made_for, list(bad.expected)] for bad in entry.mismatches},
        "unmatched": {left.layer: left.reason for left in entry.unmatched},
        "absent": {PART_NAMES[part]: list(names) for part, names in entry.absent.items()},
    }


def in_words(found: Mapping[str, Any]) -> str:
    """A summary for people."""
    lines = [f"{found['file']}", f"  dialect {found['dialect']}, {found['size'] / 1e6:.2f} MB"]
    for name, kind in found["kinds"].items():
        ranks, alphas = _counted(kind["ranks"]), _counted(kind["alphas"])
        lines.append(f"  {kind['layers']} {name}: rank {ranks}; alpha {alphas}")
    lines.append(f"  parts: {_counted(found['parts'], always=True)}")
    lines.append(f"  dtypes: {_counted(found['dtypes'], always=True)}")
    metadata = found["metadata"]
    if not metadata:
        lines.append("  no metadata")
    else:
        lines.append(f"  {len(metadata)} metadata:")
        ordered = sorted(metadata, key=lambda key: (not key.startswith(FIRST), key))
        lines += _some(f"{key} = {_short(metadata[key])}" for key in ordered)
    for what in ("unreadable", "unused_keys", "embeddings"):
        if found[what]:
            lines.append(f"  {len(found[what])} {TITLES[what]}:")
            entries = found[what]
            named = isinstance(entries, dict)
            lines += _some(f"{key}: {entries[key]}" if named else str(key) for key in entries)
    return "\n".join(lines)


TITLES = {
    "unreadable": "layers that are not read",
    "unused_keys": "keys of no layer",
    "embeddings": "embeddings, which are not applied",
}


def _part_of(name: str) -> str:
    prefix = split_prefix(name)[1]
    if prefix.part is None:
        return "not said"
    number = f" {prefix.encoder}" if prefix.encoder else ""
    return PART_NAMES[prefix.part] + number


def _counted(counts: Mapping[str, int], *, always: bool = False) -> str:
    """Values with how often they occur, the most frequent first; a single one alone."""
    ordered = Counter(counts).most_common()
    if len(ordered) == 1 and not always:
        return ordered[0][0]
    shown = ", ".join(f"{value} x{count}" for value, count in ordered[:4])
    return f"{shown} and {len(ordered) - 4} others" if len(ordered) > 4 else shown


def _some(items: Iterable[str]) -> list[str]:
    listed = [f"    {item}" for item in items]
    more = len(listed) - SHOWN
    return listed if more <= 0 else [*listed[:SHOWN], f"    and {more} more"]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONG else f"{line[: LONG - 3]}..."
