"""The models and the adapters that the tests and the demo use, made once and kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from . import adapters, base, diffusion
from .adapters import RECIPES, Recipe, write_adapter
from .base import write_base
from .diffusion import write_model
from .facts import ROOT

CHECKPOINT = "checkpoints/base.safetensors"
FILES = 1 + len(RECIPES)
"""How many files there are: the checkpoint and an adapter of each recipe."""

PARTS = {
    "diffusion_models/flux2.safetensors": ("FLUX.2", torch.float32),
    # The host fixes most widths of these two. In eight bits they take half the disk.
    "vae/flux2_vae.safetensors": ("FLUX.2's autoencoder", torch.float8_e4m3fn),
    "text_encoders/clip_l.safetensors": ("CLIP-L", torch.float8_e4m3fn),
    "diffusion_models/wan.safetensors": ("Wan", torch.float32),
    # Hosts mistake a float16 one for another model's.
    "vae/wan_vae.safetensors": ("autoencoder of videos", torch.float32),
}
"""Models in parts, with the layout of `diffusion.LAYOUTS` and the dtype of each."""


def adapter_file(recipe: Recipe) -> str:
    """The file of a recipe, as named in the host's loras folder."""
    return (
        f"{recipe.name}/adapter_model.safetensors"
        if recipe.software == "peft"
        else f"{recipe.name}.safetensors"
    )


@cache
def assets(on_file: Callable[[], object] = lambda: None) -> Path:
    """A folder with `checkpoints/base.safetensors` and `loras/` of every recipe.

    on_file: called after each of the `FILES` files that had to be made.
    """

    def write(folder: Path) -> None:
        for part in ("checkpoints", "loras"):
            (folder / part).mkdir()
        write_base(folder / CHECKPOINT)
        on_file()
        for recipe in RECIPES.values():
            written = write_adapter(recipe, folder / "loras")
            if written != folder / "loras" / adapter_file(recipe):
                raise RuntimeError(f"the recipe {recipe.name} was written to {written}")
            on_file()

    return _made("assets", (base, adapters), write)


@cache
def parts() -> Path:
    """A folder with the files of `PARTS`."""

    def write(folder: Path) -> None:
        for file, (layout, dtype) in PARTS.items():
            (folder / file).parent.mkdir(exist_ok=True)
            write_model(folder / file, layout, dtype=dtype)

    return _made("parts", (base, diffusion), write)


def install(base_folder: Path, *sources: Path) -> Path:
    """Link the assets and more into the models folders of a host's base directory, which is returned."""
    for folder in (assets(), *sources):
        for source in folder.rglob("*"):
            if source.is_file():
                target = base_folder / "models" / source.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                os.symlink(source, target)
    # To an adapter that is no longer made.
    for link in (base_folder / "models").rglob("*"):
        if link.is_symlink() and not link.exists():
            link.unlink()
    return base_folder


def _made(name: str, modules: Sequence[ModuleType], write: Callable[[Path], None]) -> Path:
    """A folder that was written once.

    Its name contains a hash of the code that makes it, so that a change of that code makes a new folder, in
    place of the old one. It gets the name only when it is complete.
    """
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    folder = ROOT / ".cache" / f"{name}-{hashlib.sha256(code).hexdigest()[:12]}"
    folder.parent.mkdir(exist_ok=True)
    # The processes of one run start together: one makes the folder, and the others wait for it.
    with open(folder.parent / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            for old in folder.parent.glob(f"{name}-*"):
                old.unlink() if old.is_symlink() else shutil.rmtree(old)
            with tempfile.TemporaryDirectory(prefix="making-", dir=folder.parent) as making:
                whole = Path(making, "whole")
                whole.mkdir()
                write(whole)
                whole.rename(folder)
    return folder
