"""Ranks that move during training: components that matter least go, and others come where they gain most."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..algorithms import Layer
from ..algorithms.components import beside, chosen, zeros
from ..errors import LycorisError, number_of
from ..maths.decompositions import pseudo_inverse
from ..ranks.allocate import NOTHING, Candidate, allocate, within
from ..ranks.gradients import Loss, summed
from .member import Member
from .network import LycorisNetwork

SQUARES = re.compile(r"sq|sum|var")
"""In the name of an optimiser's state: it follows squares of gradients. Others follow gradients."""
POINTS = ("z", "p0")
"""Names of states that are points like the parameter itself, of schedule-free optimisers and of Prodigy."""

Turn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Change:
    """What was done to a parameter, and so to what follows it entry by entry."""

    values: Turn
    """For the parameter itself, and for averages of it."""
    gradients: Turn
    """For its gradients and averages of them."""
    squares: Turn
    """For averages of their squares."""

    @classmethod
    def of(cls, turn: Turn) -> Change:
        """A change that is the same for all of them: a choice of slices, or new ones of zeros."""
        return cls(turn, turn, turn)


@dataclass(frozen=True, kw_only=True)
class Reallocation:
    """How ranks move during training.

    `target` is the number of parameters at the end. From step `begin` to step `end`, at every `every`-th, the
    number falls towards it on a cubic curve. With `regrow` above 0, that share of the parameters is taken
    away beyond it and given to the layers where new components gain most; the share falls to 0 on the same
    curve. Every layer keeps at least `r_min` components and gets at most `r_max`. `decay` has the decays of
    the means of importance and of its uncertainty.
    """

    target: int
    begin: int
    end: int
    every: int = 50
    regrow: float = 0.0
    r_min: int = 1
    r_max: int | None = None
    decay: tuple[float, float] = (0.85, 0.85)

    def __post_init__(self) -> None:
        if self.target < 1 or self.r_min < 1 or self.every < 1 or not 0 <= self.begin <= self.end:
            raise LycorisError(
                "an impossible schedule of ranks",
                got=f"target {self.target}, r_min {self.r_min}, {self.begin} to {self.end} by {self.every}",
                expected="target, r_min and every from 1, and 0 <= begin <= end",
            )
        if self.r_max is not None and self.r_max < self.r_min:
            raise LycorisError(
                "no rank is in these bounds",
                got=f"r_min {self.r_min}, r_max {self.r_max}",
                expected="r_min <= r_max",
            )
        if not 0 <= self.regrow < 1 or not all(0 <= each < 1 for each in self.decay):
            raise LycorisError("regrow and decay are from 0 to below 1", got=f"{self.regrow}, {self.decay}")

    def left(self, step: int) -> float:
        """The part of the way that is left at a step: 1 until `begin`, 0 from `end`, cubic between.

        Source: Zhang et al., "AdaLoRA" (2303.10512), eq. 12.
        """
        if step >= self.end:
            return 0.0
        return (1 - max(0, step - self.begin) / (self.end - self.begin)) ** 3

    def due(self, step: int) -> bool:
        """Whether ranks move after this step; at `end` they always do."""
        return self.begin <= step <= self.end and ((step - self.begin) % self.every == 0 or step == self.end)


@dataclass
class _Importance:
    """The running means of one parameter's importance |w g| and of its uncertainty, entry by entry."""

    mean: Tensor
    spread: Tensor

    def add(self, value: Tensor, decay: tuple[float, float]) -> None:
        self.mean.lerp_(value, 1 - decay[0])
        self.spread.lerp_((value - self.mean).abs(), 1 - decay[1])


@dataclass(frozen=True)
class Moved:
    """What one reallocation did."""

    step: int
    parameters: int
    ranks: Mapping[str, int]
    """The ranks afterwards, by the paths of the layers whose ranks can move."""


@dataclass(eq=False)
class Reallocator:
    """Moves the ranks of a network while an optimiser trains it.

    Call `observe` after each backward pass whose gradients are complete and unscaled, and `step` after the
    optimiser's step. At the end the layers are of the same kinds as before, with other ranks.

    A component is scored as in AdaLoRA: for each of its tensors, the mean over its entries of the running
    mean of |w g| times its uncertainty. Those with the lowest scores of the whole network go. Regrowth needs
    `batches` and the `loss`, whose gradients are summed as in a probe; a new component changes nothing at
    first. After each move the layers are brought to independent components (`Layer.normal`), so that the
    next ones to go are those of a singular value decomposition.

    The states of the optimiser follow: slices stay with their components, those of new ones are zero, and
    what is not laid out like its parameter is begun anew. So do other followers of the parameters, such as
    averages of them: each function in `followers` is called with the old parameter, the new one, and the
    change of values between them.

    Source: Zhang et al., "AdaLoRA" (2303.10512), eq. 8 to 12.
    """

    network: LycorisNetwork
    optimizer: Optimizer
    schedule: Reallocation
    batches: Iterable[Any] | None = None
    loss: Loss | None = None
    seed: int = 0
    followers: list[Callable[[nn.Parameter, nn.Parameter, Change], None]] = field(default_factory=list[Any])

    def __post_init__(self) -> None:
        if not self.movable:
            raise LycorisError(
                "no layer of the network has a rank that can move",
                expected="lora, loha, lokr with a factor of low rank, or glora",
            )
        if self.schedule.regrow and (self.batches is None or self.loss is None):
            raise LycorisError("ranks regrow by gradients", expected="batches and loss")
        if self.schedule.target < (least := self._least()):
            raise LycorisError(
                "the target is below the smallest network",
                got=f"{self.schedule.target:,} parameters",
                expected=f"at least {least:,}, with rank {self.schedule.r_min} everywhere",
            )
        members = self.network.members
        fixed = [path for path in members if members[path].layer.rank and path not in self.movable]
        if fixed:
            note = f"{number_of(len(fixed), 'layer')} of a fixed rank while ranks move, such as {fixed[0]}"
            # Once, though a trainer may make several of these.
            self.network.notes = tuple(dict.fromkeys((*self.network.notes, note)))
        self._importance: dict[str, _Importance] = {}
        self._before = self.parameters

    @property
    def movable(self) -> dict[str, Member]:
        """The members whose layers have components."""
        members = self.network.members
        return {path: member for path, member in members.items() if member.layer.rank_axes()}

    @property
    def parameters(self) -> int:
        """The number of parameters of the whole network."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def _least(self) -> int:
        """The number of parameters where all ranks that can move are as low as they may be."""
        total = self.parameters
        for member in self.movable.values():
            rank = member.layer.rank or 0
            total -= _size(member, rank) - _size(member, min(rank, self.schedule.r_min))
        return total

    def observe(self) -> None:
        """Add the present gradients to the importances."""
        for path, member in self.movable.items():
            for name in member.layer.rank_axes():
                parameter = cast("Tensor", getattr(member, name))
                if parameter.grad is None:
                    continue
                value = (parameter.detach() * parameter.grad).abs()
                key = f"{path}:{name}"
                if key not in self._importance:
                    self._importance[key] = _Importance(torch.zeros_like(value), torch.zeros_like(value))
                self._importance[key].add(value, self.schedule.decay)

    @torch.no_grad()
    def step(self, step: int) -> Moved | None:
        """Move ranks if it is time to. `step` counts the optimiser's steps from 1."""
        if not self.schedule.due(step) or not self._importance:
            return None
        schedule, left = self.schedule, self.schedule.left(step)
        most = round(schedule.target + max(0, self._before - schedule.target) * left)
        kept = self._kept(round(most * (1 - schedule.regrow * left)))
        for path, member in self.movable.items():
            self._prune(member, kept[path])
        if schedule.regrow * left:
            self._regrow(most)
        for member in self.movable.values():
            self._normalise(member)
        self._importance.clear()
        ranks = {path: member.layer.rank or 0 for path, member in self.movable.items()}
        return Moved(step, self.parameters, ranks)

    def state_dict(self) -> dict[str, Any]:
        """What the next moves depend on, beside the network and the optimiser."""
        return {
            "before": self._before,
            "importance": {key: (each.mean, each.spread) for key, each in self._importance.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, with a network of the same ranks."""
        self._before = int(state["before"])
        self._importance = {key: _Importance(*each) for key, each in state["importance"].items()}

    def _scores(self, path: str, member: Member) -> Tensor:
        """A score for each component of a layer."""
        scores = torch.zeros(member.layer.rank or 0)
        for name, axes in member.layer.rank_axes().items():
            found = self._importance.get(f"{path}:{name}")
            if found is None:
                continue
            for axis in axes:
                others = [each for each in range(found.mean.ndim) if each != axis]
                scores += (found.mean * found.spread).mean(others).cpu()
        return scores

    def _kept(self, most: int) -> dict[str, list[int]]:
        """The components that each layer keeps, so that the network has at most so many parameters."""
        order: list[tuple[float, str, int]] = []
        kept: dict[str, list[int]] = {}
        for path, member in self.movable.items():
            scores = cast("list[float]", cast("Any", self._scores(path, member)).tolist())
            kept[path] = list(range(len(scores)))
            order += [(score, path, index) for index, score in enumerate(scores)]
        total, members = self.parameters, self.movable
        for _, path, index in sorted(order):
            if total <= most:
                break
            rank = len(kept[path])
            if rank > self.schedule.r_min:
                kept[path].remove(index)
                total -= _size(members[path], rank) - _size(members[path], rank - 1)
        return kept

    def _prune(self, member: Member, kept: Sequence[int]) -> None:
        layer = member.layer
        if len(kept) == layer.rank:
            return
        axes = layer.rank_axes()
        self._replace(member, layer.with_components(kept), {n: _cut(kept, a) for n, a in axes.items()})

    def _regrow(self, most: int) -> None:
        """Give what is free of `most` parameters to the components that gain most."""
        assert self.batches is not None and self.loss is not None
        movable = self.movable
        # The gradients that the pass leaves on the parameters belong to no step.
        held = {parameter: parameter.grad for parameter in self.network.parameters()}
        sites = [member.site for member in movable.values()]
        sums = summed(self.network.module, sites, self.batches, self.loss, seed=self.seed)
        for parameter, gradient in held.items():
            parameter.grad = gradient
        room = most - self.parameters
        grown = {
            path: found
            for path, member in movable.items()
            if (room_of := min(self._room(member), room // _size(member, 1))) > 0
            and (found := member.layer.growth(sums.gradients[path], room_of, seed=self.seed)) is not None
        }
        candidates = {
            path: [
                NOTHING,
                *(
                    Candidate(_more(movable[path], count), gain, count)
                    for count, gain in enumerate(each.gains, 1)
                ),
            ]
            for path, each in grown.items()
        }
        for path, got in allocate(candidates, within(room)).items():
            if got.meant is None:
                continue
            member = movable[path]
            layer, axes = member.layer, member.layer.rank_axes()
            components = grown[path].first(got.meant, axes)
            changes = {name: _padded(got.meant, each) for name, each in axes.items()}
            self._replace(member, layer.grown(components), changes)

    def _room(self, member: Member) -> int:
        """How many components a layer may still get."""
        bound = self.schedule.r_max or math.inf
        return int(min(bound, member.site.shape[0], math.prod(member.site.shape[1:]))) - (
            member.layer.rank or 0
        )

    def _normalise(self, member: Member) -> None:
        layer, turns = member.layer.normal()
        if turns:
            axes = layer.rank_axes()
            self._replace(member, layer, {name: _turned(turns[name], axes[name][0]) for name in axes})

    def _replace(self, member: Member, layer: Layer, changes: Mapping[str, Change]) -> None:
        old = dict(member.named_parameters())
        self.network.replace_layer(member.site.path, layer)
        for name, new in member.named_parameters():
            new.requires_grad_(old[name].requires_grad)
            change = changes.get(name, Change.of(_same))
            _follow(self.optimizer, old[name], new, change)
            for follower in self.followers:
                follower(old[name], new, change)


def _size(member: Member, rank: int) -> int:
    """The parameters of a layer's components at a rank."""
    held, trained, total = member.layer.tensors(), member.layer.factors(), 0
    for name, axes in member.layer.rank_axes().items():
        if name not in trained:
            continue
        sizes = [rank if axis in axes else size for axis, size in enumerate(held[name].shape)]
        total += math.prod(sizes)
    return total


def _more(member: Member, count: int) -> int:
    """The parameters of so many further components of a layer."""
    rank = member.layer.rank or 0
    return _size(member, rank + count) - _size(member, rank)


def _same(values: Tensor) -> Tensor:
    return values


def _cut(kept: Sequence[int], axes: Sequence[int]) -> Change:
    return Change.of(lambda values: chosen(values, axes, kept))


def _padded(count: int, axes: tuple[int, ...]) -> Change:
    return Change.of(lambda values: beside(values, zeros(values, axes, count), axes))


def _turned(matrix: Tensor, axis: int) -> Change:
    """Slices along an axis replaced by sums of them, as in `Layer.normal`.

    Gradients turn by the inverse of the transposed matrix. Squares turn by the squares of its entries, as if
    the gradients of different slices were uncorrelated.
    """

    def by(matrix: Tensor) -> Turn:
        def turned(values: Tensor) -> Tensor:
            last = values.movedim(axis, -1)
            return (last.double() @ matrix.to(values.device)).to(values.dtype).movedim(-1, axis)

        return turned

    against = pseudo_inverse(matrix).T
    return Change(by(matrix), by(against), by(against.square()))


def _follow(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, change: Change) -> None:
    """Put a parameter in the place of another in an optimiser, with its state."""
    for group in optimizer.param_groups:
        group["params"] = [new if each is old else each for each in group["params"]]
    state = optimizer.state.pop(old, None)
    if not state:
        return
    moved: dict[str, Any] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            moved[name] = value
        elif value.shape != old.shape:
            # Of another layout: the optimiser begins this parameter anew.
            return
        else:
            turn = change.squares if SQUARES.search(name) else change.gradients
            moved[name] = (change.values if name in POINTS else turn)(value).contiguous()
    optimizer.state[new] = moved
