"""Refuse transformers' Trainer where it neither clips nor clears the gradients of a model's network."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import nn

from ..errors import TrainError
from .tensors import norm_of

ROUNDED = 1.01
"""How many times the limit a clipped norm may be."""


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
        trainer = _trainer() if mode else None
        if trainer is not None:
            state = trainer.state
            before, self._seen = self._seen, (state, state.global_step)
            # Not at once: another callback may clip and clear the gradients.
            if before[0] is not state:
                self._check_first_step(trainer)
            elif before[1] < state.global_step:
                for network in self.networks:
                    _check(network, 0.0, "after a step")
        return type(self.module).train(self.module, mode)

    def _check_first_step(self, trainer: Any) -> None:
        """Let a trainer's optimiser refuse its first step with gradients above the trainer's limit."""
        state, limit = trainer.state, trainer.args.max_grad_norm
        first = state.global_step

        def check(*given: Any) -> None:
            # A later trainer may have the same optimiser.
            own = self._seen[0] is state and state.global_step == first
            for network in self.networks if own else ():
                _check(network, ROUNDED * limit, f"before a step, though max_grad_norm is {limit:g}")

        # accelerate has put the optimiser into another one, which has no hooks.
        inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        if limit:
            inner.register_step_pre_hook(check)


def guard(module: nn.Module, network: nn.Module) -> None:
    """Let a model refuse a trainer that leaves this network's gradients, until `unguard`."""
    held: dict[str, Any] = vars(module)
    if "train" not in held:
        # A method, because a copy of it is bound to the copied model.
        held["train"] = Guard(module).train
    owner = _of(module)
    if owner is not None:
        owner.networks.append(network)


def unguard(module: nn.Module, network: nn.Module) -> None:
    """Undo `guard`. After the last network the model has its own `train` again."""
    held = _of(module)
    if held is not None:
        held.networks = [other for other in held.networks if other is not network]
        if not held.networks:
            del vars(module)["train"]


def _of(module: nn.Module) -> Guard | None:
    """A model's guard; None where another tool hides the method."""
    owner = getattr(vars(module).get("train"), "__self__", None)
    return owner if isinstance(owner, Guard) else None


def _trainer() -> Any:
    """The trainer of transformers that is calling; None if there is none."""
    name = "transformers.trainer"
    frame = inspect.currentframe() if name in sys.modules else None
    while frame is not None:
        if frame.f_globals.get("__name__") == name:
            trainer = frame.f_locals.get("self")
            if hasattr(getattr(trainer, "state", None), "global_step"):
                return trainer
        frame = frame.f_back
    return None


def _check(network: nn.Module, most: float, when: str) -> None:
    """Raise TrainError where the norm of a network's gradients is above `most`."""
    grads = [one.grad for one in network.parameters() if one.requires_grad and one.grad is not None]
    size = float(norm_of(grads, torch.zeros((), device=grads[0].device))) if grads else 0.0
    if size > most:
        raise TrainError("E-trainer-did-not-step", size=f"{size:.3g}", when=when)
