"""Optional packages, which are imported only when they are used."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from ..errors import TrainError


def has(module: str) -> bool:
    """Whether a module is installed, without importing it."""
    return importlib.util.find_spec(module) is not None


def required(module: str, package: str, what: str) -> ModuleType:
    """Import a module. Raises TrainError, with how to install it, where the import fails."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TrainError(
            "E-package-not-installed", what=what, package=package, got=str(error), expected=package
        ) from error
