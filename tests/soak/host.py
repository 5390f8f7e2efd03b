"""The real host under load, from two clients at once.

`python -m tests.soak.host [--prompts 200] [--seed 0]` makes some distinct jobs from the seed. A job has one
or two nodes Apply LyCORIS Stack in modes merge, bypass and auto, with stacks, strengths and block rules of
all sorts, or none at all. Every job runs once in a server of its own. Then two clients send `--prompts` of
these jobs, in a random order, to one server with one loaded model. They also interrupt each other.

It prints a summary and ends with status 1 unless

- every latent equals that of the same job in its own server, bit by bit;
- whenever they are unloaded, the weights of the model and the text encoder have the hashes that they have in
  a server that has never patched them, and no module has hooks;
- the server's memory, with nothing loaded, stays within 5 % over the second half of the prompts;
- no prompt fails, and the server logs no traceback;
- at least one prompt was interrupted.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.harness.adapters import RECIPES
from tests.harness.assets import adapter_file, install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Run, Server, base_directory
from tests.harness.prompts import Prompt, latent, node, sampled, stacked

PROBE = Path(__file__).with_name("host_probe.py")
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
MODES = ((), ("merge",), ("bypass",), ("merge", "bypass"), ("auto",), ("bypass", "merge"))
RULES = ("", "mid = 0.5", "in.* = 0\nte = 0.3", "out.* = -1")
STRENGTHS = (-0.5, 0.25, 0.5, 0.8, 1.0)


@dataclass(frozen=True)
class Step:
    """One Apply LyCORIS Stack: mode, rows of (file, model strength, text encoder strength), block rules."""

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

    def prompt(self, folder: str) -> Prompt:
        """The graph that samples and saves the latent in a folder."""
        nodes: Prompt = {}
        on = "base"
        for number, step in enumerate(self.steps):
            loaded, stack = stacked(step.entries, f"load{number}.")
            rules, settings = f"rules{number}", {"mode": step.mode, "strict": False}
            nodes |= {**loaded, rules: node("LycorisWeightBlocks", stack=stack, rules=step.rules)}
            links = {"model": [on, 0], "clip": [on, 1], "stack": [rules, 0]}
            on = f"apply{number}"
            nodes[on] = node("LycorisApplyStack", **links, **settings)
        return nodes | sampled([on, 0], [on, 1], folder, seed=self.seed, steps=2)


def make_jobs(rng: random.Random) -> list[Job]:
    """Distinct jobs: some unpatched, some in each mode, and some with merge and bypass in a row."""
    files = [adapter_file(recipe) for recipe in RECIPES.values()]

    def step(mode: str) -> Step:
        chosen = rng.sample(files, rng.choice((1, 1, 2, 3)))
        entries = tuple((file, rng.choice(STRENGTHS), rng.choice(STRENGTHS)) for file in chosen)
        return Step(mode, entries, rng.choice(RULES))

    jobs: dict[Job, None] = {}
    while len(jobs) < JOBS:
        modes = MODES[len(jobs) % len(MODES)]
        # Few seeds, so that some jobs differ in their stacks alone.
        jobs[Job(tuple(step(mode) for mode in modes), rng.randrange(4))] = None
    return list(jobs)


@contextmanager
def serving() -> Iterator[Server]:
    base = install(base_directory(ROOT / ".cache" / facts().host / "soak-host", ROOT))
    # Left by an earlier run, or by a prompt that was interrupted.
    for saved in (base / "output").iterdir():
        shutil.rmtree(saved)
    link = base / "custom_nodes" / PROBE.name
    link.unlink(missing_ok=True)
    link.symlink_to(PROBE)
    with Server(facts().comfyui, base) as server:
        yield server


def probed(server: Server) -> dict[str, Any]:
    """What the node of `host_probe` tells. If another client interrupts it, it runs again."""
    prompt = {
        "base": node("CheckpointLoaderSimple", ckpt_name="base.safetensors"),
        "probe": node("SoakProbe", model=["base", 0], clip=["base", 1]),
    }
    run = server.queue(prompt)
    while run.interrupted:
        run = server.queue(prompt)
    (text,) = finished(run, "the probe")["probe"]["text"]
    return json.loads(text)


def finished(run: Run, what: object) -> dict[str, Any]:
    if run.error is not None:
        raise RuntimeError(f"{what} fails: {run.error.node_type}: {run.error.exception_message}")
    return run.outputs


def alone(job: Job) -> tuple[Tensor, list[str]]:
    """The latent of a job in a server of its own, and the hashes of the weights before it ran."""
    with serving() as server:
        before = probed(server)["weights"]
        run = server.queue(job.prompt("alone"))
        finished(run, job)
        return latent(server, run), before


@dataclass
class Client:
    """Queues jobs and compares their latents, until `count` are done. Interrupted ones are queued again.

    If `probe` is not 0, it also probes the server each time so many of its prompts are done.
    """

    server: Server
    expected: dict[Job, Tensor]
    count: int
    rng: random.Random
    name: str
    probe: int = 0
    done: Counter[str] = field(default_factory=Counter)
    """Finished prompts by the name of the job."""
    interrupted: int = 0
    probes: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def work(self) -> Client:
        todo = deque(self.rng.choices(list(self.expected), k=self.count))
        queued: deque[tuple[str, Job]] = deque()
        submitted = 0
        while todo or queued:
            while todo and len(queued) < AHEAD:
                job, submitted = todo.popleft(), submitted + 1
                prompt = job.prompt(f"{self.name}/{submitted}")
                queued.append((self.server.submit(prompt, self.name), job))
            if self.rng.random() < INTERRUPTED:
                # This interrupts what runs then, be it this client's or the other's.
                time.sleep(self.rng.uniform(0.0, 0.5))
                self.server.interrupt()
            prompt_id, job = queued.popleft()
            run = self.server.wait(prompt_id)
            if run.interrupted:
                self.interrupted += 1
                todo.append(job)
                continue
            self._compare(job, run)
            if self.probe and self.done.total() % self.probe == 0:
                self.probes.append(probed(self.server))
        return self

    def _compare(self, job: Job, run: Run) -> None:
        self.done[job.name] += 1
        if run.error is not None:
            self.violations.append(f"{run.error.node_type}: {run.error.exception_message}: {job}")
        elif not torch.equal(found := latent(self.server, run), wanted := self.expected[job]):
            error = (found - wanted).norm() / wanted.norm()
            self.violations.append(f"the latent differs by {error:.1e} from that of its own server: {job}")


def load(expected: dict[Job, Tensor], prompts: int, seed: int) -> tuple[list[Client], str]:
    """Run this many prompts of the jobs in one server. Returns the clients, and what the server logged."""
    with serving() as server:
        # The log up to here does not count: in it the host tells of parts that it could not import.
        ready = server.log.stat().st_size
        counts = [prompts // CLIENTS + (number < prompts % CLIENTS) for number in range(CLIENTS)]
        clients = [
            Client(server, expected, count, random.Random(f"{seed} {number}"), f"client{number}")
            for number, count in enumerate(counts)
        ]
        # Only one client probes, so that the probes are spread evenly.
        clients[0].probe = max(1, counts[0] // PROBES)
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(Client.work, clients))
        return clients, server.log.read_bytes()[ready:].decode(errors="replace")


def judged(clients: list[Client], before: list[str], log: str) -> list[str]:
    """Everything that breaks a promise at the head of this file."""
    found = [violation for client in clients for violation in client.violations]
    probes = clients[0].probes
    for number, probe in enumerate(probes):
        if probe["weights"] != before:
            found.append(f"probe {number}: the weights are not those of the file any more")
        if probe["hooks"]:
            found.append(f"probe {number}: hooks on {len(probe['hooks'])} modules, as on {probe['hooks'][0]}")
    half = [probe["memory"] / 1e6 for probe in probes[len(probes) // 2 :]]
    if half and max(half) > (1 + GROWTH) * min(half):
        found.append(f"the memory went from {min(half):.0f} to {max(half):.0f} MB over the second half")
    if not any(client.interrupted for client in clients):
        found.append("no interrupt met a prompt, so nothing is shown about interrupts")
    if "Traceback" in log:
        found.append(f"the server's log has a traceback:\n{log[log.index('Traceback') :][:2000]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="The real host under load, from two clients at once.")
    parser.add_argument("--prompts", type=int, default=200, help="how many prompts to run (200)")
    parser.add_argument("--seed", type=int, default=0, help="what the jobs and their order are made from (0)")
    options = parser.parse_args()

    expected: dict[Job, Tensor] = {}
    before: list[str] = []
    for number, job in enumerate(make_jobs(random.Random(options.seed)), 1):
        expected[job], before = alone(job)
        print(f"\r{number} of {JOBS} jobs in a server of their own", end="", flush=True)
    start = time.monotonic()
    clients, log = load(expected, options.prompts, options.seed)
    done = sum((client.done for client in clients), Counter[str]())
    print(f"\n{done.total()} prompts from {CLIENTS} clients: {time.monotonic() - start:.0f} s")
    print(", ".join(f"{number} {name}" for name, number in sorted(done.items())))
    print(f"{sum(client.interrupted for client in clients)} interrupted, and queued again")
    print("memory, MB: " + " ".join(f"{probe['memory'] / 1e6:.0f}" for probe in clients[0].probes))
    violations = judged(clients, before, log)
    for violation in violations:
        print(f"VIOLATION {violation}", file=sys.stderr)
    print(f"seed {options.seed}: {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
