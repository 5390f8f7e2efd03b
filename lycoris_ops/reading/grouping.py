"""Sorts the keys of an adapter file into layers."""

from __future__ import annotations

import re

from ..algorithms import ALGORITHMS
from ..algorithms.oft import BLOCKS
from ..errors import LayerError
from ..files.tensor_file import TensorFile
from ..names.dialects import Dialect, peft, split_key

Groups = dict[str, dict[str, str]]
"""The keys of each layer, by the layer's name: for each suffix of the algorithms, the key in the file."""

COMPANIONS: frozenset[str] = (
    frozenset[str]()
    .union(*(kind.table.extras for kind in ALGORITHMS.values()))
    .difference(*(variant for kind in ALGORITHMS.values() for variant in kind.table.variants))
)
"""Suffixes of tensors that only accompany others, such as alpha: alone they make no layer."""
PART_OF_BLOCKS = f"{BLOCKS}."
NUMBERED = re.compile(rf"{BLOCKS}\.([0-9]+)")
"""The suffix of one part of kohya's OFT of a fused layer, with the part's number."""
WORDS = 8
"""The most words of an unknown suffix. No tool writes more than four, but a key of nothing but dots has
hundreds."""


def group(file: TensorFile, dialect: Dialect | None) -> tuple[Groups, list[str]]:
    """The keys of a file by layer, and the keys that belong to no layer.

    Raises LayerError where two keys name the same tensor of one layer.
    """
    grouped: Groups = {}
    strangers: list[str] = []
    rename, numbered = dialect.rename if dialect else None, False
    for key in file.tensors:
        name = rename(key) if rename else key
        if PART_OF_BLOCKS in name:
            numbered = True
            split = _split(name)
        else:
            split = split_key(name)
        if split is None:
            strangers.append(key)
        else:
            _put(grouped, *split, key, file)
    rest = [key for key in strangers if not _adopt(key, grouped)]
    _join_companions(grouped, file)
    return _by_part(grouped) if numbered else grouped, rest


def _split(key: str) -> tuple[str, str] | None:
    """As `split_key`, with the numbered parts of an OFT layer among the known suffixes."""
    head, _, number = key.rpartition(".")
    if head.endswith(f".{BLOCKS}") and NUMBERED.fullmatch(f"{BLOCKS}.{number}"):
        return head[: -len(BLOCKS) - 1], f"{BLOCKS}.{number}"
    return split_key(key)


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
    """Give a key of unknown suffix to the layer whose name it begins with; False where there is no such
    layer.

    The key makes the layer unreadable. That is intended: nobody knows what the tensor means, and without it
    the layer would be applied wrongly.
    """
    if peft.TRAINING_ONLY.search(key) or key.endswith(peft.BASE_WEIGHT):
        return False
    end = len(key)
    # The longest name first: that layer is nearest to the tensor.
    for _ in range(WORDS):
        end = key.rfind(".", 0, end)
        if end < 0:
            return False
        suffix, known = key[end + 1 :], grouped.get(key[:end])
        if known is not None and suffix not in known:
            known[suffix] = key
            return True
    return False


def _join_companions(grouped: Groups, file: TensorFile) -> None:
    """Give a DoRA magnitude or an alpha to its layer, where the two write the layer's name differently.

    Some converters turned the dots of a layer's name into underscores, but only in the keys of the factors.
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
    """Make each numbered part of a fused layer in kohya-ss' OFT a layer by itself.

    For a fused layer of Flux the file holds `oft_blocks.0`, `oft_blocks.1`, ...; each rotates one part of the
    rows. All parts share the layer's alpha. They are named `<layer>.0`, `<layer>.1`, ...; a single part keeps
    the layer's name. A layer stays as it is if it also has blocks without a number, or if a part would get
    another layer's name: no algorithm reads these.
    Source: networks/oft_flux.py of kohya-ss sd-scripts (Apache-2.0).
    """
    parted: Groups = {}
    for name, keys in grouped.items():
        numbers = {suffix: match[1] for suffix in keys if (match := NUMBERED.fullmatch(suffix))}
        parts = {suffix: f"{name}.{n}" if len(numbers) > 1 else name for suffix, n in numbers.items()}
        shared = {suffix: key for suffix, key in keys.items() if suffix not in numbers}
        if not numbers or BLOCKS in shared or any(part in grouped for part in {*parts.values()} - {name}):
            parted[name] = keys
            continue
        for suffix, part in parts.items():
            parted[part] = {**shared, BLOCKS: keys[suffix]}
    return parted


def _plain(name: str) -> str:
    return name.replace(".", "_")
