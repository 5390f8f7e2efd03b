"""What the host imports: the nodes and the folder of the browser extension."""

from .lycoris_nodes import LycorisExtension

WEB_DIRECTORY = "./lycoris_nodes/web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> LycorisExtension:
    return LycorisExtension()
