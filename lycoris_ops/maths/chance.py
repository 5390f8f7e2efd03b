"""Random streams that depend only on a seed and on their purpose.

The draws of a training come from the global generators of Python, numpy and torch. Each step, each epoch's
data and each batch of a validation has a stream of its own, seeded by a hash of the run's seed and the
stream's name. What was drawn before does not matter: a resumed run draws what an unbroken one draws, all
validations draw the same, and none changes what the training draws. The name of a step has the number of the
model's copy, so copies draw differently.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# The accelerators whose generators are not the CPU's. Each is a module of torch with the same functions.
ACCELERATORS = ("cuda", "xpu")


class Chance:
    """A stream of the global generators, named by values such as ("step", 12)."""

    def __init__(self, seed: int, *name: str | int) -> None:
        text = "/".join(map(str, (seed, *name)))
        self._seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        self._states: list[Any] | None = None

    @contextmanager
    def drawn(self) -> Generator[None]:
        """A context in which the global generators draw from this stream, from where it last stopped."""
        outer = states()
        try:
            if self._states is None:
                random.seed(self._seed)
                np.random.seed(self._seed % 2**32)  # noqa: NPY002 - losses and loaders draw from it
                # Not torch.manual_seed, which is slow where there is CUDA support that is not in use.
                torch.default_generator.manual_seed(self._seed)
                for module in _in_use():
                    module.manual_seed_all(self._seed)
            else:
                restore(self._states)
            yield
        finally:
            self._states = states()
            restore(outer)


def states() -> list[Any]:
    """The states of the global generators of Python, numpy, torch and of the accelerators in use."""
    states: list[Any] = [random.getstate(), np.random.get_state(), torch.get_rng_state()]  # noqa: NPY002
    return states + [module.get_rng_state_all() for module in _in_use()]


def restore(states: list[Any]) -> None:
    """Set the global generators to states that `states` has returned."""
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    # An accelerator first used in between has no earlier state to return to.
    for module, state in zip(_in_use(), states[3:], strict=False):
        module.set_rng_state_all(state)


def _in_use() -> list[Any]:
    modules = [getattr(torch, name) for name in ACCELERATORS if hasattr(torch, name)]
    return [module for module in modules if module.is_initialized()]
