"""The folder of a training's checkpoints.

Each checkpoint is an adapter for use, as `step-000100.safetensors`, and beside it the whole state of the
training, as `step-000100.state.safetensors`. The state has the weights too, so each file is whole in itself.
`best` and `last` are checkpoints of these names.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from ..adapters.place import place_of
from ..errors import WriteError
from ..files.writing import system_errors
from ..names.written import Written
from .options import STATE
from .trainer import Trainer

GOOD = "last-good"
"""What a training that diverged leaves: weights for use, and nothing to go on from."""
NAMES = ("last", "best")
"""The checkpoints that every training with a folder may write."""


class Checkpoints:
    """Writes checkpoints to a folder, and removes those of every so many steps but the latest `keep`."""

    def __init__(self, folder: Path, dialect: Written, keep: int) -> None:
        self.folder = folder
        self.dialect: Written = dialect
        self.keep = keep
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
        return path

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
        path = self.folder / (name if self.dialect == "peft" else f"{name}.safetensors")
        place_of(path, self.dialect)
        return path
