"""The configuration that layers need in some dialects, beside their file or in its metadata."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..messages import number_of
from ..names.dialects import Encoded, write_of
from ..names.relation import Relation
from ..names.to_write import LayerToWrite
from ..peft import Config, ConfiguredLayer, ConflictError, Module, config_for, lora_metadata
from ..peft.parameters import parameter_of

Encodings = Sequence[tuple[LayerToWrite, Encoded]]
"""Layers to write, each with its tensors."""


def configuration(
    dialect: str, layers: Encodings, relation: Relation | None, ends: Collection[str] = ()
) -> dict[str, Any] | None:
    """The configuration of the layers as a table for JSON; None for a dialect that has none.

    A dialect that keeps it in the metadata has one table for all components of a pipeline, each in front
    of each key (`unet.r`). `relation` has the model's names, if the model is known. `ends` are those of
    `Module`, for a configuration beside the file.
    Raises ConflictError where no configuration describes all of the layers.
    """
    where = write_of(dialect).configuration
    if where is None:
        return None
    if where == "beside":
        _check_one_component(layers)
        return _config(dialect, layers, relation, ends).table()
    roots: dict[str, list[tuple[LayerToWrite, Encoded]]] = {}
    for planned, encoded in layers:
        # Not every prefix says which component of a pipeline a name is in.
        root = planned.name.partition(".")[0] if planned.named.component else ""
        roots.setdefault(root, []).append((planned, encoded))
    return lora_metadata({root: _config(dialect, own, relation) for root, own in roots.items()})


def _config(
    dialect: str, layers: Encodings, relation: Relation | None, ends: Collection[str] = ()
) -> Config[Any]:
    module = replace(_module(dialect, layers[0][0].component, relation), ends=frozenset(ends))
    return config_for(_members(layers), module)


def _members(layers: Iterable[tuple[LayerToWrite, Encoded]]) -> list[ConfiguredLayer[Any]]:
    members: list[ConfiguredLayer[Any]] = []
    for planned, encoded in layers:
        # Dialects with a configuration always fill it in.
        assert encoded.configured is not None
        path, on = planned.named.path, encoded.on_parameter
        path = parameter_of(path) if on else path
        members.append(ConfiguredLayer(planned.name, path, *encoded.configured, on_parameter=on))
    return members


def _check_one_component(layers: Encodings) -> None:
    """Raise ConflictError for layers of several components of a model: a folder is for a single one."""
    components = Counter(planned.component for planned, _ in layers if planned.component is not None)
    if len(components) < 2:
        return
    first = components.most_common(1)[0][0]
    others = [layer for layer in layers if layer[0].component not in (None, first)]
    counted = " and ".join(
        f"{number_of(count, 'layer')} of {component}" for component, count in components.items()
    )
    raise ConflictError("E-peft-components-mixed", _members(others[:1])[0], counted)


def _module(dialect: str, component: str | None, relation: Relation | None) -> Module:
    """A component of a model with all its layers' paths and kernel sizes, as far as the model is known."""
    if relation is None or component is None:
        return Module()
    names = relation.written(dialect).in_component(component)
    kernels = {name.path: math.prod(name.shape[2:]) for name in names}
    return Module(tuple(kernels), kernels)
