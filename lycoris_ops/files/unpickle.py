"""What a pickle that torch wrote says of tensors, read without running anything that it names.

A pickle is a list of instructions for a small machine. Python's own machine, and torch's `weights_only` one,
call the functions that a pickle names, with the arguments that it gives: this one calls none. Of all names it
knows those by which torch writes tensors, and makes descriptions of tensors from them. A pickle that names
anything else is refused. Each instruction takes bounded time and memory, and their number is bounded.
Source of the instructions: the documentation of Python's `pickletools`. Source of the names and of their
arguments: `torch.save` and `torch._utils` of torch 2.13.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch

from .bounds import MAX_STEPS


class PickleError(Exception):
    """A pickle that is damaged, or that holds more than tensors; the message says what was found."""


class Storage(NamedTuple):
    """A piece of data in the file."""

    key: str
    """Its name in the file."""
    dtype: str
    """torch's name of the dtype of its elements; uint8 where the tensor says the dtype."""
    numel: int
    """The number of its elements, as the pickle says it."""


class Stated(NamedTuple):
    """A tensor as a pickle states it. Nothing of it is checked."""

    storage: Storage
    dtype: str
    """torch's name of the dtype."""
    offset: Any
    """The first element's place in the storage, in elements."""
    size: Any
    stride: Any
    """How far apart in the storage neighbours in each dimension are, in elements."""


class Other(NamedTuple):
    """A value that is no plain tensor."""

    what: str
    """In words, for messages."""


class Named(NamedTuple):
    """A function or class that a pickle names."""

    name: str


@dataclass(slots=True)
class Table:
    """A dictionary as its keys and values one after the other.

    They are not put into a dictionary, since a pickle can hold keys for which that takes forever.
    """

    items: list[Any] = field(default_factory=list[Any])
    pairs: Sequence[Any] = ()
    """Keys and values in pairs that come before these: so Python 2 wrote ordered dictionaries."""

    def all(self) -> list[tuple[Any, Any]]:
        """The keys with their values. Raises PickleError where a pair is none."""
        if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in self.pairs):
            raise PickleError("damaged data")
        return [*(tuple(pair) for pair in self.pairs), *zip(self.items[::2], self.items[1::2], strict=True)]


STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "storage.UntypedStorage": "uint8",
}
"""torch's names of the kinds of storages, to the dtypes of their elements."""

NO_TENSORS = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without data (device meta)",
    "_rebuild_qtensor": "a tensor of a quantised dtype",
    "_rebuild_wrapper_subclass": "a tensor of another class",
    "_rebuild_device_tensor_from_numpy": "an array of numpy",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}
"""Functions of `torch._utils` that make tensors which are not plain, with what these are in words."""

HARMLESS = {
    *("collections.Counter", "_codecs.encode", "builtins.bytearray", "builtins.set", "builtins.complex"),
    *("torch.Size", "torch.device", "torch.serialization._get_layout"),
}
"""Other names that torch's own reader allows. A trainer's checkpoint has some beside its tensors."""

VALUES = frozenset(
    str(value) for value in vars(torch).values() if isinstance(value, torch.dtype | torch.qscheme)
)
"""torch's names of dtypes, and of ways to quantise."""

ALLOWED = HARMLESS | VALUES

REBUILD = "torch._utils._rebuild_"
"""The start of the names of torch's functions that make tensors."""
ORDERED = "collections.OrderedDict"
WITH_CLASS = "torch._tensor._rebuild_from_type_v2"
"""Makes a tensor that has attributes or is of a class of its own."""
CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter")
"""The classes of plain tensors."""


class Read(NamedTuple):
    """What a pickle holds."""

    value: Any
    end: int
    """Where the pickle ends."""
    storages: dict[str, Storage]
    """The storages that it refers to, by their keys."""


def unpickle(data: bytes, start: int = 0) -> Read:
    """The value of the pickle that begins at `start`.

    Texts, numbers, tuples and lists are themselves, dictionaries are `Table`, tensors `Stated`. Raises
    PickleError.
    """
    machine = _Machine(data, start)
    try:
        value = machine.run()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        # An instruction for values that are not there or are of another type.
        raise PickleError("damaged data") from None
    return Read(value, machine.at, machine.storages)


class _Machine:
    """The machine: `stack` has values, `marks` the stacks below each mark, `memo` values by number."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        data = self.data
        for _ in range(MAX_STEPS):
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return self.stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise PickleError(f"the instruction {code:#04x}, which torch does not write")
            step(self)
        raise PickleError(f"more than {MAX_STEPS} instructions")

    def take(self, count: int) -> bytes:
        """The next bytes. Raises ValueError where there are fewer."""
        found = self.data[self.at : self.at + count]
        if len(found) < count:
            raise ValueError
        self.at += count
        return found

    def line(self) -> str:
        end = self.data.index(b"\n", self.at, self.at + 200)
        return self.take(end + 1 - self.at)[:-1].decode()

    def since_mark(self) -> list[Any]:
        """The values since the last mark, which are taken off the stack."""
        found = self.stack
        self.stack = self.marks.pop()
        return found

    # Values.

    def none(self) -> None:
        self.stack.append(None)

    def false(self) -> None:
        self.stack.append(False)

    def true(self) -> None:
        self.stack.append(True)

    def int1(self) -> None:
        self.stack.append(self.take(1)[0])

    def int2(self) -> None:
        self.stack.append(int.from_bytes(self.take(2), "little"))

    def int4(self) -> None:
        self.stack.append(int.from_bytes(self.take(4), "little", signed=True))

    def long1(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))

    def number(self) -> None:
        self.stack.append(struct.unpack(">d", self.take(8))[0])

    def text(self) -> None:
        size = int.from_bytes(self.take(4), "little")
        # As pickle writes them: `check_names` refuses names with half of a pair of surrogates.
        self.stack.append(self.take(size).decode("utf-8", "surrogatepass"))

    def old_text(self) -> None:
        self.stack.append(self.take(self.take(1)[0]).decode())

    # Tuples, lists and dictionaries.

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def empty_tuple(self) -> None:
        self.stack.append(())

    def tuple_(self) -> None:
        found = self.since_mark()
        self.stack.append(tuple(found))

    def tuple1(self) -> None:
        self.stack[-1] = (self.stack[-1],)

    def tuple2(self) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def tuple3(self) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def empty_list(self) -> None:
        self.stack.append([])

    def append(self) -> None:
        item = self.stack.pop()
        _list(self.stack[-1]).append(item)

    def appends(self) -> None:
        items = self.since_mark()
        _list(self.stack[-1]).extend(items)

    def empty_dict(self) -> None:
        self.stack.append(Table())

    def empty_set(self) -> None:
        self.stack.append(Other("a set"))

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def set_items(self) -> None:
        self._set(self.since_mark())

    def _set(self, items: list[Any]) -> None:
        found = self.stack[-1]
        if type(found) is Table:
            if len(items) % 2:
                raise ValueError
            found.items += items
        elif type(found) is not Other:
            raise TypeError

    # The memo.

    def put1(self) -> None:
        self.memo[self.take(1)[0]] = self.stack[-1]

    def put4(self) -> None:
        self.memo[int.from_bytes(self.take(4), "little")] = self.stack[-1]

    def get1(self) -> None:
        self.stack.append(self.memo[self.take(1)[0]])

    def get4(self) -> None:
        self.stack.append(self.memo[int.from_bytes(self.take(4), "little")])

    # Names, and what is made by them.

    def protocol(self) -> None:
        self.take(1)

    def global_(self) -> None:
        # Python 2 has another name for the module.
        module = self.line().replace("__builtin__", "builtins")
        self.stack.append(_named(f"{module}.{self.line()}"))

    def persistent(self) -> None:
        stated = _tuple(self.stack.pop())
        kind, storage, key, _place, numel = stated[:5]
        # Old files have a sixth value, which is not None where the storage is a part of another.
        if kind != "storage" or any(more is not None for more in stated[5:6]):
            raise PickleError("a reference to what is no storage of its own")
        if type(storage) is not Storage or type(key) is not str or type(numel) is not int:
            raise TypeError
        self.storages[key] = Storage(key, storage.dtype, numel)
        self.stack.append(self.storages[key])

    def reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], arguments)

    def new_object(self) -> None:
        self.reduce()

    def build(self) -> None:
        # The attributes of an object: nothing that is read has any.
        self.stack.pop()


def _named(name: str) -> Any:
    """What a name stands for. Raises PickleError for one that torch writes for no tensor."""
    kind = STORAGES.get(name.removeprefix("torch."))
    if kind is not None:
        return Storage("", kind, 0)
    if name.startswith(REBUILD) or name in (ORDERED, WITH_CLASS, *CLASSES) or name in ALLOWED:
        return Named(name)
    raise PickleError(f"the name {name}")


def _made(function: Any, arguments: Any) -> Any:
    """What a function would make of its arguments, as a description."""
    name, given = _name(function), _tuple(arguments)
    if name == WITH_CLASS:
        # The function that makes the tensor, its class, and the arguments.
        if _name(given[1]) not in CLASSES:
            return Other(f"a tensor of the class {_name(given[1])}")
        name, given = _name(given[0]), _tuple(given[2])
    if name == ORDERED:
        return Table(pairs=_list(given[0]) if given else ())
    what = name.removeprefix("torch._utils.")
    if what in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        storage, rest = given[0], list(given[4:8])
        if type(storage) is not Storage:
            raise TypeError
        # After `requires_grad` and the hooks, and in the third version the dtype.
        dtype = _name(rest.pop(2)).removeprefix("torch.") if what.endswith("3") else storage.dtype
        if rest[2:] not in ([], [None]):
            return Other("a tensor whose values are negated or conjugated when they are used")
        return Stated(storage, dtype, *given[1:4])
    if what in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return given[0]
    return Other(NO_TENSORS.get(what, f"an object of {name}"))


def _name(value: Any) -> str:
    if type(value) is not Named:
        raise TypeError
    return value.name


def _tuple(value: Any) -> tuple[Any, ...]:
    if type(value) is not tuple:
        raise TypeError
    return cast("tuple[Any, ...]", value)


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise TypeError
    return cast("list[Any]", value)


_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.protocol,
    ord("N"): _Machine.none,
    0x88: _Machine.true,
    0x89: _Machine.false,
    ord("K"): _Machine.int1,
    ord("M"): _Machine.int2,
    ord("J"): _Machine.int4,
    0x8A: _Machine.long1,
    ord("G"): _Machine.number,
    ord("X"): _Machine.text,
    ord("U"): _Machine.old_text,
    ord("("): _Machine.mark,
    ord(")"): _Machine.empty_tuple,
    ord("t"): _Machine.tuple_,
    0x85: _Machine.tuple1,
    0x86: _Machine.tuple2,
    0x87: _Machine.tuple3,
    ord("]"): _Machine.empty_list,
    ord("a"): _Machine.append,
    ord("e"): _Machine.appends,
    ord("}"): _Machine.empty_dict,
    0x8F: _Machine.empty_set,
    ord("s"): _Machine.set_item,
    ord("u"): _Machine.set_items,
    ord("q"): _Machine.put1,
    ord("r"): _Machine.put4,
    ord("h"): _Machine.get1,
    ord("j"): _Machine.get4,
    ord("c"): _Machine.global_,
    ord("Q"): _Machine.persistent,
    ord("R"): _Machine.reduce,
    0x81: _Machine.new_object,
    ord("b"): _Machine.build,
}
"""The instructions that torch writes, by their codes."""
