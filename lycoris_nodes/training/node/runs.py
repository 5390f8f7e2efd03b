"""Find the files of trainings by the name that the user gave."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Container, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from ....lycoris_ops import (
    SAFETENSORS,
    STATE,
    FoundState,
    LycorisNetwork,
    Phrase,
    Sketch,
    TrainError,
    WriteError,
    check_room,
    claimed,
    data_changes,
    is_vacant,
    new_files,
    newest_state,
    phrase,
    running_in,
    state_at,
)
from ...files.loras import adapter_path, ending_of
from ...host.files import has_output_folder, output_name, shown_path
from ...schema.inputs import AS_FAMILY

STATES = 4
"""How many tensors a checkpoint holds for each trained one: the adapter's, the state's, and AdamW's two
averages."""
AT_ONCE = 3
"""Checkpoints besides the numbered ones: the last, the best, and the one being written."""
UNCHANGED = ("seed", "optimiser")
"""Settings that must stay for a training to resume. Model and layers are compared later."""
USUAL = ("learning_rate", "rank", "alpha", "shift", "text_learning_rate")
"""Settings that are 0 where the node says `auto`."""
ANEW = Phrase("R-how-to-begin-anew")
"""The hint for users who want a new training instead."""
ABSENT = "nothing"
"""Shown for a setting that only one of two trainings has."""
CHECKPOINTS = "-checkpoints"
"""The ending of a checkpoint folder's name."""
DIALECT = "comfy"
"""A dialect whose files are no folders. The folder of checkpoints has the same name in all."""
NUMBER = re.compile(r"_(\d+)_$")
"""The end of an adapter's name, without the ending of its file."""
ASIDE = "set-aside.json"
"""The file in a folder of checkpoints with the settings for which the user has begun anew."""


class RunKey(NamedTuple):
    """The name and settings by which a training is found. Its data count too."""

    prefix: str
    """A `filename_prefix`."""
    dialect: str
    settings: Mapping[str, Any]

    @property
    def new(self) -> Path:
        """Where a new training of this name writes its adapter."""
        return adapter_path(self.prefix, self.dialect)


@dataclass(frozen=True)
class Run:
    """A named training: where its adapter will be written, and the state to continue from, if any."""

    output: Path
    state: FoundState | None = None
    other: Offer | None = None
    """The stopped training that this one leaves as it is, because its settings or data are other ones."""
    beside: str = ""
    """The latest training of this name that runs now, and by which process; empty for none."""

    @property
    def folder(self) -> Path:
        """Where its checkpoints are."""
        return self.output.with_name(f"{self.output.name.removesuffix(SAFETENSORS[0])}{CHECKPOINTS}")

    @property
    def in_words(self) -> str:
        """How far the training got."""
        if self.state is None:
            return ""
        return phrase("R-stopped-at-step", stem=self.output.stem, step=self.state.step, of=self.state.of)

    @property
    def is_whole(self) -> bool:
        """Whether all its steps are done and its file is written."""
        return self.state is not None and self.state.finished and self.output.exists()


@dataclass(frozen=True)
class Offer:
    """A stopped training that Run would resume, or leave as it is if its settings differ."""

    run: Run
    state: FoundState
    wanted: Mapping[str, Any]
    """The present settings."""
    differences: list[str]
    """The settings that differ, in words."""


def runs_of(
    keys: Sequence[RunKey],
    data: Mapping[str, Sequence[Sketch]],
    *,
    resume: bool,
    checkpoint: str,
) -> list[Run]:
    """Choose the training to run, or the two of a pair: the latest of this name that was stopped with these
    settings and data, else a new one.

    Only the files on disk decide. With `resume` or a checkpoint the nearest training of this name is
    continued, from that checkpoint or the newest one, with the new values of all that may change. The nearest
    has this seed and optimiser before these data, and these data before most of these settings; of several
    it is the latest. The two of a pair have one number, and either may be finished already, or not begun.

    With `resume` or a checkpoint, raises TrainError if there is no such training or checkpoint, if it runs
    now, and for a changed setting that may not change.
    """
    if resume or checkpoint:
        return _resumed(keys, data, checkpoint)
    if begun := _begun(keys, data):
        return begun
    other = offer_of(keys)
    number = max(map(_next_number, keys))
    beside = _running_of(keys)
    return [Run(_numbered(key, number), other=other, beside=beside) for key in keys]


@contextmanager
def claimed_runs(choose: Callable[[], list[Run]]) -> Generator[list[Run]]:
    """The chosen trainings, with their folders claimed. If another process takes one first, or has written
    a file of that name meanwhile, it is chosen anew.
    """
    while True:
        runs = choose()
        with ExitStack() as claims:
            try:
                for run in runs:
                    claims.enter_context(claimed(run.folder))
            except WriteError:
                if any(running_in(run.folder) for run in runs):
                    continue
                raise
            if any(run.state is None and (run.output.exists() or [*_stamps(run.folder)]) for run in runs):
                continue
            yield runs
            return


def _running_of(keys: Sequence[RunKey]) -> str:
    """The latest training of this name that runs now, and by which process; empty for none."""
    for key in keys:
        for folder, output in _folders(key.new, key.dialect):
            if by := running_in(folder):
                return f"{output.stem} ({by})"
    return ""


def _resumed(keys: Sequence[RunKey], data: Mapping[str, Sequence[Sketch]], checkpoint: str) -> list[Run]:
    """The nearest training of this name, or the two of a pair. Raises TrainError as `runs_of` does."""
    nearest = _nearest(keys, data)
    if nearest is None:
        first, new = keys[0], keys[0].new
        raise TrainError(
            "E-training-absent",
            key=first.prefix,
            new=_name(new, first.dialect),
            parent=shown_path(new.parent),
        )
    if checkpoint:
        nearest = [replace(run, state=_chosen(run.folder, checkpoint)) for run in nearest]
    for run, key in zip(nearest, keys, strict=True):
        if by := running_in(run.folder):
            raise TrainError("E-training-runs-now", file=shown_path(run.output), anew=ANEW, got=by)
        if run.state:
            if fixed := _fixed(run.state, key.settings):
                raise TrainError(
                    "E-training-settings-changed",
                    file=shown_path(run.output),
                    fixed="; ".join(fixed),
                    anew=ANEW,
                )
            (run.folder / ASIDE).unlink(missing_ok=True)
    return nearest


def _candidates(keys: Sequence[RunKey]) -> Iterator[list[Run]]:
    """The trainings of this name that have states, or the pairs of them, the latest first. A training of one
    expert alone counts as half of a pair, if nothing else has its number."""
    if len(keys) == 1:
        yield from ([run] for run in _runs(keys[0].new, keys[0].dialect))
        return
    known = [_by_number(key) for key in keys]
    for number in sorted({*known[0], *known[1]}, reverse=True):
        yield [runs.get(number) or Run(_numbered(key, number)) for runs, key in zip(known, keys, strict=True)]


def _nearest(
    keys: Sequence[RunKey],
    data: Mapping[str, Sequence[Sketch]] | None,
    unknown: Container[str] = (),
) -> list[Run] | None:
    """The training of this name, or the pair, that is nearest to these settings and data, see `runs_of`. With
    none of them changed, one with steps left comes first."""

    def distance(runs: Sequence[Run]) -> tuple[Any, ...]:
        pairs = [(run.state, key.settings) for run, key in zip(runs, keys, strict=True) if run.state]
        changed = sum(len(differences(state.settings, settings, unknown)) for state, settings in pairs)
        return (
            any(_fixed(*pair) for pair in pairs),
            data is not None and any(data_changes(state.data, data) for state, _ in pairs),
            changed,
            not changed and all(run.is_whole for run in runs),
        )

    return min(_candidates(keys), key=distance, default=None)


def _begun(
    keys: Sequence[RunKey],
    data: Mapping[str, Sequence[Sketch]] | None,
    unknown: Container[str] = (),
) -> list[Run] | None:
    """The latest training, or pair, with these settings and data that has begun and is not finished; None for
    none. Where all steps are done and only a file is missing, that counts for the latest alone."""

    def fits(run: Run, settings: Mapping[str, Any]) -> bool:
        if run.state is None:
            return not run.output.exists()
        same = not differences(run.state.settings, settings, unknown)
        return same and (data is None or not data_changes(run.state.data, data))

    free = (
        runs
        for runs in _candidates(keys)
        if all(_is_free(run, key.settings) for run, key in zip(runs, keys, strict=True))
    )
    for earlier, runs in enumerate(free):
        has_steps = any(run.state is None or not run.state.finished for run in runs)
        is_open = has_steps or (not earlier and not all(run.is_whole for run in runs))
        if is_open and all(fits(run, key.settings) for run, key in zip(runs, keys, strict=True)):
            return runs
    return None


def _chosen(folder: Path, checkpoint: str) -> FoundState:
    """The state of a checkpoint, by its name, its file or its step. Raises TrainError where there is none."""
    name = checkpoint.strip().removesuffix(STATE).removesuffix(SAFETENSORS[0])
    name = f"step-{name.lstrip('0').zfill(6)}" if name.isdecimal() else name
    known = {file.name.removesuffix(STATE): file for file in sorted(folder.glob(f"*{STATE}"))}
    if name not in known:
        raise TrainError(
            "E-training-checkpoint-absent",
            file=shown_path(folder),
            key="resume_from",
            got=checkpoint,
            expected=", ".join(known) or phrase("R-checkpoint-but-there-none"),
        )
    return state_at(known[name])


def _fixed(state: FoundState, settings: Mapping[str, Any]) -> list[str]:
    """The changed settings with which an optimiser's state cannot be resumed, in words."""
    theirs = {name: state.settings[name] for name in UNCHANGED if name in state.settings}
    changed = differences(theirs, {name: settings.get(name) for name in theirs})
    if "ema" in state.settings and bool(state.settings["ema"]) != bool(settings.get("ema")):
        changed += differences({"ema": state.settings["ema"]}, {"ema": settings.get("ema")})
    return changed


def offer_of(keys: Sequence[RunKey], unknown: Container[str] = (), *, resume: bool = False) -> Offer | None:
    """The stopped training that Run would resume, whatever the data, else the latest one with other
    settings, which it would leave as it is. With `resume`, the one that it would resume in any case.

    None where there is none with steps left. A training that runs now does not count, whoever
    queued it. Of a pair it is the first that is not finished and has a state, or the one that is finished.
    `unknown` are settings that may have any value.
    """
    # The page asks while a name is typed, which must make no folders.
    if not all(has_output_folder(key.prefix) for key in keys):
        return None
    if resume:
        pairs = [*zip(_nearest(keys, None, unknown) or (), keys, strict=False)]
    elif begun := _begun(keys, None, unknown):
        offers = [_offer(*pair, unknown) for pair in zip(begun, keys, strict=True)]
        return min(filter(None, offers), key=lambda offer: offer.run.is_whole)
    else:
        pairs = [
            (run, key) for key in keys for run in _runs(key.new, key.dialect) if _is_free(run, key.settings)
        ]
    for run, key in pairs:
        offer = _offer(run, key, unknown)
        # Where no step was done, there is nothing to resume.
        if offer is None or not offer.state.step or offer.state.finished or running_in(run.folder):
            continue
        if resume or offer.differences:
            return offer
    return None


def _offer(run: Run, key: RunKey, unknown: Container[str]) -> Offer | None:
    if run.state is None:
        return None
    return Offer(run, run.state, key.settings, differences(run.state.settings, key.settings, unknown))


def begin_anew(keys: Sequence[RunKey], unknown: Container[str]) -> None:
    """Set aside what `offer_of` finds with these settings. All files stay."""
    while offer := offer_of(keys, unknown=unknown):
        known = {name: value for name, value in offer.wanted.items() if name not in unknown}
        path = offer.run.folder / ASIDE
        data = json.dumps([*_set_aside(path), known]).encode()
        with new_files([path], len(data)) as (file,):
            file.write(data)


def _is_free(run: Run, settings: Mapping[str, Any]) -> bool:
    """Whether a training neither runs now nor was set aside."""
    aside = (known.items() <= settings.items() for known in _set_aside(run.folder / ASIDE))
    return not any(aside) and not running_in(run.folder)


def _set_aside(path: Path) -> list[dict[str, Any]]:
    """The settings for which the user has begun anew."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], unknown: Container[str] = ()
) -> list[str]:
    """The settings that differ, in words."""
    names = [name for name in dict.fromkeys((*ours, *theirs)) if name not in unknown]
    pairs = [(name, theirs.get(name, ABSENT), ours.get(name, ABSENT)) for name in names]
    return [
        phrase("R-was", name=name, name_2=_shown(name, before), name_3=_shown(name, now))
        for name, before, now in pairs
        if before != now
    ]


def _shown(name: str, value: Any) -> str:
    """The value of a setting as the node shows it."""
    return AS_FAMILY if name in USUAL and not value else repr(value)


def folder_of(name: str) -> Path:
    """The folder of checkpoints of the latest training of a name: a `filename_prefix`, the name of one run
    such as `loras/style_00001_`, or the path of its file.

    Raises TrainError where there is none, and WriteError for a name outside the output folder.
    """
    prefix = output_name(Path(name).resolve()) if Path(name).is_absolute() else name
    prefix = prefix.removesuffix(SAFETENSORS[0]).removesuffix(CHECKPOINTS)
    new = adapter_path(prefix, DIALECT) if has_output_folder(prefix) else None
    folders = None if new is None else next(_folders(new, DIALECT), None)
    if folders is None:
        raise TrainError("E-training-name-absent", key=name, checkpoints=CHECKPOINTS)
    return folders[0]


def _runs(new: Path, dialect: str) -> Iterator[Run]:
    """The trainings of this name that have states, the latest first.

    Raises TrainError if no state of the latest is intact. Earlier trainings without an intact one are left
    out.
    """
    latest = True
    for folder, output in _folders(new, dialect):
        with nullcontext() if latest else suppress(TrainError):
            if (state := _state(folder, tuple(_stamps(folder)))) is not None:
                latest = False
                yield Run(output, state)


def _folders(new: Path, dialect: str) -> Iterator[tuple[Path, Path]]:
    """The folders of checkpoints of this name and the places of their adapters, the latest first. The name
    may also be the numbered one of a single run."""
    # The host numbers files by names as the disk compares them.
    folded = re.IGNORECASE if os.path.normcase("A") == "a" else 0
    numbered = re.compile(rf"({re.escape(_name(new, dialect))}(?:_(\d+)_)?){CHECKPOINTS}", folded)
    runs: list[tuple[int, Path, Path]] = []
    for folder in new.parent.iterdir():
        match = numbered.fullmatch(folder.name)
        if match:
            runs.append((int(match[2] or 0), folder, new.with_name(f"{match[1]}{ending_of(dialect)}")))
    for _, folder, output in sorted(runs, reverse=True):
        yield folder, output


def _stamps(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.glob(f"*{STATE}")):
        # A running training may remove old states.
        with suppress(FileNotFoundError):
            yield path.name, path.stat().st_mtime_ns


@lru_cache(maxsize=256)
def _state(folder: Path, stamps: tuple[Any, ...]) -> FoundState | None:
    """The state to resume from, cached because the page asks often. `stamps` change with the folder."""
    return newest_state(folder)


def _by_number(key: RunKey) -> dict[int, Run]:
    """The numbered trainings of this name that have states."""
    runs = ((_number(run.output, key.dialect), run) for run in _runs(key.new, key.dialect))
    return {number: run for number, run in runs if number}


def _next_number(key: RunKey) -> int:
    """The number of a new training. One whose training was killed before it wrote anything is used again."""
    number = _number(key.new, key.dialect)
    while number > 1:
        folder = Run(_numbered(key, number - 1)).folder
        same = folder.parent.glob(f"{escape(folder.name.removesuffix(CHECKPOINTS))}*")
        if not is_vacant(folder) or [*same] != [folder]:
            break
        number -= 1
    return number


def _numbered(key: RunKey, number: int) -> Path:
    new = key.new
    return new.with_name(f"{_name(new, key.dialect)}_{number:05}_{ending_of(key.dialect)}")


def _number(path: Path, dialect: str) -> int:
    """The number in the path of an adapter; 0 where it has none."""
    match = NUMBER.search(path.name.removesuffix(ending_of(dialect)))
    return int(match[1]) if match else 0


def _name(path: Path, dialect: str) -> str:
    """The name of a training, from the numbered path of its adapter."""
    return NUMBER.sub("", path.name.removesuffix(ending_of(dialect)))


def check_room_for(output: Path, net: LycorisNetwork, numbered: int) -> None:
    """Raise WriteError unless the disk has room for all files of a training with so many numbered
    checkpoints."""
    size = sum(4 * parameter.numel() for parameter in net.parameters())
    check_room(output, size * (1 + STATES * (AT_ONCE + numbered)), phrase("R-what-training-would-write"))
