"""Inputs and outputs that several nodes share: the stack, the dtype of a file, the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..lycoris_ops import PRESETS, WRITABLE, LycorisError
from .host import io

CATEGORY = "lycoris"
STACK = io.Custom("LYCORIS_STACK")
PLAN = io.Custom("LYCORIS_PLAN")

STACK_TOOLTIP = "LoRA / LyCORIS files with their strengths and block rules."


def stack_input(name: str = "stack", *, optional: bool = False, tooltip: str = STACK_TOOLTIP) -> Any:
    return STACK.Input(name, optional=optional, tooltip=tooltip)


def stack_output(tooltip: str) -> Any:
    return STACK.Output("stack", display_name="stack", tooltip=tooltip)


AS_IT_IS = "as in the file"
AS_FAMILY = "auto"
"""The choice of what is usual for the family of the model."""
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


def with_report(*results: Any, report: str, shown: Mapping[str, Any] | None = None) -> io.NodeOutput:
    """A node's results, then its report, which the front end gets as `text` too, with what is `shown`."""
    return io.NodeOutput(*results, report, ui={"text": (report,), **(shown or {})})


def training_inputs(what: str) -> list[Any]:
    """The model, latents and captions of a node that trains or plans."""
    return [
        io.Model.Input("model", tooltip=f"The model to {what}. It stays as it is."),
        io.Latent.Input(
            "latents",
            tooltip="The encoded pictures or videos: a list from the data set nodes, or batches from VAE "
            "Encode. Several sizes are fine.",
        ),
        io.Conditioning.Input(
            "positive",
            tooltip="The encoded captions: a list with one for each latent in the same order, or one for "
            "all.",
        ),
    ]


def choice_inputs() -> list[Any]:
    """Which modules of a model are trained."""
    return [
        io.Combo.Input(
            "preset",
            options=[AS_FAMILY, *PRESETS],
            default=AS_FAMILY,
            optional=True,
            advanced=True,
            tooltip="Which layers are trained. auto: as is usual for the model. full: linear layers and "
            "convolutions. full-lin: linear layers. attn-mlp: those of transformer blocks. attn-only: those "
            "of attentions.",
        ),
        io.String.Input(
            "include",
            default="",
            optional=True,
            advanced=True,
            tooltip="More layers, by name: patterns with spaces between them, such as `*.norm*` or "
            "`/blocks\\.[0-9]\\./`.",
        ),
        io.String.Input(
            "exclude",
            default="",
            optional=True,
            advanced=True,
            tooltip="Layers to leave out, by patterns with spaces between them.",
        ),
    ]


def mask_input() -> Any:
    return io.Mask.Input(
        "masks",
        optional=True,
        tooltip="Where each picture is learned: white is learned, black is ignored. One for each latent, in "
        "the size of its picture, or one for all.",
    )


def seed_input(tooltip: str) -> Any:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        # Else the front end draws another one after each run, and no training could be resumed.
        control_after_generate=False,
        tooltip=tooltip,
    )
