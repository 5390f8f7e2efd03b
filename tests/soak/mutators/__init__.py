"""The ways in which a valid file is changed, one family a file.

Each module has `MUTATIONS`, functions of a random generator and a seed. They return the changed file, or None
where the seed has no place for the change. `OF` says which seeds the module is for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import ModuleType
from typing import Literal

from lycoris_ops.discovery import discover

from ..case import Case
from ..seeds import Seed

Mutation = Callable[[random.Random, Seed], "Case | None"]
Of = Literal["safetensors", "pickle", "any"]


def families() -> dict[str, ModuleType]:
    """The modules of this folder by their names."""
    found = {module.__name__.rpartition(".")[2]: module for module in discover(__name__)}
    return {name: module for name, module in found.items() if hasattr(module, "MUTATIONS")}


def suits(module: ModuleType, seed: Seed) -> bool:
    """Whether a family is for the container of a seed."""
    of: Of = module.OF
    return of == "any" or (of == "safetensors") == (seed.container == "safetensors")
