"""Make weights that a node has loaded usable in training, without copying them.

Nodes run in inference mode, and a tensor made there can never be saved for a backward pass. An alias is
another tensor on the same memory, and it can be saved.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...host.training import bypasses
from ...host.weights import QuantizedTensor


def alias(tensor: Tensor) -> Tensor:
    """A tensor on the same memory, with the same class and attributes, that is not an inference tensor.

    Call this outside of inference mode.
    """
    if isinstance(tensor, QuantizedTensor):
        packed: Any = tensor
        return QuantizedTensor(alias(packed._qdata), packed._layout_cls, _aliased(packed._params))
    kind = type(tensor)
    with torch._C.DisableTorchFunctionSubclass():
        tensor_alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        # Not `shape`: packed tensors of other packs may report another shape.
        tensor_alias.set_(
            tensor.untyped_storage(), tensor.storage_offset(), Tensor.size(tensor), tensor.stride()
        )
    if kind not in (Tensor, nn.Parameter):
        tensor_alias = tensor_alias.as_subclass(kind)
        vars(tensor_alias).update(vars(tensor))
    return tensor_alias


def _aliased(params: Any) -> Any:
    """Alias the tensors beside packed data, such as scales."""
    if not is_dataclass(params) or isinstance(params, type):
        return params
    held = {field.name: getattr(params, field.name) for field in fields(params)}
    changed = {name: alias(value) for name, value in held.items() if isinstance(value, Tensor)}
    return replace(params, **changed)


@contextmanager
def aliased(model: nn.Module) -> Generator[None]:
    """A context in which no weight or buffer of a model is an inference tensor or requires a gradient.

    The adapters that the host's own bypass has put around layers hold no inference tensors either.

    Afterwards the model has its original tensors back, with their flags. An alias that was replaced meanwhile
    stays replaced.
    """
    held: list[tuple[dict[str, Any], str, Any, Any, bool]] = []
    # A tensor that several modules share must stay one tensor.
    aliases: dict[int, Any] = {}
    around = bypasses(model)
    # Original and alias, by the `id` of the alias. It is kept so that no other object gets that `id`.
    lent: dict[int, tuple[Any, Any]] = {}
    try:
        for adapter in around:
            fit = tuple(
                alias(value) if isinstance(value, Tensor) and value.is_inference() else value
                for value in adapter.weights
            )
            lent |= {id(there): (before, there) for before, there in zip(adapter.weights, fit, strict=True)}
            adapter.weights = fit
        for module in model.modules():
            for table, is_parameter in ((module._parameters, True), (module._buffers, False)):
                for name, value in list(table.items()):
                    if value is None:
                        continue
                    flag = value.requires_grad
                    if not value.is_inference():
                        if is_parameter and flag:
                            held.append((table, name, value, value, flag))
                            value.requires_grad_(False)
                        continue
                    if id(value) not in aliases:
                        other = alias(value)
                        if is_parameter and not isinstance(other, nn.Parameter):
                            other = nn.Parameter(other, requires_grad=False)
                        aliases[id(value)] = other
                    held.append((table, name, value, aliases[id(value)], flag))
                    table[name] = aliases[id(value)]
        yield
    finally:
        for adapter in around:
            # The host may have moved some tensors and built a new tuple.
            adapter.weights = tuple(lent.get(id(there), (there,))[0] for there in adapter.weights)
        for table, name, before, there, flag in reversed(held):
            if before is there:
                before.requires_grad_(flag)
            elif table.get(name) is there and _same_place(before, there):
                table[name] = before


def _same_place(before: Any, there: Any) -> bool:
    """Whether an alias is still on the memory of its original: the host may have moved the model."""
    if isinstance(before, QuantizedTensor) and isinstance(there, QuantizedTensor):
        before, there = before._qdata, there._qdata
    return before.device == there.device and before.data_ptr() == there.data_ptr()
