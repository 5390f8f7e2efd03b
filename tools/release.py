"""Check what is published: the pack's archive for the registry, and the library's wheel and sdist.

    python -m tools.release [--publish]

Both are made from the last commit. comfy-cli validates the pack; its archive must hold what ComfyUI needs and
nothing else, and the templates are run from it, unpacked. The wheel is put into an empty environment, where
its command answers and pyright and mypy check a user's script. Then its extras are added, and those tests of
the library that need no other package are run. Placeholders in pyproject.toml are named, and with `--publish`
refused at once.
"""

from __future__ import annotations

import argparse
import re
import sys

from PIL import Image

from tests.harness.environment import numbers, pins
from tests.harness.facts import ROOT

from .made import (
    DIST,
    EXTRAS,
    LIBRARY_HOME,
    MADE,
    PACK,
    SOURCE,
    TOOLS,
    comfy,
    make_library,
    make_pack,
    make_source,
    make_tools,
    project,
    put_tests_beside_the_pack,
    run,
)

PICTURES = {"Icon": ("docs/icon.png", (400, 400)), "Banner": ("docs/banner.png", (1680, 720))}
"""The pictures for the registry: the largest icon that it takes, and a 21:9 banner."""
PLACEHOLDERS = ("example.invalid", "your-publisher-id")
SHIPPED = {
    *("__init__.py", "pyproject.toml", "LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "SECURITY.md"),
    *("lycoris_nodes", "lycoris_ops", "locales", "workflows"),
}
"""What the archive of the pack has at its root, each whole."""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Threads of one process wait for each other where other processes keep the machine busy."""
TEMPLATES = ("tests/host/test_training_workflow.py", "-k", "template")
SCRIPT = """
from pathlib import Path

import torch

import lycoris_ops as lyc

adapter = lyc.load_adapter("style.safetensors")
stack = lyc.Stack([lyc.Entry(adapter, strength=0.8)])
resolution: lyc.Resolution = lyc.resolve(stack, {"weight": (4, 4)})
words: str = lyc.describe(resolution)
lyc.save_adapter(adapter, Path("out.safetensors"), dialect="kohya")
network: lyc.LycorisNetwork = lyc.create_lycoris(torch.nn.Linear(4, 4), rank=2)
try:
    smaller: lyc.Adapter = lyc.resize_adapter(adapter, lyc.Rank(4), algorithm="lora")
except lyc.LycorisError as error:
    print(error)
"""
"""What a user may write: all of it has types."""
WRONG = 'import lycoris_ops as lyc\n\nlyc.load_adapter("style.safetensors").layers = 3\n'
"""What a checker of types must refuse."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Check what is published.")
    parser.add_argument("--publish", action="store_true", help="refuse placeholders")
    options = parser.parse_args()
    left = placeholders((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if left and options.publish:
        sys.exit(refusal(left))
    make_tools()
    make_source()
    check_facts()
    check_pack()
    check_library()
    for line in left:
        print(f"still a placeholder: {line}")
    print("The pack and the library can be published" + (" once these are filled in" if left else ""))


def check_facts() -> None:
    """What pyproject.toml says of the pack agrees with what is tested and with itself."""
    said, tested = project(), pins()
    comfyui, front_end = (min(tested[kind], key=numbers) for kind in ("hosts", "front_ends"))
    oldest = f"comfyui-frontend-package>={front_end}"
    if said["tool"]["comfy"]["requires-comfyui"] != f">={comfyui}":
        sys.exit(f"pyproject.toml: requires-comfyui is not >={comfyui}, the oldest of hosts.toml")
    if oldest not in said["project"]["dependencies"]:
        sys.exit(f"pyproject.toml: no dependency {oldest}, the oldest front end of hosts.toml")
    repository = said["project"]["urls"]["Repository"]
    for key, (file, size) in PICTURES.items():
        wanted = f"{repository}/raw/main/{file}"
        if said["tool"]["comfy"][key] != wanted:
            sys.exit(f"pyproject.toml: {key} is not {wanted}")
        if Image.open(ROOT / file).size != size:
            sys.exit(f"{file} does not have the size {size}")


def check_pack() -> None:
    told = comfy("validate")
    if re.search(r"^\S+:\d+:\d+: |warning", told, re.M | re.I):
        sys.exit(f"`comfy node validate` warns:\n{told}")
    archive = make_pack()
    found = {path.relative_to(PACK).as_posix() for path in PACK.rglob("*") if path.is_file()}
    known = set(run("git", "ls-files", "-z", *sorted(SHIPPED), cwd=SOURCE).split("\0")) - {""}
    if found != known:
        sys.exit(f"The archive has {sorted(found - known)} and lacks {sorted(known - found)}")
    print(f"the pack: {archive.stat().st_size / 1e6:.1f} MB, {len(found)} files, validated", flush=True)
    put_tests_beside_the_pack()
    told = run(sys.executable, "-m", "pytest", "-q", *TEMPLATES, cwd=PACK, **ONE_THREAD)
    print(f"its templates, unpacked: {last(told)}", flush=True)


def check_library() -> None:
    wheel = make_library()
    print(f"the library: {', '.join(sorted(path.name for path in DIST.iterdir()))}", flush=True)
    python = MADE / "bare" / "bin" / "python"
    run(TOOLS / "uv", "venv", "-q", "--python", sys.executable, MADE / "bare")
    install = (TOOLS / "uv", "pip", "install", "-q", "--python", python)
    run(*install, wheel)
    run(python.with_name("lycoris"), "--help", cwd=LIBRARY_HOME)
    script, wrong = (LIBRARY_HOME / name for name in ("script.py", "wrong.py"))
    script.write_text(SCRIPT, encoding="utf-8")
    wrong.write_text(WRONG, encoding="utf-8")
    for checker in (
        (TOOLS / "mypy", "--strict", "--python-executable"),
        (TOOLS / "pyright", "--pythonpath"),
    ):
        run(*checker, python, script, cwd=LIBRARY_HOME)
        refused = run(*checker, python, wrong, cwd=LIBRARY_HOME, fails=True)
        print(f"{checker[0].name} accepts a user's script, not a wrong one: {last(refused)}", flush=True)
    # Some tests draw charts or train, which needs the extras.
    run(*install, f"{wheel}[{EXTRAS}]", "pytest", "pytest-xdist")
    told = run(python, "-m", "tools.bare", "-n", "2", cwd=LIBRARY_HOME, **ONE_THREAD)
    print(f"its tests, from the wheel: {last(told)}", flush=True)


def last(told: str) -> str:
    """The line with the result of pytest or of a type checker: libraries may print more after it."""
    lines = told.rstrip().splitlines()
    return next(
        (line for line in reversed(lines) if re.search(r"\d+ (passed|error)", line)), lines[-1]
    ).strip("= ")


def placeholders(settings: str) -> list[str]:
    """The lines that still hold placeholders."""
    return [line for line in settings.splitlines() if any(mark in line for mark in PLACEHOLDERS)]


def refusal(left: list[str]) -> str:
    return "\n".join(
        [
            "Nothing was made: in pyproject.toml these lines hold placeholders.",
            *(f"    {line}" for line in left),
            "Put the publisher's id on ComfyUI's registry and the repository's address in their place.",
        ]
    )


if __name__ == "__main__":
    main()
