"""What nodes of training do: train, tell the page how far it is, and return the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ....lycoris_ops import Entry, Stack, curves_picture, load_adapter
from ...host.files import file_tensors, shown_path
from ...host.page import asking_page, io, picture_tensor, tell_page
from ...schema.report import with_report
from .live import running
from .pair import jobs_of
from .run import DataOf, FinishedTraining, latents_with_captions, train
from .settings import Asked

STATES = ("all", "nothing", "partly")
"""The marks of a report, the one that counts for a pair last."""
TRAINING = "lycoris.training"
"""The event of a training's progress."""
RESCUED = "lycoris.rescued"
"""The event with what remains of an interrupted training. The node's box shows it."""


def trained(
    asked: Asked, hidden: Any, data_of: DataOf = latents_with_captions, passes: int = 1
) -> io.NodeOutput:
    """Train as asked: the outputs of `schema.outputs`. The arguments and errors are those of `train`.

    With two experts the one for high noise is trained first, and all of its training ends before the other
    model is loaded.
    """
    key = str(getattr(hidden, "unique_id", ""))
    finished: list[FinishedTraining] = []
    experts: list[str] = []

    def tell(known: dict[str, Any]) -> None:
        known = {**known, "expert": experts[len(finished)]}
        running[key] = {"page": asking_page(), **known}
        tell_page(TRAINING, hidden, shown=known)

    def rescued(text: str) -> None:
        tell_page(RESCUED, hidden, text="\n".join([*map(_finished, experts, finished), text]))

    try:
        with jobs_of(asked, hidden) as jobs:
            experts += [job.asked.expert for job in jobs] if len(jobs) == 2 else [""]
            for job in jobs:
                finished.append(train(job, tell, rescued, data_of, passes))
                if len(finished) < len(jobs):
                    rescued("Run with the same settings trains the low-noise expert.")
    finally:
        running.pop(key, None)
    # PEFT's output is a folder with the file in it.
    paths = [str(training.result.output) for training in finished]
    adapters = [load_adapter(path) for path in paths]
    report = _joined(experts, finished)
    return with_report(
        Stack([Entry(adapters[0], low_noise=adapters[1] if adapters[1:] else None)]),
        file_tensors(paths[0]),
        _losses(finished),
        _curves(finished),
        sum(training.result.steps for training in finished),
        paths[0],
        report=report,
        state=max((training.state for training in finished), key=STATES.index),
        shown={"training": ({**finished[-1].shown, "expert": experts[-1]},)},
    )


def _named(expert: str) -> str:
    return f"{expert.replace(' ', '-').capitalize()} expert"


def _finished(expert: str, training: FinishedTraining) -> str:
    return f"{_named(expert)}: finished, in {shown_path(str(training.result.output))}."


def _joined(experts: Sequence[str], trainings: Sequence[FinishedTraining]) -> str:
    """The report of one training, or those of both experts: what the box shows, then what it folds."""
    if len(trainings) == 1:
        return trainings[0].report
    halves = [training.report.partition("\n\n")[::2] for training in trainings]
    names = [f"{_named(expert)}:" for expert in experts]
    return "\n\n".join(
        "\n".join(line for name, half in zip(names, halves, strict=True) for line in (name, half[at]))
        for at in (0, 1)
    )


def _losses(trainings: Sequence[FinishedTraining]) -> dict[str, Any]:
    """All losses, those of the second training after those of the first."""
    losses: list[float] = []
    held_out: list[tuple[int, float]] = []
    for history in (training.result.history for training in trainings):
        held_out += [(len(losses) + step, loss) for step, loss in history.validation]
        losses += [loss for _, loss in history.losses]
    # ComfyUI's own nodes ignore `validation`.
    return {"loss": losses, "validation": held_out}


def _curves(trainings: Sequence[FinishedTraining]) -> Tensor:
    """A picture of each training, in the height of the highest."""
    pictures = [
        picture_tensor(
            curves_picture(
                training.result.history, training.result.steps, training.name, training.race
            ).image()
        )
        for training in trainings
    ]
    height = max(picture.shape[1] for picture in pictures)
    filled = [pad(picture, (0, 0, 0, 0, 0, height - picture.shape[1]), value=1.0) for picture in pictures]
    return torch.cat(filled)
