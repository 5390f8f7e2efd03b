"""The nodes. A module in this folder that defines a node class registers it."""

from __future__ import annotations

import importlib
import pkgutil

from .host import ComfyExtension, io

__all__ = ["NODES", "LycorisExtension"]


def _discover() -> list[type[io.ComfyNode]]:
    nodes: list[type[io.ComfyNode]] = []
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        nodes += [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, io.ComfyNode)
            and value.__module__ == module.__name__
        ]
    return nodes


NODES = _discover()


class LycorisExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
