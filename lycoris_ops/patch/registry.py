"""The ways of applying a plan, best first, and which of them can take a given weight.

A module of `paths` that defines PATH registers it. What a path needs is data, checked for every
application; the first path that fits is taken, and the reasons why the others were not can be read.
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
from .groups.group import Plan

Apply = Callable[[Plan, Tensor, Sequence[Tensor], Sequence[float]], None]
"""Patches a weight of the plan's final shape in place, with tensors on its device."""


class PathError(Exception):
    """A path cannot do its work after all, and has not touched the weight."""


@dataclass(frozen=True)
class PatchPath:
    """One way of applying a plan."""

    name: str
    rank: int
    """Paths are tried in this order, lowest first."""
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    apply: Apply
    needs: Callable[[], str | None]
    """Why the path cannot run here at all, None where it can."""
    refuses: Callable[[Plan, Tensor], str | None] = lambda plan, weight: None
    """Why it does not take this plan and weight, beyond device and dtype."""

    def refusal(self, plan: Plan, weight: Tensor) -> str | None:
        """Why this path is not taken, None where it fits."""
        if self.name in _FAILED:
            return _FAILED[self.name]
        if weight.device.type not in self.devices:
            return f"for {' or '.join(self.devices)}, and the weight is on {weight.device.type}"
        if weight.dtype not in self.dtypes:
            return f"not for {str(weight.dtype).removeprefix('torch.')}"
        try:
            return self.needs() or self.refuses(plan, weight)
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - what a path needs can be broken in any way
            _FAILED[self.name] = f"it cannot be told whether it works here: {briefly(error)}"
            return _FAILED[self.name]


def briefly(error: Exception) -> str:
    """A compiler's message begins with the source; what is wrong stands last."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()[:200]}" if lines else type(error).__name__


def _discover() -> tuple[PatchPath, ...]:
    found = [module.PATH for module in discover(paths.__name__) if hasattr(module, "PATH")]
    return tuple(sorted(found, key=lambda path: path.rank))


_FAILED: dict[str, str] = {}
"""Paths that failed in this process, with the reason: they are not tried again."""


def apply_plan(plan: Plan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> str:
    """Patch the weight by the first path that takes it; the path's name.

    Raises LayerError where none does.
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
                warnings.warn(f"The patch path {path.name!r} is left out: {reason}", stacklevel=2)
        refused.append(f"{path.name}: {reason}")
    raise LayerError(
        "no path can patch this weight",
        got=f"{weight.dtype} on {weight.device}",
        expected="; ".join(refused),
    )


def path_report(plan: Plan, weight: Tensor) -> str:
    """Which path would patch this weight, and why those before it would not."""
    lines: list[str] = []
    for path in PATHS:
        reason = path.refusal(plan, weight)
        if reason is None:
            return "; ".join([f"path {path.name}", *lines])
        lines.append(f"not {path.name}: {reason}")
    return "; ".join(["no path", *lines])


PATHS = _discover()
