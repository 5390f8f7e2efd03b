"""Start the real ComfyUI for tests and for the demo: as a server, or in this process.

    python tests/harness/launch.py COMFYUI_FOLDER [arguments of its main.py ...]

The host's own folder is never written to: models, outputs, the database and the link to the pack are in a
base directory that the caller names.
"""

import asyncio
import errno
import importlib
import importlib.util
import json
import logging
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NoReturn

PACK = "lycoris-nodes"
"""The pack's folder in the host."""
MODEL_FOLDERS = ("checkpoints", "loras", "diffusion_models", "text_encoders", "vae")
SILENCE = 300
"""A starting host is given up after so many seconds without a new word in its log."""
Progress = Callable[[str, int, int], None]
Started = Callable[[str], None]
Preview = Callable[[bytes], None]


class PlaceholderTorchaudio(MetaPathFinder, Loader):
    """Finds and loads `torchaudio`, and any submodule of it, as an empty module.

    The set-up does not install it, and the host's audio modules import it at the top. What they take from it
    raises when it is called.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] != "torchaudio":
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        def missing(attribute: str) -> Callable[..., NoReturn]:
            if attribute.startswith("__"):
                raise AttributeError(attribute)

            def refuse(*args: object, **kwargs: object) -> NoReturn:
                raise RuntimeError(
                    f"{module.__name__}.{attribute} was called, but this torchaudio is only a placeholder"
                )

            return refuse

        vars(module)["__getattr__"] = missing


def run_main(comfyui: Path, arguments: Sequence[str]) -> None:
    """Run the host's main.py in this process, as `python main.py ARGUMENTS` would."""
    sys.path[0] = str(comfyui)
    main = comfyui / "main.py"
    sys.argv = [str(main), *arguments]
    sys.meta_path.insert(0, PlaceholderTorchaudio())
    runpy.run_path(str(main), run_name="__main__")


def base_directory(root: Path, pack: Path) -> Path:
    """Lay out `root` as a host's base directory, with `pack` linked under `custom_nodes`.

    Returns the real path of `root`.
    """
    root = root.resolve()
    for folder in (
        *(f"models/{kind}" for kind in MODEL_FOLDERS),
        "input",
        "output",
        "temp",
        "user",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
    custom = root / "custom_nodes"
    custom.mkdir(exist_ok=True)
    link = custom / PACK
    if link.is_symlink():
        link.unlink()
    link.symlink_to(pack.resolve(), target_is_directory=True)
    return root


@dataclass(frozen=True)
class ExecutionError:
    """What the host reports about the node that raised."""

    node_id: str
    node_type: str
    exception_type: str
    exception_message: str
    traceback: str


@dataclass(frozen=True)
class Run:
    """A finished prompt; `entry` is the host's whole history entry."""

    prompt_id: str
    entry: dict[str, Any]
    error: ExecutionError | None
    interrupted: bool

    @property
    def outputs(self) -> dict[str, Any]:
        """What each output node showed, by node id."""
        return self.entry["outputs"]

    @property
    def cached(self) -> list[str]:
        """Ids of the nodes that the host did not execute again."""
        messages = dict(self.entry["status"]["messages"])
        return messages["execution_cached"]["nodes"]


class PromptRejected(Exception):  # noqa: N818 - named after the event
    """The host refused a prompt before running it; `node_errors` as the host gave them."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.node_errors: dict[str, Any] = answer.get("node_errors") or {}
        lines = [str(answer.get("error", answer))]
        for node, found in self.node_errors.items():
            name = f"node {node} ({found['class_type']})"
            lines += [f"{name}: {error['message']}: {error['details']}" for error in found["errors"]]
        super().__init__("\n".join(lines))


class Server:
    """The host as a subprocess on the CPU; a context manager that always stops it.

    base: see `base_directory`. arguments: more arguments for main.py. port: where it listens, by default any
    free one. Its output goes to `log`.
    """

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        *arguments: str,
        port: int | None = None,
    ) -> None:
        self.base = base.resolve()
        self.log = self.base / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        port = port or free_port(0)
        self.url = f"http://127.0.0.1:{port}"
        self.command = [
            str(comfyui.resolve()),
            *("--cpu", "--listen", "127.0.0.1", "--port", str(port)),
            *("--disable-api-nodes", "--disable-auto-launch"),
            *("--base-directory", str(self.base)),
            # The host would put its database into its own folder, base directory or not.
            *("--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}"),
            *arguments,
        ]

    def __enter__(self) -> "Server":
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, *self.command],
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise RuntimeError("the server has not been started")
        return self._process.pid

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tail(self, lines: int = 60) -> str:
        """The end of the host's log."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def get(self, path: str) -> Any:
        """The JSON that a GET of `path` answers."""
        return _request(f"{self.url}{path}")

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that a POST of JSON to `path` answers."""
        return _request(f"{self.url}{path}", body)

    def object_info(self) -> dict[str, Any]:
        """Every registered node: id -> description, as the front end receives it."""
        return self.get("/object_info")

    def interrupt(self) -> None:
        """Ask the host to stop the prompt that runs now."""
        _request(f"{self.url}/interrupt", {})

    def submit(
        self, prompt: dict[str, Any], client_id: str | None = None, workflow: dict[str, Any] | None = None
    ) -> str:
        """Queue an API-format prompt and return its id at once. A `workflow` makes it look like the page's.

        Raises:
            PromptRejected: the host's validation refused it.
        """
        body: dict[str, Any] = {"prompt": prompt, **({"client_id": client_id} if client_id else {})}
        if workflow:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        try:
            return _request(f"{self.url}/prompt", body)["prompt_id"]
        except urllib.error.HTTPError as error:
            # The host answers 400 where its validation refuses a prompt.
            if error.code != 400:
                raise
            raise PromptRejected(json.loads(error.read())) from None

    def has_ended(self, prompt_id: str) -> bool:
        """Whether a submitted prompt has ended, well or not."""
        return self._entry(prompt_id) is not None

    def wait(self, prompt_id: str, timeout: float = 600) -> Run:
        """Wait for a submitted prompt to finish, well or not.

        Raises:
            TimeoutError: it is not in the history after `timeout` seconds.
            RuntimeError: the host has ended.
        """
        start = time.monotonic()
        while (waited := time.monotonic() - start) < timeout:
            if not self.running():
                raise RuntimeError(f"The host ended while a prompt ran; its log ends:\n{self.tail()}")
            entry = self._entry(prompt_id)
            if entry is not None:
                return _finished(prompt_id, entry)
            # Each request slows down the prompt that it waits for.
            time.sleep(min(0.05 + waited / 10, 0.5))
        raise TimeoutError(f"Prompt {prompt_id} did not end in {timeout:.0f} s; the log ends:\n{self.tail()}")

    def _entry(self, prompt_id: str) -> dict[str, Any] | None:
        """What the history says of a prompt; None until it has ended."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def queue(
        self,
        prompt: dict[str, Any],
        on_progress: Progress | None = None,
        on_preview: Preview | None = None,
        on_start: Started | None = None,
        timeout: float = 600,
    ) -> Run:
        """Run an API-format prompt to its end.

        on_progress: called from another thread with (node id, value, maximum).
        on_preview: likewise, with each message that holds a picture.
        on_start: likewise, with the id of each node that begins.
        """
        if not (on_progress or on_preview or on_start):
            return self.wait(self.submit(prompt), timeout)
        client_id = uuid.uuid4().hex
        listener = _Listener(f"{self.url}/ws?clientId={client_id}", on_progress, on_preview, on_start)
        listener.start()
        prompt_id = self.submit(prompt, client_id)
        run = self.wait(prompt_id, timeout)
        listener.finish()
        return run

    def _wait_until_ready(self) -> None:
        heard, written = time.monotonic(), 0
        while time.monotonic() < heard + SILENCE:
            if not self.running():
                raise RuntimeError(f"The host ended while it started; its log ends:\n{self.tail()}")
            if (size := self.log.stat().st_size) != written:
                heard, written = time.monotonic(), size
            try:
                self.get("/system_stats")
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
                continue
            # The host starts even where a pack fails: only its log says so.
            if "(IMPORT FAILED)" in self.log.read_text(encoding="utf-8", errors="replace"):
                raise RuntimeError(f"The host could not import the pack; its log:\n{self.tail(200)}")
            return
        raise TimeoutError(
            f"The host neither answered nor wrote to its log for {SILENCE} s; it ends:\n{self.tail()}"
        )

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Listener(threading.Thread):
    """Reads a client's websocket until `finish`, and hands on nodes that begin, progress and previews."""

    def __init__(
        self, url: str, on_progress: Progress | None, on_preview: Preview | None, on_start: Started | None
    ) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._on_progress = on_progress
        self._on_preview = on_preview
        self._on_start = on_start
        self._ready = threading.Event()
        self._done = threading.Event()
        self._failure: BaseException | None = None

    def start(self) -> None:
        super().start()
        if not self._ready.wait(timeout=30):
            raise TimeoutError(f"{self._url} did not accept a websocket in 30 s")

    def run(self) -> None:
        try:
            asyncio.run(self._listen())
        except BaseException as failure:  # noqa: BLE001 - `finish` raises it
            self._failure = failure
            self._ready.set()

    def finish(self) -> None:
        """Hand on what has arrived, then stop. Raises what a callback raised."""
        self._done.set()
        self.join(timeout=30)
        if self._failure:
            raise self._failure

    async def _listen(self) -> None:
        import aiohttp  # the host's own requirement, absent where this file only launches

        kind = aiohttp.WSMsgType
        async with aiohttp.ClientSession() as session, session.ws_connect(self._url) as socket_:
            self._ready.set()
            while True:
                try:
                    # Short, because `finish` is noticed only between two messages.
                    message = await socket_.receive(timeout=0.2)
                except (TimeoutError, asyncio.TimeoutError):
                    if self._done.is_set():
                        return
                    continue
                if message.type in (kind.CLOSE, kind.CLOSED, kind.ERROR):
                    return
                if message.type is kind.BINARY and self._on_preview:
                    self._on_preview(message.data)
                if message.type is not kind.TEXT:
                    continue
                event = json.loads(message.data)
                if event["type"] == "progress" and self._on_progress:
                    data = event["data"]
                    self._on_progress(str(data["node"]), data["value"], data["max"])
                # At the end of the prompt this event names no node.
                if event["type"] == "executing" and event["data"]["node"] and self._on_start:
                    self._on_start(str(event["data"]["node"]))


def boot_in_process(comfyui: Path, base: Path) -> types.ModuleType:
    """Load the host and every pack of `base` into this process, on the CPU, and return its `nodes` module.

    Call it before anything imports `comfy`. A second call with the same base loads nothing.

    Raises:
        RuntimeError: a pack did not load, with what the host logged; or this process already holds `comfy` or
            a host with another base.
    """
    if "folder_paths" in sys.modules:
        found = Path(sys.modules["folder_paths"].base_path)
        if found != base or "nodes" not in sys.modules:
            raise RuntimeError(f"This process already holds a host, based at {found}, not at {base}")
        return sys.modules["nodes"]
    if "comfy" in sys.modules:
        raise RuntimeError(
            "comfy was imported before boot_in_process chose the CPU and the base directory: "
            "import it inside tests and fixtures that need the host, not at the top of a test file"
        )
    sys.path.insert(0, str(comfyui.resolve()))
    sys.meta_path.insert(0, PlaceholderTorchaudio())
    # The arguments of this process are not the host's.
    options = importlib.import_module("comfy.options")
    options.enable_args_parsing(False)
    args = importlib.import_module("comfy.cli_args").args
    args.cpu = True
    args.disable_api_nodes = True
    args.base_directory = str(base)
    args.database_url = f"sqlite:///{base / 'user' / 'comfyui.db'}"
    # As in main.py, before `nodes`: older hosts then put their comfy/ folder, with another `utils`,
    # at the front of sys.path.
    importlib.import_module("utils.extra_config")
    nodes = importlib.import_module("nodes")
    server = importlib.import_module("server")
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    # Packs may reach for PromptServer.instance while they are imported.
    server.PromptServer(loop)
    loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    for pack in sorted((base / "custom_nodes").iterdir()):
        if pack.is_dir() and pack.name != "__pycache__":
            _load_pack(nodes, pack, loop)
    return nodes


def loaded_pack(base: Path) -> types.ModuleType:
    """The pack's root module as the host imported it, under the host's name for it."""
    return sys.modules[str(base.resolve() / "custom_nodes" / PACK).replace(".", "_x_")]


def _load_pack(nodes: types.ModuleType, pack: Path, loop: asyncio.AbstractEventLoop) -> None:
    # The host only returns False for a pack that fails, and logs the reason.
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        core = set(nodes.NODE_CLASS_MAPPINGS)
        loaded = loop.run_until_complete(nodes.load_custom_node(str(pack), core))
    finally:
        logging.getLogger().removeHandler(handler)
    if not loaded:
        logged = "\n".join(heard)
        raise RuntimeError(f"The host could not load the pack {pack}; it logged:\n{logged}")


def _finished(prompt_id: str, entry: dict[str, Any]) -> Run:
    messages = dict(entry["status"]["messages"])
    failed = messages.get("execution_error")
    error = None
    if failed:
        error = ExecutionError(
            node_id=failed["node_id"],
            node_type=failed["node_type"],
            exception_type=failed["exception_type"],
            exception_message=failed["exception_message"].rstrip(),
            traceback="".join(failed["traceback"]),
        )
    return Run(prompt_id, entry, error, "execution_interrupted" in messages)


def free_port(first: int) -> int:
    """The first port from `first` on at which nobody listens. With 0 the system picks any.

    Raises:
        OSError: there is none up to the highest port.
    """
    for port in range(first, 2**16):
        try:
            # It is free again once the probe is closed.
            with socket.create_server(("127.0.0.1", port)) as probe:
                return probe.getsockname()[1]
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"every port of 127.0.0.1 from {first} on is taken")


def _request(url: str, body: dict[str, Any] | None = None) -> Any:
    """GET, or POST JSON. Returns the answer's JSON, None where it is empty."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    # A proxy of the environment must not come between this process and its own server.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None


if __name__ == "__main__":
    if len(sys.argv) < 2 or not (Path(sys.argv[1]) / "main.py").is_file():
        sys.exit(
            "usage: launch.py COMFYUI_FOLDER [arguments of main.py ...]: "
            f"expected a folder with main.py, got {sys.argv[1:2] or 'none'}"
        )
    run_main(Path(sys.argv[1]).resolve(), sys.argv[2:])
