"""Call a cross-attention once for each set of its keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...lycoris_ops import Blend


class CalledInTurn:
    """Hooks that call an attention once for each set of keys and values, and blend its outputs by place.

    The first set comes from the adapters without a mask; each `Where` of the blend adds one set. The modules
    `layers` make the keys and values, and output all sets as one batch.

    This is for an attention whose keys and values cannot have a larger batch than its queries. The rest of
    the module acts token by token, so blending its outputs gives the same as blending the attention's.
    """

    def __init__(self, attention: nn.Module, layers: Sequence[nn.Module], blend: Blend) -> None:
        self._blend = blend
        self._turn = 0
        self._handles = [layer.register_forward_hook(self._own) for layer in layers]
        self._handles.append(attention.register_forward_hook(self._all, with_kwargs=True))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _own(self, layer: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        """The keys or values of this turn."""
        return y.chunk(1 + len(self._blend.apart))[self._turn]

    def _all(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any], first: Any) -> Any:
        """The blend of all turns. `first` is the output of the first one; the others are called here."""
        packed = isinstance(first, tuple)

        def called_again(turn: int) -> Tensor:
            self._turn = turn
            # `forward` does not run the hooks again.
            output = attention.forward(*args, **kwargs)
            return output[0] if packed else output

        base = first[0] if packed else first
        try:
            total = self._blend(base, map(called_again, range(1, 1 + len(self._blend.apart))))
        finally:
            self._turn = 0
        return (total, *first[1:]) if packed else total
