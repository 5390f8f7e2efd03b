"""Helpers for the tests of other tools' names for layers: tiny models, and checks of what a name means.

A name means rows of one or more weights of the model. For a test, all numbers in the model are different.
The rows that a name means must then equal the tensor that diffusers' own conversion of the model has under
that name.
"""

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
"""Names that other tools than diffusers use. Each has diffusers' layer or layers that it stands for; `*`
is any number."""

FOLLOWING = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
    "to_out": ("to_out.0",),
}
"""Last words of names that other tools use in any attention. Each has the last words of diffusers' layers
that it stands for, in the order of their rows."""


def numbered(shapes: Mapping[str, Shape]) -> Tensors:
    """A float64 tensor of the given shape for every path. No number occurs twice in the model."""
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    return {
        path: torch.arange(first, first + size).double().reshape(shape)
        # Not strict: `accumulate` also yields the total at the end.
        for (path, shape), size, first in zip(
            shapes.items(), sizes, accumulate(sizes, initial=0), strict=False
        )
    }


def read(tensors: Mapping[str, Tensor], places: Places) -> Tensor:
    """The rows that a name means: those of its places, one after the other."""
    parts = [(tensors[place.path], place.rows) for place in places]
    return torch.cat([tensor[slice(*rows)] if rows else tensor for tensor, rows in parts])


def every(module: ModuleType, shapes: Mapping[str, Shape]) -> Names:
    """All names that an architecture module gives to a model's layers: other tools' and diffusers'."""
    return {**module.aliases(shapes), **module.diffusers(shapes)}


def knowing(shapes: Mapping[str, Shape]) -> list[ModuleType]:
    """The architecture modules that recognise a model, which means that they give names to its layers."""
    return [
        module
        for module in vars(architectures).values()
        if isinstance(module, ModuleType) and hasattr(module, "aliases") and every(module, shapes)
    ]


def check_converted(names: Names, shapes: Shapes, theirs: Tensors) -> None:
    """Assert that diffusers' names are those of its conversion, and mean the same rows.

    `names` is what the library says, and `theirs` what diffusers' conversion makes of the numbered model.
    No row may have two names.
    """
    ours = numbered(shapes)
    assert names.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(read(ours, names[name]).reshape(value.shape), value), name
    assert (times(names, shapes) <= 1).all()


def check_sizes(names: Names, shapes: Shapes, theirs: Tensors) -> None:
    """Assert that diffusers' names are the layers of its model `theirs`, with the same sizes.

    Together the names must contain every row of the host's model exactly once. This check is for models
    that diffusers has a class for, but no conversion, so that there are no values to compare.
    """
    assert names.keys() == theirs.keys()
    rows = {path: torch.zeros(shape[0]) for path, shape in shapes.items()}
    for name, value in theirs.items():
        assert len(read(rows, names[name])) == len(value), name
        assert {shapes[place.path][1:] for place in names[name]} == {value.shape[1:]}, name
    assert (times(names, shapes) == 1).all()


def times(names: Names, shapes: Mapping[str, Shape]) -> Tensor:
    """The number of names that contain a row, for every row of every layer, one layer after the other."""
    rows = {path: torch.zeros(shape[0]) for path, shape in shapes.items()}
    for places in names.values():
        for place in places:
            rows[place.path][slice(*place.rows) if place.rows else slice(None)] += 1
    return torch.cat(list(rows.values()))


def check_others(names: Names, shapes: Shapes, theirs: Mapping[str, Tensor], others: Others) -> None:
    """Assert that every name of another tool means the right rows.

    `others` explains a name by diffusers' layers, and FOLLOWING explains it by its last word. A name that
    neither explains must be one of OneTrainer's: OneTrainer numbers the parts of a fused layer in the order
    of their rows, and these parts are layers of diffusers'.
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
    """The diffusers layer of this number, counting those that are rows of the host's layer `path`."""
    whole = next(value for key, value in ours.items() if _flat(key) == _flat(path))
    starts = {row[0].item(): index for index, row in enumerate(whole.flatten(1))}
    parts = {
        starts[first]: value
        for value in theirs.values()
        if len(value) < len(whole) and (first := value.flatten()[0].item()) in starts
    }
    return parts[sorted(parts)[number]]


def check_one_meaning(shapes: Shapes, rivalry: Iterable[str] = ()) -> None:
    """Assert that exactly one module recognises the model, and that no name has two meanings.

    Dots and underscores count as the same character, because kohya writes underscores for dots. `rivalry`
    are names that do have two meanings.
    """
    (module,) = knowing(shapes)
    meanings: dict[str, set[Places]] = {}
    for name, places in [*every(module, shapes).items(), *((path, (Place(path),)) for path in shapes)]:
        meanings.setdefault(_flat(name), set()).add(places)
    assert {name for name, places in meanings.items() if len(places) > 1} == set(rivalry)
    assert not module.aliases(shapes).keys() & (shapes.keys() | module.diffusers(shapes).keys())


def check_without_shapes(module: ModuleType, shapes: Shapes) -> None:
    """Assert which names are left out where the shapes of the model's layers are not known.

    They are the names that need shapes, for some rows of a layer or for several layers, and no others.
    """
    known, unknown = every(module, shapes), every(module, dict.fromkeys(shapes, ()))
    assert unknown.items() <= known.items()
    assert known.keys() - unknown.keys() == {
        name for name, places in known.items() if len(places) > 1 or places[0].rows
    }


def filled(pattern: str, numbers: Iterable[str]) -> str:
    """A pattern with its `*` replaced by these numbers, in order."""
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern


def _matcher(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", r"(\d+)"))


def _flat(name: str) -> str:
    return name.replace(".", "_")
