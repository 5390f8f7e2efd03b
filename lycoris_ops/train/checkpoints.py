"""The folder of a training's checkpoints.

Each checkpoint is an adapter for use, as `step-000100.safetensors`, and beside it the whole state of the
training, as `step-000100.state.safetensors`. The state has the weights too, so each file is whole in itself.
`best` and `last` are checkpoints of these names. A training goes on from the newest state, whatever its name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from ..errors import LycorisError, TrainError, WriteError, number_of
from ..files.writing import system_errors
from ..writing.place import has_folder, place_of
from .options import STATE
from .trainer import STATE_FORM, Trainer

GOOD = "last-good"
"""What a training that diverged leaves: weights for use, and nothing to go on from."""
NAMES = ("last", "best")
"""The checkpoints that every training with a folder may write."""


@dataclass(frozen=True)
class FoundState:
    """A state in a folder of checkpoints, by what its header says."""

    path: Path
    step: int
    """After how many steps it was written."""
    of: int
    """How many there were to be."""
    settings: Mapping[str, Any]
    """`TrainOptions.settings` of its training."""
    why: str
    """Why it is this one, in words, with the names of damaged ones that are newer or may be."""

    @property
    def finished(self) -> bool:
        """Whether its training had come to its end."""
        return self.step >= self.of

    def __str__(self) -> str:
        return f"{self.path.name}, {self.why}"


def newest_state(folder: str | os.PathLike[str]) -> FoundState | None:
    """The newest whole state in a folder of checkpoints, whatever its name; None where there is no state.

    The newest has the most steps. Where a training was told to go back to an earlier state, those that
    it left behind count as older than those that it wrote since. A damaged one is passed over.

    Raises TrainError where none is whole.
    """
    states, damaged = _states(Path(folder))
    if not states and damaged:
        raise TrainError("no state of this training is whole", file=str(folder), got=", ".join(damaged))
    if not states:
        return None
    # Of two after the same step either would do.
    _, path, state = max(states, key=lambda found: (found[0], found[1].name == f"last{STATE}"))
    why = "the only state" if len(states) == 1 else f"the newest of {len(states)} states"
    if damaged:
        why += f"; passed over: {', '.join(damaged)}"
    # A state of an earlier version does not say of how many steps its training was.
    return FoundState(path, state["step"], state.get("of", state["step"]), state.get("settings", {}), why)


def state_to_resume(source: str | os.PathLike[str]) -> tuple[Path, str]:
    """The file of a state, given itself or a folder of checkpoints, and in words which one it is.

    Raises TrainError where there is none.
    """
    if Path(source).is_file():
        return Path(source), Path(source).name
    found = newest_state(source)
    if found is None:
        raise TrainError(
            "there is no state of a training to go on from",
            file=str(source),
            expected=f"a file *{STATE}, or a folder with one",
        )
    return found.path, str(found)


def _states(folder: Path) -> tuple[list[tuple[tuple[int, int], Path, dict[str, Any]]], list[str]]:
    """The whole states of a folder, each with what orders it, and the names of the others with the reason."""
    whole: list[tuple[tuple[int, int], Path, dict[str, Any]]] = []
    damaged: list[str] = []
    for path in sorted(folder.glob(f"*{STATE}")):
        try:
            state = STATE_FORM.peek(path, "step", "of", "returns", "settings")
            whole.append(((state.get("returns", 0), state["step"]), path, state))
        except LycorisError as error:
            damaged.append(f"{path.name} ({error.problem})")
        except KeyError:
            damaged.append(f"{path.name} (it says no step)")
    return whole, damaged


class Checkpoints:
    """Writes checkpoints to a folder, and removes those of every so many steps but the latest `keep`."""

    def __init__(self, folder: Path, dialect: str, keep: int, minutes: float | None) -> None:
        self.folder = folder
        self.dialect = dialect
        self.keep = keep
        self.minutes = minutes
        self.unwritten: list[str] = []
        """What `write_by_time` could not write, with the reasons."""
        self._since: float | None = None
        """When the latest checkpoint was written, or else when the first step was done."""
        self._replaced: set[str] = set()
        """The names of the checkpoints of an earlier training."""

    def begin(self, *, resumed: bool, overwrite: bool) -> None:
        """Make the folder. Raises WriteError where it cannot be, or where another training is in it.

        With `overwrite` the checkpoints of that training are removed by `clear`. Else one could be resumed by
        mistake, or taken for one of this training.
        """
        with system_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if resumed:
                return
            states = sorted(self.folder.glob(f"*{STATE}"))
            taken = [*states, *(path for name in NAMES if (path := self._adapter(name)).exists())]
            if taken and not overwrite:
                raise WriteError(
                    "the folder holds the checkpoints of another training",
                    file=str(taken[0]),
                    hint=f"{'Resume from it, c' if states else 'C'}hoose another folder, or allow it to be "
                    "replaced (overwrite)",
                )
            if overwrite:
                self._replaced = {file.name.removesuffix(STATE) for file in states} | {GOOD}

    def returns_of(self, trainer: Trainer) -> int:
        """How often the training has gone back, now that it goes on from the trainer's state.

        What it left behind must not be taken for what it writes from now on.
        """
        own = (trainer.returns, trainer.done)
        later = [order for order, *_ in _states(self.folder)[0] if order > own]
        return max(later)[0] + 1 if later else trainer.returns

    def clear(self) -> None:
        """Remove what `begin` found of an earlier training, now that this one has made a step."""
        with system_errors(self.folder):
            for name in self._replaced:
                self._remove(name)
        self._replaced = set()

    def write(self, trainer: Trainer, name: str) -> Path:
        """Write a checkpoint, and return the place of its adapter.

        Raises WriteError; an earlier file of that name is whole then. Where the adapter cannot be written,
        as for a value that its dtype does not hold, the state is written all the same.
        """
        # The adapter first: where both can be written, the adapter is at least as new as the state.
        path = self._adapter(name)
        try:
            trainer.save(path)
        finally:
            trainer.save_state(self.folder / f"{name}{STATE}")
        self._since = monotonic()
        return path

    def write_by_time(self, trainer: Trainer) -> None:
        """Write `last` where there was no checkpoint for so many minutes. The first call starts the clock.

        Only the first process has checkpoints and a clock. The others wait for it in the next step. Where the
        file cannot be written, as on a full disk, the training goes on: the next one comes as much later.
        """
        if self._since is None:
            self._since = monotonic()
        elif self.minutes is not None and monotonic() - self._since >= 60 * self.minutes:
            try:
                self.write(trainer, "last")
            except LycorisError as error:
                self.unwritten.append(f"{number_of(trainer.done, 'step')}: {error}")
                self._since = monotonic()

    def write_numbered(self, trainer: Trainer) -> None:
        """Write the checkpoint of this step, and remove those that are too many."""
        self.write(trainer, f"step-{trainer.done:06d}")
        # Those of later steps are of an earlier run, and are replaced once this one comes to them.
        upto = f"step-{trainer.done:06d}"
        names = sorted(file.name.removesuffix(STATE) for file in self.folder.glob(f"step-*{STATE}"))
        names = [name for name in names if name <= upto]
        for name in names[: max(0, len(names) - self.keep)]:
            with suppress(OSError):
                self._remove(name)

    def write_good(self, trainer: Trainer) -> Path:
        """Write the weights of a training that diverged, for use and not for going on.

        In the dtype that they are trained in: a narrower one may not hold what they have become.
        """
        path = self._adapter(GOOD)
        trainer.net.save_weights(path, dialect=self.dialect)
        return path

    def _remove(self, name: str) -> None:
        (self.folder / f"{name}{STATE}").unlink(missing_ok=True)
        # In whichever dialect it was.
        for adapter in (self.folder / name, self.folder / f"{name}.safetensors"):
            shutil.rmtree(adapter) if adapter.is_dir() else adapter.unlink(missing_ok=True)

    def _adapter(self, name: str) -> Path:
        path = self.folder / (name if has_folder(self.dialect) else f"{name}.safetensors")
        place_of(path, self.dialect)
        return path
