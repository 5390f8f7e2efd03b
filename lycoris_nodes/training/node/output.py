"""What nodes of training do: train, tell the page how far it is, and return the outputs."""

from __future__ import annotations

from typing import Any

from ....lycoris_ops import Entry, Stack, curves_picture, load_adapter
from ...host.files import file_tensors, workflow_metadata
from ...host.page import asking_page, io, picture_tensor, tell_page
from ...schema.report import with_report
from .experts import named_for, trained_expert
from .live import running
from .run import DataOf, latents_with_captions, train
from .settings import Asked

TRAINING = "lycoris.training"
"""The event of a training's progress."""
RESCUED = "lycoris.rescued"
"""The event with what remains of an interrupted training. The node's box shows it."""


def trained(
    asked: Asked, hidden: Any, data_of: DataOf = latents_with_captions, passes: int = 1
) -> io.NodeOutput:
    """Train as asked: the outputs of `schema.outputs`. The arguments and errors are those of `train`."""
    key = str(getattr(hidden, "unique_id", ""))

    asked.expert, why = trained_expert(asked.expert, asked.model, hidden)
    asked.filename_prefix = named_for(asked.filename_prefix, asked.expert)

    def tell(known: dict[str, Any]) -> None:
        running[key] = {"page": asking_page(), **known}
        tell_page(TRAINING, hidden, shown=known)

    def rescued(text: str) -> None:
        tell_page(RESCUED, hidden, text=text)

    try:
        made = train(asked, workflow_metadata(hidden), tell, rescued, data_of, passes, why)
    finally:
        running.pop(key, None)
    history = made.result.history
    # PEFT's output is a folder with the file in it.
    path = str(made.result.output)
    return with_report(
        Stack([Entry(load_adapter(path))]),
        file_tensors(path),
        # ComfyUI's own nodes ignore `validation`.
        {"loss": [value for _, value in history.losses], "validation": list(history.validation)},
        picture_tensor(curves_picture(history, made.result.steps, made.name, made.race)),
        made.result.steps,
        path,
        report=made.report,
        shown={"training": (made.shown,)},
    )
