"""Find the files of trainings by the name that the user gave."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....lycoris_ops import (
    FoundState,
    LycorisNetwork,
    TrainError,
    check_room,
    newest_state,
    number_of,
)
from ...files.loras import adapter_path, ending_of
from ...host.files import shown_path

STATES = 4
"""How many tensors a checkpoint has for each trained one: the adapter's, and in the state the weight and
AdamW's two averages."""
AT_ONCE = 3
"""Checkpoints besides the numbered ones: the last, the best, and the one being written."""
ANEW = "To begin a new one, give another `filename_prefix`"
"""The hint for users who want a new training instead."""
ABSENT = "nothing"
"""Shown for a setting that only one of two trainings has."""


@dataclass(frozen=True)
class Run:
    """A named training: where its adapter will be written, and the state to continue from, if any."""

    output: Path
    state: FoundState | None = None

    @property
    def in_words(self) -> str:
        """How far the training got."""
        if self.state is None:
            return ""
        return f"{self.output.stem} stopped at step {self.state.step} of {self.state.of}"


def run_of(prefix: str, dialect: str, settings: Mapping[str, Any], *, resume: bool) -> Run:
    """Choose the training to run: the latest of this name if it was interrupted, else a new one.

    Only the files on disk decide. With `resume` the latest one is continued whatever its settings were;
    without, only if its settings were the same.

    Raises TrainError for `resume` if there is none. Without `resume`, raises it if the latest was interrupted
    and had other settings: then the user must choose.
    """
    new = adapter_path(prefix, dialect)
    latest = _latest(new, dialect)
    if resume:
        if latest is None:
            raise TrainError(
                "there is no training of this name to go on with",
                key=prefix,
                expected=f"a folder {_name(new, dialect)}_00001_-checkpoints with a state in "
                f"{shown_path(new.parent)}",
                hint="Turn off `resume` to begin one",
            )
        return latest
    if latest is None or latest.state is None:
        return Run(new)
    # If all steps are done and only the file is missing, resuming just writes it.
    others = differences(latest.state.settings, settings)
    if latest.state.finished and (others or latest.output.exists()):
        return Run(new)
    if not others:
        return latest
    if not latest.state.step:
        # No step was done, so there is nothing to ask about.
        return Run(new)
    raise TrainError(
        f"a training of this name was broken off after {number_of(latest.state.step, 'step')}, "
        f"with other settings: {'; '.join(others)}",
        file=shown_path(latest.output),
        hint=f"To go on with it, restore its settings, or turn on `resume` to use the present ones. {ANEW}",
    )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """The settings that differ, in words."""
    names = dict.fromkeys((*ours, *theirs))
    pairs = [(name, theirs.get(name, ABSENT), ours.get(name, ABSENT)) for name in names]
    return [f"{name} was {before!r} and is {now!r}" for name, before, now in pairs if before != now]


def _latest(new: Path, dialect: str) -> Run | None:
    """The latest training of this name that has states. The name may also be the numbered one of a single
    run. Raises TrainError if none of its states is whole.
    """
    numbered = re.compile(rf"({re.escape(_name(new, dialect))}(?:_(\d+)_)?)-checkpoints")
    runs: list[tuple[int, Path, Path]] = []
    for folder in new.parent.iterdir():
        found = numbered.fullmatch(folder.name)
        if found:
            runs.append((int(found[2] or 0), folder, new.with_name(f"{found[1]}{ending_of(dialect)}")))
    for _, folder, output in sorted(runs, reverse=True):
        if (state := newest_state(folder)) is not None:
            return Run(output, state)
    return None


def _name(path: Path, dialect: str) -> str:
    """The name of a training, from the numbered path of its adapter."""
    return re.sub(r"_\d+_$", "", path.name.removesuffix(ending_of(dialect)))


def check_room_for(output: Path, net: LycorisNetwork, numbered: int) -> None:
    """Raise WriteError unless the disk has room for all files of a training with so many numbered
    checkpoints."""
    size = sum(4 * parameter.numel() for parameter in net.parameters())
    check_room(output, size * (1 + STATES * (AT_ONCE + numbered)), "what the training would write")
