"""What ComfyUI imports: the nodes, and the folder with the browser extension and the help pages."""

from .lycoris_nodes import LycorisExtension

WEB_DIRECTORY = "./lycoris_nodes/web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> LycorisExtension:
    return LycorisExtension()
