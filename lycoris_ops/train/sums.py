"""Sum the gradients over the copies of a model, mostly during the backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import processes
from ..errors import TrainError
from ..maths.tensors import is_divided

PARTS = 8
"""The number of messages, unless they would be smaller than LEAST."""
LEAST = 1 << 14
"""The fewest values of a message."""


class GradientSums:
    """Gradients in parts. Each part is sent once all its gradients are there and the part before it was sent.

    The first parts are of the last layers, whose gradients come first. All processes send the parts in the
    same order, whichever gradients are missing. The gradients of divided parameters are sums already.

    If `whole` is false, nothing is sent before the end of the pass, because a sharded model sends messages of
    its own within it. In the first step nothing is sent early either: it shows whether gradients come more
    than once in a pass, as for a module that is called twice under reentrant checkpointing.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], copies: processes.Copies, *, whole: bool) -> None:
        several = processes.count() > 1
        own = [one for one in reversed(parameters) if not is_divided(one)] if several else []
        self._copies = copies
        self._parts = list(_parts(own))
        self._place = {one: number for number, part in enumerate(self._parts) for one in part}
        self._learns = whole and several
        self._early = False
        self.begin()

    def begin(self) -> None:
        """Reset at the beginning of a step."""
        self._met = Counter[nn.Parameter]()
        self._missing = [len(part) for part in self._parts]
        self._sent: list[tuple[Tensor, Any]] = []

    @contextmanager
    def watched(self) -> Generator[None]:
        """A context for the last backward pass of a step."""
        with ExitStack() as stack:
            hooked: Any = self._place if self._learns or self._early else ()
            for one in hooked:
                stack.callback(one.register_post_accumulate_grad_hook(self._arrived).remove)
            yield

    def _arrived(self, parameter: Any) -> None:
        number = self._place[parameter]
        if number < len(self._sent):
            raise TrainError(
                "a gradient arrived again after it was summed over the processes",
                got="a parameter that a backward pass reaches twice",
                expected="one gradient of each parameter in a pass, as in the first step",
                hint="Checkpoint activations with use_reentrant=False",
            )
        self._missing[number] -= not self._met[parameter]
        self._met[parameter] += 1
        while self._early and len(self._sent) < len(self._parts) and not self._missing[len(self._sent)]:
            self._send()

    @torch.no_grad()
    def _send(self) -> None:
        part = self._parts[len(self._sent)]
        grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in part]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        self._sent.append((flat, cast("Any", dist).all_reduce(flat, async_op=True)))

    @torch.no_grad()
    def finish(self, total: Tensor) -> None:
        """Replace the gradients, and the loss in `total`, by their sums over the copies."""
        self._copies.add_up([total])
        while len(self._sent) < len(self._parts):
            self._send()
        for part, (flat, work) in zip(self._parts, self._sent, strict=True):
            work.wait()
            values = flat.div_(self._copies.size) if self._copies.size > 1 else flat
            found = cast("Sequence[Tensor]", torch.split(values, [one.numel() for one in part]))
            for one, grad in zip(part, found, strict=True):
                one.grad = grad.view_as(one)
        if self._learns:
            self._learns = False
            self._early = not any(processes.of_all(any(times > 1 for times in self._met.values())))


def _parts(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters in order, in parts of one dtype and device."""
    most = max(LEAST, sum(one.numel() for one in parameters) // PARTS)
    part: list[nn.Parameter] = []
    for one in parameters:
        alike = not part or (one.dtype, one.device) == (part[0].dtype, part[0].device)
        if not alike or sum(each.numel() for each in part) >= most:
            yield part
            part = []
        part.append(one)
    if part:
        yield part
