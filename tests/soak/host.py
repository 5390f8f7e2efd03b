"""The real host under load, from two clients at once.

`python -m tests.soak.host [--prompts 200] [--seed 0]` makes some distinct jobs from the seed. A job has one
or two nodes Apply LyCORIS Stack in modes merge, bypass and auto, with stacks, strengths and block rules of
all sorts, or none at all. Every job runs once in a server of its own. Then one server gets PROMPTS of them in
a random order, over one loaded model, from two clients that also interrupt each other.

It prints a summary and ends with status 1 unless

- every latent equals that of the same job in its own server, bit by bit;
- the model's and the text encoder's weights, whenever they are unloaded, hash as in a server that has never
  patched them, and no module has hooks;
- the server's memory, with nothing loaded, stays within 5 % over the second half of the prompts;
- no prompt fails, and the server logs no traceback.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.harness.adapters import RECIPES
from tests.harness.assets import adapter_file, install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Run, Server, base_directory

PROBE = Path(__file__).with_name("host_probe.py")
Node = dict[str, Any]

JOBS = 16
"""Distinct jobs. Each costs a start of the server, about ten seconds."""
CLIENTS = 2
AHEAD = 3
"""Prompts that a client has queued at a time."""
INTERRUPTED = 0.25
"""The share of prompts during which a client interrupts what runs."""
PROBES = 20
"""How often the weights and the memory are looked at."""
GROWTH = 0.05
"""How much the memory may change over the second half, as a share."""

RULES = ("", "mid = 0.5", "in.* = 0\nte = 0.3", "out.* = -1")
STRENGTHS = (-0.5, 0.25, 0.5, 0.8, 1.0)


@dataclass(frozen=True)
class Step:
    """One Apply LyCORIS Stack, in a mode: (file, model strength, text encoder strength), and block rules."""

    mode: str
    entries: tuple[tuple[str, float, float], ...]
    rules: str


@dataclass(frozen=True)
class Job:
    """What makes one latent: the stacks that are applied one after the other, and the sampler's seed."""

    steps: tuple[Step, ...]
    seed: int

    @property
    def name(self) -> str:
        return " then ".join(step.mode for step in self.steps) or "unpatched"

    def prompt(self, folder: str) -> dict[str, Node]:
        """The graph that samples at 64x64 pixels and saves the latent.

        folder: where in the output folder. Another folder makes the host save a latent that it has cached.
        """
        nodes = dict(load_base())
        model, clip = ["base", 0], ["base", 1]
        for number, step in enumerate(self.steps):
            stack: list[Any] | None = None
            for index, (file, strength, strength_clip) in enumerate(step.entries):
                key = f"load{number}.{index}"
                values = {"file": file, "strength_model": strength, "strength_clip": strength_clip}
                nodes[key] = node("LycorisLoadAdapter", **values, **({"stack": stack} if stack else {}))
                stack = [key, 0]
            nodes[f"rules{number}"] = node("LycorisWeightBlocks", stack=stack, rules=step.rules)
            nodes[f"apply{number}"] = node(
                "LycorisApplyStack",
                model=model,
                clip=clip,
                stack=[f"rules{number}", 0],
                mode=step.mode,
                strict=False,
            )
            model, clip = [f"apply{number}", 0], [f"apply{number}", 1]
        return nodes | {
            "positive": node("CLIPTextEncode", text="a cat on a mat", clip=clip),
            "negative": node("CLIPTextEncode", text="", clip=clip),
            "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "sample": node(
                "KSampler",
                model=model,
                positive=["positive", 0],
                negative=["negative", 0],
                latent_image=["empty", 0],
                seed=self.seed,
                steps=2,
                cfg=4.0,
                sampler_name="euler",
                scheduler="normal",
                denoise=1.0,
            ),
            "save": node("SaveLatent", samples=["sample", 0], filename_prefix=f"{folder}/latent"),
        }


def node(kind: str, **inputs: Any) -> Node:
    return {"class_type": kind, "inputs": inputs}


def load_base() -> dict[str, Node]:
    return {"base": node("CheckpointLoaderSimple", ckpt_name="base.safetensors")}


def probe_prompt() -> dict[str, Node]:
    return {**load_base(), "probe": node("SoakProbe", model=["base", 0], clip=["base", 1])}


def make_jobs(rng: random.Random) -> list[Job]:
    """Distinct jobs: some unpatched, the others in each mode and with nodes of both modes in a row."""
    kinds = ((), ("merge",), ("bypass",), ("merge", "bypass"), ("auto",), ("bypass", "merge"))
    files = [adapter_file(recipe) for recipe in RECIPES.values()]

    def step(mode: str) -> Step:
        chosen = rng.sample(files, rng.choice((1, 1, 2, 3)))
        entries = tuple((file, rng.choice(STRENGTHS), rng.choice(STRENGTHS)) for file in chosen)
        return Step(mode, entries, rng.choice(RULES))

    jobs: dict[Job, None] = {}
    while len(jobs) < JOBS:
        modes = kinds[len(jobs) % len(kinds)]
        # Few seeds, so that some jobs differ in their stacks alone.
        jobs[Job(tuple(step(mode) for mode in modes), rng.randrange(4))] = None
    return list(jobs)


@contextmanager
def serving() -> Iterator[Server]:
    base = install(base_directory(ROOT / ".cache" / facts().host / "soak-host", ROOT))
    # Of an earlier run, or of a prompt that was interrupted.
    for saved in (base / "output").iterdir():
        shutil.rmtree(saved)
    link = base / "custom_nodes" / PROBE.name
    link.unlink(missing_ok=True)
    link.symlink_to(PROBE)
    with Server(facts().comfyui, base) as server:
        yield server


def latent(server: Server, run: Run) -> Tensor:
    """The latent that a run has saved. Its file is removed."""
    (saved,) = run.outputs["save"]["latents"]
    path = server.base / "output" / saved["subfolder"] / saved["filename"]
    found = load_file(path)["latent_tensor"]
    path.unlink()
    return found


def probed(run: Run) -> dict[str, Any]:
    (text,) = run.outputs["probe"]["text"]
    return json.loads(text)


def alone(job: Job) -> tuple[Tensor, list[str]]:
    """The latent of a job in a server of its own, and the hash of the weights before it."""
    with serving() as server:
        before = probed(server.queue(probe_prompt()))["weights"]
        run = server.queue(job.prompt("alone"))
        if run.error is not None:
            raise RuntimeError(f"{job} fails in a server of its own: {run.error.exception_message}")
        return latent(server, run), before


@dataclass
class Findings:
    """What the clients have seen so far. Each of them adds to it, under the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    done: Counter[str] = field(default_factory=Counter)
    """Finished prompts by the name of the job."""
    interrupted: int = 0
    probes: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


class Client(threading.Thread):
    """Queues jobs and compares what comes of them, until `count` are done.

    A job that is interrupted is queued again.

    With `probe` set, it also queues the probe, after each `probe` of its own prompts.
    """

    def __init__(
        self,
        server: Server,
        expected: dict[Job, Tensor],
        count: int,
        rng: random.Random,
        findings: Findings,
        probe: int = 0,
    ) -> None:
        super().__init__(daemon=True)
        self.server, self.expected, self.count, self.rng = server, expected, count, rng
        self.findings, self.probe = findings, probe
        self.id = uuid.uuid4().hex
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as failure:  # noqa: BLE001 - the main thread raises it
            self.failure = failure

    def _work(self) -> None:
        jobs = list(self.expected)
        todo = deque(self.rng.choice(jobs) for _ in range(self.count))
        queued: deque[tuple[str, Job]] = deque()
        done = submitted = 0
        while todo or queued:
            while todo and len(queued) < AHEAD:
                job = todo.popleft()
                submitted += 1
                prompt = job.prompt(f"{self.id}/{submitted}")
                queued.append((self.server.submit(prompt, self.id), job))
            if self.rng.random() < INTERRUPTED:
                # Whatever runs then, of this client or of the other.
                time.sleep(self.rng.uniform(0.0, 0.5))
                self.server.interrupt()
            prompt_id, job = queued.popleft()
            if not self._finished(job, self.server.wait(prompt_id)):
                todo.append(job)
                continue
            done += 1
            if self.probe and done % self.probe == 0:
                self._probe()

    def _finished(self, job: Job, run: Run) -> bool:
        """Whether a run came to its end. Its latent is compared."""
        if run.interrupted:
            with self.findings.lock:
                self.findings.interrupted += 1
            return False
        wrong = ""
        if run.error is not None:
            wrong = f"{run.error.node_type}: {run.error.exception_message}"
        elif not torch.equal(found := latent(self.server, run), self.expected[job]):
            wanted = self.expected[job]
            error = (found - wanted).norm() / wanted.norm()
            wrong = f"the latent is {error:.1e} from that of a server of its own"
        with self.findings.lock:
            self.findings.done[job.name] += 1
            if wrong:
                self.findings.violations.append(f"{wrong}: {job}")
        return True

    def _probe(self) -> None:
        run = self.server.queue(probe_prompt())
        while run.interrupted:
            run = self.server.queue(probe_prompt())
        if run.error is not None:
            raise RuntimeError(run.error.exception_message)
        with self.findings.lock:
            self.findings.probes.append(probed(run))


def load(jobs: dict[Job, Tensor], prompts: int, seed: int) -> tuple[Findings, str]:
    """Run this many prompts of the jobs in one server; what the clients have seen, and what it logged."""
    findings = Findings()
    with serving() as server:
        # Where the log ends now: at its start the host tells of parts that it could not import.
        ready = server.log.stat().st_size
        clients = [
            Client(
                server,
                jobs,
                prompts // CLIENTS + (number < prompts % CLIENTS),
                random.Random(f"{seed} {number}"),
                findings,
                # One client alone, so that the probes are spread evenly.
                probe=max(1, prompts // CLIENTS // PROBES) if number == 0 else 0,
            )
            for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        for client in clients:
            if client.failure is not None:
                raise client.failure
        return findings, server.log.read_bytes()[ready:].decode(errors="replace")


def judge(findings: Findings, before: list[str], log: str) -> list[str]:
    """Everything that is not as the head of this file says."""
    found = list(findings.violations)
    for number, probe in enumerate(findings.probes):
        if probe["weights"] != before:
            found.append(f"probe {number}: the weights are not those of the file any more")
        if probe["hooks"]:
            found.append(f"probe {number}: hooks on {len(probe['hooks'])} modules, as {probe['hooks'][0]}")
    half = [probe["memory"] for probe in findings.probes[len(findings.probes) // 2 :]]
    if half and max(half) > (1 + GROWTH) * min(half):
        low, high = (value / 1e6 for value in (min(half), max(half)))
        found.append(f"the memory went from {low:.0f} to {high:.0f} MB over the second half")
    if not findings.interrupted:
        found.append("no interrupt met a prompt, so nothing is shown of interrupts")
    if "Traceback" in log:
        found.append(f"the server's log has a traceback:\n{log[log.index('Traceback') :][:2000]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="The real host under load, from two clients at once.")
    parser.add_argument("--prompts", type=int, default=200, help="how many prompts to run (200)")
    parser.add_argument("--seed", type=int, default=0, help="what the jobs and their order are made from (0)")
    options = parser.parse_args()

    jobs = make_jobs(random.Random(options.seed))
    expected: dict[Job, Tensor] = {}
    before: list[str] = []
    start = time.monotonic()
    for number, job in enumerate(jobs, 1):
        expected[job], before = alone(job)
        print(f"\r{number} of {len(jobs)} jobs in a server of their own", end="", flush=True)
    print(f": {time.monotonic() - start:.0f} s", flush=True)

    start = time.monotonic()
    findings, log = load(expected, options.prompts, options.seed)
    count = sum(findings.done.values())
    print(f"{count} prompts from {CLIENTS} clients: {time.monotonic() - start:.0f} s")
    print(", ".join(f"{number} {name}" for name, number in sorted(findings.done.items())))
    print(f"{findings.interrupted} interrupted, and queued again")
    print("memory, MB: " + " ".join(f"{probe['memory'] / 1e6:.0f}" for probe in findings.probes))
    violations = judge(findings, before, log)
    for violation in violations:
        print(f"VIOLATION {violation}", file=sys.stderr)
    print(f"seed {options.seed}: {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
