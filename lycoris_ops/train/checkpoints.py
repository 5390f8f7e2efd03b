"""The folder of a training's checkpoints.

Each checkpoint is a usable adapter, such as `step-000100.safetensors`, and beside it the whole state of the
training, `step-000100.state.safetensors`. The state has the weights too, so each file is complete alone.
`best` and `last` are checkpoints too. A training continues from the newest state, whatever its name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from time import monotonic
from typing import Any

from .. import processes
from ..errors import LycorisError, TrainError, WriteError
from ..files.writing import system_errors
from ..messages import number_of, phrase
from ..writing.paths import files_of, has_folder
from .claims import claimed
from .history import History
from .options import STATE
from .sketches import Sketch
from .trainer import STATE_FORM, Trainer

GOOD = "last-good"
"""The checkpoint that a diverged training leaves: usable weights, but no state to continue from."""
NAMES = ("last", "best")
"""Checkpoints that any training with a folder may write."""


@dataclass(frozen=True)
class FoundState:
    """A state in a folder of checkpoints, as described by its header."""

    path: Path
    step: int
    """After how many steps it was written."""
    of: int
    """The number of steps planned."""
    settings: Mapping[str, Any]
    """The training's `TrainOptions.settings`."""
    data: Mapping[str, Sequence[Sketch]]
    """The training's `TrainOptions.data`."""
    why: str = "as it was asked for"
    """Why this state was chosen, in words, and the damaged states that were passed over."""

    @property
    def finished(self) -> bool:
        """Whether all steps of the training are done."""
        return self.step >= self.of

    def history(self) -> History:
        """The losses up to this state, read from the file."""
        return History.of(STATE_FORM.peek(self.path, "history")["history"])

    def __str__(self) -> str:
        return f"{self.path.name}, {self.why}"


def newest_state(folder: str | os.PathLike[str]) -> FoundState | None:
    """The newest intact state in a folder of checkpoints, whatever its name; None where there is no state.

    The newest has the most steps. If a training went back to an earlier state, the abandoned states count as
    older than its new ones. Damaged states are passed over.

    Raises TrainError where there are states, but none is intact.
    """
    states, damaged = _states(Path(folder))
    if not states and damaged:
        raise TrainError("E-training-states-not-whole", file=str(folder), got=", ".join(damaged))
    if not states:
        return None
    # Of two states after the same step either will do.
    _, newest = max(states, key=lambda each: (each[0], each[1].path.name == f"last{STATE}"))
    why = phrase("R-only-state") if len(states) == 1 else phrase("R-newest-states", count=len(states))
    if damaged:
        why += phrase("R-passed-over", damaged=damaged)
    return replace(newest, why=why)


def state_at(path: str | os.PathLike[str]) -> FoundState:
    """The state in one file. Raises TrainError where it is not intact."""
    intact, damaged = _states(Path(path).parent, escape(Path(path).name))
    if not intact:
        raise TrainError(
            "E-training-state-not-whole", file=str(path), got=", ".join(damaged) or phrase("R-no-such-file")
        )
    ((_, state_found),) = intact
    return state_found


def state_to_resume(source: str | os.PathLike[str]) -> tuple[Path, str]:
    """Find the state in `source`, a state file or a folder of checkpoints; returns its path and a
    description. Raises TrainError where there is none.
    """
    if Path(source).is_file():
        return Path(source), Path(source).name
    state_found = newest_state(source)
    if state_found is None:
        raise TrainError("E-training-state-absent", file=str(source), state=STATE)
    return state_found.path, str(state_found)


def _states(
    folder: Path, name: str = f"*{STATE}"
) -> tuple[list[tuple[tuple[int, int], FoundState]], list[str]]:
    """The intact states of a folder, each with its sort key, and the names of the damaged ones with the
    reasons. `name` is a pattern."""
    intact: list[tuple[tuple[int, int], FoundState]] = []
    damaged: list[str] = []
    for path in sorted(folder.glob(name)):
        try:
            state = STATE_FORM.peek(path, "step", "of", "returns", "settings", "data")
            state_found = FoundState(path, state["step"], state["of"], state["settings"], state["data"])
            intact.append(((state["returns"], state_found.step), state_found))
        except LycorisError as error:
            damaged.append(f"{path.name} ({error.problem})")
        except KeyError as error:
            damaged.append(phrase("R-nothing-called-2", name=path.name, error=error))
    return intact, damaged


@dataclass
class Checkpoints:
    """Writes checkpoints to a folder, and removes all numbered ones except the latest `keep`.

    For a sharded network every process has one of these, but `writes` is set only in the first process.
    """

    folder: Path
    dialect: str
    keep: int
    minutes: float | None
    writes: bool = True

    def __post_init__(self) -> None:
        self.unwritten: list[str] = []
        """Checkpoints that `write_last_if_possible` could not write, with the reasons."""
        self._since: float | None = None
        """When the latest checkpoint was written; before the first one, when the clock started."""
        self._replaced: set[str] = set()
        """The names of the checkpoints of an earlier training."""
        self._claim = ExitStack()

    def begin(self, *, resumed: bool, overwrite: bool) -> None:
        """Make the folder and claim it. Raises WriteError if that fails, if a training runs in it, or if it
        holds another training.

        With `overwrite`, `clear` removes the checkpoints of that training, so that none of them is resumed by
        mistake or taken for one of this training.
        """
        if not self.writes:
            return
        self._claim.enter_context(claimed(self.folder))
        with system_errors(self.folder):
            if resumed:
                return
            states = sorted(self.folder.glob(f"*{STATE}"))
            taken = [*states, *(path for name in NAMES if (path := self._adapter(name)).exists())]
            if taken and not overwrite:
                raise WriteError(
                    "E-folder-of-another-training",
                    file=str(taken[0]),
                    hint=phrase("R-resume-or-other-folder" if states else "R-other-folder-or-overwrite"),
                )
            if overwrite:
                self._replaced = {file.name.removesuffix(STATE) for file in states} | {GOOD}

    def end(self) -> None:
        """End the claim of the folder, and remove the folder if `begin` made it and nothing is in it."""
        self._claim.close()

    def returns_of(self, trainer: Trainer) -> int:
        """How often the training has gone back to an earlier state.

        If the folder holds later states than the trainer's, the trainer has just gone back once more. The
        count distinguishes abandoned checkpoints from new ones.
        """
        own = (trainer.returns, trainer.done)
        # The count of other processes is never written.
        later = [order for order, _ in _states(self.folder)[0] if order > own] if self.writes else []
        return max(later)[0] + 1 if later else trainer.returns

    def clear(self) -> None:
        """Remove the earlier training's checkpoints that `begin` found. Call it after the first step."""
        with system_errors(self.folder):
            for name in self._replaced:
                self._remove(name)
        self._replaced = set()

    def write(self, trainer: Trainer, name: str) -> Path:
        """Write a checkpoint, and return the path of its adapter.

        Raises WriteError, and leaves an earlier file of that name whole. If the adapter cannot be written,
        for example because its dtype cannot hold a value, the state is still written.
        """
        # The adapter first: if both can be written, it is never older than the state.
        path = self._adapter(name)
        try:
            trainer.save(path)
        finally:
            trainer.save_state(self.folder / f"{name}{STATE}")
        self._since = monotonic()
        return path

    def write_by_time(self, trainer: Trainer) -> None:
        """Write `last` if the latest checkpoint is `minutes` old. The first call starts the clock.

        The clock of the first process decides. If writing fails, for example on a full disk, the training
        goes on, and the next try is `minutes` later.
        """
        due = False
        if self._since is None:
            self._since = monotonic()
        elif self.minutes is not None:
            due = monotonic() - self._since >= 60 * self.minutes
        if processes.of_first(due) if trainer.copies.sharded else due:
            self.write_last_if_possible(trainer)

    def write_last_if_possible(self, trainer: Trainer) -> None:
        """Write `last`. If that fails, the training goes on, and the reason is in `unwritten`."""
        try:
            self.write(trainer, "last")
        except LycorisError as error:
            self.unwritten.append(f"{number_of(trainer.done, 'step')}: {error}")
            self._since = monotonic()

    def write_numbered(self, trainer: Trainer) -> None:
        """Write the checkpoint of this step, and remove the oldest beyond `keep`."""
        self.write(trainer, f"step-{trainer.done:06d}")
        if not self.writes:
            return
        # Checkpoints of later steps are from an earlier run. This run will replace them.
        upto = f"step-{trainer.done:06d}"
        names = sorted(file.name.removesuffix(STATE) for file in self.folder.glob(f"step-*{STATE}"))
        names = [name for name in names if name <= upto]
        for name in names[: max(0, len(names) - self.keep)]:
            with suppress(OSError):
                self._remove(name)

    def write_good(self, trainer: Trainer) -> Path:
        """Write the last good weights of a diverged training: usable, but not to continue from.

        Keeps the dtype of training, because a narrower one may not hold their values.
        """
        path = self._adapter(GOOD)
        if self.writes:
            trainer.net.save_weights(path, dialect=self.dialect)
        else:
            trainer.net.to_adapter(dialect=self.dialect)
        return path

    def _remove(self, name: str) -> None:
        (self.folder / f"{name}{STATE}").unlink(missing_ok=True)
        # An adapter of any dialect: a folder or a file.
        for adapter in (self.folder / name, self.folder / f"{name}.safetensors"):
            shutil.rmtree(adapter) if adapter.is_dir() else adapter.unlink(missing_ok=True)

    def _adapter(self, name: str) -> Path:
        path = self.folder / (name if has_folder(self.dialect) else f"{name}.safetensors")
        files_of(path, self.dialect)
        return path
