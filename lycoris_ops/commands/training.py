"""Read the settings of a training from a TOML file, as arguments for the library."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import packages_distributions
from itertools import islice
from pathlib import Path
from typing import Any, cast

from .. import (
    LycorisError,
    Plan,
    TrainOptions,
    check_layer_options,
    parse_size,
    plan_ranks,
    probe,
    unknown_name,
)
from .shared import DTYPES

TABLES = ("entry", "arguments", "network", "plan", "train")
"""The keys of a file: the function that makes the task, then tables with the arguments for this function,
for `create_lycoris`, for `probe` and `plan_ranks`, and for `TrainOptions`."""
PROBED = {"least": 8, "batches": 32}
"""The defaults of [plan]: a plan is made from 32 batches, or from as few as 8 where those agree."""


def read_settings(path: Path) -> dict[str, Any]:
    """The tables of a file. Raises LycorisError where it cannot be read or has an unknown key."""
    # Before Python 3.11 the same code is a package.
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        toml: Any = importlib.import_module(name)
    except ImportError as error:
        raise LycorisError("E-toml-reader-absent", name=name, expected=name) from error
    try:
        settings: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        got = os.strerror(error.errno) if error.errno else str(error)
        raise LycorisError("E-config-file-unreadable", file=str(path), got=got) from error
    except ValueError as error:
        raise LycorisError("E-config-file-not-toml", file=str(path), got=str(error)) from error
    _check(settings, TABLES)
    return settings


def table(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A table of the settings, empty where there is none."""
    section = settings.get(name, {})
    if not isinstance(section, dict):
        raise LycorisError("E-config-not-a-table", key=name, got=repr(section))
    return dict(cast("dict[str, Any]", section))


def options_of(settings: Mapping[str, Any], *, overwrite: bool) -> TrainOptions:
    """[train] as options. Raises LycorisError for an unknown key or a value out of its range."""
    values = table(settings, "train")
    _check(values, [field.name for field in dataclasses.fields(TrainOptions)], "[train]")
    if "dtype" in values:
        if values["dtype"] not in DTYPES:
            raise LycorisError(
                "E-dtype-unknown", key="[train] dtype", got=str(values["dtype"]), expected=", ".join(DTYPES)
            )
        values["dtype"] = DTYPES[values["dtype"]]
    if overwrite:
        values["overwrite"] = True
    return TrainOptions(**values)


def task_of(settings: Mapping[str, Any], file: Path) -> Callable[[], tuple[Any, ...]]:
    """The task's function with its arguments. It returns model, batches and loss, and maybe batches for
    validation.

    Raises LycorisError where there is no such function, or it takes other arguments; when called, where it
    returns something else.
    """
    entry = settings.get("entry")
    if not isinstance(entry, str) or ":" not in entry:
        raise LycorisError(
            "E-task-not-named", file=str(file), key="entry", got=None if entry is None else repr(entry)
        )
    function, arguments = _function(entry, file.parent), table(settings, "arguments")
    try:
        # Only the arguments are checked here: a TypeError from inside the function must pass through.
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise LycorisError("E-task-arguments-unusable", key="[arguments]", got=str(error)) from error

    def task() -> tuple[Any, ...]:
        returned = function(**arguments)
        if not isinstance(returned, tuple) or len(cast("tuple[Any, ...]", returned)) not in (3, 4):
            raise LycorisError(
                "E-task-result-unusable", key=entry, got=type(cast("object", returned)).__name__
            )
        return cast("tuple[Any, ...]", returned)

    return task


def network_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """[network] as arguments. Raises LycorisError for an unknown key or a value out of its range."""
    values = table(settings, "network")
    if bad := values.keys() & {"module", "plan"}:
        raise LycorisError("E-network-key-unknown", got=min(bad))
    check_layer_options(values)
    return values


def plan_of(settings: Mapping[str, Any], task: tuple[Any, ...]) -> Plan | None:
    """The plan that [plan] asks for, from the task's first batches; None without such a table.

    Raises LycorisError for an unknown key, and as `probe` and `plan_ranks` do.
    """
    if "plan" not in settings:
        return None
    values, probing, wanted = plan_table(settings)
    module, batches, loss, *_ = task
    epoch: Any = batches(0) if callable(batches) else batches
    probed = probe(
        module,
        list(islice(epoch, values["batches"])),
        loss,
        **{name: value for name, value in values.items() if name in probing and value != "auto"},
    )
    return plan_ranks(probed, **wanted)


def plan_table(settings: Mapping[str, Any]) -> tuple[dict[str, Any], set[str], dict[str, Any]]:
    """[plan] with its defaults, the names that `probe` takes, and the arguments of `plan_ranks`.

    Raises LycorisError for an unknown key, and for a size that cannot be understood.
    """
    values: dict[str, Any] = {**PROBED, **table(settings, "plan")}
    probing = _names(probe) - {"module", "batches", "loss", "progress"}
    planning = _names(plan_ranks) - {"probe"}
    _check(values, [*sorted(probing | planning), "batches"], "[plan]")
    wanted: dict[str, Any] = {name: value for name, value in values.items() if name in planning}
    wanted["size"] = parse_size(str(values.get("size", "auto")))
    return values, probing, wanted


def _function(entry: str, folder: Path) -> Callable[..., Any]:
    """The function that makes the task: `module:function`, or `file.py:function` beside the settings."""
    source, _, name = entry.rpartition(":")
    if source.endswith(".py"):
        file = folder / source
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if not file.is_file() or spec is None or spec.loader is None:
            raise LycorisError("E-file-absent", key=entry, got=str(file))
        if file.stem in sys.stdlib_module_names or file.stem in packages_distributions():
            raise LycorisError("E-task-name-taken", file=str(file))
        module = importlib.util.module_from_spec(spec)
        # Registered as an import would do it, so that worker processes find what the file defines.
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(source)
        except (ImportError, ValueError) as error:
            raise LycorisError("E-task-not-importable", key=entry, got=str(error)) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise LycorisError("E-task-function-absent", key=entry, got=name)
    return function


def _check(values: Mapping[str, Any], known: Collection[str], table_name: str | None = None) -> None:
    """Raise LycorisError for the first unknown key. It names the known keys and the most similar one."""
    for key in values:
        if key not in known:
            raise unknown_name("E-config-key-unknown", key, known, key=table_name)


def _names(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)
