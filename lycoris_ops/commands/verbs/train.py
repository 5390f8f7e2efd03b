"""Train an adapter as a TOML file says."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ... import (
    SEARCHES,
    LycorisError,
    Plan,
    TrainOptions,
    TrainResult,
    check_output,
    claimed,
    create_lycoris,
    located,
    newest_state,
    train_network,
)
from .. import interrupted
from ..shared import add_json, show
from ..training import network_of, options_of, plan_of, plan_table, read_settings, task_of

PLAN = "plan.json"
"""The plan's file beside the checkpoints. A resumed run takes its layers from it."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "settings",
        help="a .toml file with the tables [arguments], [network], [plan] and [train], and with `entry`: the "
        "`module:function` or `file.py:function` that returns the model, the batches, the loss, and if you "
        "like batches for validation",
    )
    command.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="STATE",
        help="go on with an earlier run: from STATE, a .state.safetensors file or the folder of the "
        "checkpoints; without STATE, from the newest undamaged state of the run",
    )
    command.add_argument(
        "--search",
        choices=SEARCHES,
        help="what a race of small trainings chooses first: the learning rate (rate), or the kind of the "
        "layers too (all); replaces `search` in [train]",
    )
    command.add_argument(
        "--search-share",
        type=float,
        metavar="SHARE",
        help="what the race may cost at most, as a share of the steps of the training (0.4)",
    )
    command.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run")
    add_json(command)


def run(options: argparse.Namespace) -> int:
    with located(file=options.settings):
        settings = read_settings(Path(options.settings))
        overrides = {"search": options.search, "search_share": options.search_share}
        overrides = {name: value for name, value in overrides.items() if value is not None}
        training = dataclasses.replace(options_of(settings, overwrite=options.overwrite), **overrides)
        resume = _resumed(options.resume, training)
        with _processes():
            # A large model takes minutes to load, so all that can be checked before is.
            sizes = network_of(settings)
            plan_table(settings)
            load = task_of(settings, Path(options.settings))
            with _claimed(training):
                return _trained(options, settings, training, resume, sizes, load)


def _trained(
    options: argparse.Namespace,
    settings: Mapping[str, Any],
    training: TrainOptions,
    resume: str | None,
    sizes: dict[str, Any],
    load: Callable[[], tuple[Any, ...]],
) -> int:
    """Load the model, train, and show the result."""
    if _first():
        _check_place(training, resume)
    task = load()
    module, batches, loss, *held_out = task
    plan = _plan(settings, task, resume, training)
    network = create_lycoris(module, plan=plan, **sizes)
    if _first():
        print(network.report if plan is None else plan, file=sys.stderr)
    state = training.last_state
    earlier = _written_at(state)
    try:
        result = train_network(
            network,
            batches,
            loss,
            training,
            validation=held_out[0] if held_out else None,
            resume=resume,
        )
    except KeyboardInterrupt as error:
        # What is there may be from an earlier run.
        outcome = f"go on with --resume {state}" if _written_at(state) != earlier else "nothing was written"
        return interrupted(error, outcome)
    if _first():
        show(options, _plain(result), str(result))
    return 0


def _check_place(training: TrainOptions, resume: str | None) -> None:
    """Raise LycorisError where the output cannot be written, or where an earlier run of it could resume."""
    replaces = training.overwrite or resume is not None
    if training.output is not None:
        check_output(training.output, training.dialect, overwrite=replaces)
    if replaces or training.folder is None or not training.folder.is_dir():
        return
    if state := newest_state(training.folder):
        raise LycorisError(
            "E-training-file-lost" if state.finished else "E-training-not-finished",
            file=str(state.path),
            step=state.step,
            steps=state.of,
        )


def _written_at(file: Path | None) -> int | None:
    """When a file was written, in nanoseconds; None where there is none."""
    return file.stat().st_mtime_ns if file is not None and os.path.exists(file) else None


def _resumed(option: str | bool | None, training: TrainOptions) -> str | None:
    """The state, or the folder of an earlier run, to resume from; None for a new run."""
    if option is not True:
        return option or None
    if training.folder is None:
        raise LycorisError("E-resume-folder-absent", key="[train]")
    return str(training.folder)


def _claimed(training: TrainOptions) -> AbstractContextManager[None]:
    """A claim of the folder of checkpoints by the first process, before the plan is written there."""
    if training.folder is None or not _first():
        return nullcontext()
    if training.output is not None:
        # A missing folder above is an error, and no folder to make.
        check_output(training.output, training.dialect)
    return claimed(training.folder)


@contextmanager
def _processes() -> Generator[None]:
    """A context that joins the training processes, where torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or torch.distributed.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group()
    try:
        yield
    finally:
        # Threads left over would crash this process at its end, and torchrun would then end the others.
        torch.distributed.destroy_process_group()


def _first() -> bool:
    """Whether this is the only process, or the first of several."""
    return int(os.environ.get("RANK", "0")) == 0


def _plan(
    settings: Mapping[str, Any], task: tuple[Any, ...], resume: str | None, training: TrainOptions
) -> Plan | None:
    """The earlier run's plan when resuming, else the plan that the settings ask for, if any."""
    if resume is not None:
        home = Path(resume) if os.path.isdir(resume) else Path(resume).parent
        if os.path.isfile(home / PLAN):
            return Plan.of_json((home / PLAN).read_text(encoding="utf-8"))
    plan, folder = plan_of(settings, task), training.folder
    if plan is not None and folder is not None and resume is None and _first():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{PLAN}.part"
        unfinished.write_text(plan.json(), encoding="utf-8")
        unfinished.replace(folder / PLAN)
    return plan


def _plain(result: TrainResult) -> dict[str, Any]:
    """The result for JSON."""
    best, searched = result.history.best, result.searched
    best_loss = {"step": best[0], "loss": best[1]} if best else None
    raced = dataclasses.asdict(searched.race) if searched and searched.race else None
    plain = dataclasses.asdict(dataclasses.replace(result, searched=None))
    return {**plain, "best": best_loss, "searched": raced}
