"""Models that write over their own activations, trained without a change to them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch.autograd.graph import allow_mutation_on_saved_tensors

_open: list[Any] = []
"""The state of torch's context while it is open; it cannot be opened within itself."""


@contextmanager
def mutation_allowed() -> Generator[None]:
    """A time for forward and backward passes of models that write over what a backward pass needs.

    What is needed is copied when it is about to be written over. Every operation takes longer for that, some
    0.2 s in a step of a small UNet.
    """
    if _open:
        yield
        return
    with allow_mutation_on_saved_tensors() as state:
        _open.append(state)
        try:
            yield
        finally:
            _open.clear()


def forget_finished() -> None:
    """Let go of what the context has noted of graphs that are gone, of which it keeps a list otherwise."""
    for state in _open:
        for storage, noted in list(state.sid_to_tid.items()):
            live = {tensor for tensor in noted if tensor in state.tid_to_weakhandle}
            if live:
                state.sid_to_tid[storage] = live
            else:
                del state.sid_to_tid[storage]
