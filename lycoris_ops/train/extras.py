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
            f"{what} needs a package that is not installed",
            got=str(error),
            expected=package,
            hint=f"Install it with `pip install {package}`",
        ) from error
