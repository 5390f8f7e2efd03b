"""The ways of applying a plan (paths), best first, and which of them can patch a given weight.

A module of `paths` registers a path by defining PATH. A path states as data which weights it can patch, and
this is checked at every application. The first path that can patch the weight is taken; `path_report` says
why the paths before it cannot.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..discovery import discover
from ..errors import LayerError
from . import paths
from .groups.group import PathPlan

Apply = Callable[[PathPlan, Tensor, Sequence[Tensor], Sequence[float]], None]
"""A function (plan, weight, tensors, strengths) that patches the weight in place.

The weight has the plan's final shape, and the tensors are on its device.
"""


class PathError(Exception):
    """A path failed before it changed the weight: another path can still patch it."""


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
    found = [module.PATH for module in discover(paths.__name__) if hasattr(module, "PATH")]
    return tuple(sorted(found, key=lambda path: path.priority))


_FAILED: dict[str, str] = {}
"""The names of paths that failed in this process, with the reason. They are not tried again."""


def apply_plan(plan: PathPlan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> str:
    """Patch the weight by the first path that can, and return the path's name.

    A path that raises PathError is left out for the rest of the process, with a warning, and the next one is
    tried. Raises LayerError, with the reason of each path, where none can patch the weight.
    """
    refused: list[str] = []
    for path in PATHS:
        reason = path.refusal(plan, weight)
        if reason is None:
            try:
                path.apply(plan, weight, tensors, strengths)
                return path.name
            except PathError as error:
                reason = f"it failed: {error}"
                _FAILED[path.name] = reason
                warnings.warn(
                    f"Weights are patched by another path, because {path.name!r} is left out: {reason}",
                    stacklevel=2,
                )
        refused.append(f"{path.name}: {reason}")
    raise LayerError(
        "no path can patch this weight",
        got=f"{weight.dtype} on {weight.device}",
        expected="a dtype and device that one of the paths takes",
        hint=f"Not taken by {'; '.join(refused)}",
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
