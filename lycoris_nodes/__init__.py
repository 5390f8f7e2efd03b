"""The nodes for ComfyUI. `nodes` holds one node a file, and a file that is put there is registered."""

from __future__ import annotations

from ..lycoris_ops import discover
from . import nodes
from .host.page import ComfyExtension, io
from .routes import add_routes
from .schema.checks import completed

__all__ = ["NODES", "LycorisExtension"]


def _discover() -> list[type[io.ComfyNode]]:
    # Only classes that a module defines itself: those that it imports are not its nodes.
    return [
        completed(value)
        for module in discover(nodes.__name__)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, io.ComfyNode) and value.__module__ == module.__name__
    ]


NODES = _discover()
add_routes()


class LycorisExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
