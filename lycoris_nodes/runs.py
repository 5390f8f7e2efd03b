"""Where the files of trainings are, each under the name that the user gives it."""

from __future__ import annotations

import re
from pathlib import Path

from ..lycoris_ops import SAFETENSORS, LycorisNetwork, TrainError, TrainOptions, check_room
from .host import output_path

STATES = 4
"""How many times the trained tensors are in a checkpoint: the adapter, and in the state the weights and the
two averages of AdamW."""
AT_ONCE = 3
"""Checkpoints beside those of every so many steps: the last, the best, and one that is being written."""


def adapter_path(prefix: str, dialect: str) -> Path:
    """The path for a new adapter: the prefix with the next free number. For peft it is a folder."""
    return output_path(prefix, _ending(dialect))


def resumed_path(prefix: str, dialect: str) -> Path:
    """The path of the adapter of the latest training of this name that has a state to go on from.

    The name may be that of one run, with its number. Raises TrainError where there is none.
    """
    home = output_path(prefix, _ending(dialect)).parent
    name = Path(prefix).name
    numbered = re.compile(rf"({re.escape(name)}(?:_(\d+)_)?)-checkpoints")
    runs: list[tuple[int, Path]] = []
    for folder in home.iterdir():
        found = numbered.fullmatch(folder.name)
        output = home / f"{found[1]}{_ending(dialect)}" if found else None
        state = output and TrainOptions(steps=1, output=output).last_state
        if found and output and state and state.is_file():
            runs.append((int(found[2] or 0), output))
    if not runs:
        raise TrainError(
            "there is no training of this name to go on with",
            key=prefix,
            expected=f"a folder {name}_00001_-checkpoints with a last.state.safetensors in {home}",
            hint="Turn off `resume` to begin one",
        )
    return max(runs)[1]


def check_room_for(output: Path, net: LycorisNetwork, numbered: int) -> None:
    """Raise WriteError unless there is room for what a training writes, with so many numbered checkpoints."""
    size = sum(4 * parameter.numel() for parameter in net.parameters())
    check_room(output, size * (1 + STATES * (AT_ONCE + numbered)), "what the training would write")


def _ending(dialect: str) -> str:
    """What the name of an adapter ends with. PEFT reads a folder with two files."""
    return "" if dialect == "peft" else SAFETENSORS[0]
