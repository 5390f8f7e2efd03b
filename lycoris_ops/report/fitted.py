"""How an adapter was resized, converted or extracted, in words."""

from __future__ import annotations

from collections import Counter

from ..adapters.adapter import Adapter
from ..adapters.fitted import UNCHANGED
from ..errors import number_of
from .words import counted, listed, paragraph, ranks

WORST = 5
"""How many of the layers with the largest errors are named."""
SMALL = 1e-4
"""An error below this is none that counts: it is less than the rounding to 16 bits."""


def describe_fit(adapter: Adapter) -> str:
    """The report of an adapter that was made by a fit: kinds and sizes, and what was lost."""
    report = adapter.report
    assert report is not None
    lines = [
        f"{adapter.name}: {number_of(len(report.rows), 'layer')}, {report.parameters:,} parameters, "
        f"{adapter.file.size / 1e6:.2f} MB"
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
    return paragraph([*lines, *(f"  {note}" for note in report.notes)])
