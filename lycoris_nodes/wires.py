"""The wire types of the pack, and how a report leaves a node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..lycoris_ops import WRITABLE, LycorisError
from .host import io

CATEGORY = "lycoris"
STACK = io.Custom("LYCORIS_STACK")

STACK_TOOLTIP = "LoRA / LyCORIS files with their strengths and block rules."


def stack_input(name: str = "stack", *, optional: bool = False, tooltip: str = STACK_TOOLTIP) -> Any:
    return STACK.Input(name, optional=optional, tooltip=tooltip)


def stack_output(tooltip: str) -> Any:
    return STACK.Output("stack", display_name="stack", tooltip=tooltip)


AS_IT_IS = "as in the file"
DTYPES = {AS_IT_IS: None, **WRITABLE}
"""What a file can be written in."""


def dtype_input(tooltip: str) -> Any:
    return io.Combo.Input("dtype", options=list(DTYPES), default=AS_IT_IS, tooltip=tooltip)


def report_output() -> Any:
    """The report; the browser extension shows it on every node that has an output of this name."""
    return io.String.Output(
        "report",
        display_name="report",
        tooltip="What was applied and what was not, and why, adapter by adapter.",
    )


def valid(check: Callable[[], object]) -> bool | str:
    """What the host's `validate_inputs` wants of a check: True, or the error in words."""
    try:
        check()
    except LycorisError as error:
        return str(error)
    return True


def with_report(*results: Any, report: str) -> io.NodeOutput:
    return io.NodeOutput(*results, report, ui={"text": (report,)})
