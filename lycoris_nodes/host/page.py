"""The host's interface: nodes, progress, pictures on nodes, and answers to the page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from aiohttp import web
from comfy_api.latest import ComfyExtension as ComfyExtension
from comfy_api.latest import io as io
from comfy_api.latest import ui
from comfy_execution.graph_utils import ExecutionBlocker as ExecutionBlocker
from comfy_execution.utils import get_executing_context
from PIL.Image import Image
from server import PromptServer
from torch import Tensor

from ...lycoris_ops import LycorisError, Progress, speak
from .language import known

LANGUAGE = "Lycoris-Language"
"""The header by which a page says in which language it wants the answer."""
MOST_ASKED = 8 << 20
"""The most bytes that a page may send to a route. The longest text is a pasted prompt."""


def tell_page(event: str, hidden: Any, **data: Any) -> None:
    """Send an event about the running node to the page that queued it, if a page did."""
    if hidden is not None and (client := PromptServer.instance.client_id) is not None:
        PromptServer.instance.send_sync(event, {"node": hidden.unique_id, **data}, client)


def asking_page() -> str | None:
    """The page that queued the current run; None if no page did."""
    return PromptServer.instance.client_id


def running_node() -> str | None:
    """The host's key of the node that runs in this thread; None outside of a run."""
    context = get_executing_context()
    return None if context is None else context.node_id


def is_in_prompt(node: str) -> bool:
    """Whether a node, by the host's key, is in the prompt that runs; True outside of a run."""
    context = get_executing_context()
    for _, prompt_id, prompt, *_ in PromptServer.instance.prompt_queue.currently_running.values():
        if context is not None and prompt_id == context.prompt_id:
            # The key of a node that another node has made begins with the other one's key.
            return node.partition(".")[0] in prompt
    return True


def end_if_interrupted() -> None:
    """End the work, by the host's own exception, when the user has interrupted the run."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def progress(total: int) -> Progress:
    """A progress bar on the running node.

    Calling it also ends the work, by the host's own exception, if the user has interrupted the run.
    """
    bar = comfy.utils.ProgressBar(total)

    def update(done: int, of: int) -> None:
        end_if_interrupted()
        # Send no preview: on nodes drawn by Vue it would stay beside the pictures of the result.
        bar.update_absolute(done, of)

    return update


def shown_picture(picture: Image, node: type[io.ComfyNode]) -> dict[str, Any]:
    """The UI output that shows a picture on a node after it has run, over the node's own colour."""
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
    return ui.PreviewImage(pixels, cls=node).as_dict()


class Answer(NamedTuple):
    """What a route answers: the HTTP status, the media type, and the content or its file."""

    status: int
    kind: str
    content: bytes | Path


def answer_get(path: str, answer: Callable[[Mapping[str, str]], Answer]) -> None:
    """Answer GET requests to a path. `answer` gets the query, runs in a thread and may read files."""

    async def handle(request: web.Request) -> web.StreamResponse:
        speak(known(request.headers.get(LANGUAGE, "")))
        return _response(await asyncio.to_thread(answer, request.query))

    _add_route(PromptServer.instance.routes.get, path, handle)


def answer_post(
    path: str, answer: Callable[[str], Answer], refused: Callable[[LycorisError], Answer]
) -> None:
    """Answer POST requests to a path. `answer` gets the text that was sent, and runs in a thread.

    `refused` answers where the text is too long.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        speak(known(request.headers.get(LANGUAGE, "")))
        content = bytearray()
        async for chunk in request.content.iter_chunked(1 << 16):
            content += chunk
            if len(content) > MOST_ASKED:
                error = LycorisError("E-question-too-long", most_asked=MOST_ASKED >> 20)
                return _response(refused(error))
        text = content.decode("utf-8", "replace")
        return _response(await asyncio.to_thread(answer, text))

    _add_route(PromptServer.instance.routes.post, path, handle)


def _response(answer: Answer) -> web.StreamResponse:
    headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if isinstance(answer.content, Path):
        # A browser asks for a clip in parts.
        return web.FileResponse(answer.content, headers={**headers, "Content-Type": answer.kind})
    return web.Response(status=answer.status, content_type=answer.kind, body=answer.content, headers=headers)


def _add_route(add: Callable[[str], Callable[..., Any]], path: str, handle: Callable[..., Any]) -> None:
    # The pack may be loaded twice, and aiohttp refuses to start with two handlers for a path.
    if not any(getattr(route, "path", None) == path for route in PromptServer.instance.routes):
        add(path)(handle)


def picture_tensor(picture: Image) -> Tensor:
    """A picture as the host's nodes hand it on, (1, H, W, 3) from 0 to 1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]
