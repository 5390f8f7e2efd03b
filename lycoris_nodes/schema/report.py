"""What a node answers with: its results and a report, or what is wrong with its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...lycoris_ops import LycorisError, Stack, describe_fit, fit_verdict
from ..host.files import shown_text
from ..host.page import io
from .inputs import output

MEANWHILE = "lycoris.meanwhile"
"""The event with a text that the box of a node shows while it runs."""


def report_output() -> Any:
    """The report, which the browser extension shows on every node that has an output of this name."""
    return output(io.String, "report", "What was applied or written and what was left out, with the reasons.")


def valid(*checks: Callable[[], object]) -> bool | str:
    """The result of checks as the host's `validate_inputs` returns it: True, or the first error in words."""
    try:
        for each in checks:
            each()
    except LycorisError as error:
        return shown_text(str(error))
    return True


def with_report(
    *results: Any,
    report: str,
    brief: str | None = None,
    state: str = "all",
    shown: Mapping[str, Any] | None = None,
) -> io.NodeOutput:
    """A node's results, then its report.

    The front end gets what is `shown` and, as `text`, the report or the `brief` one, which its box shows.
    Where there is a brief one, the whole is folded below it. `state` is that of `lyc.verdict`, or `all`.
    """
    report = shown_text(report)
    text = report if brief is None else shown_text(brief)
    whole = (report,) if text != report else ()
    return io.NodeOutput(
        *results,
        report,
        ui={"text": (text,), "lycoris": ({"state": state, "whole": whole},), **(shown or {})},
    )


def with_fit(stack: Stack) -> io.NodeOutput:
    """A stack of adapters that were made by fits, then the report on what each has kept."""
    made = [entry.adapter for entry in stack]
    return with_report(stack, report=describe_fit(*made), state=fit_verdict(*made)[0])
