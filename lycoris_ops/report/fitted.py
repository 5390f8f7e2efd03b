"""How an adapter was resized, converted or extracted, in words."""

from __future__ import annotations

from collections import Counter

from ..errors import number_of
from ..reading.adapter import Adapter
from ..reading.fitted import UNCHANGED, FitReport
from .applied import State
from .words import counted, listed, paragraph, ranks

WORST = 5
"""How many of the layers with the largest errors are named."""
SMALL = 1e-4
"""Errors below this do not count: rounding to 16 bits is larger."""


def fit_verdict(*adapters: Adapter) -> tuple[State, str]:
    """Whether adapters that were made by fits hold all of their sources, and a line that says so."""
    states = [_verdict(adapter) for adapter in adapters]
    short = [(adapter, lost) for adapter, lost in zip(adapters, states, strict=True) if lost]
    if not short:
        return "all", "All of it was kept."
    if len(adapters) == 1:
        return "partly", f"Not all of it was kept: {'; '.join(short[0][1])}."
    named = "; ".join(f"{adapter.name}: {', '.join(lost)}" for adapter, lost in short)
    return "partly", f"Not all was kept of {len(short)} of {len(adapters)} files. {named}."


def _verdict(adapter: Adapter) -> list[str]:
    """What is worse than in the sources, the worst first; [] for nothing."""
    report = _report(adapter)
    found: list[str] = []
    if report.loss >= SMALL:
        found.append(f"error {report.error:.2%}")
    left = sum(reason != UNCHANGED for reason in report.left_out.values())
    if left:
        found.append(number_of(left, "layer is", "layers are") + " left out")
    found += report.missing
    if report.source_size is not None and adapter.size > report.source_size:
        found.append(f"larger than before, {_megabytes(adapter.size)} for {_megabytes(report.source_size)}")
    return found


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def _report(adapter: Adapter) -> FitReport:
    assert adapter.report is not None
    return adapter.report


def describe_fit(*adapters: Adapter) -> str:
    """The report of adapters that were made by fits: what was lost first, then kinds and sizes of each."""
    return "\n\n".join([paragraph([fit_verdict(*adapters)[1]]), *map(_described, adapters)])


def _described(adapter: Adapter) -> str:
    report = _report(adapter)
    lines = [
        f"{adapter.name}: {number_of(len(report.rows), 'layer')}, {report.parameters:,} parameters, "
        f"{_megabytes(adapter.size)}"
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
        # They are many, and nothing is missing.
        lines.append(f"  {number_of(unchanged, 'weight')} left out, {UNCHANGED}")
    for reason, _ in reasons.most_common():
        names = [name for name, why in report.left_out.items() if why == reason]
        lines += listed(f"left out, {reason}", f"left out, {reason}", names)
    return paragraph([*lines, *(f"  {note}" for note in (*report.missing, *report.notes))])
