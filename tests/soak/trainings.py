"""Trainings in the real host, which is killed or gets a full disk at random moments.

`python -m tests.soak.trainings [--kills 5] [--full 2] [--seed 0] [--job clips]` runs each job once unbroken.
The jobs train on pictures, pairs and clips, train two experts and a slider, and judge checkpoints. Then each
is broken off, at any time or while a file is written. `--kills` times the host is killed and started again.
`--full` times the disk is full until the node has reported it: either few bytes are left, or no further file
can be made. After each break, Run goes on.

The host's folder and the disks in it are in memory, and mounted for this process alone, so that several
campaigns can run side by side. That needs Linux, and `unshare`.

It prints a summary and ends with status 1 unless

- the output folder ends up with the same files as after the unbroken run, checkpoints and previews included.
  All but the metadata of models is compared bit by bit. Besides these files the folder may only hold `.part`
  files of killed writers;
- a training that was broken off went on from its newest whole state, if it had one;
- a judgement leaves nothing in the output folder, and gives the same result;
- the error of a full disk comes from the node and says that the disk is full, and no `.part` file is left.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

import lycoris_ops as lyc
from tests.harness.assets import install, parts
from tests.harness.diffusion import write_model
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Run, Server, base_directory
from tests.harness.prompts import Prompt, node, own
from tests.harness.templates import CLIPS, EDIT, JUDGE, SLIDER, SMALL, TRAIN, draw_pictures, ready
from tests.harness.workflow import to_prompt

STEPS, EVERY = 8, 2
"""The steps of a training, and those between two checkpoints."""
ROOM = 1 << 16
"""The most bytes that are left on a full disk."""
FULL = ("disk is full", "no room")
"""What the error of a full disk says: while a file is written, and before."""
DISK = 1 << 31
"""The size of a disk, in bytes."""
FILES = 100_000
"""The most files on a disk."""
REMOUNT = 32
"""Linux's MS_REMOUNT."""
DISKS = ("output", "user/__lycoris")
"""The folders of a host's base directory that are disks of their own."""
ALONE = "TRAININGS_MOUNT"
"""The environment variable that is set in a process whose mounts no other process sees."""
LOW = "diffusion_models/wan_low_noise.safetensors"
REST = ".part"
CHECKPOINTS = "_-checkpoints"
STATE = ".state."


@dataclass(frozen=True)
class Job:
    """A template, up to the node that is tested."""

    name: str
    template: str
    node: str
    experts: tuple[str, ...] = ("",)
    """For each of its files, what follows the job's name in the file's name."""

    @property
    def names(self) -> list[str]:
        return [f"{self.name}{expert}" for expert in self.experts]

    def prompt(self, info: dict[str, Any]) -> tuple[Prompt, str]:
        """The prompt, and the number of the node in it."""
        whole = _smaller(to_prompt(ready(self.template, info, SMALL), info))
        (number,) = (number for number, one in whole.items() if one["class_type"] == self.node)
        inputs = whole[number]["inputs"]
        if self.node == "LycorisJudge":
            inputs |= {"training": f"loras/{JUDGED.name}", "samples": 1, "times": 2}
        else:
            often = own("output", checkpoint_every=EVERY, keep=STEPS, sample_every=STEPS // 2)
            inputs |= {"steps": STEPS, "filename_prefix": f"loras/{self.name}", **often}
        if len(self.experts) > 1:
            whole["low"] = node("UNETLoader", unet_name=Path(LOW).name, weight_dtype="default")
            inputs["low_noise_model"] = ["low", 0]
        return _upto(whole, number), number


JUDGED = Job("pictures", TRAIN, "LycorisTrain")
"""The training whose checkpoints are judged."""
JOBS = (
    JUDGED,
    Job("pairs", EDIT, "LycorisTrain"),
    Job("clips", CLIPS, "LycorisTrain"),
    Job("experts", CLIPS, "LycorisTrain", ("_high_noise", "_low_noise")),
    Job("slider", SLIDER, "LycorisSlider"),
    Job("judge", JUDGE, "LycorisJudge"),
)


def _smaller(prompt: Prompt) -> Prompt:
    """A prompt with a small model and VAE of Flux 2 in place of the checkpoint's, which take ten times as
    long. The checkpoint's text encoder stays."""
    small = {0: "small model", 2: "small vae"}
    loaders = [number for number, one in prompt.items() if one["class_type"] == "CheckpointLoaderSimple"]
    for one in prompt.values():
        for name, value in one["inputs"].items():
            if isinstance(value, list) and value[0] in loaders and value[1] in small:
                one["inputs"][name] = [small[value[1]], 0]
    return prompt | {
        small[0]: node("UNETLoader", unet_name="flux2.safetensors", weight_dtype="default"),
        small[2]: node("VAELoader", vae_name="flux2_vae.safetensors"),
    }


def _upto(prompt: Prompt, number: str) -> Prompt:
    """A node of a prompt, and what it needs."""
    found: Prompt = {}
    waiting = [number]
    while waiting:
        one = waiting.pop()
        found[one] = prompt[one]
        waiting += [value[0] for value in prompt[one]["inputs"].values() if isinstance(value, list)]
    return found


def kept_files(folder: Path) -> dict[str, Any]:
    """What the files of a folder hold, by their paths: tensors of models, and bytes of all others.

    Metadata are left out: they tell when a file was written, and from where its training went on.
    """
    return {
        str(path.relative_to(folder)): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(REST)
    }


def _digest(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return path.read_bytes()
    found = load_file(path)
    return {name: (one.dtype, one.shape, one.numpy().tobytes()) for name, one in found.items()}


def rests(base: Path) -> list[Path]:
    return [path for part in ("output", "user") for path in (base / part).rglob(f"*{REST}")]


@dataclass
class Campaign:
    server: Server
    rng: random.Random
    counted: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.server.base / "output" / "loras"

    def run(self, job: Job, kills: int, full: int) -> None:
        """Try a job: once unbroken, then with a host that is killed, and with a disk that is full."""
        prompt, number = job.prompt(self.server.object_info())
        if job.node == "LycorisJudge":
            training, _ = JUDGED.prompt(self.server.object_info())
            self._clear()
            self._ended(self.server.queue(training), "the training that is judged")
        self._forget(job)
        before = kept_files(self.folder)
        start = self._computed()
        told = self._ended(self.server.queue(prompt), f"{job.name}, unbroken")[number]
        took = self._computed() - start
        whole, words = kept_files(self.folder), "\n".join(told["text"])
        if job.node == "LycorisJudge" and whole != before:
            self._violated(job, f"it leaves files: {sorted(whole.keys() ^ before.keys())}")

        def tried(breaking: Callable[[], None], times: int, what: str) -> None:
            """Break it off `times` times in all, one to three times before each run to the end."""
            left = times
            while left:
                self._forget(job)
                for _ in range(min(left, self.rng.randint(1, 3))):
                    if not self._broken_off(job, prompt, breaking, took):
                        break
                    self.counted[what] += 1
                    left -= 1
                self._finished(job, prompt, number, whole, words)

        tried(self._kill, kills, "killed")
        tried(self._fill, full, "full")

    def _broken_off(self, job: Job, prompt: Prompt, breaking: Callable[[], None], took: float) -> bool:
        """Run the job and break it off. Returns whether that came before its end."""
        self._restarted_if_ended()
        known = set(rests(self.server.base))
        end = self._computed() + self.rng.uniform(0.0, took)
        prompt_id = self.server.submit(prompt)
        self._wait(prompt_id, end, known)
        breaking()
        try:
            run = self.server.wait(prompt_id)
        except (RuntimeError, OSError):
            # If its file is written, only the rest of the prompt was broken off.
            return not self._is_written(job)
        finally:
            self._make_room()
        if run.error is None:
            return False
        told = any(words in run.error.exception_message for words in FULL)
        if not run.error.node_type.startswith("Lycoris") or not told:
            self._violated(job, f"a full disk ends in {run.error.node_type}: {run.error.exception_message}")
        if left := set(rests(self.server.base)) - known:
            self._violated(job, f"a full disk leaves {sorted(map(str, left))}")
        return True

    def _is_written(self, job: Job) -> bool:
        return all(any(self.folder.glob(f"{name}_*_.safetensors")) for name in job.names)

    def _computed(self) -> float:
        """The CPU time of the host, in seconds.

        Unlike the clock, it says how far a run is even if other processes slow the run down.
        """
        times = psutil.Process(self.server.pid).cpu_times()
        return times.user + times.system

    def _wait(self, prompt_id: str, end: float, known: set[Path]) -> None:
        """Wait until the host has computed up to `end`, or the prompt has ended. In half of the cases, wait
        on for the next file."""
        while self._computed() < end and not self.server.has_ended(prompt_id):
            time.sleep(0.02)
        limit = time.monotonic() + 10
        writing = self.rng.random() < 0.5
        while writing and not self._written_since(known) and time.monotonic() < limit:
            time.sleep(0.001)
        self.counted["as a file was written"] += self._written_since(known)

    def _written_since(self, known: set[Path]) -> bool:
        return bool(set(rests(self.server.base)) - known)

    def _kill(self) -> None:
        os.kill(self.server.pid, signal.SIGKILL)
        while self.server.running():
            time.sleep(0.01)

    def _fill(self) -> None:
        by_files = self.rng.random() < 0.5
        self.counted["without room for a file"] += by_files
        for disk in DISKS:
            self._fill_one(self.server.base / disk, by_files)

    def _fill_one(self, disk: Path, by_files: bool) -> None:
        while True:
            found = os.statvfs(disk)
            files = found.f_files - found.f_ffree if by_files else FILES
            used = (found.f_blocks - found.f_bfree) * found.f_frsize + self.rng.randrange(ROOM)
            try:
                mount(disk, size=DISK if by_files else used, files=files, again=True)
            except OSError as error:
                # More was written meanwhile.
                if error.errno == errno.EINVAL:
                    continue
                raise
            return

    def _make_room(self) -> None:
        for disk in DISKS:
            mount(self.server.base / disk, again=True)

    def _restarted_if_ended(self) -> None:
        if not self.server.running():
            self.server.__exit__()
            self.server.__enter__()

    def _forget(self, job: Job) -> None:
        """Remove what the host has encoded and has in memory, and for a training also what it has written."""
        self._restarted_if_ended()
        if job.node != "LycorisJudge":
            self._clear()
        for one in (self.server.base / "user/__lycoris").iterdir():
            # A killed writer may leave a file there.
            shutil.rmtree(one) if one.is_dir() else one.unlink()
        self.server.post("/free", {"unload_models": True, "free_memory": True})

    def _clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ended(self, run: Run, what: str) -> dict[str, Any]:
        if run.error is not None:
            raise RuntimeError(f"{what} fails: {run.error.node_type}: {run.error.exception_message}")
        return run.outputs

    def _finished(self, job: Job, prompt: Prompt, number: str, whole: Mapping[str, Any], words: str) -> None:
        """Run the job to its end, if it is not there yet, and compare with the unbroken run."""
        self._restarted_if_ended()
        if not self._is_written(job):
            places = [sorted(self.folder.glob(f"{name}_*{CHECKPOINTS}"))[-1:] for name in job.names]
            states = [lyc.newest_state(folder) for found in places for folder in found]
            run = self.server.queue(prompt)
            if run.error is not None:
                self._violated(job, f"{run.error.node_type}: {run.error.exception_message}")
                return
            report = "\n".join(run.outputs[number]["text"])
            if job.node == "LycorisJudge":
                if report != words:
                    self._violated(job, f"its result is {report!r}, not {words!r}")
            else:
                went = re.findall(r"^went on from step (\d+)", report, re.MULTILINE)
                if went != (wanted := [str(state.step) for state in states if state]):
                    self._violated(job, f"it went on from step {went}, not from {wanted}")
        found = self._made(job)
        if found != dict(whole):
            wrong = sorted(name for name in {*found, *whole} if found.get(name) != whole.get(name))
            self._violated(job, f"not as in the unbroken run: {wrong}")
        self.counted["to the end"] += 1

    def _made(self, job: Job) -> dict[str, Any]:
        """The files of the last training, with the number 00001 in their names, and all other files.

        If a training is broken off before it has written a state, the next run begins anew, under the next
        number. What such trainings leave is not counted.
        """
        found = kept_files(self.folder)
        for name in job.names:
            made = sorted(path.name for path in self.folder.glob(f"{name}_*{CHECKPOINTS}"))
            for folder in made[:-1]:
                own = [each for each in found if each.startswith(f"{folder}/")]
                if any(STATE in each for each in own):
                    self._violated(job, f"{folder} is left with a state: {own}")
                for each in own:
                    del found[each]
            last = made[-1].removesuffix("-checkpoints") if made else name
            found = {file.replace(last, f"{name}_00001_"): each for file, each in found.items()}
        return found

    def _violated(self, job: Job, what: str) -> None:
        self.violations.append(f"{job.name}: {what}")
        print(f"VIOLATION {job.name}: {what}", file=sys.stderr, flush=True)


def mount(folder: Path, *, size: int = DISK, files: int = FILES, again: bool = False) -> None:
    """Mount a disk in memory for `size` bytes and `files` files. With `again`, change a mounted one."""
    flags, data = (REMOUNT if again else 0), f"size={size},nr_inodes={files}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, data.encode()):
        raise OSError(ctypes.get_errno(), f"{os.strerror(ctypes.get_errno())}: {data}", str(folder))


@contextmanager
def serving() -> Iterator[Server]:
    place = ROOT / ".cache" / facts().host / "soak-trainings"
    place.mkdir(parents=True, exist_ok=True)
    mount(place)
    base = install(base_directory(place, ROOT), parts())
    for disk in DISKS:
        (base / disk).mkdir(exist_ok=True)
        mount(base / disk)
    write_model(base / "models" / LOW, "Wan", seed=1, dtype=torch.float32)
    draw_pictures(base / "input")
    with Server(facts().comfyui, base) as server:
        yield server


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=5, help="how often the host is killed in each job (5)")
    parser.add_argument("--full", type=int, default=2, help="how often the disk fills up in each job (2)")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the random moments (0)")
    parser.add_argument("--job", action="append", choices=[job.name for job in JOBS], help="only this job")
    options = parser.parse_args()
    if ALONE not in os.environ:
        own = ("unshare", "--map-root-user", "--mount", sys.executable, "-m", __spec__.name, *sys.argv[1:])
        os.execvpe(own[0], own, {**os.environ, ALONE: "1"})
    with serving() as server:
        campaign = Campaign(server, random.Random(options.seed))
        for job in JOBS:
            if options.job is None or job.name in options.job:
                start = time.monotonic()
                campaign.run(job, options.kills, options.full)
                counts = ", ".join(f"{count} {what}" for what, count in sorted(campaign.counted.items()))
                print(f"{job.name} in {time.monotonic() - start:.0f} s: {counts}", flush=True)
                campaign.counted.clear()
    print(f"seed {options.seed}: {len(campaign.violations)} violations")
    return 1 if campaign.violations else 0


if __name__ == "__main__":
    sys.exit(main())
