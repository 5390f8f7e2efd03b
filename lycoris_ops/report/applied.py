"""The load report in words: what was applied, what was not, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Literal

from ..messages import Phrase, joined, phrase
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
SILENT: Mapping[Silence, Phrase] = {
    "strength": Phrase("R-silent-strength"),
    "rules": Phrase("R-silent-rules"),
    "mask": Phrase("R-silent-mask"),
}
"""Why layers that were matched do nothing."""
State = Literal["all", "partly", "nothing"]
"""Whether the request was applied in full, in part, or not at all."""


def verdict(resolution: Resolution) -> tuple[State, str]:
    """Whether all of a stack was applied, and a line that says so."""
    live = [entry for entry in resolution.entries if not entry.entry.off]
    if not resolution.entries:
        return "nothing", phrase("R-applied-stack-empty")
    if not live:
        return "nothing", phrase("R-applied-strengths-0")
    layers = sum(entry.layers for entry in live)
    met = sum(entry.count() for entry in live)
    files = phrase("R-files", files=len(live))
    off = len(resolution.entries) - len(live)
    rest = phrase("R-applied-files-off", files=off) if off else ""
    left = sum(entry.left_out for entry in live)
    idle = len({rule for entry in live for rule in entry.idle_rules})
    stray = sum(bool(_stray(entry)) for entry in live)
    if not (met or left or idle or stray):
        return "nothing", phrase("R-applied-no-layer", files=files, rest=rest)
    silent = Counter[Silence](why for entry in live for why in entry.silent.values())
    beside = _silent(silent)
    if copies := sum(len(entry.copies) for entry in live):
        beside.append(phrase("R-applied-repeated", count=copies))
    if not (left or idle or stray):
        if not beside:
            return "all", phrase("R-applied-all", met=met, layers=layers, files=files, rest=rest)
        acting = phrase("R-layers", layers=met)
        return "all", phrase("R-applied-as-asked", acting=acting, files=files, beside=beside, rest=rest)
    why = [phrase("R-layers-left-out", layers=left)] if left else []
    if idle:
        why.append(phrase("R-patterns-idle", patterns=idle))
    if stray:
        why.append(phrase("R-files-with-unknown-keys", files=stray))
    what = phrase("R-applied-partly")
    if met and not (left or stray):
        what = phrase("R-applied-without-rules")
    why += beside
    return "partly", phrase(
        "R-applied-of-layers", what=what, met=met, layers=layers, files=files, why=why, rest=rest
    )


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
    lines = [
        entry.name,
        f"  {phrase('R-entry-names-kinds', dialect=adapter.dialect, kinds=_kinds(resolution))}",
    ]
    clip = entry.strength_clip
    code = "R-entry-strength" if clip is None else "R-entry-strengths"
    strengths = phrase(code, strength=entry.strength, **({} if clip is None else {"clip": clip}))
    rules = str(entry.rules or "")
    if len(rules) > RULES and not whole:
        rules = f"{rules[:RULES]}..."
    lines.append(f"  {phrase('R-entry-rules', strengths=strengths, rules=rules) if rules else strengths}")
    if entry.off:
        return paragraph([*lines, f"  {phrase('R-entry-off')}"])
    lines.append(f"  {phrase('R-entry-applied', count=resolution.count(), layers=resolution.layers)}")
    if resolution.elsewhere:
        lines.append(f"  {resolution.elsewhere}")
    silent = Counter[Silence](resolution.silent.values())
    lines += [f"  {words}" for words in _silent(silent)]
    if resolution.front:
        lines.append(f"  {phrase('R-entry-front', front=resolution.front)}")
    if resolution.copies:
        lines.append(f"  {phrase('R-entry-copies', layers=len(resolution.copies))}")
    lines += [f"  {line}" for line in _configured(resolution)]
    lines += [f"  {line}" for line in odd_alphas(entry.adapter)]
    for component, names in resolution.absent.items():
        left = phrase(
            "R-entry-absent",
            layers=len(names),
            component=COMPONENT_NAMES[component],
            because=resolution.absent_because,
        )
        lines.append(f"  {left}")
        lines += [f"    {name}" for name in names] if whole else []
    lines += listed(
        "R-listed-misfits",
        [
            Phrase(
                "R-layer-misfit",
                {
                    "layer": bad.layer,
                    "made_for": bad.made_for,
                    "name": bad.target.name,
                    "expected": str(list(bad.expected)),
                },
            )
            for bad in resolution.mismatches
        ],
        most,
    )
    lines += listed(
        "R-listed-unmatched",
        [
            Phrase(
                "R-layer-unmatched-near" if left.nearest else "R-layer-unmatched",
                {"layer": left.layer, "reason": left.reason, "nearest": left.nearest},
            )
            for left in resolution.unmatched
        ],
        most,
    )
    lines += listed(
        "R-listed-unknown-keys",
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
        lines.append(phrase("R-config-does-not-apply", layers=len(left), config=CONFIG_NAME))
    elif adapter.unscaled:
        lines.append(phrase("R-config-absent", config=CONFIG_NAME, layers=len(left)))
    starts = Counter(info.options.get("start") for info in adapter.info.values())
    lines += [
        phrase("R-trained-minus-start", layers=count, start=start)
        for start, count in starts.items()
        if start is not None
    ]
    aligned = sum(info.options.get("product_of") == "peft" for info in adapter.info.values())
    if aligned:
        lines.append(phrase("R-lokr-as-peft", layers=aligned))
    return lines


def _silent(counts: Counter[Silence]) -> list[str]:
    """Why layers that were matched do nothing, with their numbers."""
    return [f"{counts[why]} {words}" for why, words in SILENT.items() if counts[why]]


def _kinds(resolution: EntryResolution) -> str:
    """The kinds of an adapter's layers with their numbers, ranks and alphas, the most frequent kind first."""
    adapter = resolution.entry.adapter
    alphas = adapter.alphas()
    counts = Counter(info.algorithm.algorithm for info in adapter.info.values())
    kinds: list[str] = []
    for kind, count in counts.most_common():
        infos = [info for info in adapter.info.values() if info.algorithm.algorithm == kind]
        alphas_of_kind = (alphas[info.name] for info in infos)
        values = counted(phrase("R-none") if alpha is None else f"{alpha:g}" for alpha in alphas_of_kind)
        kinds.append(
            phrase(
                "R-kind-of-layers",
                count=count,
                kind=kind,
                ranks=ranks(info.rank for info in infos),
                alphas=values,
            )
        )
    return joined(kinds) or phrase("R-no-readable-layer")


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
        lines.append(phrase("R-alpha-not-finite", layers=unusable))
    if zero:
        lines.append(phrase("R-alpha-zero", layers=zero))
    if negative:
        lines.append(phrase("R-alpha-negative", layers=negative))
    if huge:
        most = max(scales[name] for name in huge)
        lines.append(phrase("R-alpha-huge", most=most, layers=len(huge)))
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
