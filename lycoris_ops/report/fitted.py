"""How an adapter was resized, converted or extracted, in words."""

from __future__ import annotations

from collections import Counter

from ..messages import phrase
from ..reading.adapter import Adapter
from ..reading.fitted import UNCHANGED, FitReport
from .applied import State
from .words import counted, listed, paragraph, percent, ranks, sizes_in_words

WORST = 5
"""How many of the layers with the largest errors are named."""
SMALL = 1e-4
"""Errors below this do not count: rounding to 16 bits is larger."""


def fit_verdict(*adapters: Adapter) -> tuple[State, str]:
    """Whether fitted adapters do all that their sources did, as a state and as a sentence."""
    reports = [_report(adapter) for adapter in adapters]
    before = [report.source_size for report in reports if report.source_size is not None]
    old = sum(before) if len(before) == len(reports) else None
    sizes = sizes_in_words(old, sum(adapter.size for adapter in adapters))
    files = phrase("R-fitted-files", files=len(adapters)) if len(adapters) > 1 else ""
    worse = [(adapter, words) for adapter in adapters if (words := _worse(adapter))]
    if all(report.stays for report in reports) and not worse:
        stay = "R-fitted-files-stay" if files else "R-fitted-stays"
        return "nothing", phrase(stay, files=files, sizes=sizes, why=reports[0].stays)
    if not worse:
        same = old is not None and sizes == sizes_in_words(None, old)
        whole = "R-fitted-same-size" if same else "R-fitted-whole"
        return "all", phrase(whole, files=files, sizes=sizes)
    state: State = "all" if all(words == [phrase("R-fitted-is-larger")] for _, words in worse) else "partly"
    if files:
        named = "; ".join(f"{adapter.name} {', '.join(words)}" for adapter, words in worse)
        return state, phrase("R-fitted-each", files=files, sizes=sizes, each=named)
    if state == "all":
        return state, phrase("R-fitted-larger", sizes=sizes)
    *first, last = worse[0][1]
    if not first:
        return state, phrase("R-fitted-loss", sizes=sizes, loss=last)
    return state, phrase("R-fitted-losses", sizes=sizes, first=first, last=last)


def _worse(adapter: Adapter) -> list[str]:
    """How the adapter is worse than its sources, in words; [] where it is not."""
    report = _report(adapter)
    faults: list[str] = []
    if report.source_size is not None and adapter.size > report.source_size:
        faults.append(phrase("R-fitted-is-larger"))
    if report.loss >= SMALL:
        faults.append(phrase("R-loses", loss=percent(report.loss)))
    left = sum(reason != UNCHANGED for reason in report.left_out.values())
    if left:
        faults.append(phrase("R-layers-left-out", layers=left))
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
        phrase(
            "R-parameters",
            name=adapter.name,
            count=len(report.rows),
            parameters=report.parameters,
            value=sizes_in_words(None, adapter.size),
        )
    ]
    kinds = Counter(row.algorithm for row in report.rows)
    for kind, count in kinds.most_common():
        rows = [row for row in report.rows if row.algorithm == kind]
        before = counted(row.before for row in rows)
        words = phrase(
            "R-rank-from", count=count, kind=kind, ranks=ranks(row.rank for row in rows), before=before
        )
        lines.append(f"  {words}")
    words = f"  {phrase('R-error-keeps-energy', error=report.error, value=1 - report.error**2)}"
    if report.noise >= SMALL:
        words += phrase("R-rounding-sources", noise=report.noise)
    lines.append(words)
    worst = sorted(report.rows, key=lambda row: -row.lost)[:WORST]
    lost = [f"{row.layer}: {row.error:.2%}" for row in worst if row.error >= SMALL]
    if lost:
        lines += [f"  {phrase('R-most-lost')}", *(f"    {line}" for line in lost)]
    reasons = Counter(report.left_out.values())
    if unchanged := reasons.pop(UNCHANGED, 0):
        # Give only the number of these: there are many, and nothing is missing.
        lines.append(f"  {phrase('R-weights-unchanged', weights=unchanged)}")
    for reason, _ in reasons.most_common():
        names = [name for name, why in report.left_out.items() if why == reason]
        lines += listed("R-listed-left-out", names, reason=reason)
    return paragraph([*lines, *(f"  {note}" for note in (*report.missing, *report.notes))])
