"""The main job from end to end: blend three adapters onto a checkpoint, sample, and export it.

Runs two of the templates in the real ComfyUI over its HTTP interface, with progress bars. At the end it says
what was applied and written, how long each stage took, and what to do next.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tests.harness.assets import FILES, assets, install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Run, Server, base_directory
from tests.harness.templates import BLEND, EXPORT, Values, ready
from tests.harness.workflow import to_prompt

DEMO = ROOT / ".cache" / "demo"
PICTURE: Values = {"EmptyLatentImage": {"width": 128, "height": 128}, "KSampler": {"steps": 4}}
"""A small one: the demo runs on the CPU."""
ENDINGS = (".png", ".safetensors")
# The node whose report is shown: it says what was applied as well as what was written.
REPORTING = "LycorisSaveCheckpoint"
NEXT = (
    f"Next: `make ui`, open its address and the template {BLEND}, and put your own models into it. "
    "The picture is noise, because the weights of the demo's models are random."
)


class Stages:
    """Times the stages of the work, and prints the name of each when it starts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start

    def __str__(self) -> str:
        lines = [f"  {name}: {seconds:.1f} s" for name, seconds in self.seconds.items()]
        return "\n".join([*lines, f"  in all: {sum(self.seconds.values()):.1f} s"])


def run_with_bar(server: Server, prompt: dict[str, Any]) -> Run:
    """Run a prompt with a progress bar over its nodes."""
    with tqdm(total=len(prompt), bar_format="  {percentage:3.0f}% |{bar:30}| {elapsed}, {desc}") as bar:

        def started(node: str) -> None:
            bar.set_description_str(prompt[node]["class_type"], refresh=False)
            bar.update()

        run = server.queue(prompt, on_start=started)
        if not run.error:
            # The host does not start nodes whose result it still has.
            bar.update(bar.total - bar.n)
    return run


def prepared() -> None:
    """Make the models, with a bar where that takes a while."""
    # The packages that make them warn that others are missing. Nothing here needs those.
    logging.disable(logging.WARNING)
    with tqdm(total=FILES, unit="file", delay=1, bar_format="  {n}/{total} |{bar:30}| {elapsed}") as bar:
        assets(bar.update)


def written_files(before: set[Path]) -> list[Path]:
    files = (path for path in (DEMO / "output").rglob("*") if path.suffix in ENDINGS)
    return sorted(path for path in files if path not in before)


def report(run: Run, prompt: dict[str, Any]) -> str:
    """What the node `REPORTING` showed."""
    return "\n".join(
        text
        for node, shown in run.outputs.items()
        if prompt[node]["class_type"] == REPORTING
        for text in shown.get("text") or ()
    )


def main() -> int:
    stages = Stages()
    with stages.stage("make the checkpoint and the adapters (kept for the next run)"):
        prepared()
        base = install(base_directory(DEMO, ROOT))
    before = set(written_files(set()))
    with ExitStack() as running:
        with stages.stage(f"start ComfyUI {facts().host}"):
            server = running.enter_context(Server(facts().comfyui, base))
        info = server.object_info()
        for name in (BLEND, EXPORT):
            prompt = to_prompt(ready(name, info, PICTURE), info)
            with stages.stage(f"run workflows/{name}"):
                run = run_with_bar(server, prompt)
            if run.error:
                break
    if run.error:
        print(f"{run.error.node_type} failed: {run.error.exception_message}", file=sys.stderr)
        return 1

    # The last run is the one that saves, so its report says what was applied and what was written.
    print(f"\n{report(run, prompt)}")
    print("\nWritten:")
    for path in written_files(before):
        print(f"  {path} ({path.stat().st_size / 1e6:.2f} MB)")
    print(f"\nTime:\n{stages}")
    print(f"\n{NEXT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
