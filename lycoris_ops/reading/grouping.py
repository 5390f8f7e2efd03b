"""Sorts the keys of an adapter file into layers."""

from __future__ import annotations

from ..algorithms import ALGORITHMS
from ..errors import LayerError
from ..files.tensor_file import TensorFile
from ..names.dialects import BASE_WEIGHTS, DIALECTS, Groups, Opened, is_aside, split_key, value_of
from ..names.layer_name import LayerName

COMPANIONS: frozenset[str] = (
    frozenset[str]()
    .union(*(kind.table.extras for kind in ALGORITHMS.values()))
    .difference(*(variant for kind in ALGORITHMS.values() for variant in kind.table.variants))
)
"""Suffixes of tensors that only accompany others, such as alpha: alone they make no layer."""
SHARED = frozenset[str]().union(*(kind.table.shared for kind in ALGORITHMS.values()))
"""Suffixes of tensors that serve all layers: alone they make no layer either."""
WORDS = 8
"""The most words of an unknown suffix. No tool writes more than four, but a key of nothing but dots has
hundreds."""


def group(read: Opened) -> tuple[Groups, list[str]]:
    """The keys of a file by layer, and the keys that belong to no layer.

    Raises LayerError where two keys name the same tensor of one layer.
    """
    grouped: Groups = {}
    strangers: list[str] = []
    file, rename = read.file, read.dialect.rename if read.dialect else None
    for key in file.tensors:
        name = rename(key) if rename else key
        split = split_key(name)
        if split is None:
            strangers.append(key)
        else:
            _put(grouped, *split, key, file)
    rest = [key for key in strangers if not _adopt(key, grouped)]
    _join_companions(grouped, file)
    for dialect in DIALECTS.values():
        grouped = dialect.regrouped(grouped) if dialect.regrouped else grouped
    return grouped, [key for key in rest if not _take_value(key, grouped, read)]


def _put(grouped: Groups, name: str, suffix: str, key: str, file: TensorFile) -> None:
    known = grouped.setdefault(name, {})
    if suffix in known:
        raise LayerError("E-tensor-held-twice", file=file.path, key=name, one=known[suffix], other=key)
    known[suffix] = key


def _adopt(key: str, grouped: Groups) -> bool:
    """Give a key of unknown suffix to the layer whose name it begins with; False where there is no such
    layer.

    The key makes the layer unreadable. That is intended: nobody knows what the tensor means, and without it
    the layer would be applied wrongly.
    """
    if is_aside(key) or key.endswith(BASE_WEIGHTS):
        return False
    end = len(key)
    # The longest name first: that layer is nearest to the tensor.
    for _ in range(WORDS):
        end = key.rfind(".", 0, end)
        if end < 0:
            return False
        suffix, known = key[end + 1 :], grouped.get(key[:end])
        # PEFT's shared tensors have the name with which the keys of all its layers begin.
        if known is not None and suffix not in known and not SHARED.issuperset(known):
            known[suffix] = key
            return True
    return False


def _take_value(key: str, grouped: Groups, read: Opened) -> bool:
    """Make a layer, or a part of one, of a module's own values; False where the key is of nothing such."""
    name, _, end = key.rpartition(".")
    if suffix := value_of(read, LayerName.of(name), end) if name and read.config else None:
        grouped.setdefault(name, {})[suffix] = key
    return suffix is not None


def _join_companions(grouped: Groups, file: TensorFile) -> None:
    """Give a DoRA magnitude or an alpha to its layer, where the two write the layer's name differently.

    Some converters turned the dots of a layer's name into underscores, but only in the keys of the factors.
    """
    alone = dict.fromkeys(name for name, keys in grouped.items() if COMPANIONS.issuperset(keys))
    if not alone:
        return
    complete = {_plain(name): name for name in grouped if name not in alone}
    for name in alone:
        twin = complete.get(_plain(name))
        if twin is not None:
            for suffix, key in grouped.pop(name).items():
                _put(grouped, twin, suffix, key, file)


def _plain(name: str) -> str:
    return name.replace(".", "_")
