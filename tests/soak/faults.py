"""Writers that are killed and raced, and what is in the folder afterwards.

    python -m tests.soak.faults --seed 1 --kills 100

Prints a summary, and every violation. The exit status is 1 if there is one. What must hold: each file that
ends like a model's is whole, and is the earlier one or the new one bit by bit; files of PEFT belong together;
what an error or an interrupt says of it is true; what is left of a killed writer is taken for no model.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import lycoris_ops as lyc
from lycoris_ops.commands import main as command_line

ENDINGS = lyc.SAFETENSORS + lyc.PICKLES
CARD = "README.md"
LAYERS, SIZE, RANK = 40, 224, 16
VARIANTS = 3
"""How many different files each writer can write under one name."""
FILE, FOLDER = "out.safetensors", "style-v1.5"
OK, REFUSED, INTERRUPTED, TERMINATED = 0, 2, 130, 143
"""Exit statuses of the command line."""
STEPS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")
"""Python's audit events of steps after which a folder is in another state."""

Files = Mapping[str, bytes]
"""Contents of files by their paths in a folder."""


class ViolationError(Exception):
    """Something that must never be."""


@dataclass(frozen=True)
class Writer:
    """A way to write a file into a folder: `write(folder, variant, overwrite)` returns an exit status."""

    name: str
    write: Callable[[Path, int, bool], int]


@dataclass
class Sources:
    """The files that are read, in a folder of their own."""

    folder: Path
    writers: list[Writer] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def rand(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        kohya = ("lora_unet_blocks_{}_x.lora_up.weight", "lora_unet_blocks_{}_x.lora_down.weight")
        peft = ("base_model.model.blocks.{}.x.lora_B.weight", "base_model.model.blocks.{}.x.lora_A.weight")
        # Of other ranks, so that each needs another configuration of PEFT's.
        for name, (up, down), rank in (
            ("kohya", kohya, RANK),
            *((f"peft{variant}", peft, RANK - variant) for variant in range(VARIANTS)),
        ):
            tensors = {up.format(n): rand(SIZE, rank) for n in range(LAYERS)}
            save_file(tensors | {down.format(n): rand(rank, SIZE) for n in range(LAYERS)}, self.path(name))
        base = {f"model.diffusion_model.blocks.{n}.x.weight": rand(SIZE, SIZE) for n in range(LAYERS)}
        save_file(base, self.path("base"))
        self.writers = [
            Writer("bake", self.bake),
            Writer("convert", lambda *given: self.convert("lycoris", FILE, *given)),
            Writer("convert to peft", lambda *given: self.convert("peft", FOLDER, *given)),
            Writer("save_adapter", self.save),
        ]

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def bake(self, folder: Path, variant: int, overwrite: bool) -> int:
        given = ("bake", self.path("base"), "--adapter", self.path("kohya"), variant + 1)
        return command(*given, "-o", folder / FILE, overwrite=overwrite)

    def convert(self, dialect: str, name: str, folder: Path, variant: int, overwrite: bool) -> int:
        given = ("convert", self.path(f"peft{variant}"), "--dialect", dialect)
        return command(*given, "-o", folder / name, overwrite=overwrite)

    def save(self, folder: Path, variant: int, overwrite: bool) -> int:
        adapter, note = lyc.load_adapter(self.path("kohya")), {"variant": str(variant)}
        lyc.save_adapter(adapter, folder / FILE, metadata=note, overwrite=overwrite)
        return OK


def command(*given: object, overwrite: bool) -> int:
    return command_line([*map(str, given), *(["--overwrite"] if overwrite else [])])


# Child processes.


@dataclass(frozen=True)
class Child:
    """A copy of this process that does some work. It starts in a moment, because torch is there already."""

    pid: int
    log: Path

    @classmethod
    def of(cls, work: Callable[[], int], log: Path) -> Child:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return cls(pid, log)
        status = 1
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            # A copy of a process has none of its threads.
            torch.set_num_threads(1)
            status = work()
        except lyc.LycorisError as error:
            print(f"error: {error}", file=sys.stderr)
            status = REFUSED
        except KeyboardInterrupt:
            # Before or after the command line, which has a message for it.
            status = INTERRUPTED
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(status)

    def wait(self) -> tuple[int, str]:
        """The exit status, negative for a signal, and what was printed."""
        _, status = os.waitpid(self.pid, 0)
        text = self.log.read_text() if self.log.exists() else ""
        return os.waitstatus_to_exitcode(status), text


def killing(work: Callable[[], int], sent: signal.Signals, step: int) -> Callable[[], int]:
    """The work in a process that sends itself a signal before this step on files."""

    def run() -> int:
        left = [step]

        def count(event: str, given: tuple[Any, ...]) -> None:
            # Python opens its modules too, but none for writing.
            if event not in STEPS or (event == "open" and not str(given[1]).startswith(("x", "w"))):
                return
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), sent)

        sys.addaudithook(count)
        return work()

    return run


# What is in a folder.


def files_in(folder: Path) -> dict[str, bytes]:
    """Contents of files, and where links lead to, by their paths in the folder."""
    links = {path: f"-> {path.readlink()}".encode() for path in folder.rglob("*") if path.is_symlink()}
    files = {path: path.read_bytes() for path in folder.rglob("*") if path not in links and path.is_file()}
    return {str(path.relative_to(folder)): content for path, content in (links | files).items()}


def is_rest(name: str) -> bool:
    return name.endswith(".part")


def without_card(files: Files) -> dict[str, bytes]:
    """Files without the model card, which readers of the weights do not need."""
    return {name: content for name, content in files.items() if Path(name).name != CARD}


def state_of(folder: Path, old: Files, new: Files) -> str:
    """Which files are in a folder: `old`, `new`, or `none`. Raises ViolationError for anything else."""
    found = files_in(folder)
    old, new = without_card(old), without_card(new)
    named = without_card({name: content for name, content in found.items() if not is_rest(name)})
    for name in named:
        if name.endswith(ENDINGS):
            # Both read the whole header, and the second one every tensor.
            lyc.read_shapes([str(folder / name)])
            load_file(folder / name)
    for state, wanted in (("none", {}), ("old", old), ("new", new)):
        # An earlier file cannot go away.
        if named == dict(wanted) and (state != "none" or not old):
            return state
    # Between two files that belong together: no reader finds any, and the earlier ones are there.
    readable = any(name.endswith(ENDINGS) for name in named)
    if not readable and all(content in found.values() for content in old.values()):
        return "old" if old else "none"
    raise ViolationError(f"neither the earlier files nor the new ones: {sorted(found)}")


# Campaigns.


class Campaign:
    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.counted: Counter[str] = Counter()
        self.violations: list[str] = []
        self.numbered = 0
        (folder / "sources").mkdir()
        self.sources = Sources(folder / "sources")
        self.wanted: dict[tuple[str, int], Files] = {}
        self.seconds: dict[str, float] = {}
        for writer in self.sources.writers:
            for variant in range(VARIANTS):
                at, start = self.new_folder(), time.monotonic()
                self.expect(writer, at, variant, OK)
                passed = time.monotonic() - start
                self.seconds[writer.name] = min(passed, self.seconds.get(writer.name, passed))
                self.wanted[writer.name, variant] = files_in(at)

    def new_folder(self) -> Path:
        self.numbered += 1
        found = self.folder / str(self.numbered)
        found.mkdir()
        return found

    def child(self, work: Callable[[], int]) -> Child:
        self.numbered += 1
        return Child.of(work, self.folder / f"{self.numbered}.log")

    def expect(self, writer: Writer, folder: Path, variant: int, status: int, overwrite: bool = True) -> str:
        found, text = self.child(lambda: writer.write(folder, variant, overwrite)).wait()
        if found != status:
            raise ViolationError(f"{writer.name}: exit status {found} and not {status}: {text}")
        return text

    def check(self, what: str, test: Callable[[], str]) -> None:
        """Run a test, which returns what happened, and note a violation."""
        try:
            self.counted[f"{what}: {test()}"] += 1
        except Exception as error:  # noqa: BLE001
            self.violations.append(f"{what}: {type(error).__name__}: {error}")

    def kill(self) -> None:
        """Kill one writer at a random moment, look at the folder, and write into it once more."""
        writer = self.random.choice(self.sources.writers)
        sent = self.random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        replaces = self.random.random() < 0.5
        at = self.new_folder()
        old: Files = self.wanted[writer.name, 0] if replaces else {}
        new = self.wanted[writer.name, 1]

        def test() -> str:
            if replaces:
                self.expect(writer, at, 0, OK)
            work: Callable[[], int] = lambda: writer.write(at, 1, replaces)  # noqa: E731
            if self.random.random() < 0.5:
                child = self.child(
                    killing(work, sent, self.random.randint(1, 11 if "peft" in writer.name else 5))
                )
            else:
                child = self.child(work)
                time.sleep(self.random.random() * self.seconds[writer.name])
                os.kill(child.pid, sent)
            status, text = child.wait()
            if status not in (OK, INTERRUPTED, TERMINATED, -sent):
                raise ViolationError(f"exit status {status}: {text}")
            state = state_of(at, old, new)
            there = files_in(at)
            if any(there.get(name) != old[name] for name in old.keys() - without_card(old).keys()):
                raise ViolationError("a model card was replaced")
            if status == OK and state != "new":
                raise ViolationError(f"success, but the files are {state}")
            if ("nothing was written" in text and state == "new") or (
                "is written and complete" in text and state != "new"
            ):
                raise ViolationError(f"the files are {state}, and it said: {text}")
            self.expect(writer, at, 2, OK)
            after = {name: content for name, content in files_in(at).items() if not is_rest(name)}
            if without_card(after) != without_card(self.wanted[writer.name, 2]):
                raise ViolationError(f"after the next write there is {sorted(after)}")
            return state

        self.check(f"{writer.name}, {sent.name}, {'an earlier file' if replaces else 'a new name'}", test)

    def race(self, writer: Writer, overwrite: bool) -> None:
        """Two writers of one name at once."""
        at = self.new_folder()

        def test() -> str:
            children = [
                self.child(lambda variant=variant: writer.write(at, variant, overwrite)) for variant in (0, 1)
            ]
            ended = [child.wait() for child in children]
            statuses, texts = zip(*ended, strict=True)
            state = state_of(at, self.wanted[writer.name, 0], self.wanted[writer.name, 1])
            if [name for name in files_in(at) if is_rest(name)]:
                raise ViolationError("a rest is left")
            if overwrite:
                if statuses != (OK, OK):
                    raise ViolationError(f"exit statuses {statuses}: {texts}")
                return "one of both"
            winner = {"old": (OK, REFUSED), "new": (REFUSED, OK)}.get(state)
            if statuses != winner or "already" not in "".join(texts):
                raise ViolationError(f"the files are {state}, exit statuses {statuses}: {texts}")
            return "one wins, one is refused"

        self.check(f"{writer.name}, race{' to replace' if overwrite else ''}", test)


def run(folder: Path, seed: int, kills: int, races: int) -> int:
    campaign = Campaign(folder, seed)
    for _ in range(kills):
        campaign.kill()
    for writer in campaign.sources.writers:
        for _ in range(races):
            campaign.race(writer, False)
            if "peft" not in writer.name:
                # Two files that belong together can come from two writers who replace them at once.
                campaign.race(writer, True)
    for what, count in sorted(campaign.counted.items()):
        print(f"{count:5}  {what}")
    for violation in campaign.violations:
        print(f"VIOLATION  {violation}")
    violations = len(campaign.violations)
    print(f"{sum(campaign.counted.values())} as they must be, {violations} violations, seed {seed}")
    return 1 if violations else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=None, help="the seed of the moments; random by default")
    parser.add_argument("--kills", type=int, default=100, help="how many writers are killed")
    parser.add_argument("--races", type=int, default=5, help="races of each kind")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), seed, options.kills, options.races)


if __name__ == "__main__":
    sys.exit(main())
