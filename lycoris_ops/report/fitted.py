"""How an adapter was resized, converted or extracted, in words."""

from __future__ import annotations

from collections import Counter

from ..messages import number_of
from ..reading.adapter import Adapter
from ..reading.fitted import UNCHANGED, FitReport
from .applied import State
from .words import counted, listed, paragraph, percent, ranks, sizes_in_words

WORST = 5
"""How many of the layers with the largest errors are named."""
LARGER = "larger"
SMALL = 1e-4
"""Errors below this do not count: rounding to 16 bits is larger."""


def fit_verdict(*adapters: Adapter) -> tuple[State, str]:
    """Whether fitted adapters do all that their sources did, as a state and as a sentence."""
    reports = [_report(adapter) for adapter in adapters]
    before = [report.source_size for report in reports if report.source_size is not None]
    old = sum(before) if len(before) == len(reports) else None
    sizes = sizes_in_words(old, sum(adapter.size for adapter in adapters))
    files = f"{len(adapters)} files, " if len(adapters) > 1 else ""
    worse = [(adapter, words) for adapter in adapters if (words := _worse(adapter))]
    if all(report.stays for report in reports) and not worse:
        stay = "they stay as they were" if files else "stays as it was"
        return "nothing", f"{files}{sizes}: {stay}, {reports[0].stays}."
    if not worse:
        same = old is not None and sizes == sizes_in_words(None, old)
        return "all", f"{files}{sizes}: {'no smaller, and ' if same else ''}nothing is lost."
    state: State = "all" if all(words == [LARGER] for _, words in worse) else "partly"
    if files:
        named = "; ".join(f"{adapter.name} {', '.join(words)}" for adapter, words in worse)
        return state, f"{files}{sizes}: {named}."
    if state == "all":
        return state, f"{sizes}: larger, and nothing is lost."
    *lost, last = worse[0][1]
    return state, f"{sizes}: {', '.join(lost)}{', and ' if lost else ''}{last}."


def _worse(adapter: Adapter) -> list[str]:
    """How the adapter is worse than its sources, in words; [] where it is not."""
    report = _report(adapter)
    faults: list[str] = []
    if report.source_size is not None and adapter.size > report.source_size:
        faults.append(LARGER)
    if report.loss >= SMALL:
        faults.append(f"loses {percent(report.loss)}")
    left = sum(reason != UNCHANGED for reason in report.left_out.values())
    if left:
        faults.append(number_of(left, "layer is", "layers are") + " left out")
    return [*faults, *report.missing]


def _report(adapter: Adapter) -> FitReport:
    assert adapter.report is not None
    return adapter.report


def describe_fit(*adapters: Adapter) -> str:
    """The report on fitted adapters: first what was lost, then the kinds and sizes of each."""
    return "\n\n".join([paragraph([fit_verdict(*adapters)[1]]), *map(_described, adapters)])


def _described(adapter: Adapter) -> str:
    report = _report(adapter)
    lines = [
        f"{adapter.name}: {number_of(len(report.rows), 'layer')}, {report.parameters:,} parameters, "
        f"{sizes_in_words(None, adapter.size)}"
    ]
    kinds = Counter(row.algorithm for row in report.rows)
    for kind, count in kinds.most_common():
        rows = [row for row in report.rows if row.algorithm == kind]
        before = counted(row.before for row in rows)
        lines.append(f"  {count} {kind} (rank {ranks(row.rank for row in rows)}), from {before}")
    words = f"  error {report.error:.2%}, which keeps {1 - report.error**2:.2%} of the energy"
    if report.noise >= SMALL:
        words += f"; {report.noise:.2%} of it is rounding of the sources"
    lines.append(words)
    worst = sorted(report.rows, key=lambda row: -row.lost)[:WORST]
    lost = [f"{row.layer}: {row.error:.2%}" for row in worst if row.error >= SMALL]
    if lost:
        lines += ["  most is lost in:", *(f"    {line}" for line in lost)]
    reasons = Counter(report.left_out.values())
    if unchanged := reasons.pop(UNCHANGED, 0):
        # Give only the number of these: there are many, and nothing is missing.
        words = ("weight left out, because it changes", "weights left out, because they change")
        lines.append(f"  {number_of(unchanged, *words)} nothing")
    for reason, _ in reasons.most_common():
        names = [name for name, why in report.left_out.items() if why == reason]
        lines += listed(f"left out, {reason}", f"left out, {reason}", names)
    return paragraph([*lines, *(f"  {note}" for note in (*report.missing, *report.notes))])
