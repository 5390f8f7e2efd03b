"""The checkpoint and the adapters that the tests and the demo use, made once and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from . import adapters, base
from .adapters import RECIPES, Recipe, write_adapter
from .base import write_base
from .facts import ROOT

CHECKPOINT = "checkpoints/base.safetensors"
FILES = 1 + len(RECIPES)
"""How many files there are: the checkpoint and an adapter of each recipe."""


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

    Its name contains a hash of the code that makes it, so that a change of that code makes a new folder. It
    gets the name only when it is complete.
    """
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in (base, adapters))
    folder = ROOT / ".cache" / f"assets-{hashlib.sha256(sources).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix="assets-", dir=folder.parent))
    try:
        for part in ("checkpoints", "loras"):
            (making / part).mkdir()
        write_base(making / CHECKPOINT)
        on_file()
        for recipe in RECIPES.values():
            written = write_adapter(recipe, making / "loras")
            if written != making / "loras" / adapter_file(recipe):
                raise RuntimeError(f"the recipe {recipe.name} was written to {written}")
            on_file()
        try:
            making.rename(folder)
        except OSError:
            # Another run has made the folder in the meantime.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def install(base_folder: Path) -> Path:
    """Link the assets into the models folders of a host's base directory, and return that directory."""
    for source in assets().rglob("*"):
        if source.is_file():
            target = base_folder / "models" / source.relative_to(assets())
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            os.symlink(source, target)
    return base_folder
