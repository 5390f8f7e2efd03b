"""Registration by discovery: every module in a folder is registered, so there is no list to keep."""

from __future__ import annotations

import importlib
import pkgutil
from types import GenericAlias, ModuleType
from typing import TypeVar

Defined = TypeVar("Defined")


def discover(package: str) -> list[ModuleType]:
    """Import all modules and packages that lie directly in `package`, and return them sorted by name."""
    folder = importlib.import_module(package).__path__
    return [importlib.import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(folder)]


def discover_classes(package: str, base: type[Defined]) -> list[type[Defined]]:
    """The subclasses of `base` that the modules of a package define themselves, sorted by module."""
    return [
        value
        for module in discover(package)
        for value in vars(module).values()
        # On Python 3.10 a type such as `list[int]` passes for a class.
        if isinstance(value, type) and not isinstance(value, GenericAlias)
        if issubclass(value, base) and value.__module__ == module.__name__
    ]
