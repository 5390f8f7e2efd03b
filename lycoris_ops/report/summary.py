"""What an adapter file holds, as data and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..messages import phrase
from ..names.layer_name import LayerName
from ..reading.adapter import Adapter
from ..stack.resolve import COMPONENT_NAMES, EntryResolution
from .words import counted, listed, paragraph, short

SHOWN = 12
"""How many metadata entries and how many keys are written out. It is more than `words.ITEMS`, because a file
is inspected in a terminal and not on a node."""
FIRST = ("ss_", "modelspec.", "format", "lycoris_")
"""Prefixes of the metadata keys that say the most about an adapter. These are shown first."""


def summary(adapter: Adapter) -> dict[str, Any]:
    """What an adapter's file holds, as data for JSON.

    That is: file, size in bytes, dialect, number of layers, kinds with ranks and alphas, components of the
    model, dtypes, metadata, unreadable layers with reasons, unused keys and embeddings.
    """
    alphas = adapter.alphas()
    kinds: dict[str, dict[str, Any]] = {}
    for name, info in adapter.info.items():
        kind = kinds.setdefault(
            info.algorithm.algorithm, {"layers": 0, "ranks": Counter(), "alphas": Counter()}
        )
        kind["layers"] += 1
        # Ranks and alphas as texts, because JSON has no other keys.
        kind["ranks"]["none" if info.rank is None else str(info.rank)] += 1
        kind["alphas"]["none" if alphas[name] is None else f"{alphas[name]:g}"] += 1
    dtypes = Counter(info.dtype for info in adapter.file.tensors.values())
    return {
        "file": adapter.path,
        "size": adapter.file.size,
        "dialect": adapter.dialect,
        "layers": len(adapter.info),
        "kinds": kinds,
        "parts": dict(Counter(_component_of(name) for name in adapter.names)),
        "dtypes": dict(dtypes),
        "metadata": dict(adapter.metadata),
        "unreadable": dict(adapter.unreadable),
        "unused_keys": list(adapter.unused_keys),
        "embeddings": list(adapter.embeddings),
    }


def matched(entry: EntryResolution) -> dict[str, Any]:
    """Which layers of an adapter were applied and which were not, as data for JSON."""
    return {
        "applied": entry.count(),
        "mismatches": {bad.layer: [bad.made_for, list(bad.expected)] for bad in entry.mismatches},
        "unmatched": {left.layer: left.reason for left in entry.unmatched},
        "absent": {COMPONENT_NAMES[component]: list(names) for component, names in entry.absent.items()},
    }


def in_words(found: Mapping[str, Any]) -> str:
    """The `summary` of an adapter as lines of text."""
    lines = [
        f"{found['file']}",
        f"  {phrase('R-names-mb', dialect=found['dialect'], size=found['size'] / 1000000.0)}",
    ]
    for name, kind in found["kinds"].items():
        ranks, alphas = counted(kind["ranks"]), counted(kind["alphas"])
        lines.append(
            f"  {phrase('R-rank-alpha-2', layers=kind['layers'], name=name, ranks=ranks, alphas=alphas)}"
        )
    lines.append(f"  {phrase('R-parts', parts=counted(found['parts'], always=True))}")
    lines.append(f"  {phrase('R-dtypes', dtypes=counted(found['dtypes'], always=True))}")
    metadata = found["metadata"]
    ordered = sorted(metadata, key=lambda key: (not key.startswith(FIRST), key))
    pairs = [f"{key} = {short(metadata[key])}" for key in ordered]
    lines += listed("R-listed-metadata", pairs, SHOWN) or [f"  {phrase('R-no-metadata')}"]
    unreadable = found["unreadable"]
    reasons = [f"{key}: {unreadable[key]}" for key in unreadable]
    lines += listed("R-listed-unread-layers", reasons, SHOWN)
    lines += listed("R-listed-keys-of-no-layer", found["unused_keys"], SHOWN)
    lines += listed("R-listed-unused-embeddings", found["embeddings"], SHOWN)
    return paragraph(lines)


def _component_of(name: LayerName) -> str:
    if name.component is None:
        return phrase("R-not-said")
    number = f" {name.encoder}" if name.encoder else ""
    return COMPONENT_NAMES[name.component] + number
