"""The PEFT configuration that layers need in the dialects of PEFT and of diffusers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import number_of
from ..names.dialects import Encoded, write_of
from ..names.relation import Relation
from ..names.to_write import LayerToWrite
from ..peft import ConfiguredLayer, ConflictError, Module, config_for
from ..peft.config import PREFIX
from ..peft.kinds import ln_tuning, trainable_tokens
from ..peft.parameters import parameter_of

Encodings = Sequence[tuple[LayerToWrite, Encoded]]
"""Layers to write, each with its name and place in the model and with its tensors."""

BY_VALUES = frozenset({ln_tuning.LnTuningConfig, trainable_tokens.TrainableTokensConfig})
"""The kinds that hold values, not changes. In a file with other kinds their tensors have other names."""


def configuration(
    dialect: str, layers: Encodings, relation: Relation | None, ends: Collection[str] = ()
) -> dict[str, Any] | None:
    """PEFT's configuration of the layers as a table for JSON; None for a dialect that has none.

    A dialect that keeps it in the metadata has one table for all parts of a pipeline, with the part in front
    of each key (`unet.r`). `relation` has the model's names, if the model is known. `ends` are those of
    `Module`, for a configuration beside the file.
    Raises ConflictError where no configuration describes all of the layers.
    """
    where = write_of(dialect).configuration
    if where is None:
        return None
    if where == "beside":
        _check_one_part(layers)
        return _table(dialect, layers, relation, ends)
    roots: dict[str, list[tuple[LayerToWrite, Encoded]]] = {}
    for planned, encoded in layers:
        # A name with PEFT's prefix does not say which part of a pipeline it is in.
        root = "" if planned.name.startswith(PREFIX) else planned.name.partition(".")[0]
        roots.setdefault(root, []).append((planned, encoded))
    tables: dict[str, Any] = {}
    for root, own in roots.items():
        table = _table(dialect, own, relation)
        # In diffusers the caller that loads the file decides whether its layers are trained further. It gives
        # every field to PEFT, and releases before 0.18 refuse one that names a version.
        del table["inference_mode"], table["peft_version"]
        tables |= {f"{root}.{key}" if root else key: value for key, value in table.items()}
    return tables


def beside_others(made: Sequence[Encoded]) -> list[Encoded]:
    """The layers with the tensor names that PEFT uses if they are all in one file.

    In a file with other kinds, whole values are named as in `modules_to_save`, and the values of rows as in a
    `token_adapter`.
    """
    kinds = {one.configured[0] for one in made if one.configured}
    if kinds <= BY_VALUES:
        return list(made)
    beside = {**ln_tuning.BESIDE, **trainable_tokens.BESIDE}
    return [
        replace(one, tensors={beside.get(suffix, suffix): tensor for suffix, tensor in one.tensors.items()})
        for one in made
    ]


def _table(
    dialect: str, layers: Encodings, relation: Relation | None, ends: Collection[str] = ()
) -> dict[str, Any]:
    module = replace(_module(dialect, layers[0][0].part, relation), ends=frozenset(ends))
    return config_for(_members(layers), module).table()


def _members(layers: Iterable[tuple[LayerToWrite, Encoded]]) -> list[ConfiguredLayer[Any]]:
    members: list[ConfiguredLayer[Any]] = []
    for planned, encoded in layers:
        # Dialects with a configuration always fill it in.
        assert encoded.configured is not None
        path, on = planned.named.path, encoded.on_parameter
        path = parameter_of(path) if on else path
        members.append(ConfiguredLayer(planned.name, path, *encoded.configured, on_parameter=on))
    return members


def _check_one_part(layers: Encodings) -> None:
    """Raise ConflictError for layers of several parts of a model: PEFT's folder is for a single module."""
    parts = Counter(planned.part for planned, _ in layers if planned.part is not None)
    if len(parts) < 2:
        return
    first = parts.most_common(1)[0][0]
    others = [layer for layer in layers if layer[0].part not in (None, first)]
    counted = " and ".join(f"{number_of(count, 'layer')} of {part}" for part, count in parts.items())
    raise ConflictError("writes a file for a single part of a model only", _members(others[:1])[0], counted)


def _module(dialect: str, part: str | None, relation: Relation | None) -> Module:
    """A part of a model with all its layers' paths and kernel sizes, as far as the model is known."""
    if relation is None or part is None:
        return Module()
    names = relation.written(dialect).in_part(part)
    kernels = {name.path: math.prod(name.shape[2:]) for name in names}
    return Module(tuple(kernels), kernels)
