"""What the tests of the architectures' names share: tiny models, and how a name is held against a weight."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import accumulate
from types import ModuleType

import torch
from torch import Tensor

from lycoris_ops.names import architectures
from lycoris_ops.names.architectures.base import Place, Places

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Tensors = dict[str, Tensor]
Names = Mapping[str, Places]
Others = Mapping[str, str | tuple[str, ...]]
"""Names of other tools than diffusers, with diffusers' layers that they stand for, `*` for a number."""

FOLLOWING = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
    "to_out": ("to_out.0",),
}
"""Last words of names that any attention has in other tools, and the layers that they stand for."""


def numbered(shapes: Mapping[str, Shape]) -> Tensors:
    """A tensor for every path, with no number twice."""
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    return {
        path: torch.arange(first, first + size).double().reshape(shape)
        for (path, shape), size, first in zip(
            shapes.items(), sizes, accumulate(sizes, initial=0), strict=False
        )
    }


def read(tensors: Mapping[str, Tensor], places: Places) -> Tensor:
    """What a name means: the rows of its places, one after the other."""
    parts = [(tensors[place.path], place.rows) for place in places]
    return torch.cat([tensor[slice(*rows)] if rows else tensor for tensor, rows in parts])


def every(module: ModuleType, shapes: Mapping[str, Shape]) -> Names:
    return {**module.aliases(shapes), **module.diffusers(shapes)}


def knowing(shapes: Mapping[str, Shape]) -> list[ModuleType]:
    """The modules that take a model for theirs."""
    return [
        module
        for module in vars(architectures).values()
        if isinstance(module, ModuleType) and hasattr(module, "aliases") and every(module, shapes)
    ]


def check_converted(names: Names, shapes: Shapes, theirs: Tensors) -> None:
    """diffusers' names are those of its conversion of the numbered model, and mean what is there."""
    ours = numbered(shapes)
    assert names.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(read(ours, names[name]).reshape(value.shape), value), name
    assert (times(names, shapes) <= 1).all()


def check_sizes(names: Names, shapes: Shapes, theirs: Tensors) -> None:
    """diffusers' names are those of its model, at its sizes, and together every row of ours once."""
    assert names.keys() == theirs.keys()
    rows = {path: torch.zeros(shape[0]) for path, shape in shapes.items()}
    for name, value in theirs.items():
        assert len(read(rows, names[name])) == len(value), name
        assert {shapes[place.path][1:] for place in names[name]} == {value.shape[1:]}, name
    assert (times(names, shapes) == 1).all()


def times(names: Names, shapes: Mapping[str, Shape]) -> Tensor:
    """In how many names each row of a model is."""
    rows = {path: torch.zeros(shape[0]) for path, shape in shapes.items()}
    for places in names.values():
        for place in places:
            rows[place.path][slice(*place.rows) if place.rows else slice(None)] += 1
    return torch.cat(list(rows.values()))


def check_others(names: Names, shapes: Shapes, theirs: Mapping[str, Tensor], others: Others) -> None:
    """Every other name is explained, by `others` or as one that follows from diffusers', and right.

    OneTrainer's numbered parts of a layer are parts of it in order, as diffusers' names are.
    """
    ours = numbered(shapes)
    known = dict(theirs)
    for pattern, meaning in others.items():
        matches = [match for match in map(_matcher(pattern).fullmatch, names) if match]
        assert matches, pattern
        for match in matches:
            layers = (meaning,) if isinstance(meaning, str) else meaning
            known[match[0]] = torch.cat([theirs[filled(layer, match.groups())] for layer in layers])
    for name, places in names.items():
        parent, _, last = name.rpartition(".")
        if name in known:
            wanted = known[name]
        elif last in FOLLOWING:
            wanted = torch.cat([known[f"{parent}.{part}"] for part in FOLLOWING[last]])
        else:
            wanted = _part(parent, int(last), ours, theirs)
        assert torch.equal(read(ours, places).reshape(wanted.shape), wanted), name


def _part(path: str, number: int, ours: Tensors, theirs: Mapping[str, Tensor]) -> Tensor:
    """Of diffusers' layers that are rows of one of ours, the one of that number."""
    whole = next(value for key, value in ours.items() if _flat(key) == _flat(path))
    starts = {row[0].item(): index for index, row in enumerate(whole.flatten(1))}
    parts = {
        starts[first]: value
        for value in theirs.values()
        if len(value) < len(whole) and (first := value.flatten()[0].item()) in starts
    }
    return parts[sorted(parts)[number]]


def check_one_meaning(shapes: Shapes, rivalry: Iterable[str] = ()) -> None:
    """One module knows the model, and no name of it has two meanings, dots and underscores being one."""
    (module,) = knowing(shapes)
    meanings: dict[str, set[Places]] = {}
    for name, places in [*every(module, shapes).items(), *((path, (Place(path),)) for path in shapes)]:
        meanings.setdefault(_flat(name), set()).add(places)
    assert {name for name, places in meanings.items() if len(places) > 1} == set(rivalry)
    assert not module.aliases(shapes).keys() & (shapes.keys() | module.diffusers(shapes).keys())


def check_without_shapes(module: ModuleType, shapes: Shapes) -> None:
    """Where shapes are not known, names that need them are left out, and no others."""
    known, unknown = every(module, shapes), every(module, dict.fromkeys(shapes, ()))
    assert unknown.items() <= known.items()
    assert known.keys() - unknown.keys() == {
        name for name, places in known.items() if len(places) > 1 or places[0].rows
    }


def filled(pattern: str, numbers: Iterable[str]) -> str:
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern


def _matcher(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", r"(\d+)"))


def _flat(name: str) -> str:
    return name.replace(".", "_")
