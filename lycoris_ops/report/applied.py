"""The load report in words: what was applied, what was not, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Literal

from ..messages import number_of
from ..peft import CONFIG_NAME
from ..reading.adapter import Adapter
from ..reading.grouping import WORDS
from ..stack.resolve import COMPONENT_NAMES, EntryResolution, Resolution, Silence
from .words import ITEMS, counted, listed, paragraph, ranks

RULES = 200
"""Longer block rules are cut off after this many characters, unless the report is `whole`."""
HUGE = 1000.0
"""An alpha of more than so many times the rank is remarked on. Trainers use 1/16 to 2 times the rank; a file
that has its scale in alpha rarely has more than 100."""
SILENT: Mapping[Silence, str] = {
    "strength": "at strength 0",
    "rules": "switched off by rules",
    "mask": "left out by the mask",
}
"""Why layers that were matched do nothing, in words."""
State = Literal["all", "partly", "nothing"]
"""Whether the request was applied in full, in part, or not at all."""


def verdict(resolution: Resolution) -> tuple[State, str]:
    """Whether all of a stack was applied, and a line that says so."""
    live = [entry for entry in resolution.entries if not entry.entry.off]
    if not resolution.entries:
        return "nothing", "Nothing was changed: the stack is empty."
    if not live:
        return "nothing", "Nothing was changed: all strengths are 0."
    layers = sum(entry.layers for entry in live)
    met = sum(entry.count() for entry in live)
    files = number_of(len(live), "file")
    off = len(resolution.entries) - len(live)
    rest = f"; {number_of(off, 'file is', 'files are')} off" if off else ""
    left = sum(entry.left_out for entry in live)
    idle = len({rule for entry in live for rule in entry.idle_rules})
    stray = sum(bool(_stray(entry)) for entry in live)
    if not (met or left or idle or stray):
        return "nothing", f"Nothing was changed: no layer of {files} has a strength other than 0{rest}."
    silent = Counter(why for entry in live for why in entry.silent.values())
    beside = [f"{silent[why]} {words}" for why, words in SILENT.items() if silent[why]]
    if copies := sum(len(entry.copies) for entry in live):
        beside.append(f"{copies} repeated")
    if not (left or idle or stray):
        if not beside:
            return "all", f"All of it was applied: {met} of {layers} layers of {files}{rest}."
        acting = number_of(met, "layer")
        return "all", f"Applied as asked: {acting} of {files}, {', '.join(beside)}{rest}."
    why = [number_of(left, "layer is", "layers are") + " left out"] if left else []
    if idle:
        why.append(
            number_of(idle, "pattern of the rules matches", "patterns of the rules match") + " nothing"
        )
    if stray:
        why.append(number_of(stray, "file has", "files have") + " keys of no known kind")
    what = "Not all of it was applied"
    if met and not (left or stray):
        what = "The layers were applied, but not all of the rules"
    why += beside
    return "partly", f"{what}: {met} of {layers} layers of {files}; {', '.join(why)}{rest}."


def describe(resolution: Resolution, *, whole: bool = False) -> str:
    """The report of a stack on one target: whether all was applied, then a paragraph for each adapter.

    `whole` lists everything that was left out, and not only the first of each sort.
    """
    first = verdict(resolution)[1]
    return "\n\n".join([first, *(_describe_entry(entry, whole) for entry in resolution.entries)])


def _stray(resolution: EntryResolution) -> list[str]:
    """Keys of the file that nothing reads. Unreadable layers are listed elsewhere, with their reasons."""
    adapter = resolution.entry.adapter
    return [key for key in adapter.left_out if not _of_unreadable(key, adapter.unreadable)]


def _describe_entry(resolution: EntryResolution, whole: bool) -> str:
    entry, adapter = resolution.entry, resolution.entry.adapter
    most = None if whole else ITEMS
    lines = [entry.name, f"  names of {adapter.dialect}; {_kinds(resolution)}"]
    strengths = f"  strength {entry.strength:g}"
    if entry.strength_clip is not None:
        strengths += f", text encoder {entry.strength_clip:g}"
    rules = str(entry.rules or "")
    if len(rules) > RULES and not whole:
        rules = f"{rules[:RULES]}..."
    lines.append(strengths + (f"; rules: {rules}" if rules else ""))
    if entry.off:
        return paragraph([*lines, "  off: both strengths are 0, nothing was applied"])
    lines.append(f"  applied {resolution.count()} of {resolution.layers} layers")
    if resolution.elsewhere:
        lines.append(f"  {resolution.elsewhere}")
    silent = Counter(resolution.silent.values())
    lines += [f"  {silent[why]} {words}" for why, words in SILENT.items() if silent[why]]
    if resolution.front:
        lines.append(f"  names read without their prefix {resolution.front}")
    if resolution.copies:
        repeat = number_of(len(resolution.copies), "layer repeats", "layers repeat")
        lines.append(f"  {repeat} others of the file: applied once")
    lines += [f"  {line}" for line in _configured(resolution)]
    lines += [f"  {line}" for line in odd_alphas(entry.adapter)]
    for component, names in resolution.absent.items():
        why = f"the {COMPONENT_NAMES[component]}: {resolution.absent_because}"
        left = number_of(len(names), "layer left out, it belongs", "layers left out, they belong")
        lines.append(f"  {left} to {why}")
        lines += [f"    {name}" for name in names] if whole else []
    lines += listed(
        "layer whose shape does not fit",
        "layers whose shape does not fit",
        [
            f"{bad.layer}: {bad.made_for} on {bad.target.name} {list(bad.expected)}"
            for bad in resolution.mismatches
        ],
        most,
    )
    lines += listed(
        "layer cannot be matched",
        "layers cannot be matched",
        [
            f"{left.layer}: {left.reason}" + (f"; nearest: {left.nearest}" if left.nearest else "")
            for left in resolution.unmatched
        ],
        most,
    )
    lines += listed(
        "key of the file is of no known kind",
        "keys of the file are of no known kind",
        sorted(_stray(resolution)),
        most,
    )
    why = "with the file and {} not applied ({} in the embeddings folder)"
    lines += listed(
        "embedding comes " + why.format("is", "it belongs"),
        "embeddings come " + why.format("are", "they belong"),
        list(adapter.embeddings),
        most,
    )
    lines += [f"  {reading}" for reading in resolution.readings]
    lines += listed(
        "pattern of the rules matches nothing",
        "patterns of the rules match nothing",
        list(resolution.idle_rules),
        most,
    )
    return paragraph(lines)


def _configured(resolution: EntryResolution) -> list[str]:
    """Lines on the PEFT configuration in use, and on layers without an alpha from any source."""
    adapter = resolution.entry.adapter
    files = sorted({Path(info.config.path).name for info in adapter.info.values() if info.config})
    lines = [f"alpha from {', '.join(files)}"] if files else []
    left = adapter.without_alpha
    if left and adapter.config:
        lines.append(
            f"{number_of(len(left), 'layer has', 'layers have')} no alpha, and the {CONFIG_NAME} beside the "
            "file does not apply: the rank is not the one it says, the name is not PEFT's, or the file "
            "itself holds a configuration"
        )
    elif adapter.unscaled:
        lines.append(f"no {CONFIG_NAME} beside the file: {number_of(len(left), 'layer')} at scale 1")
    starts = Counter(info.options.get("start") for info in adapter.info.values())
    lines += [
        f"{number_of(count, 'layer was', 'layers were')} trained on a base minus its {start} start, which is "
        "computed from the model's weight"
        for start, count in starts.items()
        if start is not None
    ]
    aligned = sum(info.options.get("product_of") == "peft" for info in adapter.info.values())
    if aligned:
        lines.append(f"{number_of(aligned, 'lokr layer')} of a Conv1d, multiplied as PEFT does")
    return lines


def _kinds(resolution: EntryResolution) -> str:
    """The kinds of an adapter's layers with their numbers, ranks and alphas, the most frequent kind first."""
    adapter = resolution.entry.adapter
    alphas = adapter.alphas()
    counts = Counter(info.algorithm.algorithm for info in adapter.info.values())
    kinds: list[str] = []
    for kind, count in counts.most_common():
        infos = [info for info in adapter.info.values() if info.algorithm.algorithm == kind]
        alphas_of_kind = (alphas[info.name] for info in infos)
        values = counted("none" if alpha is None else f"{alpha:g}" for alpha in alphas_of_kind)
        kinds.append(f"{count} {kind} (rank {ranks(info.rank for info in infos)}; alpha {values})")
    return ", ".join(kinds) if kinds else "no layer that can be read"


def odd_alphas(adapter: Adapter) -> list[str]:
    """Lines about alphas that a user would not expect.

    An alpha of 0 makes a layer do nothing, and one below 0 reverses its change. One far above the rank makes
    the change so large that the model is lost. An alpha that is not finite cannot be used, neither for a
    scale nor for the bound of a rotation.
    """
    # Without a rank, as with LoKr's two full factors, alpha has no effect.
    scaled = {
        name for name, info in adapter.info.items() if info.algorithm.table.scaled_by_alpha and info.rank
    }
    bound = {name for name, info in adapter.info.items() if info.algorithm.table.constrained_by_alpha}
    alphas = {name: alpha for name, alpha in adapter.alphas().items() if alpha is not None}
    zero = sum(alphas.get(name) == 0 for name in scaled)
    negative = sum(-math.inf < alphas.get(name, 0.0) < 0 for name in scaled)
    scales = {name: abs(alphas.get(name, 0.0)) / (adapter.info[name].rank or 1) for name in scaled}
    huge = [name for name, scale in scales.items() if HUGE < scale < math.inf]
    unusable = sum(not math.isfinite(alphas.get(name, 0.0)) for name in scaled | bound)
    lines: list[str] = []
    if unusable:
        lines.append(f"alpha is NaN or infinite in {number_of(unusable, 'layer')}, which cannot be applied")
    if zero:
        lines.append(f"alpha is 0 in {number_of(zero, 'layer')}: no effect")
    if negative:
        lines.append(f"alpha is negative in {number_of(negative, 'layer')}, which reverses the effect")
    if huge:
        most = max(scales[name] for name in huge)
        lines.append(
            f"alpha is up to {most:g} times the rank in {number_of(len(huge), 'layer')}: "
            "the file may be damaged"
        )
    return lines


def _of_unreadable(key: str, unreadable: Container[str]) -> bool:
    """Whether a key belongs to one of the unreadable layers."""
    end = len(key)
    # Prefixes of the key are looked up: a file may have as many unreadable layers as keys.
    for _ in range(WORDS):
        end = key.rfind(".", 0, end)
        if end < 0:
            return False
        if key[:end] in unreadable:
            return True
    return False
