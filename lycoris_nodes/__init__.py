"""The nodes and what they stand on: `nodes` has one a file."""

from __future__ import annotations

import importlib
import pkgutil

from . import nodes
from .host import ComfyExtension, io

__all__ = ["NODES", "LycorisExtension"]


def _discover() -> list[type[io.ComfyNode]]:
    found: list[type[io.ComfyNode]] = []
    for module_info in pkgutil.iter_modules(nodes.__path__):
        module = importlib.import_module(f"{nodes.__name__}.{module_info.name}")
        found += [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, io.ComfyNode)
            and value.__module__ == module.__name__
        ]
    return found


NODES = _discover()


class LycorisExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
