"""Refuse transformers' Trainer where it trains a model without clearing its network's gradients."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from torch import Tensor, nn

from ..errors import TrainError


class Guard:
    """Hides a model's `train`, which the trainer calls at the start of each pass, also in wrapped models.

    The trainer itself cannot be reached from the model, so it is found among the callers.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.networks: list[nn.Module] = []
        self._seen: tuple[Any, int] = (None, 0)
        """The trainer's state in the last pass, and its steps so far."""

    def train(self, mode: bool = True) -> nn.Module:
        """The model's own `train`. Raises TrainError in a trainer that has left gradients after its step."""
        state = _state() if mode else None
        if state is not None:
            before, self._seen = self._seen, (state, state.global_step)
            # Not at once: another callback may clear the gradients.
            if before[0] is state and before[1] < state.global_step:
                for network in self.networks:
                    _check(network)
        return type(self.module).train(self.module, mode)


def guard(module: nn.Module, network: nn.Module) -> None:
    """Let a model refuse a trainer that leaves this network's gradients, until `unguard`."""
    held: dict[str, Any] = vars(module)
    if "train" not in held:
        # A method, because a copy of it is bound to the copied model.
        held["train"] = Guard(module).train
    found = _of(module)
    if found is not None:
        found.networks.append(network)


def unguard(module: nn.Module, network: nn.Module) -> None:
    """Undo `guard`. After the last network the model has its own `train` again."""
    found = _of(module)
    if found is not None:
        found.networks = [other for other in found.networks if other is not network]
        if not found.networks:
            del vars(module)["train"]


def _of(module: nn.Module) -> Guard | None:
    """A model's guard; None where another tool hides the method."""
    one = getattr(vars(module).get("train"), "__self__", None)
    return one if isinstance(one, Guard) else None


def _state() -> Any:
    """The state of the trainer of transformers that is calling; None if there is none."""
    name = "transformers.trainer"
    frame = inspect.currentframe() if name in sys.modules else None
    while frame is not None:
        if frame.f_globals.get("__name__") == name:
            state = getattr(frame.f_locals.get("self"), "state", None)
            if hasattr(state, "global_step"):
                return state
        frame = frame.f_back
    return None


def _check(network: nn.Module) -> None:
    for one in network.parameters():
        grad: Tensor | None = one.grad
        if one.requires_grad and grad is not None and bool(grad.any()):
            raise TrainError(
                "the trainer has neither clipped nor cleared the gradients of the network",
                got="gradients after a step",
                expected="a trainer that knows the network",
                hint="Make it anew, and give the trainer callbacks=[lyc.adapter_checkpoints(network)] "
                "and an optimiser of its parameters, or a module that holds the model and the network. "
                "A network that is not to be trained: network.requires_grad_(False)",
            )
