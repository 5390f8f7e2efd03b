"""Where a folder of transformers holds each weight of its model, as transformers itself loads it.

Its classes have other names for some weights than their files, and hold several tensors of a file in one,
such as the experts of a mixture. The tables for this are those of transformers 5
(`transformers.conversion_mapping`). Here they convert the numbers of rows in place of their values.
"""

from __future__ import annotations

import copy
import importlib
import json
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import FileFormatError
from ..files.bounds import MAX_JSON
from ..files.json_text import parse_json
from ..files.model_file import ModelFile
from ..maths.shapes import Shape
from ..modules.sites import Site, all_sites, shared_weights
from .views import FileRows, FileSlot, FileView


def views_of(base: ModelFile, shapes: Mapping[str, Shape]) -> dict[str, FileView]:
    """The weights and biases of the model that an adapter can be for, by their names in memory.

    `shapes` are those of the weights in the file. Empty where no `config.json` beside the file names a class
    of transformers, and where transformers 5 is not installed. A weight is left out if the file holds its
    rows in another order, or only its columns. Raises FileFormatError for settings from which transformers
    can make no model.
    """
    model = _model_beside(base)
    if model is None:
        return {}
    numbers = _Numbers(shapes)
    held = _held(model, numbers)
    views_found: dict[str, FileView] = {}
    for site in all_sites(model).values():
        if sources := _sources(held.get(site.parameter), site, numbers):
            views_found[site.key if site.expert is None else site.path] = FileView(site.shape, sources)
        bias = held.get(site.bias_key) if site.has_bias else None
        if isinstance(bias, str):
            views_found[site.bias_key] = FileView(site.shape[:1], (FileRows(FileSlot(bias)),))
        elif bias is not None and (sources := numbers.sources(bias.flatten(), site.shape[:1])):
            views_found[site.bias_key] = FileView(site.shape[:1], sources)
    return views_found


def shared_in(base: ModelFile, rows: Mapping[str, int]) -> dict[str, str]:
    """The weights in a file that several modules of its model share, each with the path of another module.

    An example is an embedding to which the head is tied. `rows` are weights of the file with their numbers of
    rows; only those with a row for each token are looked at. Empty where `views_of` is.
    """
    path = Path(base.path).with_name("config.json")
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            configuration: Any = parse_json(file.read(MAX_JSON + 1))
    except ValueError:
        return {}
    # Another program's file of that name may be anything.
    if not isinstance(configuration, dict):
        return {}
    table = cast("dict[str, Any]", configuration)
    tables = [table, *(cast("dict[str, Any]", inner) for inner in table.values() if isinstance(inner, dict))]
    counts = [part.get("vocab_size") for part in tables]
    # Making the model takes seconds.
    keys = [key for key, count in rows.items() if count in counts]
    model = _model_beside(base) if keys else None
    if model is None:
        return {}
    sites = all_sites(model)
    return {
        key: others[0]
        for first, others in shared_weights(sites.values()).items()
        for key in keys
        # Some files lack the name of the outermost module.
        if f".{sites[first].key}".endswith(f".{key}")
    }


def _model_beside(base: ModelFile) -> Any:
    """The model of the `config.json` beside a file, without values; None where there is none."""
    path = Path(base.path).with_name("config.json")
    if not path.is_file():
        return None
    try:
        # Read first: importing transformers takes seconds.
        names = json.loads(path.read_text(encoding="utf-8")).get("architectures")
        kind = getattr(_transformers(), names[0], None) if names else None
        if kind is None:
            return None
        with torch.device("meta"):
            return kind(kind.config_class.from_json_file(path))
    except Exception as error:
        raise FileFormatError(
            "E-transformers-cannot-build-model", file=str(path), name=type(error).__name__, error=str(error)
        ) from error


def _transformers() -> Any:
    """The package transformers; None where version 5 is not installed."""
    try:
        importlib.import_module("transformers.conversion_mapping")
        return importlib.import_module("transformers")
    except ImportError:
        return None


class _Numbers:
    """The numbers of all rows in a file, with a gap after each slot."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes
        self.slots: list[FileSlot] = []
        self.starts: list[int] = []
        self._first: dict[str, int] = {}
        number = 0
        for key, shape in shapes.items():
            self._first[key] = number
            slots = (
                [FileSlot(key, index) for index in range(shape[0])] if len(shape) == 3 else [FileSlot(key)]
            )
            for slot in slots if shape else ():
                self.slots.append(slot)
                self.starts.append(number)
                number += slot.shape(shape)[0] + 1

    def of(self, key: str) -> Tensor:
        """The numbers of a tensor's rows, in the tensor's shape but with one column."""
        shape = self.shapes[key]
        if len(shape) == 3:
            starts = (shape[1] + 1) * torch.arange(shape[0])
            return self._first[key] + (starts[:, None] + torch.arange(shape[1]))[..., None]
        return (self._first[key] + torch.arange(shape[0])).reshape(-1, *(1 for _ in shape[1:]))

    def sources(self, rows: Tensor, shape: Shape, *, turned: bool = False) -> tuple[FileRows, ...]:
        """The rows in the file of a weight or bias of `shape`, given the numbers of its rows, or of its
        columns with `turned`.

        () where a slot holds only some of the rows, or holds them in another order.
        """
        places: list[FileRows] = []
        done = 0
        for run in rows.tensor_split((rows.diff() != 1).nonzero().flatten() + 1):
            index = bisect_right(self.starts, int(run[0])) - 1
            slot, start, end = self.slots[index], int(run[0]) - self.starts[index], done + len(run)
            stored = slot.shape(self.shapes[slot.key])
            all_of_it, alone = len(run) == stored[0], len(run) == len(rows)
            if turned and (stored != shape[::-1] or not all_of_it):
                return ()
            if not turned and (stored[1:] != shape[1:] or any(source.slot == slot for source in places)):
                return ()
            places.append(
                FileRows(
                    slot._replace(turned=turned),
                    None if all_of_it else (start, start + len(run)),
                    None if alone else (done, end),
                )
            )
            done = end
        return tuple(places) if done == shape[1 if turned else 0] else ()


def _held(model: Any, numbers: _Numbers) -> dict[str, str | Tensor]:
    """For each parameter of a model, the tensor that it is, or the numbers of the rows that it is made of.

    As `convert_and_load_state_dict_in_model` of transformers 5 finds them.
    """
    loading: Any = importlib.import_module("transformers.core_model_loading")
    known: Any = importlib.import_module("transformers.conversion_mapping")
    changes: list[Any] = known.get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, loading.WeightRenaming)]
    converters = [change for change in changes if isinstance(change, loading.WeightConverter)]
    by_pattern = {
        expression: converter for converter in converters for expression in converter.source_patterns
    }
    parameters: Mapping[str, Tensor] = model.state_dict()
    front: str = model.base_model_prefix
    sources: dict[str, str | Tensor] = {}
    begun: dict[str, Any] = {}
    for key in sorted(numbers.shapes, key=loading.dot_natural_key):
        name, rule = loading.rename_source_key(key, renamings, converters, front, parameters)
        if name not in parameters:
            name, rule = loading.rename_source_key(key, [], [], front, parameters)
        if rule is None:
            sources[name] = key
        elif name in parameters:
            converter = begun.setdefault(name, copy.deepcopy(by_pattern[rule]))
            converter.add_tensor(name, key, rule, numbers.of(key))
    for name, converter in begun.items():
        try:
            converted = converter.convert(name, model=model, config=model.config)
        except (RuntimeError, ValueError, IndexError):
            # It needs more than one column.
            continue
        sources |= {
            name_of: rows[0] if isinstance(rows, list) else rows for name_of, rows in converted.items()
        }
    return sources


def _sources(held: str | Tensor | None, site: Site, numbers: _Numbers) -> tuple[FileRows, ...]:
    """The rows in the file of a site's weight; () where none is known."""
    if isinstance(held, str):
        slot = FileSlot(held, site.expert, site.transposed)
        return (FileRows(slot),) if slot.shape(numbers.shapes[held]) == site.shape else ()
    if held is None:
        return ()
    rows = held if site.expert is None else held[site.expert]
    across = rows.ndim == 2 and rows.shape[0] == 1
    if rows.ndim != 2 or 1 not in rows.shape:
        return ()
    return numbers.sources(rows.flatten(), site.shape, turned=site.transposed != across)
