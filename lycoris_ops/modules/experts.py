"""Parameters that hold the weights of several experts, stacked."""

from __future__ import annotations

from torch import Tensor, nn

from ..bypass.stacked import Stacked
from ..maths.divided import is_divided
from ..maths.tensors import is_plain


def expert_weights(path: str, module: nn.Module) -> list[tuple[str, Tensor, Stacked]] | str:
    """The parameters of a module that hold the weights of E experts, by name; or why they cannot be adapted.

    They are (E, O, I), or (E, I, O) if the module's `is_transposed` is set. Such modules come from
    transformers: they have `num_experts`, or a class with Experts in its name.
    """
    if not (hasattr(module, "num_experts") or "Experts" in type(module).__name__):
        return []
    held = dict(module.named_parameters(recurse=False))
    stacks = {name: value for name, value in held.items() if value.ndim == 3 and value.is_floating_point()}
    narrow = any(
        value.itemsize == 1 or not (is_plain(value) or is_divided(value)) for value in stacks.values()
    )
    if stacks and (narrow or any("_scale" in name for name in held)):
        return "its experts are packed, with scales for their values"
    return [(name, value, Stacked(module, name, f"{path}.{name}")) for name, value in stacks.items()]
