"""Where the files of trainings are, each under the name that the user gives it."""

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
"""How many times the trained tensors are in a checkpoint: the adapter, and in the state the weights and the
two averages of AdamW."""
AT_ONCE = 3
"""Checkpoints beside those of every so many steps: the last, the best, and one that is being written."""
ANEW = "To begin a new one, give another `filename_prefix`"
"""The hint for users who do not mean the training that was broken off."""
ABSENT = "nothing"
"""What stands for a setting that only one of two trainings has."""


@dataclass(frozen=True)
class Run:
    """A training under a name: where its adapter is to be, and the state that it goes on from, if any."""

    output: Path
    state: FoundState | None = None

    @property
    def in_words(self) -> str:
        """How far it came."""
        if self.state is None:
            return ""
        return f"{self.output.stem} stopped at step {self.state.step} of {self.state.of}"


def run_of(prefix: str, dialect: str, settings: Mapping[str, Any], *, resume: bool) -> Run:
    """The training that is meant: the latest of this name where that was broken off, or else a new one.

    What lies on the disk decides. With `resume` it is the latest one in any case, whatever its settings were.
    Without, it is so only where they were the same.

    Raises TrainError for `resume` where there is none, and without it where the latest one was broken off and
    had other settings: it is the user's to say which of both is meant.
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
    # Where all steps are done and the file is missing, nothing is left but to write it.
    others = differences(latest.state.settings, settings)
    if latest.state.finished and (others or latest.output.exists()):
        return Run(new)
    if not others:
        return latest
    if not latest.state.step:
        # Nothing was made, so there is nothing to ask about.
        return Run(new)
    raise TrainError(
        f"a training of this name was broken off after {number_of(latest.state.step, 'step')}, and its "
        f"settings were others: {'; '.join(others)}",
        file=shown_path(latest.output),
        hint=f"To go on with it, set them back, or turn on `resume` to go on with those of now. {ANEW}",
    )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """The settings that are not the same, in words."""
    names = dict.fromkeys((*ours, *theirs))
    pairs = [(name, theirs.get(name, ABSENT), ours.get(name, ABSENT)) for name in names]
    return [f"{name} was {before!r} and is {now!r}" for name, before, now in pairs if before != now]


def _latest(new: Path, dialect: str) -> Run | None:
    """The latest training of this name that has states. The name may also be that of a single run.

    Raises TrainError where none of its states is whole.
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
    """The name of a training, of the path of its adapter with a number."""
    return re.sub(r"_\d+_$", "", path.name.removesuffix(ending_of(dialect)))


def check_room_for(output: Path, net: LycorisNetwork, numbered: int) -> None:
    """Raise WriteError unless there is room for what a training writes, with so many numbered checkpoints."""
    size = sum(4 * parameter.numel() for parameter in net.parameters())
    check_room(output, size * (1 + STATES * (AT_ONCE + numbered)), "what the training would write")
