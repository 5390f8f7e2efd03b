"""The main job from end to end: blend three adapters onto a checkpoint, sample, and export it.

Runs `workflows/blend_and_export` in the real ComfyUI over its HTTP interface, with progress, and
ends with a summary of what was applied and written and how long each stage took.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .assets import assets, install
from .facts import ROOT, facts
from .launch import Progress, Run, Server, base_directory
from .workflow import to_prompt

WORKFLOW = ROOT / "workflows" / "blend_and_export.json"
DEMO = ROOT / ".cache" / "demo"
ENDINGS = (".png", ".safetensors")


class Stages:
    """Times stages of the work, and says on one line where each is."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start

    def __str__(self) -> str:
        return "\n".join(f"  {name}: {seconds:.1f} s" for name, seconds in self.seconds.items())


def show_progress(node_types: dict[str, str]) -> tuple[dict[str, list[float]], Progress]:
    """The times at which nodes reported progress, and the callback that prints and records it."""
    reported: dict[str, list[float]] = {}
    shown: dict[str, int] = {}

    def on_progress(node: str, value: int, maximum: int) -> None:
        name = node_types.get(node, node)
        reported.setdefault(name, []).append(time.monotonic())
        tenth = 10 * value // max(1, maximum)
        if shown.get(name) != tenth:
            shown[name] = tenth
            print(f"  {name}: {100 * value // max(1, maximum)} %", flush=True)

    return reported, on_progress


def written_files(before: set[Path]) -> list[Path]:
    files = (path for path in (DEMO / "output").rglob("*") if path.suffix in ENDINGS)
    return sorted(path for path in files if path not in before)


def reports(run: Run) -> Iterator[tuple[str, str]]:
    """The report of every node that showed one, by node id."""
    for node, shown in run.outputs.items():
        for text in shown.get("text") or ():
            yield node, text


def main() -> int:
    stages = Stages()
    with stages.stage("make the checkpoint and the adapters (kept for the next run)"):
        assets()
        base = install(base_directory(DEMO, ROOT))
    before = set(written_files(set()))
    with ExitStack() as running:
        with stages.stage(f"start ComfyUI {facts().host}"):
            server = running.enter_context(Server(facts().comfyui, base))
        prompt = to_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")), server.object_info())
        types = {node: entry["class_type"] for node, entry in prompt.items()}
        reported, on_progress = show_progress(types)
        with stages.stage("run workflows/blend_and_export"):
            run = server.queue(prompt, on_progress)
    if run.error:
        print(f"{run.error.node_type} failed: {run.error.exception_message}", file=sys.stderr)
        return 1
    for name, times in reported.items():
        stages.seconds[f"  of this {name}"] = times[-1] - times[0]

    for node, text in reports(run):
        print(f"\n{types[node]} reports:\n{text}")
    print("\nWritten:")
    for path in written_files(before):
        print(f"  {path} ({path.stat().st_size / 1e6:.2f} MB)")
    print(f"\nTime:\n{stages}\n  in all: {sum(v for k, v in stages.seconds.items() if k[0] != ' '):.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
