"""Registration by discovery: a module that is put into the right folder is registered; there are no lists."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def discover(package: str) -> list[ModuleType]:
    """Import all modules and packages that lie directly in `package`, and return them sorted by name."""
    folder = importlib.import_module(package).__path__
    return [importlib.import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules(folder)]
