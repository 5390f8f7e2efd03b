"""A training, one step at a time. `train_network` drives it, and a loop of your own can too."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .. import processes
from ..devices import check_device
from ..errors import (
    DivergedError,
    FileFormatError,
    MatchError,
    TrainError,
)
from ..files.tree_file import TreeForm
from ..interrupts import uninterrupted
from ..maths.chance import Chance
from ..maths.divided import own_part, part_of, put
from ..maths.tensors import norm
from ..messages import either, phrase
from ..modules.statistics import evaluating, with_statistics
from ..ranks.gradients import Loss, check_in_memory, first_bad, scalar
from .feed import Batches, DataPosition, Feed, batches_of, moved, no_validation
from .history import History, StepReport
from .identity import check_same, identity_of
from .metadata import metadata_of_training
from .network import LycorisNetwork
from .optimisers import family_of, make_optimiser, optimisers
from .options import AUTOCAST, TrainOptions
from .rates import usual_rate
from .rise import MORE, Rise
from .schedules import schedule
from .sketches import HELD_OUT, data_changes
from .tensors import copies, copy_into, gathered, move_towards, norm_of, scale

STATE_FORM = TreeForm(
    "lycoris_training_state",
    1,
    "the state of a training",
    "It is a file that ends in .state.safetensors, in the folder of checkpoints",
)


NO_STEP = (
    "No step was made yet, so the lr is not at fault. Look at alpha, the batches, the loss, the model and "
    "its dtype"
)
"""The hint where the first step has no finite loss."""
ALIKE = 1e-2
"""The largest relative difference of losses, and of norms of gradients, between processes that compute one
copy of the model."""


def move_to_train(net: LycorisNetwork, device: str | torch.device | None) -> None:
    """Move a network and its model to a device; None leaves them where they are.

    Raises TrainError for a weight that is not in memory, and for a parameter that has no shape yet;
    LycorisError for a device that cannot be used.
    """
    lazy = next((name for name, p in net.module.named_parameters() if is_lazy(p)), None)
    if lazy is not None:
        raise TrainError("E-parameter-without-shape", key=lazy)
    check_in_memory(net.module, (member.site for member in net.members.values()), TrainError)
    if device is not None:
        check_device(device)
        net.module.to(device)
        net.to(device)


class Trainer:
    """The state of a training: the network with its optimiser, schedule, scaler, average and history.

    `loss(module, batch)` is a scalar. It is called with `net.module`, to which the network is applied. Step n
    draws its random numbers from `Chance(seed, "step", n, copies.index)`, whatever was drawn before. The
    model's modules keep their modes, but running statistics (BatchNorm) never change.

    `validation` are the batches of `validate`.

    Raises TrainError where the options do not suit the network.
    """

    # Here and below: a host may call from within inference mode, whose tensors cannot be trained.
    @torch.inference_mode(mode=False)
    def __init__(
        self,
        net: LycorisNetwork,
        loss: Loss,
        options: TrainOptions,
        *,
        steps: int | None = None,
        validation: Batches | None = None,
    ) -> None:
        if options.patience is not None and validation is None:
            raise TrainError("E-early-stop-without-batches", key="patience")
        total = steps or options.steps
        if total is None:
            raise TrainError("E-trainer-steps-unknown", key="steps")
        self.net = net
        self.loss = loss
        self.options = options
        self.total = total
        self.validation = validation
        move_to_train(net, options.device)
        self.copies = processes.copies_of(net.module, net, options.mesh)
        """The copies of the model that learn from different batches."""
        net.apply_to()
        self.identity = identity_of(net)
        self._rate = schedule(options.schedule, options.warmup, total, options.restarts)
        self._statistics = with_statistics(net.module)
        self.done = 0
        """How many steps are done."""
        self.position: DataPosition = (0, 0)
        """The position in the data after them."""
        self.returns = 0
        """How often the training went back to a state that was not its newest one."""
        self.history = History()
        processes.share(list(net.parameters()))
        self.names, self.parameters = _parameters_of(net)
        self.idle = set(self.names)
        """The parameters that no gradient has reached yet."""
        self._compared = False
        self.family = family_of(options.optimiser)
        lr = options.lr or usual_rate(net, self.family, options.lora_plus)
        if self.family.averages and (options.ema is not None or options.schedule != "constant"):
            raise TrainError(
                "E-optimiser-averages-and-schedule",
                optimiser=options.optimiser,
                got=phrase("R-schedule", schedule=options.schedule)
                + (phrase("R-ema", ema=options.ema) if options.ema else ""),
            )
        groups = net.parameter_groups(lr, lora_plus=options.lora_plus, weight_decay=options.weight_decay)
        if self.copies.sharded and not self.family.elementwise:
            raise TrainError(
                "E-optimiser-needs-whole-tensors",
                key="optimiser",
                got=self.family.name,
                expected=either([name for name, family in optimisers().items() if family.elementwise]),
            )
        self.optimiser = make_optimiser(self.family, groups, options.optimiser_options)
        self._averaging(False)
        self.optimiser.zero_grad(set_to_none=True)
        self.average = None if options.ema is None else copies(self.parameters)
        self.scaler = self._new_scaler()
        # The weights before the latest update: those of the latest loss that was finite.
        self._proven = copies(self.parameters)
        self._rise = Rise(options.rise, total, self.parameters)
        self.intact = True
        """Whether weights and optimiser are of the same step. After an error in an update they are not."""
        self._best: list[Tensor] | None = None
        """The weights at the best validation, as they are saved."""
        self._returned: int | None = None
        """The step of the weights to which `return_to_best` went back."""
        self.changed: dict[str, str] = {}
        """How the data differ from those of the state that was loaded, see `data_changes`."""

    @property
    def saved(self) -> int:
        """The step of the weights that `save` writes."""
        return self.done if self._returned is None else self._returned

    @property
    def device(self) -> torch.device:
        """The device of the trained tensors: an accelerator where some of them are on one."""
        devices = [parameter.device for parameter in self.parameters]
        return next((device for device in devices if device.type != "cpu"), devices[0])

    def step(
        self,
        *batches: Any,
        of: int | None = None,
        position: DataPosition | None = None,
        beside: Sequence[Any] = (),
    ) -> StepReport:
        """Make one step on the mean loss of some batches.

        `of` is the number of batches in all processes together, and `position` is that in the data after
        them. The batches `beside` go through the model without counting, because processes that share a
        sharded base must make equally many passes.

        Raises TrainError for a loss that is not a scalar or has no graph, and DivergedError where loss or
        gradients are not finite or the loss has risen for a while. After a DivergedError the network has its
        last good weights. Any other error or interrupt before the update changes nothing.
        """
        number = self.done + 1
        count = of or len(batches)
        if not count:
            raise TrainError("E-step-without-batch")
        self.net.train()
        try:
            with torch.inference_mode(mode=False), torch.enable_grad(), evaluating(self._statistics):
                total = torch.zeros((), device=self.device)
                with Chance(self.options.seed, "step", number, self.copies.index).drawn():
                    for index, batch in enumerate((*batches, *beside), start=1):
                        loss = self._loss_of(batch)
                        counts = index <= len(batches)
                        scaled: Any = self.scaler.scale(loss / count if counts else loss * 0)
                        scaled.backward()
                        if counts:
                            total += loss.detach().to(total.device, total.dtype) / count
                report = self._gathered(total, number, batches)
                if self._rise.due(number):
                    self._check_rise(report, count, batches, beside)
                with uninterrupted():
                    report = self._update(report, position)
        except BaseException:
            # The old scaler would go on from the middle of the step.
            self.scaler = self._new_scaler(self.scaler.state_dict())
            raise
        finally:
            self.optimiser.zero_grad(set_to_none=True)
        return report

    def step_of(self, feed: Feed) -> StepReport:
        """Make one step, as `step`, with the next batches of a feed. Each process takes its own."""
        group = feed.take(self.options.accumulation)
        return self.step(*group.own, of=group.of, position=feed.position, beside=group.beside)

    def validate(self) -> float:
        """The mean loss of the validation batches, in `evaluated`, always with the same random numbers."""
        if self.validation is None:
            raise TrainError("E-validation-batches-absent")
        losses: list[float] = []
        with self.evaluated(), torch.no_grad():
            feed = Chance(self.options.seed, "validation")
            with feed.drawn():
                batches = iter(batches_of(self.validation, 0))
            while True:
                with feed.drawn():
                    batch = next(batches, self)
                if batch is self:
                    break
                with Chance(self.options.seed, "validation", len(losses)).drawn():
                    losses.append(float(self._loss_of(batch)))
            if not losses:
                raise no_validation()
            losses = processes.of_first(losses)
            if all(map(math.isfinite, losses)):
                self.history.validated(self.done, losses)
                self._keep_best()
        if not all(map(math.isfinite, losses)):
            copy_into(self.parameters, self._proven)
            average = sum(losses) / len(losses)
            raise self._diverged("E-validation-loss-not-finite", loss=average, step=self.done)
        return self.history.validation[-1][1]

    def _keep_best(self) -> None:
        """Within `evaluated`: keep the weights if this is the best step so far."""
        if self.options.saved == "best" and self._is_best:
            # Not on the accelerator, which has little room. Processes keep their parts where they are.
            self._best = copies(self.parameters, None if self.copies.sharded else "cpu")

    @property
    def _is_best(self) -> bool:
        """Whether the present step is the best one."""
        return self.history.best is not None and self.history.best[0] == self.done

    def return_to_best(self) -> None:
        """Put the weights of the best validation into the network, to be saved but not trained further.

        Does nothing where `options.saved` is "last", or nothing was validated.
        """
        if self._best is not None and self.history.best:
            self.intact = False
            copy_into(self.parameters, self._best)
            self._returned = self.history.best[0]

    @contextmanager
    def evaluated(self) -> Generator[None]:
        """A context in which the network is as it is saved: averaged weights, all modules in `eval` mode.

        Afterwards all is bitwise as before.
        """
        before = copies(self.parameters)
        self.intact = False
        try:
            # The best weights are averages already.
            if self._returned is not None:
                pass
            elif self.family.averages:
                self._averaging(True)
            elif self.average is not None:
                copy_into(self.parameters, self.average)
            with evaluating(chain(self.net.modules(), self.net.module.modules())):
                yield
        finally:
            with uninterrupted():
                self._averaging(False)
                # An optimiser that swaps its average out again rounds the weights.
                copy_into(self.parameters, before)
                self.intact = True

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the adapter as in `evaluated`, in the dialect of the options, with the training's metadata.

        If the network is sharded, all processes call it, and the first one writes.
        """
        options = self.options
        with self.evaluated():
            if self.copies.sharded and processes.rank() != 0:
                self.net.to_adapter(dialect=options.dialect)
                return
            text = metadata_of_training(
                options,
                self.net,
                rate=self.optimiser.param_groups[0]["initial_lr"],
                step=self.saved,
                of=self.total,
                # The epoch of an earlier step is not known.
                epoch=self.position[0] + 1 if self.saved == self.done else None,
            )
            text |= options.metadata
            self.net.save_weights(path, dialect=options.dialect, dtype=options.dtype, metadata=text)

    def state_dict(self) -> dict[str, Any]:
        """The whole state for a later run to resume from: plain values, and the tensors in use, not copies.

        If the network is sharded, all processes call it, and the tensors are whole copies. So any number of
        processes can resume from it.
        """
        state = {
            "identity": self.identity,
            "seed": self.options.seed,
            "data": {name: list(rows) for name, rows in self.options.data.items()},
            "optimiser": {"name": self.options.optimiser, "state": self.optimiser.state_dict()},
            "weights": dict(zip(self.names, self.parameters, strict=True)),
            "average": None if self.average is None else dict(zip(self.names, self.average, strict=True)),
            # The best step's own state has these weights once.
            "best": {} if self._is_best or not self._best else dict(zip(self.names, self._best, strict=True)),
            "scaler": self.scaler.state_dict(),
            "step": self.done,
            "of": self.total,
            "returns": self.returns,
            "settings": dict(self.options.settings),
            "place": self.position,
            "history": self.history.state_dict(),
            "rise": self._rise.state_dict(),
            "idle": sorted(self.idle),
        }
        return gathered(state) if self.copies.sharded else state

    @torch.inference_mode(mode=False)
    def load_state_dict(self, state: dict[str, Any], file: str | None = None) -> None:
        """Go on from a state. Rates and weight decay are those of the options, all else is the state's.

        The data may have changed, see `changed`. Where held-out data did, their earlier losses say nothing
        any more: the history and the best step begin anew.

        Raises MatchError where the state is for another model or network, and TrainError for another
        optimiser or seed, or where only one of the two has an average.
        """
        check_same(state["identity"], self.identity, file)
        for key, theirs, ours in (
            ("optimiser", state["optimiser"]["name"], self.options.optimiser),
            ("seed", state["seed"], self.options.seed),
            ("ema", state["average"] is not None, self.average is not None),
        ):
            if theirs != ours:
                raise TrainError(
                    "E-resume-settings-differ", file=file, key=key, got=str(theirs), expected=str(ours)
                )
        self._put(self.parameters, state["weights"])
        rates = [(group["initial_lr"], group["weight_decay"]) for group in self.optimiser.param_groups]
        try:
            self.optimiser.load_state_dict(self._divided(state["optimiser"]["state"]))
        except ValueError as error:
            raise MatchError("E-optimiser-state-misfits", file=file, got=str(error)) from error
        for group, (lr, decay) in zip(self.optimiser.param_groups, rates, strict=True):
            group["initial_lr"], group["weight_decay"] = lr, decay
        if self.average is not None:
            self._put(self.average, state["average"])
        self.scaler = self._new_scaler(state["scaler"])
        copy_into(self._proven, self.parameters)
        self.done, self.position = state["step"], tuple(state["place"])
        self.returns = state["returns"]
        self.history = History.of(state["history"])
        self.changed = data_changes(state["data"], self.options.data)
        anew = any(name.startswith(HELD_OUT) for name in self.changed)
        if anew:
            self.history.forget_validation()
        self._rise.load_state_dict(state.get("rise", {}))
        self.idle = set(state["idle"])
        self._best = self._returned = None
        if self._is_best:
            with self.evaluated():
                self._keep_best()
        # States of older versions have none. Then only later validations count.
        elif (best := state.get("best")) and not anew:
            self._best = copies(self.parameters, None if self.copies.sharded else "cpu")
            self._put(self._best, best)

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write the state as one file. Raises WriteError, and then an earlier file of that name stays intact.

        If the network is sharded, all processes call it, and the first one writes.
        """
        state = self.state_dict()
        if not self.copies.sharded or processes.rank() == 0:
            STATE_FORM.write(Path(path), state)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file of `save_state`. Raises FileFormatError, and what `load_state_dict` raises."""
        state = STATE_FORM.read(Path(path))
        try:
            self.load_state_dict(state, str(path))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise FileFormatError(
                "E-checkpoint-damaged",
                file=str(path),
                what=STATE_FORM.what,
                name=type(error).__name__,
                error=error,
            ) from error

    @torch.no_grad()
    def _put(self, targets: Sequence[Tensor], values: Mapping[str, Tensor]) -> None:
        for name, target in zip(self.names, targets, strict=True):
            put(target, values[name])

    def _divided(self, state: dict[str, Any]) -> dict[str, Any]:
        """An optimiser's state, with its tensors sharded like their parameters."""
        if not self.copies.sharded:
            return state
        own = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        table = {
            index: {
                name: part_of(value, own[index])
                if isinstance(value, Tensor) and value.shape == own[index].shape
                else value
                for name, value in entries.items()
            }
            for index, entries in state["state"].items()
        }
        return {**state, "state": table}

    def _loss_of(self, batch: Any) -> Tensor:
        dtype = AUTOCAST.get(self.options.autocast or "")
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            value = self.loss(self.net.module, moved(batch, self.options.device))
        loss = scalar(value, TrainError)
        if torch.is_grad_enabled() and not loss.requires_grad:
            passed = [member for member in self.net.members.values() if member.passed]
            if not passed or not all(member.left_out for member in passed):
                raise _independent("a tensor without a graph")
            # `module_dropout` has left out every layer: the gradient is zero.
            loss = loss + 0 * self.parameters[0].sum()
        return loss

    def _gathered(self, total: Tensor, number: int, batches: Sequence[Any]) -> StepReport:
        """Add up loss and gradients over all processes, and report.

        Raises TrainError where no tensor of the network ever had a gradient, and DivergedError where the loss
        or the gradients are not finite.
        """
        reached = any(parameter.grad is not None for parameter in self.parameters)
        if not reached and len(self.idle) == len(self.names) and processes.count() == 1:
            raise _independent(f"a graph that has none of the network's {len(self.names)} tensors")
        for name, parameter in zip(self.names, self.parameters, strict=True):
            if parameter.grad is not None:
                self.idle.discard(name)
        self._check_alike(total, number)
        gradients = self.copies.summed_gradients(self.parameters, total)
        rate = self._rate(self.done)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * rate
        self.scaler.unscale_(self.optimiser)  # pyright: ignore[reportArgumentType]
        whole = norm_of(gradients, total)
        # One transfer for both: each waits for the accelerator.
        both: Any = torch.stack([total, whole])
        loss, size = cast("list[float]", both.tolist())
        overflow = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        if not math.isfinite(loss):
            self.intact, place = False, None
            try:
                # This second call only searches for the bad module, and may fail.
                with suppress(Exception):
                    place = self._first_bad(number, batches)
                error = self._diverged("E-step-loss-not-finite", place, loss=loss, step=number)
            finally:
                copy_into(self.parameters, self._proven)
            raise error
        if not (math.isfinite(size) or overflow):
            raise self._diverged("E-step-gradients-not-finite", norm=size, step=number)
        return StepReport(number, loss, size, self.optimiser.param_groups[0]["lr"], not math.isfinite(size))

    def _check_alike(self, total: Tensor, number: int) -> None:
        """Raise TrainError, in the first step, where processes that compute one copy of the model differ."""
        if self.copies.size == 1 or self._compared:
            return
        self._compared = True
        own = [0.0 if p.grad is None else float(norm(own_part(p.grad))) for p in self.parameters]
        of_processes = processes.of_all((self.copies.index, [float(total), *own]))
        firsts: dict[int, list[float]] = {}
        for index, sizes in of_processes:
            first = firsts.setdefault(index, sizes)
            for name, value, other in zip(("the loss", *self.names), sizes, first, strict=True):
                if abs(value - other) > ALIKE * max(abs(value), abs(other)):
                    raise TrainError(
                        "E-processes-disagree",
                        key=name,
                        one=f"{value:.6g}",
                        other=f"{other:.6g}",
                        step=number,
                    )

    def _check_rise(
        self, report: StepReport, count: int, batches: Sequence[Any], beside: Sequence[Any]
    ) -> None:
        """If the loss has risen for a while, restore the weights from before and raise DivergedError."""
        own = Chance(self.options.seed, "step", report.step, self.copies.index)
        loss, alone = report.loss, self._repeated(own, count, batches, beside, off=True)
        if self._rise.is_high(loss, alone):
            # At some times a diffusion model's loss is tiny, so its ratio tells little. More noise does.
            for draw in range(MORE):
                more = Chance(self.options.seed, "rise", report.step, draw, self.copies.index)
                loss += self._repeated(more, count, batches, beside, off=False)
                alone += self._repeated(more, count, batches, beside, off=True)
            loss, alone = loss / (1 + MORE), alone / (1 + MORE)
        risen = self._rise.found(loss, alone)
        self.history.risen = self._rise.high
        if risen is None:
            return
        self.intact = False
        copy_into(self.parameters, self._rise.good)
        raise DivergedError(
            "E-training-makes-worse",
            step=report.step,
            risen=f"{risen:.3g}",
            loss=f"{loss:.3g}",
            alone=f"{alone:.3g}",
            lr=f"{report.lr:g}",
        )

    def _repeated(
        self, chance: Chance, count: int, batches: Sequence[Any], beside: Sequence[Any], *, off: bool
    ) -> float:
        """The mean loss of a step's batches with other weights or random numbers, without gradients."""
        total = torch.zeros((), device=self.device)
        with torch.no_grad(), self.net.off() if off else nullcontext(), chance.drawn():
            for index, batch in enumerate((*batches, *beside)):
                loss = self._loss_of(batch)
                if index < len(batches):
                    total += loss.to(total.device, total.dtype) / count
        self.copies.add_up([total])
        return float(total)

    def _new_scaler(self, state: dict[str, Any] | None = None) -> torch.amp.GradScaler:
        half = AUTOCAST.get(self.options.autocast or "") == torch.float16
        scaled = half if self.options.scaled is None else self.options.scaled
        scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        if scaled and state:
            scaler.load_state_dict(state)
        return scaler

    def _update(self, report: StepReport, position: DataPosition | None) -> StepReport:
        self.intact = False
        limit = self.options.clip_norm
        if not report.skipped:
            copy_into(self._proven, self.parameters)
            if limit is not None and report.norm > limit:
                scale([p.grad for p in self.parameters if p.grad is not None], limit / report.norm)
        self.scaler.step(self.optimiser)  # pyright: ignore[reportArgumentType]
        self.scaler.update()
        if self.options.max_weight_norm is not None:
            self.net.clip_weight_norm(self.options.max_weight_norm)
        if self.average is not None:
            # In the weights' own dtype, float32: bfloat16 would not hold so small a change.
            decay = min(self.options.ema or 0, (1 + report.step) / (10 + report.step))
            move_towards(self.average, self.parameters, 1 - decay)
        self.history.losses.append((report.step, report.loss))
        self.history.skipped += report.skipped
        self.done = report.step
        self.position = self.position if position is None else position
        self.intact = True
        return report

    def _first_bad(self, number: int, batches: Sequence[Any]) -> str | None:
        """The path of the first module whose output is not finite in this step; None if not known."""
        if processes.count() > 1:
            # Another process may have had the batch.
            return None
        with Chance(self.options.seed, "step", number, self.copies.index).drawn():
            return first_bad(self.net.module, lambda: [self._loss_of(batch) for batch in batches])

    def _diverged(self, code: str, layer: str | None = None, **values: Any) -> DivergedError:
        """The error for values that are not finite, at `layer` or at the layer where the gradient broke.

        The backward pass goes from the last layer to the first, so the last bad layer is where it broke.
        """
        bad = [
            name
            for name, parameter in zip(self.names, self.parameters, strict=True)
            if parameter.grad is not None and not bool(own_part(parameter.grad).isfinite().all())
        ]
        self.intact = False
        if bad:
            values["got"] = f"gradients that are not finite in {len(bad)} of {len(self.names)} tensors"
        if not self.done:
            values["hint"] = NO_STEP
        return DivergedError(code, key=layer or (bad[-1] if bad else None), **values)

    def _averaging(self, on: bool) -> None:
        """Replace the weights by the average of an optimiser that averages them, or put them back."""
        if self.family.averages:
            optimiser: Any = self.optimiser
            optimiser.eval() if on else optimiser.train()


def _independent(loss: str) -> TrainError:
    """The error for a loss that does not depend on the network; `loss` describes the loss."""
    return TrainError("E-loss-independent", got=loss)


def _parameters_of(net: LycorisNetwork) -> tuple[list[str], list[nn.Parameter]]:
    """The trained parameters and their names. Raises TrainError where they cannot be trained."""
    trained = {
        f"{path}.{name}": parameter
        for path, member in net.members.items()
        for name, parameter in member.named_parameters()
        if parameter.requires_grad
    }
    if not trained:
        raise TrainError("E-nothing-to-train")
    for name, parameter in trained.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise TrainError("E-dtype-loses-steps", key=name, got=str(parameter.dtype))
    return list(trained), list(trained.values())
