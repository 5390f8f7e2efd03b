"""Make all that is published of the last commit, in `.cache/release/made`.

    python -m tools.made

comfy-cli makes the pack's archive, as for the registry. It lies unpacked in `pack`, with the tests beside it.
The library's wheel and sdist are in `dist`. Its tests are in `library-tests`, without the library.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import tomllib

from tests.harness.facts import ROOT

HOME = ROOT / ".cache" / "release"
MADE = HOME / "made"
SOURCE, PACK, DIST, LIBRARY_HOME = (MADE / name for name in ("source", "pack", "dist", "library-tests"))
TOOLS = HOME / "tools" / "bin"
NEEDED = ("comfy-cli>=1.23,<2", "build>=1.2,<2", "mypy>=1.13,<3", "pyright[nodejs]>=1.1.400,<2")
"""The packages that make and check all this, in an environment of their own."""
EXTRAS = "charts,train"
"""The extras of the library that its tests need, besides pytest."""


def make_tools() -> None:
    stamp = HOME / "tools" / "installed"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == str(NEEDED):
        return
    run(sys.executable, "-m", "venv", "--clear", HOME / "tools")
    run(TOOLS / "python", "-m", "pip", "install", "-q", *NEEDED)
    stamp.write_text(str(NEEDED), encoding="utf-8")


def make_source() -> None:
    """Empty `MADE`, and clone the last commit into it."""
    shutil.rmtree(MADE, ignore_errors=True)
    MADE.mkdir(parents=True)
    run("git", "clone", "-q", "--no-hardlinks", ROOT, SOURCE)


def make_pack() -> Path:
    """Make the pack's archive, and unpack it. Returns the archive's path."""
    comfy("pack")
    archive = SOURCE / "node.zip"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(PACK)
    return archive


def put_tests_beside_the_pack() -> None:
    """Tests use the folder around them as the pack. They get the hosts of this checkout."""
    for name in ("tests", "tools"):
        shutil.copytree(SOURCE / name, PACK / name)
    (PACK / ".cache").symlink_to(ROOT / ".cache")


def make_library() -> Path:
    """Make the wheel and the sdist of the library, and copy its tests. Returns the wheel."""
    tree, urls = MADE / "library", project()["project"]["urls"]
    shutil.copytree(SOURCE / "lycoris_ops", tree / "lycoris_ops")
    # Links to other pages are relative. Outside the repository they need its address.
    page = (SOURCE / "docs" / "library.md").read_text(encoding="utf-8")
    pages = rf"]({urls['Repository']}/blob/main/docs/\1)"
    (tree / "README.md").write_text(re.sub(r"\]\((\w+\.md(?:#[\w-]+)?)\)", pages, page), encoding="utf-8")
    for name in ("LICENSE", "NOTICE"):
        shutil.copy(SOURCE / name, tree)
    settings = (SOURCE / "packaging" / "library" / "pyproject.toml").read_text(encoding="utf-8")
    addresses = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    (tree / "pyproject.toml").write_text(f"{settings}\n[project.urls]\n{addresses}", encoding="utf-8")
    run(TOOLS / "python", "-m", "build", "--installer", "uv", "--outdir", DIST, tree)
    for part in ("ops", "harness"):
        shutil.copytree(SOURCE / "tests" / part, LIBRARY_HOME / "tests" / part)
    shutil.copy(SOURCE / "tests" / "conftest.py", LIBRARY_HOME / "tests")
    (LIBRARY_HOME / "tools").mkdir()
    shutil.copy(SOURCE / "tools" / "bare.py", LIBRARY_HOME / "tools")
    shutil.copy(SOURCE / "pyproject.toml", LIBRARY_HOME)
    (wheel,) = DIST.glob("*.whl")
    return wheel


def project() -> dict[str, dict[str, dict[str, str]]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def comfy(verb: str) -> str:
    """What `comfy node VERB` prints."""
    # comfy-cli starts its own `ruff` by name, so its folder must be on the PATH.
    path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
    return run(TOOLS / "comfy", "--skip-prompt", "node", verb, cwd=SOURCE, PATH=path, DO_NOT_TRACK="1")


def run(*command: str | Path, cwd: Path = ROOT, fails: bool = False, **variables: str) -> str:
    """Run a command and return its output. End this process if it fails, or, with `fails`, if it does not."""
    words = list(map(str, command))
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(
        words,
        cwd=cwd,
        env={**kept, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if bool(told.returncode) != fails:
        sys.exit(f"`{' '.join(words)}` {'did not fail' if fails else 'failed'}:\n{told.stdout}")
    return told.stdout


def main() -> None:
    make_tools()
    make_source()
    make_pack()
    put_tests_beside_the_pack()
    make_library()


if __name__ == "__main__":
    main()
