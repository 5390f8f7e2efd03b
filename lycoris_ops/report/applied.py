"""The load report in words: what was applied, what was not, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Literal

from ..messages import phrase
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
    "strength": "R-layers-at-strength-0",
    "rules": "R-layers-off-by-rules",
    "mask": "R-layers-left-out-by-mask",
}
"""Why layers that were matched do nothing, by the codes of the words."""
State = Literal["all", "partly", "nothing"]
"""Whether the request was applied in full, in part, or not at all."""


def verdict(resolution: Resolution) -> tuple[State, str]:
    """Whether all of a stack was applied, and a line that says so."""
    live = [entry for entry in resolution.entries if not entry.entry.off]
    if not resolution.entries:
        return "nothing", phrase("R-applied-nothing-empty")
    if not live:
        return "nothing", phrase("R-applied-nothing-all-off")
    layers = sum(entry.layers for entry in live)
    met = sum(entry.count() for entry in live)
    files, off = len(live), len(resolution.entries) - len(live)
    rest = phrase("R-applied-files-off", files=off) if off else ""
    left = sum(entry.left_out for entry in live)
    idle = len({rule for entry in live for rule in entry.idle_rules})
    stray = sum(bool(_stray(entry)) for entry in live)
    if not (met or left or idle or stray):
        return "nothing", phrase("R-applied-nothing-at-0", files=files, rest=rest)
    silent = Counter(why for entry in live for why in entry.silent.values())
    beside = [phrase(code, layers=silent[why]) for why, code in SILENT.items() if silent[why]]
    if copies := sum(len(entry.copies) for entry in live):
        beside.append(phrase("R-layers-repeated", layers=copies))
    if not (left or idle or stray):
        if not beside:
            return "all", phrase("R-applied-all", layers=met, of=layers, files=files, rest=rest)
        return "all", phrase("R-applied-as-asked", layers=met, files=files, beside=beside, rest=rest)
    why = [phrase("R-layers-left-out", layers=left)] if left else []
    if idle:
        why.append(phrase("R-patterns-match-nothing", patterns=idle))
    if stray:
        why.append(phrase("R-files-with-unknown-keys", files=stray))
    code = "R-applied-but-rules" if met and not (left or stray) else "R-applied-in-part"
    return "partly", phrase(code, layers=met, of=layers, files=files, why=[*why, *beside], rest=rest)


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
    lines = [entry.name, f"  {phrase('R-names', dialect=adapter.dialect, resolution=_kinds(resolution))}"]
    strengths = f"  {phrase('R-strength', strength=entry.strength)}"
    if entry.strength_clip is not None:
        strengths += phrase("R-text-encoder", strength_clip=entry.strength_clip)
    rules = str(entry.rules or "")
    if len(rules) > RULES and not whole:
        rules = f"{rules[:RULES]}..."
    lines.append(strengths + (phrase("R-rules", rules=rules) if rules else ""))
    if entry.off:
        return paragraph([*lines, f"  {phrase('R-off-both-strengths-0-nothing')}"])
    lines.append(f"  {phrase('R-applied-layers', count=resolution.count(), layers=resolution.layers)}")
    if resolution.elsewhere:
        lines.append(f"  {resolution.elsewhere}")
    silent = Counter(resolution.silent.values())
    lines += [f"  {phrase(code, layers=silent[why])}" for why, code in SILENT.items() if silent[why]]
    if resolution.front:
        lines.append(f"  {phrase('R-names-read-without-their-prefix', front=resolution.front)}")
    if resolution.copies:
        lines.append(f"  {phrase('R-layers-repeat-others', layers=len(resolution.copies))}")
    lines += [f"  {line}" for line in _configured(resolution)]
    lines += [f"  {line}" for line in odd_alphas(entry.adapter)]
    for component, names in resolution.absent.items():
        words = phrase(
            "R-layers-of-absent-component",
            layers=len(names),
            component=COMPONENT_NAMES[component],
            why=resolution.absent_because,
        )
        lines.append(f"  {words}")
        lines += [f"    {name}" for name in names] if whole else []
    lines += listed(
        "R-listed-shapes",
        [
            phrase(
                "R-layer-made-for",
                layer=bad.layer,
                made_for=bad.made_for,
                weight=bad.target.name,
                shape=list(bad.expected),
            )
            for bad in resolution.mismatches
        ],
        most,
    )
    lines += listed(
        "R-listed-unmatched",
        [
            f"{left.layer}: {left.reason}"
            + (phrase("R-nearest-name", name=left.nearest) if left.nearest else "")
            for left in resolution.unmatched
        ],
        most,
    )
    lines += listed(
        "R-listed-stray-keys",
        sorted(_stray(resolution)),
        most,
    )
    lines += listed(
        "R-listed-embeddings",
        list(adapter.embeddings),
        most,
    )
    lines += [f"  {reading}" for reading in resolution.readings]
    lines += listed(
        "R-listed-idle-patterns",
        list(resolution.idle_rules),
        most,
    )
    return paragraph(lines)


def _configured(resolution: EntryResolution) -> list[str]:
    """Lines on the PEFT configuration in use, and on layers without an alpha from any source."""
    adapter = resolution.entry.adapter
    files = sorted({Path(info.config.path).name for info in adapter.info.values() if info.config})
    lines = [phrase("R-alpha-from", files=files)] if files else []
    left = adapter.without_alpha
    if left and adapter.config:
        lines.append(phrase("R-no-alpha-beside-file-does", count=len(left), config_name=CONFIG_NAME))
    elif adapter.unscaled:
        lines.append(phrase("R-no-beside-file-at-scale", config_name=CONFIG_NAME, count=len(left)))
    starts = Counter(info.options.get("start") for info in adapter.info.values())
    lines += [
        phrase("R-trained-on-base-minus-start", count=count, start=start)
        for start, count in starts.items()
        if start is not None
    ]
    aligned = sum(info.options.get("product_of") == "peft" for info in adapter.info.values())
    if aligned:
        lines.append(phrase("R-conv1d-multiplied-peft-does", aligned=aligned))
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
        kinds.append(
            phrase(
                "R-rank-alpha",
                count=count,
                kind=kind,
                value=ranks(info.rank for info in infos),
                values=values,
            )
        )
    return ", ".join(kinds) if kinds else phrase("R-no-layer-can-be-read")


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
        lines.append(phrase("R-alpha-nan-or-infinite-cannot", unusable=unusable))
    if zero:
        lines.append(phrase("R-alpha-0-no-effect", zero=zero))
    if negative:
        lines.append(phrase("R-alpha-negative-reverses-effect", negative=negative))
    if huge:
        most = max(scales[name] for name in huge)
        lines.append(phrase("R-alpha-up-times-rank-file", most=most, count=len(huge)))
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
