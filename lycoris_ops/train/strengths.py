"""The strength of a network's layers, now and in passes that are recomputed."""

from __future__ import annotations

import inspect
import threading
from collections import deque
from typing import Any, cast

import torch
from torch.autograd.function import FunctionCtx

from ..bypass import compiled
from ..errors import TrainError

KEPT = 1 << 12
"""The changes of a strength that are remembered."""

_autograd, _own = cast("Any", torch.autograd), cast("Any", torch)._C
"""torch has no public names for the numbers of nodes and for the running backward pass."""


class Strengths:
    """A strength that may change at any time. A pass that gradient checkpointing runs again, within a
    backward pass, has the strength of its first run.

    autograd numbers the nodes of its graphs in the order in which they are made. The node in whose backward
    pass a part of the model runs again was made in the first run: its number says which strength that was.
    The numbers of different threads do not compare, so only the changes in one thread are remembered.
    """

    def __init__(self, value: float = 1.0) -> None:
        self._now = value
        self._begin()
        self._within: tuple[tuple[int, int], float] | None = None
        """The backward pass and the node in which a strength was last set, and that strength."""

    def _begin(self) -> None:
        self._thread = threading.get_ident()
        self._changes = deque([(0, self._now)], KEPT)
        """The number of the first node with each strength, in order."""

    def set(self, value: float) -> None:
        """Change the strength. What a recomputed part of a model sets holds for the rest of this part."""
        again = _recomputed()
        if again is not None:
            self._within = again, value
            return
        self._now = value
        if threading.get_ident() != self._thread:
            self._begin()
            return
        number: int = _autograd._get_sequence_nr()
        # No node was made since the last change.
        if self._changes[-1][0] == number:
            self._changes.pop()
        if not self._changes or self._changes[-1][1] != value:
            self._changes.append((number, value))

    def get(self) -> float:
        """The strength of a pass. Raises TrainError in one that runs again more than KEPT changes later."""
        if compiled.traced():
            return self._now
        # Without a call, which takes long beside a small layer.
        again = None if _own._current_graph_task_id() == -1 else _recomputed()
        if again is None:
            if threading.get_ident() != self._thread:
                self._begin()
            return self._now
        if self._within is not None and self._within[0] == again:
            return self._within[1]
        if len(self._changes) == 1:
            return self._now
        number = _outermost(again[1])
        for first, strength in reversed(self._changes):
            if first <= number:
                return strength
        raise TrainError("E-strength-forgotten", kept=KEPT)


def _recomputed() -> tuple[int, int] | None:
    """The running backward pass, and the number of the node that is computed in it; None outside of one."""
    task: int = _own._current_graph_task_id()
    node: Any = None if task == -1 else _own._current_autograd_node()
    return None if node is None else (task, node._sequence_nr())


def _outermost(number: int) -> int:
    """The number of the outermost node that is computed, where the one with this number may be of a part that
    is recomputed itself, perhaps in a thread of its own."""
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "backward" and code.co_argcount:
            node: Any = frame.f_locals.get(code.co_varnames[0])
            if isinstance(node, FunctionCtx):
                number = cast("Any", node)._sequence_nr()
        frame = frame.f_back
    return number
