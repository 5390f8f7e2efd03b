"""What a node returns: results and a report, or an error in its inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ...lycoris_ops import LycorisError, Phrase, Picture, Stack, describe_fit, fit_verdict
from ..host.files import shown_text
from ..host.page import io, tell_page
from .inputs import output

MEANWHILE = "lycoris.meanwhile"
"""The event whose text a node's box shows while the node runs."""
STAGE = "lycoris.stage"
"""The event that says what a node does now, and how much of that is done."""
NOTED = "lycoris.noted"
"""The event that a later node has added to a node's report. It carries the node's whole output."""
PAUSE = 0.25
"""Seconds between two such events."""


def stages(hidden: Any) -> Callable[[str, int, int], None]:
    """A function that tells the page what the running node does: the name of a stage, and its count.

    `web/training/words.js` puts the name into words.
    """
    told_at = 0.0

    def tell(stage: str, done: int, of: int) -> None:
        nonlocal told_at
        now = time.monotonic()
        if done in (0, of) or now - told_at >= PAUSE:
            told_at = now
            tell_page(STAGE, hidden, stage=stage, done=done, of=of)

    return tell


def report_output() -> Any:
    """The report output. The browser extension shows it on every node that has an output of this name."""
    return output(io.String, "report", "What was applied or written and what was left out, with the reasons.")


def valid(*checks: Callable[[], object]) -> bool | str:
    """Run checks for the host's `validate_inputs`: returns True, or the first error in words."""
    try:
        for each in checks:
            each()
    except LycorisError as error:
        return shown_text(error.told())
    return True


class Note:
    """What a later node adds to the report of a node that has run.

    It goes to the page, and into what the host has kept of the node: for its history, and for runs in which
    the node does not run again. `hidden` is the node's.
    """

    def __init__(self, hidden: Any) -> None:
        self._hidden = hidden
        self.output: dict[str, Any] = {"lycoris": ({},)}
        """What the node shows."""

    def say(self, text: str) -> None:
        """Set the note; "" takes it away."""
        self.output["lycoris"][0]["note"] = shown_text(text)
        tell_page(NOTED, self._hidden, output=self.output)


def with_report(
    *results: Any,
    report: str | Phrase,
    brief: str | Phrase | None = None,
    state: str = "all",
    shown: Mapping[str, Any] | None = None,
    picture: Picture | None = None,
    note: Note | None = None,
) -> io.NodeOutput:
    """A node's results, then its report.

    The front end gets `shown` and, as `text`, the report for the node's box. If there is a `brief` report,
    the box shows it with the whole one folded below. `state` is as in `lyc.verdict`, or `all`. The box draws
    the `picture` in the colours of the page, and a `note` above the report once it is said.
    """
    report = shown_text(str(report))
    text = report if brief is None else shown_text(str(brief))
    full = (report,) if text != report else ()
    about = {"state": state, "whole": full, **({"drawing": picture.svg()} if picture else {})}
    output = {"text": (text,), "lycoris": (about,), **(shown or {})}
    if note is not None:
        note.output = output
    return io.NodeOutput(*results, report, ui=output)


def with_fit(stack: Stack) -> io.NodeOutput:
    """A stack of fitted adapters, then a report on how much each one keeps."""
    adapters = [adapter for entry in stack for adapter in entry.adapters]
    return with_report(stack, report=describe_fit(*adapters), state=fit_verdict(*adapters)[0])
