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
from .options import STATE
from .trainer import Trainer


class Checkpoints:
    """Writes checkpoints to a folder, and removes those of every so many steps but the latest `keep`."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def begin(self, *, fresh: bool) -> None:
        """Make the folder. Raises WriteError where it cannot be, or where another training is in it."""
        with system_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if fresh and (found := sorted(self.folder.glob(f"*{STATE}"))):
                raise WriteError(
                    "the folder holds the checkpoints of another training",
                    file=str(found[0]),
                    hint="Resume from it, choose another folder, or allow it to be replaced (overwrite)",
                )

    def write(self, trainer: Trainer, name: str) -> Path:
        """Write a checkpoint, and return the place of its adapter. Raises WriteError; an earlier checkpoint
        of that name is whole then."""
        # The adapter first: where there is a state, there is an adapter that is at least as new.
        path = self._adapter(trainer, name)
        trainer.save(path)
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
            state, adapter = self.folder / f"{name}{STATE}", self._adapter(trainer, name)
            with suppress(OSError):
                state.unlink()
                shutil.rmtree(adapter) if adapter.is_dir() else adapter.unlink()

    def write_good(self, trainer: Trainer) -> Path:
        """Write the weights of a training that diverged, for use and not for going on."""
        path = self._adapter(trainer, "last-good")
        trainer.net.save_weights(path, dialect=trainer.options.dialect, dtype=trainer.options.dtype)
        return path

    def _adapter(self, trainer: Trainer, name: str) -> Path:
        dialect = trainer.options.dialect
        path = self.folder / (name if dialect == "peft" else f"{name}.safetensors")
        place_of(path, dialect)
        return path
