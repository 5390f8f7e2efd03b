"""Gradient checkpointing: blocks keep only their inputs and run again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ....lycoris_ops import chance
from .arguments import emptied, filled, package_of

Within = Callable[[], AbstractContextManager[Any]]

LEAST = 2
"""The fewest layers with weights in a block. A smaller module would run twice and save nothing."""


def blocks(model: nn.Module, *, in_list: bool = False) -> Iterator[nn.Module]:
    """The outermost blocks of a model: the members of its lists that have layers inside.

    A list inside a list is no block: its members are, because the model calls each of them (the
    `input_blocks` of a UNet).
    """
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            yield from blocks(child, in_list=True)
        elif in_list and _layers(child) >= LEAST:
            yield child
        else:
            yield from blocks(child)


def _layers(module: nn.Module) -> int:
    return sum(1 for inner in module.modules() if next(inner.parameters(recurse=False), None) is not None)


@contextmanager
def recomputed(model: nn.Module, within: Within = nullcontext) -> Generator[int]:
    """A context in which the blocks of a model are checkpointed. Yields how many there are.

    The last block is not checkpointed: it comes first in the backward pass, and would run again at once.
    `within` makes the context for the second run of a block, because torch turns some modes off in a backward
    pass.

    The gradients are exactly the same as without checkpointing: a block gets copies of its inputs, so that it
    may write over them, and in the backward pass it draws the same random numbers again and computes in the
    same autocast. A block's tensors that need gradients must be among its arguments.
    """
    with ExitStack() as stack:
        count = 0
        for block in list(blocks(model))[:-1]:
            own = vars(block)
            before = own.get("forward")
            own["forward"] = _checkpointed(block.forward, package_of(type(block)), within)
            stack.callback(put_back, own, before)
            count += 1
        yield count


def put_back(own: dict[str, Any], before: Any) -> None:
    """Restore `forward` in a module's attributes. `before` is None if it had none of its own."""
    if before is None:
        own.pop("forward", None)
    else:
        own["forward"] = before


def _checkpointed(forward: Callable[..., Any], family: str, within: Within) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        call = _Call(forward, (args, kwargs), family, within)
        # Without an input that requires a gradient, torch would not ask the block for any.
        token = torch.zeros((), requires_grad=True)
        outputs = _Recompute.apply(call, token, *call.tensors)
        return filled(call.made, iter(outputs), family)

    return run


class _Call:
    """One call of a block: its function, its arguments without their tensors, and its random state."""

    def __init__(self, forward: Callable[..., Any], arguments: Any, family: str, within: Within) -> None:
        self.forward, self.family, self.within = forward, family, within
        self.tensors: list[Tensor] = []
        self.given = emptied(arguments, self.tensors, family)
        self.wanted = [tensor.requires_grad for tensor in self.tensors]
        kinds = {"cpu"} | {tensor.device.type for tensor in self.tensors}
        self.casts = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted(kinds)
            if torch.amp.is_autocast_available(kind)
        ]
        self.chance = chance.states()
        self.made: Any = None
        """The value that the block returns, without its tensors."""

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors that the block returns for these."""
        args, kwargs = filled(self.given, iter(tensors), self.family)
        outputs: list[Tensor] = []
        self.made = emptied(self.forward(*args, **kwargs), outputs, self.family)
        return outputs

    def again(self, tensors: list[Tensor]) -> list[Tensor]:
        """Run with the random numbers and the autocast of the first time."""
        with ExitStack() as stack:
            stack.callback(chance.restore, chance.states())
            chance.restore(self.chance)
            for kind, dtype, on in self.casts:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=on))
            return self.run(tensors)


class _Recompute(torch.autograd.Function):
    """A block whose graph is made in the backward pass."""

    @staticmethod
    def forward(ctx: Any, call: _Call, token: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        # Copies: a block may write over its inputs.
        outputs = call.run([tensor.detach().clone() for tensor in tensors])
        call.tensors = []
        ctx.call = call
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*(value for value in outputs if not value.is_floating_point()))
        # A view, or a tensor returned twice, could not be overwritten later.
        seen: set[int] = set()
        return tuple(_own(value, seen) for value in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        with torch.enable_grad(), call.within():
            leaves = [
                tensor.detach().requires_grad_() if wanted else tensor.detach()
                for tensor, wanted in zip(ctx.saved_tensors, call.wanted, strict=True)
            ]
            outputs = call.again([leaf.clone() for leaf in leaves])
            pairs = [
                (output, gradient)
                for output, gradient in zip(outputs, gradients, strict=True)
                if gradient is not None and output.requires_grad
            ]
            if pairs:
                torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
        return None, None, *(leaf.grad for leaf in leaves)


def _own(value: Tensor, seen: set[int]) -> Tensor:
    again = id(value) in seen
    seen.add(id(value))
    return value.clone() if again or value._is_view() else value
