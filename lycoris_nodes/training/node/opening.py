"""Open a model, and the text encoders beside it, for training."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..data.texts import TextEncoder
from ..model.session import Session, opened
from .settings import PRECISIONS


@contextmanager
def opened_both(
    model: Any, clip: Any, *, memory: float, recompute: bool, precision: str, seed: int
) -> Generator[tuple[Session, TextEncoder | None]]:
    """A context in which a model is open for training, and the text encoders of `clip` where there are any.

    See `opened`: `memory` bytes are left free beside them, and with `recompute` blocks run again in the
    backward pass. `precision` is one of `PRECISIONS`.
    """
    with ExitStack() as stack:
        session = stack.enter_context(
            opened(
                model,
                checkpointing=recompute,
                memory=memory,
                dtype=PRECISIONS[precision],
                beside=[] if clip is None else [clip.patcher],
            )
        )
        if clip is None:
            yield session, None
            return
        of_text = stack.enter_context(opened(clip.patcher, checkpointing=recompute, memory=None))
        yield session, TextEncoder(clip, of_text, session.model, session.device, seed)
