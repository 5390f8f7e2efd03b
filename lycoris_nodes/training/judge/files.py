"""The adapters to judge: those of a stack, and a training's checkpoints and final file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ....lycoris_ops import SAFETENSORS, STATE, Adapter, Entry, Stack, TrainError, load_adapter, sketches
from ...host.files import shown_path
from ..node.runs import CHECKPOINTS, folder_of

STEPS = "ss_steps"
"""The metadata key of the number of steps that a file was trained for, as kohya-ss names it."""


def judged_files(stack: Stack | None, training: str) -> list[Entry]:
    """The adapters of a stack, then those of a training (see `folder_of`) by steps, all at strength 1.

    Each gets its own label. Identical files of a training are taken once.

    Raises LycorisError where there are no adapters, and for a strength with a schedule or a mask.
    """
    judged = stack or Stack()
    judged.check_constant("be judged")
    entries = [replace(entry, strength=1.0, strength_clip=None) for entry in judged]
    if training.strip():
        entries += _of_training(training.strip())
    if not entries:
        raise TrainError("E-judge-without-files")
    seen: Counter[str] = Counter()
    for number, entry in enumerate(entries):
        seen[entry.name] += 1
        if seen[entry.name] > 1:
            entries[number] = replace(entry, label=f"{entry.name} ({seen[entry.name]})")
    return entries


def stamp_of(training: str) -> str:
    """The paths and times of a training's files, to notice changes. Raises what `folder_of` raises."""
    stamps: list[str] = []
    for path in _places(folder_of(training.strip())):
        # A running training may remove old checkpoints.
        with suppress(FileNotFoundError):
            stamps.append(f"{path} {path.stat().st_mtime_ns}")
    return "\n".join(stamps)


def _places(folder: Path) -> list[Path]:
    """The adapters in a folder of checkpoints, and the one beside it."""
    paths: list[Path] = []
    with suppress(FileNotFoundError):
        paths += [path for path in sorted(folder.iterdir()) if _is_adapter(path)]
    name = folder.name.removesuffix(CHECKPOINTS)
    return paths + [path for end in (SAFETENSORS[0], "") if (path := folder.with_name(name + end)).exists()]


def _of_training(name: str) -> Iterator[Entry]:
    folder = folder_of(name)
    paths = _places(folder)
    if not paths:
        raise TrainError("E-training-without-checkpoints", file=shown_path(folder))
    adapters: dict[str, tuple[int, Adapter]] = {}
    for path in paths:
        adapter = load_adapter(path)
        layers = sketches(layer.tensors().values() for _, layer in sorted(adapter.layers.items()))
        steps = adapter.metadata.get(STEPS, "")
        # Other software's files may lack the number of steps.
        adapters.setdefault(repr(layers), (int(steps) if steps.isdecimal() else 0, adapter))
    for steps, adapter in sorted(adapters.values(), key=lambda each: each[0]):
        label = f"step {steps}" if steps else Path(adapter.path or adapter.name).stem
        yield Entry(adapter, label=label)


def _is_adapter(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_dir():
        # PEFT's checkpoints are folders. A running training may remove old ones.
        with suppress(FileNotFoundError):
            return any(_is_adapter(inner) for inner in path.iterdir() if not inner.is_dir())
        return False
    return path.suffix == SAFETENSORS[0] and not path.name.endswith(STATE)
