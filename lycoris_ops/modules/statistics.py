"""Values that a model updates by itself in its passes, such as the running statistics of BatchNorm."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

from torch import nn

NAMES = frozenset({"num_batches_tracked", "_u", "_v", "weight_u", "weight_v"})
"""Names of such values in torch's BatchNorm and spectral norms, besides those that begin with RUNNING."""
RUNNING = "running_"


def with_statistics(module: nn.Module) -> list[nn.Module]:
    """The modules of a model that have such values. Adapters do not hold them, and `eval` mode fixes them."""
    return [
        inner
        for inner in module.modules()
        if any(name in NAMES or name.startswith(RUNNING) for name, _ in inner.named_buffers(recurse=False))
    ]


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Generator[None]:
    """A context in which modules are in `eval` mode. Afterwards they have their earlier modes again."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
