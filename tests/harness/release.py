"""Check what is published: the pack's archive for the registry, and the library's wheel and sdist.

    python -m tests.harness.release [--publish]

All is made in `.cache/release`. The archive is made and validated by comfy-cli and must hold what ComfyUI
needs and nothing else; the templates are run from it, unpacked. The wheel is put into an empty environment.
There the library's tests run that need no other package, and pyright and mypy check a user's script. With
`--publish` placeholders in pyproject.toml are refused; without it they are named.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import tomllib

from .facts import ROOT

HOME = ROOT / ".cache" / "release"
TOOLS = HOME / "tools"
"""comfy-cli, build and mypy, beside the environment of the tests."""
NEEDED = ("comfy-cli>=1.23,<2", "build>=1.2,<2", "mypy>=1.13,<3")
PLACEHOLDERS = ("example.invalid", "your-publisher-id")
SHIPPED = {
    *("__init__.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md"),
    *("lycoris_nodes", "lycoris_ops", "locales", "workflows", ".comfyignore", ".gitignore"),
}
"""What the archive of the pack has at its root."""
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
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Check what is published.")
    parser.add_argument("--publish", action="store_true", help="refuse placeholders")
    options = parser.parse_args()
    shutil.rmtree(HOME / "made", ignore_errors=True)
    made = HOME / "made"
    made.mkdir(parents=True)
    if not (TOOLS / "bin" / "comfy").exists():
        run(sys.executable, "-m", "pip", "install", "-q", "--target", TOOLS, *NEEDED)
    check_pack(made)
    check_library(made)
    left = placeholders()
    for line in left:
        print(f"still a placeholder: {line}")
    if left and options.publish:
        sys.exit("Put the publisher's own in their place in pyproject.toml")
    print("The pack and the library can be published" + (" once these are filled in" if left else ""))


def check_pack(made: Path) -> None:
    # The tool packs what git knows, from the folder where it runs.
    tree = made / "source"
    run("git", "clone", "-q", "--no-hardlinks", ROOT, tree)
    for verb in ("validate", "pack"):
        told = run(
            sys.executable, TOOLS / "bin" / "comfy", "--skip-prompt", "node", verb, cwd=tree, tools=True
        )
        if verb == "validate" and re.search(r"^[SE]\d+ |[Ww]arning", told, re.M):
            sys.exit(f"`comfy node validate` warns:\n{told}")
    pack = made / "pack"
    with zipfile.ZipFile(tree / "node.zip") as archive:
        archive.extractall(pack)
    found = {path.name for path in pack.iterdir()}
    if found != SHIPPED:
        sys.exit(f"The archive has {sorted(found - SHIPPED)} and lacks {sorted(SHIPPED - found)}")
    print(
        f"the pack: {(tree / 'node.zip').stat().st_size / 1e6:.1f} MB, {len(list(pack.rglob('*')))} entries"
    )
    # The tests take the folder that they are in for the pack.
    shutil.copytree(tree / "tests", pack / "tests")
    (pack / ".cache").symlink_to(ROOT / ".cache")
    run(
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/host/test_training_workflow.py",
        "-k",
        "template",
        cwd=pack,
    )


def check_library(made: Path) -> None:
    tree = made / "library"
    shutil.copytree(ROOT / "lycoris_ops", tree / "lycoris_ops", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "packaging" / "library" / "pyproject.toml", tree)
    shutil.copy(ROOT / "docs" / "library.md", tree / "README.md")
    shutil.copy(ROOT / "LICENSE", tree)
    run(sys.executable, "-m", "build", "--outdir", made / "dist", tree, tools=True)
    (wheel,) = (made / "dist").glob("*.whl")
    home = made / "bare"
    run(sys.executable, "-m", "venv", home)
    python = home / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", wheel, "pytest")
    tests = made / "tests-of-the-library"
    shutil.copytree(ROOT / "tests" / "ops", tests / "tests" / "ops")
    shutil.copytree(ROOT / "tests" / "harness", tests / "tests" / "harness")
    shutil.copy(ROOT / "pyproject.toml", tests)
    print(f"the library: {wheel.name}, {wheel.stat().st_size / 1e6:.2f} MB")
    run(python, "-m", "tests.harness.bare", cwd=tests)
    script = tests / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    run(home / "bin" / "lycoris", "--help", cwd=tests)
    run(sys.executable, "-m", "mypy", "--python-executable", python, script, cwd=tests, tools=True)
    run(sys.executable, "-m", "basedpyright", "--level", "error", "--pythonpath", python, script, cwd=tests)


def placeholders() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tomllib.loads(text)
    return [line for line in text.splitlines() if any(mark in line for mark in PLACEHOLDERS)]


def run(*command: str | Path, cwd: Path = ROOT, tools: bool = False) -> str:
    """Run a command and return its output; end the check where it fails."""
    paths = [str(TOOLS)] if tools else []
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**kept, **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if told.returncode:
        sys.exit(f"`{' '.join(map(str, command))}` failed:\n{told.stdout}")
    return told.stdout


if __name__ == "__main__":
    main()
