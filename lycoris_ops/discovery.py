"""Registration by existing: what a module defines is there once the module is dropped into its folder."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def discover(package: str) -> list[ModuleType]:
    """Every module and package that lies directly in a package, imported, in the order of their names."""
    folder = importlib.import_module(package).__path__
    return [importlib.import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules(folder)]
