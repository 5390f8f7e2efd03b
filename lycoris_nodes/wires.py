"""Inputs and outputs that several nodes share: the stack, the dtype of a file, the report."""

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
"""What users choose from as the dtype of a written file; None keeps the dtype of each tensor."""


def dtype_input(tooltip: str) -> Any:
    return io.Combo.Input("dtype", options=list(DTYPES), default=AS_IT_IS, tooltip=tooltip)


def report_output() -> Any:
    """The report, which the browser extension shows on every node that has an output of this name."""
    return io.String.Output(
        "report",
        display_name="report",
        tooltip="What was applied or written and what was left out, with the reasons.",
    )


def valid(check: Callable[[], object]) -> bool | str:
    """The result of a check as the host's `validate_inputs` returns it: True, or the error in words."""
    try:
        check()
    except LycorisError as error:
        return str(error)
    return True


def with_report(*results: Any, report: str) -> io.NodeOutput:
    """A node's results, then its report, which the front end gets as `text` too."""
    return io.NodeOutput(*results, report, ui={"text": (report,)})
