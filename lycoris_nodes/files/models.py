"""The model files that nodes read piece by piece, as `folder/name`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...lycoris_ops import SAFETENSORS, AboutModel, Fingerprint, LycorisError, about_model
from ..host.files import file_names, file_path, is_file

FOLDERS = ("checkpoints", "diffusion_models", "text_encoders")
LOADED = "the connected model"
"""The choice of a connected model in place of a file."""


def model_names() -> list[str]:
    """Every file that can be read piece by piece, as `folder/name`."""
    return [f"{folder}/{name}" for folder in FOLDERS for name in file_names(folder, SAFETENSORS)]


def model_path(model: str) -> str:
    """The full path of a file given as `folder/name`. Raises LycorisError for another folder or no file."""
    folder, _, name = model.partition("/")
    if folder not in FOLDERS:
        raise LycorisError(
            "E-base-name-without-folder",
            file=model,
            expected=" or ".join(f"{known}/<file>" for known in FOLDERS),
        )
    return file_path(folder, name)


@dataclass(frozen=True)
class ModelQuestion:
    """About the model that a node gets, by the choices made on the nodes that load it."""

    model: Sequence[str]
    clip: Sequence[str]


def known_files(asked: ModelQuestion) -> list[str]:
    """The files of the model that the page asks about, as `folder/name`, text encoders last.

    Choices that name no model file are left out.
    """
    return list(dict.fromkeys([*_known(asked.model)[:1], *_known(asked.clip)]))


def _known(names: Iterable[str]) -> list[str]:
    """The names that mean a model's file, as `folder/name`. Given names may begin with the folder."""
    names_split = ((name, *name.partition("/")[::2]) for name in names)
    return [
        f"{folder}/{file}"
        for name, first, rest in names_split
        for folder, file in [(folder, rest if first == folder else name) for folder in FOLDERS]
        if is_file(folder, file)
    ]


def told_model(models: Iterable[str]) -> AboutModel | None:
    """What the files of a model say about it; None if one cannot be read piece by piece."""
    try:
        return _told(tuple(Fingerprint.of(model_path(model)) for model in models))
    except LycorisError:
        # For example a GGUF file: other packs load it, but it cannot be read piece by piece.
        return None


@lru_cache(maxsize=16)
def _told(files: tuple[Fingerprint, ...]) -> AboutModel:
    return about_model([file.path for file in files])


def model_like(families: Collection[str]) -> str | None:
    """The file of a diffusion model of one of these families, as `folder/name`; None if there is none."""
    if not families:
        return None
    names = (name for name in model_names() if not name.startswith("text_encoders/"))
    return next((name for name in names if not {*_families(name)}.isdisjoint(families)), None)


def _families(model: str) -> Collection[str]:
    try:
        return _kept_families(Fingerprint.of(model_path(model)))
    except LycorisError:
        # A file that is gone or damaged belongs to no family.
        return ()


@lru_cache(maxsize=4096)
def _kept_families(file: Fingerprint) -> tuple[str, ...]:
    return about_model([file.path]).families
