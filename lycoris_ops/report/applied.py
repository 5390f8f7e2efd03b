"""The load report in words: what was applied, what was not, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container
from pathlib import Path

from ..adapters.grouping import WORDS
from ..adapters.peft import CONFIG_NAME
from ..names.dialects import split_prefix
from ..stack.resolve import PART_NAMES, EntryResolution, Resolution
from .words import counted, listed, paragraph


def describe(resolution: Resolution) -> str:
    """The report of a stack on one target, with a paragraph for each adapter."""
    if not resolution.entries:
        return "The stack is empty: nothing was changed."
    return "\n\n".join(_describe_entry(entry) for entry in resolution.entries)


def _describe_entry(resolution: EntryResolution) -> str:
    entry, adapter = resolution.entry, resolution.entry.adapter
    lines = [adapter.name, f"  dialect {adapter.dialect}; {_kinds(resolution)}"]
    strengths = f"  strength {entry.strength:g}"
    if entry.strength_clip is not None:
        strengths += f", text encoder {entry.strength_clip:g}"
    lines.append(strengths + (f"; rules: {entry.rules}" if entry.rules else ""))
    if entry.off:
        return paragraph([*lines, "  off: both strengths are 0, nothing was applied"])
    lines.append(f"  applied {resolution.count()} of {resolution.layers} layers")
    if silenced := resolution.count(silent=True):
        lines.append(f"  {silenced} matched at strength 0")
    if resolution.front:
        lines.append(f"  names read without the {resolution.front} in front of them")
    if resolution.copies:
        lines.append(f"  {len(resolution.copies)} layers repeat others of the file and are applied once")
    lines += [f"  {line}" for line in _configured(resolution)]
    lines += [f"  {line}" for line in _odd_alphas(resolution)]
    for part, names in resolution.absent.items():
        why = f"the {PART_NAMES[part]}: {resolution.absent_because}"
        lines.append(f"  {len(names)} layers left out, they belong to {why}")
    lines += listed(
        "layers whose shape does not fit",
        [
            f"{bad.layer}: {bad.made_for} on {bad.target.name} {list(bad.expected)}"
            for bad in resolution.mismatches
        ],
    )
    lines += listed(
        "layers cannot be matched",
        [
            f"{left.layer}: {left.reason}" + (f"; nearest: {left.nearest}" if left.nearest else "")
            for left in resolution.unmatched
        ],
    )
    # The keys of unreadable layers are among the unused ones, but these layers are listed with their reasons.
    stray = [key for key in adapter.unused_keys if not _of_unreadable(key, adapter.unreadable)]
    lines += listed("keys of the file are of no known kind", sorted(stray))
    lines += listed(
        "embeddings come with the file and are not applied (they belong in the embeddings folder)",
        list(adapter.embeddings),
    )
    lines += listed("rules match none of its layers", [str(rule) for rule in resolution.idle_rules])
    return paragraph(lines)


def _configured(resolution: EntryResolution) -> list[str]:
    """Lines on the PEFT configuration that is followed, and on layers that have no alpha from anywhere."""
    adapter = resolution.entry.adapter
    files = sorted({Path(info.peft.path).name for info in adapter.info.values() if info.peft})
    lines = [f"alpha from {', '.join(files)}"] if files else []
    left = adapter.without_alpha
    if left and adapter.config:
        lines.append(
            f"{len(left)} layers without an alpha do not follow the {CONFIG_NAME} beside the file: "
            "their rank is not the one it says, their names are not PEFT's, or the file itself holds a "
            "configuration"
        )
    # Only for PEFT's names: in other dialects a layer without an alpha is meant to be at scale 1.
    elif any(split_prefix(name)[0] == "peft" for name in left):
        lines.append(f"no {CONFIG_NAME} beside the file: {len(left)} layers at scale 1")
    starts = Counter(info.options.get("start") for info in adapter.info.values())
    lines += [
        f"{count} layers are for a base without its {start} start, which is computed from the model's weight"
        for start, count in starts.items()
        if start is not None
    ]
    aligned = sum(info.options.get("product_of") == "peft" for info in adapter.info.values())
    if aligned:
        lines.append(f"{aligned} lokr layers of a Conv1d with the product that PEFT computes there")
    return lines


def _kinds(resolution: EntryResolution) -> str:
    """The kinds of an adapter's layers with their numbers, ranks and alphas, the most frequent kind first."""
    adapter = resolution.entry.adapter
    alphas = adapter.alphas()
    counts = Counter(info.algorithm.algorithm for info in adapter.info.values())
    parts: list[str] = []
    for kind, count in counts.most_common():
        infos = [info for info in adapter.info.values() if info.algorithm.algorithm == kind]
        ranks = counted("full" if info.rank is None else str(info.rank) for info in infos)
        found = (alphas[info.name] for info in infos)
        values = counted("none" if alpha is None else f"{alpha:g}" for alpha in found)
        parts.append(f"{count} {kind} (rank {ranks}; alpha {values})")
    return ", ".join(parts) if parts else "no layer that can be read"


def _odd_alphas(resolution: EntryResolution) -> list[str]:
    """Lines about alphas that a user would not expect.

    An alpha of 0 makes a layer do nothing, and one below 0 reverses its change. One that is not finite cannot
    be used, neither for a scale nor for the bound of a rotation.
    """
    adapter = resolution.entry.adapter
    # Without a rank, as with LoKr's two full factors, alpha has no effect.
    scaled = {name for name, info in adapter.info.items() if info.algorithm.scaled_by_alpha and info.rank}
    bound = {name for name, info in adapter.info.items() if info.algorithm.constrained_by_alpha}
    alphas = {name: alpha for name, alpha in adapter.alphas().items() if alpha is not None}
    zero = sum(alphas.get(name) == 0 for name in scaled)
    negative = sum(-math.inf < alphas.get(name, 0.0) < 0 for name in scaled)
    unusable = sum(not math.isfinite(alphas.get(name, 0.0)) for name in scaled | bound)
    lines: list[str] = []
    if unusable:
        lines.append(f"alpha is NaN or infinite in {unusable} layers: they cannot be applied")
    if zero:
        lines.append(f"alpha is 0 in {zero} layers: they have no effect")
    if negative:
        lines.append(f"alpha is negative in {negative} layers: their effect is turned around")
    return lines


def _of_unreadable(key: str, unreadable: Container[str]) -> bool:
    """Whether a key belongs to one of the unreadable layers."""
    end = len(key)
    # Looked up by the key's beginnings: a file may have as many unreadable layers as keys.
    for _ in range(WORDS):
        end = key.rfind(".", 0, end)
        if end < 0:
            return False
        if key[:end] in unreadable:
            return True
    return False
