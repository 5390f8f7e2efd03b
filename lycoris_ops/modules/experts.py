"""Parameters that hold the weights of several experts, one behind the other."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ..bypass.stacked import Stacked


def expert_weights(module: nn.Module) -> Iterator[tuple[str, Tensor, Stacked]]:
    """The parameters (E, O, I) of a module whose parts are weights of E experts, by name.

    Such modules are those of transformers, which know their number of experts or are called so.
    """
    if not (hasattr(module, "num_experts") or "Experts" in type(module).__name__):
        return
    for name, value in module.named_parameters(recurse=False):
        if value.ndim == 3 and value.is_floating_point():
            yield name, value, Stacked(module, name)


def stored_turned(module: nn.Module) -> bool:
    """Whether the experts of a module are stored as (E, I, O), as transformers and PEFT tell it."""
    return bool(getattr(module, "is_transposed", False))
