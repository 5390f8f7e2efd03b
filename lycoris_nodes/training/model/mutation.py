"""Train models that overwrite their own activations, without changing the models."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

_open: list[Any] = []
"""The open watch, if there is one: contexts within it need no other."""


@contextmanager
def mutation_allowed() -> Generator[None]:
    """A context for the passes of models that overwrite tensors which the backward pass needs.

    A needed tensor is copied just before it is overwritten. This makes every operation slower: it adds some
    0.2 s to a step of a small UNet.

    torch's `allow_mutation_on_saved_tensors` does this only if the overwritten tensor begins where the needed
    one does. Here any part of the storage counts. torch's function also holds tensors with their graphs, so
    that an unused branch of a network, as in PixelDiT's last block, is never freed.
    """
    if _open:
        yield
        return
    kept: WeakValueDictionary[int, _Storage] = WeakValueDictionary()

    def pack(tensor: Tensor) -> _Kept:
        storage = _storage_of(tensor)
        stored = kept.get(storage)
        if stored is None:
            stored = kept[storage] = _Storage()
        # Without its graph, or the graph would hold itself.
        return _Kept(tensor.detach(), stored)

    _open.append(kept)
    try:
        with saved_tensors_hooks(pack, lambda holder: holder.tensor), _Watch(kept):
            yield
    finally:
        _open.clear()


class _Kept:
    """A tensor that a backward pass needs, as it was."""

    def __init__(self, tensor: Tensor, storage: _Storage) -> None:
        self.tensor = tensor
        self.storage: _Storage | None = storage
        storage.add(self)


_Storage = WeakSet[_Kept]
"""The kept tensors of one storage. It lives as long as any of them."""


class _Watch(TorchDispatchMode):
    """A context in which the kept tensors of a storage are copied before an operation writes to it."""

    def __init__(self, kept: WeakValueDictionary[int, _Storage]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        for tensor in _written(func, args, named):
            storage = self._kept.pop(_storage_of(tensor), None)
            if storage is not None:
                _copy(storage)
        return func(*args, **named)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that a call of an operator writes to."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, Tensor):
                    yield tensor


def _storage_of(tensor: Tensor) -> int:
    """An id of a storage, unique among those that are alive."""
    return tensor.untyped_storage()._cdata


def _copy(storage: _Storage) -> None:
    """Copy the kept tensors of a storage, each part of it once."""
    copies: dict[Any, Tensor] = {}
    for holder in list(storage):
        tensor = holder.tensor
        view = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if view not in copies:
            copies[view] = tensor.clone()
        holder.tensor, holder.storage = copies[view], None
