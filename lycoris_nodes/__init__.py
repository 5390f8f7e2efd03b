"""The nodes for ComfyUI. `nodes` holds one node per file, and every file there is registered."""

from __future__ import annotations

from pathlib import Path

from ..lycoris_ops import add_messages, discover_classes
from . import nodes
from .host.language import add_languages
from .host.page import ComfyExtension, io
from .routes import add_routes
from .schema.checks import completed

__all__ = ["NODES", "LycorisExtension"]


add_messages(Path(__file__).with_name("messages.json"))
add_languages()
NODES = [completed(node) for node in discover_classes(nodes.__name__, io.ComfyNode)]
add_routes()


class LycorisExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
