"""The dialects of adapter files: how each tool spells names, and its format of a layer's tensors.

A module in this folder that defines DIALECT registers it. A dialect with a `write` can be written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...algorithms import ALGORITHMS, Layer
from ...discovery import discover
from ...errors import LycorisError
from ...files.tensor_file import TensorFile
from ...peft import Config, ConfigFile
from .base import MEMBERS, Asked, Component, Dialect, Encoded, Groups, Held, Opened, Prefix, Write

if TYPE_CHECKING:
    from ..layer_name import LayerName

__all__ = [
    "BASE_WEIGHTS",
    "DIALECTS",
    "GENERIC_NAMES",
    "KEPT",
    "PREFIXES",
    "WRITES",
    "WRITTEN_DIALECTS",
    "Asked",
    "Component",
    "Dialect",
    "Encoded",
    "Groups",
    "Held",
    "Opened",
    "Prefix",
    "Write",
    "config_of",
    "is_aside",
    "opened",
    "own_dialect",
    "restated",
    "split_key",
    "unread",
    "value_of",
    "write_of",
]


def _discover() -> dict[str, Dialect]:
    dialects: dict[str, Dialect] = {}
    for module in discover(__name__):
        dialect = getattr(module, "DIALECT", None)
        if dialect is None:
            continue
        if dialect.name in dialects:
            raise TypeError(f"two modules register the dialect {dialect.name!r}")
        dialects[dialect.name] = dialect
    return dialects


DIALECTS: dict[str, Dialect] = _discover()
"""Every dialect by its name."""

WRITES: dict[str, Write] = {
    name: write
    for write, name in sorted(
        ((dialect.write, name) for name, dialect in DIALECTS.items() if dialect.write),
        key=lambda item: item[0].order,
    )
}
"""The writer of each dialect that can be written."""
WRITTEN_DIALECTS = tuple(WRITES)
"""The names of the dialects that can be written."""
KEPT = "comfy"
"""The dialect in which tensors are written when names are kept unchanged."""


GENERIC_NAMES = tuple(sorted(dialect.file for dialect in DIALECTS.values() if dialect.file))
"""File names that some tools give to all of their adapters: only the folder's name tells them apart."""


def write_of(dialect: str) -> Write:
    """How a dialect is written. Raises LycorisError for one that is unknown, or only read."""
    if dialect not in WRITES:
        raise LycorisError("E-dialect-unknown", got=str(dialect), expected=", ".join(WRITTEN_DIALECTS))
    return WRITES[dialect]


def own_dialect(spoken: str) -> str | None:
    """The dialect to write an adapter in if none is asked for: the one that its names are in.

    None if that cannot be written: then the names stay as they are.
    """
    return spoken if spoken in WRITES else None


DEFAULT = "default"
"""PEFT's name for an adapter that the user did not name."""
TOO_COMMON = ("weight",)
"""Suffixes that are never split off, because keys of every checkpoint end in them.

Only IA3 has one: its `weight` counts only together with the `on_input` of the same layer.
"""


def _suffixes() -> dict[str, str]:
    """Maps every suffix that a tool writes to the algorithms' own suffix."""
    merged = {suffix: suffix for kind in ALGORITHMS.values() for suffix in kind.table.suffixes}
    for dialect in DIALECTS.values():
        for written, canonical in dialect.suffixes.items():
            if merged.setdefault(written, canonical) != canonical:
                raise TypeError(f"dialects disagree on the suffix {written!r}")
    known = {written: suffix for written, suffix in merged.items() if written not in TOO_COMMON}
    return {**{_with_default(written): suffix for written, suffix in known.items()}, **known}


def _with_default(suffix: str) -> str:
    """A suffix with `default`, PEFT's name for an unnamed adapter, after the tensor's name.

    Files made from the state dict of a live model have it, whatever the tool calls the tensors.
    """
    tensor, dot, last = suffix.rpartition(".")
    return f"{tensor}.{DEFAULT}.{last}" if dot and last in MEMBERS else f"{suffix}.{DEFAULT}"


_SUFFIXES = _suffixes()


def _by_end() -> dict[str, list[tuple[str, str]]]:
    """(written, canonical) suffixes by the last two words of the written one, or by its only word.

    The longest come first, because the longest one that fits a key is meant.
    """
    by_end: dict[str, list[tuple[str, str]]] = {}
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        end = ".".join(("", *suffix.split(".")[-2:]))
        by_end.setdefault(end, []).append((f".{suffix}", _SUFFIXES[suffix]))
    return by_end


_BY_END = _by_end()
PREFIXES = {
    prefix.text: (dialect.name, prefix) for dialect in DIALECTS.values() for prefix in dialect.prefixes
}
"""Every prefix by its text, with its dialect."""


def _recognised(keys: Mapping[str, object]) -> Dialect | None:
    known = DIALECTS.values()
    return next((dialect for dialect in known if dialect.recognises and dialect.recognises(keys)), None)


_OPENED = [dialect.opened for dialect in DIALECTS.values() if dialect.opened]
_ASIDE = [dialect.aside for dialect in DIALECTS.values() if dialect.aside]
_CONFIG_OF = [dialect.config_of for dialect in DIALECTS.values() if dialect.config_of]
_VALUE_OF = [dialect.value_of for dialect in DIALECTS.values() if dialect.value_of]
BASE_WEIGHTS = tuple(dialect.base_weight for dialect in DIALECTS.values() if dialect.base_weight)
"""See `Dialect.base_weight`."""
_UNREAD = [dialect.unread for dialect in DIALECTS.values() if dialect.unread]
_RESTATED = [dialect.restated for dialect in DIALECTS.values() if dialect.restated]


def opened(file: TensorFile, config: ConfigFile | None) -> Opened:
    """A file with the tensors that the algorithms define, whichever tool wrote it. See `Dialect.opened`."""
    read = Opened(file, config, _recognised(file.tensors))
    for opened_by in _OPENED:
        read = opened_by(read)
    return read


def is_aside(key: str) -> bool:
    """Whether a key is of training alone. See `Dialect.aside`."""
    return any(aside(key) for aside in _ASIDE)


def config_of(
    read: Opened, name: LayerName, algorithm: type[Layer], keys: Mapping[str, str], rank: int | None
) -> Config[Any] | None:
    """The configuration that a layer follows. See `Dialect.config_of`."""
    if read.config is None and not read.own:
        return None
    for config_by in _CONFIG_OF:
        if config := config_by(read, name, algorithm, keys, rank):
            return config
    return None


def value_of(read: Opened, name: LayerName, end: str) -> str | None:
    """The suffix of a module's own values in a key without one. See `Dialect.value_of`."""
    return next((suffix for suffix_by in _VALUE_OF if (suffix := suffix_by(read, name, end))), None)


def unread(keys: Collection[str], config: ConfigFile | None = None) -> str | None:
    """What tensors are that a tool writes and nothing reads. See `Dialect.unread`."""
    return next((words for words_by in _UNREAD if (words := words_by(keys, config))), None)


def restated(held: Held) -> dict[str, Tensor]:
    """A layer's tensors in the algorithm's form, whichever tool wrote them."""
    tensors = dict(held.tensors)
    for restated_by in _RESTATED:
        tensors |= restated_by(held)
    return tensors


def split_key(key: str) -> tuple[str, str] | None:
    """Split a tensor's name into (layer name, canonical suffix); None if the suffix is unknown."""
    last = key.rfind(".")
    for start in (key.rfind(".", 0, last), last):
        for written, canonical in _BY_END.get(key[start:], ()):
            if key.endswith(written):
                return key[: -len(written)], canonical
    return None
