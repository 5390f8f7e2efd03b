"""The optimisers, one family per file. Every file in this folder is registered.

Each file defines `FAMILY`. A name of the form `module:Class` means any class with torch's interface.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from ...discovery import discover
from ...errors import TrainError, unknown_name
from ..extras import required

ParameterGroup = dict[str, Any]
"""A parameter group for torch's optimisers: `params`, `lr`, `weight_decay` and a `name`.

`vectors` says whether the parameters count as vectors, not as factors, however many dimensions they have."""


class Optimiser(Protocol):
    """The part of a torch optimiser that the training uses."""

    param_groups: list[ParameterGroup]

    def step(self) -> Any: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class OptimiserFamily:
    """How to make an optimiser, and what it needs from the training."""

    name: str
    make: Callable[[Sequence[ParameterGroup], Mapping[str, Any]], Optimiser]
    """Makes it from groups and the user's options. Raises TrainError where its package is not installed."""
    lr: float | None
    """The usual learning rate; None where the user must give one."""
    one_rate: bool = False
    """Whether it finds the learning rate itself; then all groups have rate 1."""
    averages: bool = False
    """Whether it averages the weights itself. Then it has `train()` and `eval()` and needs a constant
    rate."""
    elementwise: bool = False
    """Whether a step changes each value by its own gradients alone, so that each process can update its own
    part."""

    @classmethod
    def packaged(cls, name: str, path: str, lr: float | None, **traits: bool) -> OptimiserFamily:
        """The family of a class `module:Class`, which is imported on first use."""
        return cls(name, lambda groups, options: built(class_of(path, name), groups, options), lr, **traits)


@cache
def optimisers() -> dict[str, OptimiserFamily]:
    """All families by name."""
    families: list[OptimiserFamily] = [module.FAMILY for module in discover(__name__)]
    return {family.name: family for family in families}


def family_of(name: str) -> OptimiserFamily:
    """The family of this name. Raises TrainError for an unknown one."""
    if name in optimisers():
        return optimisers()[name]
    if ":" not in name:
        known = [*optimisers(), "module:Class"]
        raise unknown_name("E-optimiser-name-unknown", name, known, error=TrainError)
    kind = class_of(name, name)
    step = getattr(kind, "step", None)
    closure = inspect.signature(step).parameters.get("closure") if step else None
    if closure is not None and closure.default is closure.empty:
        raise TrainError("E-optimiser-needs-closure", got=name)
    # Such as the optimisers of schedulefree: after `eval()` the weights hold their average, until `train()`.
    averages = all(callable(getattr(kind, way, None)) for way in ("train", "eval"))
    return OptimiserFamily.packaged(name, name, lr=None, averages=averages)


def class_of(path: str, name: str) -> Any:
    """Import the class `module:Class` for the optimiser `name`. Raises TrainError where that fails."""
    module, _, attribute = path.partition(":")
    package = required(module, module.partition(".")[0], f"the optimiser {name}")
    kind = getattr(package, attribute, None)
    if not callable(kind):
        raise TrainError("E-optimiser-unknown", module=module, got=path)
    return kind


def class_of_torch(name: str, since: str) -> Any:
    """An optimiser of torch that only newer versions have. Raises TrainError where this torch lacks it."""
    kind = getattr(torch.optim, name, None)
    if kind is None:
        raise TrainError("E-torch-class-absent", name=name, since=since, got=torch.__version__)
    return kind


def built(make: Callable[..., Any], groups: Sequence[ParameterGroup], options: Mapping[str, Any]) -> Any:
    """Make an optimiser of a class. Raises TrainError for options that the class does not accept."""
    known = inspect.signature(make).parameters
    if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in known.values()):
        for option in options:
            if option not in known:
                names = [name for name in known if name != "params"]
                raise unknown_name("E-optimiser-option-unknown", option, names, error=TrainError)
    try:
        return make([dict(group) for group in groups], **options)
    except (TypeError, ValueError) as error:
        raise TrainError("E-optimiser-options-refused", got=str(error)) from error


def tensors_of(groups: Sequence[ParameterGroup]) -> list[Tensor]:
    """The parameters of all groups."""
    return [tensor for group in groups for tensor in group["params"]]


def make_optimiser(
    family: OptimiserFamily, groups: Sequence[ParameterGroup], options: Mapping[str, Any]
) -> Optimiser:
    """Make an optimiser for groups with their own rates. Raises TrainError where the optimiser is not
    installed, or does not suit the groups or options.
    """
    rates = {group["lr"] for group in groups}
    if family.one_rate and rates != {1.0}:
        raise TrainError(
            "E-optimiser-finds-rate", name=family.name, rates=tuple(f"{rate:g}" for rate in sorted(rates))
        )
    optimiser = family.make(groups, options)
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    return optimiser
