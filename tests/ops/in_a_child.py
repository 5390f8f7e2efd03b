"""Opens files one by one, each in a process with limits: `python in_a_child.py`, with the paths on stdin.

For each file a line of JSON is printed: what came of it, in words. The system ends a process that needs more
CPU time than `SECONDS`, and gives it no more memory than `BYTES` above what the library itself takes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import torch

import lycoris_ops as lyc

SECONDS = 2
BYTES = 1 << 30
HONEST = "honest.safetensors"
"""The name of an adapter that is merged into files whose names begin with `base`."""


def opened(path: Path) -> str:
    """What becomes of a file: of a base where its name says so, else of an adapter."""
    if path.name.startswith("base"):
        stack = lyc.Stack([lyc.Entry(lyc.load_adapter(path.with_name(HONEST)))])
        return str(lyc.merge_checkpoint(path, stack, path.with_name(f"out-{path.name}")))
    adapter = lyc.load_adapter(path)
    kinds = [layer.algorithm for layer in adapter.layers.values()]
    resolution = lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), {"diffusion_model.a.weight": (4, 4)})
    return "\n".join([*kinds, lyc.in_words(lyc.summary(adapter)), lyc.describe(resolution)])


def outcome(path: Path) -> str:
    """What becomes of a file, or the error in words: with its class where it is not one of the library's."""
    try:
        return f"read: {opened(path)}"
    except lyc.LycorisError as error:
        return f"refused: {error}"
    except (Exception, RecursionError) as error:  # noqa: BLE001 - that there is none is what is tested
        return f"{type(error).__name__}: {error}"


def limited(path: Path) -> str:
    """The outcome for a file in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(outcome(path).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    status, used = os.wait4(child, 0)[1:]
    if "SHOW" in os.environ:
        cost = f"{used.ru_utime + used.ru_stime:.2f} s, {used.ru_maxrss >> 10} MB"
        print(path.name, cost, file=sys.stderr)
    return text if status == 0 else f"ended by signal {os.WTERMSIG(status)}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(limited(Path(line.removesuffix("\n")))), flush=True)
