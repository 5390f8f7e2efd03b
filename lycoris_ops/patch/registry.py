"""The ways of applying a plan (paths), best first, and which of them can patch a given weight.

A module of `paths` registers a path by defining PATH. A path states as data which weights it can patch, and
this is checked at every application. The first path that can patch the weight is taken; `path_report` says
why the paths before it cannot.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..discovery import discover
from ..errors import LayerError, located
from . import paths
from .groups.group import PathPlan


class Patch(NamedTuple):
    """A weight that is to be patched in place, and by what."""

    plan: PathPlan
    weight: Tensor
    """It has the plan's final shape."""
    tensors: Sequence[Tensor]
    """The plan's tensors, on the weight's device."""
    strengths: Sequence[float]
    name: str | None = None
    """The name of the weight, for errors."""


Apply = Callable[[Sequence[Patch]], None]
"""A function that carries out patches of different weights."""


def one_by_one(apply: Callable[[PathPlan, Tensor, Sequence[Tensor], Sequence[float]], None]) -> Apply:
    """An `Apply` that calls a function (plan, weight, tensors, strengths) for each patch."""

    def apply_all(patches: Sequence[Patch]) -> None:
        for patch in patches:
            with located(weight=patch.name):
                apply(patch.plan, patch.weight, patch.tensors, patch.strengths)

    return apply_all


class PathError(Exception):
    """A path failed before it changed the weights in `left`: another path can still patch them."""

    def __init__(self, reason: str, left: Sequence[Patch]) -> None:
        super().__init__(reason)
        self.left = left


@dataclass(frozen=True)
class PatchPath:
    """One way of applying a plan."""

    name: str
    priority: int
    """Paths are tried in the order of their priorities, lowest first."""
    devices: tuple[str, ...]
    """The device types of the weights that the path can patch."""
    dtypes: tuple[torch.dtype, ...]
    """The dtypes of the weights that the path can patch."""
    apply: Apply
    needs: Callable[[], str | None]
    """Why the path cannot run on this machine at all, None where it can."""
    refuses: Callable[[PathPlan, Tensor], str | None] = lambda plan, weight: None
    """Why the path does not take this plan and weight, whose device and dtype fit; None where it does."""

    def refusal(self, plan: PathPlan, weight: Tensor) -> str | None:
        """Why this path does not take the plan and weight, None where it does."""
        if self.name in _FAILED:
            return _FAILED[self.name]
        if weight.device.type not in self.devices:
            return f"for {' or '.join(self.devices)}, and the weight is on {weight.device.type}"
        if weight.dtype not in self.dtypes:
            return f"not for {str(weight.dtype).removeprefix('torch.')}"
        try:
            return self.needs() or self.refuses(plan, weight)
        except (MemoryError, torch.cuda.OutOfMemoryError):
            # Memory may be free again later, so a lack of it does not rule out the path.
            raise
        except Exception as error:  # noqa: BLE001 - what a path needs can be broken in any way
            _FAILED[self.name] = f"its own check failed: {briefly(error)}"
            return _FAILED[self.name]


def briefly(error: Exception) -> str:
    """An error in one line of at most about 200 characters: its type, and the last line of its message.

    A compiler's message begins with the source code and ends with the error.
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()[:200]}" if lines else type(error).__name__


def _discover() -> tuple[PatchPath, ...]:
    paths_found = [module.PATH for module in discover(paths.__name__) if hasattr(module, "PATH")]
    return tuple(sorted(paths_found, key=lambda path: path.priority))


_FAILED: dict[str, str] = {}
"""The names of paths that failed in this process, with the reason. They are not tried again."""


def apply_plans(patches: Sequence[Patch]) -> None:
    """Patch each weight by the first path that can.

    A path that raises PathError is left out for the rest of the process, with a warning, and the next one is
    tried. Raises LayerError, with the reason of each path, where none can patch a weight.
    """
    left = patches
    for path in PATHS:
        taken: list[Patch] = []
        others: list[Patch] = []
        for patch in left:
            (others if path.refusal(patch.plan, patch.weight) else taken).append(patch)
        try:
            path.apply(taken)
        except PathError as error:
            others += error.left
            _FAILED[path.name] = f"it failed: {error}"
            warnings.warn(
                f"Weights are patched by another path, because {path.name!r} is left out: "
                f"{_FAILED[path.name]}",
                stacklevel=2,
            )
        if not others:
            return
        left = others
    plan, weight = left[0].plan, left[0].weight
    refused = "; ".join(f"{path.name}: {path.refusal(plan, weight)}" for path in PATHS)
    raise LayerError(
        "E-no-path-patches",
        weight=left[0].name,
        dtype=str(weight.dtype),
        device=str(weight.device),
        refused=refused,
    )


def path_report(plan: PathPlan, weight: Tensor) -> str:
    """Which path would patch this weight, and why the paths before it would not, in one line."""
    lines: list[str] = []
    for path in PATHS:
        reason = path.refusal(plan, weight)
        if reason is None:
            return "; ".join([f"path {path.name}", *lines])
        lines.append(f"not {path.name}: {reason}")
    return "; ".join(["no path", *lines])


PATHS = _discover()
