"""The training loop: batches, steps, validations and checkpoints, from the start or from where a run
ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import processes
from ..errors import DivergedError, TrainError
from ..files.writing import check_files
from ..interrupts import uninterrupted
from ..messages import phrase
from ..ranks.gradients import Loss
from ..writing.paths import files_of, has_folder
from .agreed import check_agreed
from .checkpoints import Checkpoints, state_to_resume
from .claims import check_unclaimed
from .curves import draw_curves, draw_race
from .extras import has
from .feed import Batches, Feed, steps_of
from .history import History, StepReport
from .network import LycorisNetwork
from .options import TrainOptions
from .progress import searching, views
from .search import Searched, search_network
from .trainer import Trainer


@dataclass(frozen=True)
class TrainResult:
    """The result of a training."""

    steps: int
    """How many steps are done, including those before a resume."""
    epochs: int
    """The epoch of the last step, from 1."""
    stopped_early: bool
    """Whether training stopped because the validation loss no longer improved."""
    seconds: float
    """How long this run took, not counting the time before a resume."""
    history: History
    output: str | None
    """The adapter's file."""
    state: str | None
    """The state that a longer training can continue from."""
    picture: str | None
    """The picture of the loss curves."""
    idle: tuple[str, ...]
    """Trained tensors that never got a gradient: the loss does not use their modules."""
    unwritten: tuple[str, ...] = ()
    """The timed checkpoints that could not be written, with the reasons."""
    searched: Searched | None = None
    """The outcome of the search before the training, see `search_network`; its network was trained."""
    saved: int = 0
    """The step of the weights that `output` and the network have, see `TrainOptions.saved`."""
    resumed: str | None = None
    """The step and state of an earlier run that this one continued from, why that state was chosen, and how
    the data have changed since then."""

    def __str__(self) -> str:
        losses = self.history.losses
        lines = [
            self.history.verdict(self.saved)[1],
            phrase("R-run-took-s", steps=self.steps, epochs=self.epochs, seconds=self.seconds)
            + (phrase("R-stopped-early") if self.stopped_early else ""),
        ]
        if self.searched and self.searched.race:
            lines += [str(self.searched), *self.searched.race.missed()]
        lines += [phrase("R-went-on-from", resumed=self.resumed)] if self.resumed else []
        lines += [phrase("R-checkpoint-could-not-be-written", why=why) for why in self.unwritten]
        if losses:
            lines.append(phrase("R-loss-first-step-last", losses=losses[0][1], losses_2=losses[-1][1]))
        if self.history.skipped:
            lines.append(phrase("R-skipped-because-their-gradients-were", skipped=self.history.skipped))
        if self.idle:
            lines.append(phrase("R-without-any-gradient-such", count=len(self.idle), idle=self.idle[0]))
        for what, path in (("adapter", self.output), ("state", self.state), ("curves", self.picture)):
            lines += [f"{what}: {path}"] if path else []
        return "\n".join(lines)


@torch.inference_mode(mode=False)
def train_network(
    net: LycorisNetwork,
    batches: Batches,
    loss: Loss,
    options: TrainOptions,
    *,
    validation: Batches | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: Callable[[StepReport], None] | None = None,
    validated: Callable[[int, float], None] | None = None,
    rescued: Callable[[Path, int], None] | None = None,
) -> TrainResult:
    """Train a network, which stays applied to its model.

    With `options.search` a race first finds the learning rate, or the kind of the layers too, and may replace
    the network: the trained one is in the result, see `search_network`.

    `batches` is an iterable that each epoch goes through again, or a function from the epoch's number to an
    iterable. `loss(module, batch)` returns a scalar, using the model with the network applied. `validation`
    are held-out batches. `resume` is a state that an earlier run wrote, or a folder of checkpoints, see
    `newest_state`: the run continues from there, and ends with the same result as an uninterrupted one.
    `progress` is called after each step, and `validated` after each validation with the number of steps done
    and the loss; an exception that they raise ends the training. If the checkpoint `last` is written after an
    exception, `rescued` is called with its adapter and the number of steps done.

    In several processes (`torchrun`) all call this with the same arguments. A step takes `accumulation`
    batches for each process, and its gradient is the mean over all of them. The base, the network or both may
    be sharded by `fully_shard`; a state serves sharded and whole networks alike. With tensor parallelism (see
    `apply_to` and `options.mesh`) a step takes `accumulation` batches for each copy of the model.

    After any exception or interrupt, the checkpoint `last` holds the whole state after the last step; before
    the first step nothing is written. A sharded network cannot be written then, since no process has all of
    it; earlier checkpoints remain. After a DivergedError there is `last-good` instead, with the last good
    weights. A killed process leaves the checkpoints written so far.

    Raises TrainError for settings, batches or a loss that cannot be trained with, and where the processes
    were given different ones, DivergedError for values that are not finite or a loss that rises, MatchError
    for a state of another model or network, FileFormatError for a file that is no state, LayerError before
    the first step where the dialect cannot hold the layers, and WriteError where a file cannot be written or
    another training runs in the folder of the checkpoints.
    """
    began = time.monotonic()
    check_agreed(net, batches, validation, options)
    copies = processes.copies_of(net.module, net, options.mesh)
    steps = options.steps or steps_of(batches, options.epochs or 0, options.accumulation, copies.count)
    first = processes.rank() == 0
    # Check before the work, so that writing the file does not fail at the end.
    outs = [] if options.output is None else files_of(options.output, options.dialect)
    out = outs[0] if outs else None
    curves = out.with_name(f"{out.stem}-curves.png") if out and options.picture and has("PIL") else None
    if first and outs:
        files = outs if curves is None else [*outs, curves]
        replaces = resume is not None or options.overwrite
        check_files(files, overwrite=replaces, make_folder=has_folder(options.dialect))
    if first and options.folder is not None:
        check_unclaimed(options.folder)
    takes_part = first or copies.sharded
    if options.folder is not None and takes_part:
        net.check_dialect(options.dialect)
    searched = search_network(
        net,
        batches,
        loss,
        options,
        steps=steps,
        validation=validation,
        resumed=resume is not None,
        told=searching() if options.bar and first else None,
    )
    if curves and first and searched.race and not searched.file:
        draw_race(searched.race, curves.with_name(f"{curves.stem.removesuffix('-curves')}-race.png"))
    net, options = searched.network, searched.options
    trainer = Trainer(net, loss, options, steps=steps, validation=validation)
    source: str | None = None
    if resume is not None:
        state, words = state_to_resume(resume)
        trainer.load_state(state)
        source = phrase("R-step-earlier-run", done=trainer.done, words=words)
        if trainer.changed:
            listed = "; ".join(f"{name}: {what}" for name, what in trainer.changed.items())
            source += phrase("R-since-then-data-have-changed", listed=listed)
        if trainer.done > steps:
            raise TrainError("E-resume-beyond-steps", key="steps", done=trainer.done, got=str(steps))
    with ExitStack() as closing:
        stepped = [progress] if progress else []
        judged = [validated] if validated else []
        for view in views(options.bar, options.log, trainer.done, steps):
            closing.callback(view.close)
            stepped.append(view.stepped)
            judged.append(view.validated)
        kept = None
        if options.folder is not None and takes_part:
            minutes = options.checkpoint_minutes
            kept = Checkpoints(options.folder, options.dialect, options.keep, minutes, writes=first)
            closing.callback(kept.end)
            kept.begin(resumed=resume is not None, overwrite=options.overwrite)
            if resume is not None:
                trainer.returns = kept.returns_of(trainer)
        feed = Feed(batches, options.seed, trainer.copies, trainer.position)
        try:
            early = _run(trainer, feed, kept, stepped, judged)
        except DivergedError as error:
            if kept:
                error.file = str(kept.write_good(trainer))
            raise
        except BaseException:
            # Before the first step there is nothing to keep, and a state would be in the next run's way.
            if kept and trainer.done and trainer.intact and not copies.sharded:
                with uninterrupted():
                    path = kept.write(trainer, "last")
                if rescued:
                    rescued(path, trainer.done)
            raise
        if kept:
            with uninterrupted():
                # If this fails, the adapter's file still has the trained weights.
                kept.write_last_if_possible(trainer) if out else kept.write(trainer, "last")
        trainer.return_to_best()
        if out and takes_part:
            trainer.save(options.output or out)
            if curves and first:
                draw_curves(trainer.history, curves)
        # When any process goes on, the first one has written its files.
        processes.of_first(None)
    return TrainResult(
        steps=trainer.done,
        epochs=trainer.position[0] + 1,
        stopped_early=early,
        seconds=time.monotonic() - began,
        history=trainer.history,
        output=str(out) if out else None,
        state=str(options.last_state) if options.folder else None,
        picture=str(curves) if curves and first else None,
        idle=tuple(name for name in trainer.names if name in trainer.idle),
        unwritten=tuple(kept.unwritten) if kept else (),
        searched=searched,
        saved=trainer.saved,
        resumed=source,
    )


def _run(
    trainer: Trainer,
    feed: Feed,
    kept: Checkpoints | None,
    stepped: Sequence[Callable[[StepReport], None]],
    validated: Sequence[Callable[[int, float], None]],
) -> bool:
    """Train to the end, and return whether training stopped early."""
    options, history, total = trainer.options, trainer.history, trainer.total
    while True:
        # Validations and checkpoints of a step are made just before the next one, so that a resumed run makes
        # those that are missing.
        done = trainer.done
        # A run that resumes with new held-out data has no loss to compare with yet.
        due = _due(options.validate_every, done, total) or not history.validation
        if trainer.validation is not None and due:
            if not history.validation or history.validation[-1][0] != done:
                loss_found = trainer.validate()
                for tell in validated:
                    tell(done, loss_found)
            if kept and done and history.best and history.best[0] == done:
                kept.write(trainer, "best")
            if options.patience is not None and history.waited >= options.patience:
                return True
        if kept and done and options.checkpoint_every and done % options.checkpoint_every == 0:
            kept.write_numbered(trainer)
        if done >= total:
            return False
        if kept and done:
            kept.write_by_time(trainer)
        report = trainer.step_of(feed)
        if kept:
            kept.clear()
        for tell in stepped:
            tell(report)


def _due(every: int | None, done: int, total: int) -> bool:
    """Whether a validation is due: before the first step, at intervals, and at the end."""
    return done in (0, total) or (every is not None and done % every == 0)
