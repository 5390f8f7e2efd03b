"""The keys of an adapter file, layer by layer."""

from __future__ import annotations

import re

from ..algorithms import ALGORITHMS
from ..algorithms.oft import BLOCKS
from ..errors import LayerError
from ..files.tensor_file import TensorFile
from ..names.dialects import Dialect, split_key

Groups = dict[str, dict[str, str]]
"""Layer name to its keys by canonical suffix."""

COMPANIONS: frozenset[str] = (
    frozenset[str]()
    .union(*(kind.extras for kind in ALGORITHMS.values()))
    .difference(*(variant for kind in ALGORITHMS.values() for variant in kind.variants))
)
"""Suffixes that make no layer of their own."""
NUMBERED = re.compile(rf"{BLOCKS}\.(\d+)$")


def group(file: TensorFile, dialect: Dialect | None) -> tuple[Groups, list[str]]:
    """The keys of every layer, and those that belong to none. Raises LayerError for one given twice."""
    grouped: Groups = {}
    strangers: list[str] = []
    for key in file.tensors:
        split = split_key(dialect.rename(key) if dialect and dialect.rename else key)
        if split is None:
            strangers.append(key)
        else:
            _put(grouped, *split, key, file)
    rest = [key for key in strangers if not _adopt(key, grouped)]
    _join_companions(grouped, file)
    return _by_part(grouped), rest


def _put(grouped: Groups, name: str, suffix: str, key: str, file: TensorFile) -> None:
    known = grouped.setdefault(name, {})
    if suffix in known:
        raise LayerError(
            "a layer holds the same tensor twice",
            file=file.path,
            key=name,
            got=f"{known[suffix]} and {key}",
            expected="one of them",
        )
    known[suffix] = key


def _adopt(key: str, grouped: Groups) -> bool:
    """Give a key of unknown suffix to the layer it names.

    What it means is not known, so the layer without it would be wrong.
    """
    parts = key.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:depth])
        if name in grouped:
            grouped[name][".".join(parts[depth:])] = key
            return True
    return False


def _join_companions(grouped: Groups, file: TensorFile) -> None:
    """Give a magnitude or an alpha whose layer is written with other separators to that layer.

    Some converters turned the dots of a name into underscores in the factors' keys alone.
    """
    alone = dict.fromkeys(name for name, keys in grouped.items() if COMPANIONS.issuperset(keys))
    if not alone:
        return
    complete = {_plain(name): name for name in grouped if name not in alone}
    for name in alone:
        whole = complete.get(_plain(name))
        if whole is not None:
            for suffix, key in grouped.pop(name).items():
                _put(grouped, whole, suffix, key, file)


def _by_part(grouped: Groups) -> Groups:
    """kohya-ss' OFT of fused layers of Flux: `oft_blocks.0`, `.1`, ... rotate one part of the rows each.

    Source: networks/oft_flux.py of kohya-ss sd-scripts (Apache-2.0). The parts share alpha.
    """
    parted: Groups = {}
    for name, keys in grouped.items():
        parts = [suffix for suffix in keys if suffix.startswith(BLOCKS)]
        numbers = {suffix: match[1] for suffix in parts if (match := NUMBERED.match(suffix))}
        if not numbers:
            parted[name] = keys
            continue
        shared = {suffix: key for suffix, key in keys.items() if suffix not in numbers}
        for suffix, number in numbers.items():
            part = f"{name}.{number}" if len(numbers) > 1 else name
            parted[part] = {**shared, BLOCKS: keys[suffix]}
    return parted


def _plain(name: str) -> str:
    return name.replace(".", "_")
