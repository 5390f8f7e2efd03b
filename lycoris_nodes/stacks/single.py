"""The one adapter of a stack, for what can hold only one."""

from __future__ import annotations

from collections.abc import Mapping

from ...lycoris_ops import Adapter, LycorisError, Shape, Stack, weighted


def only_adapter(stack: Stack, holder: str, model: Mapping[str, Shape] | None = None) -> Adapter:
    """The adapter of a stack of one, with its strengths and block rules in it, for a `holder` ("an adapter
    file").

    `model` has the keys and shapes of what the adapter is for. Raises LycorisError if the stack has none or
    several, or where `weighted` cannot put the strengths into the adapter.
    """
    if len(stack) != 1:
        names = ", ".join(entry.name for entry in stack) or "none"
        raise LycorisError(
            f"{holder} holds only one adapter",
            got=f"a stack of {len(stack)}: {names}",
            expected="a stack of one",
            hint="Make one of them with Merge LoRAs / LyCORIS first",
        )
    (entry,) = stack
    return weighted(entry, model)
