"""The model files that nodes read piece by piece, as `folder/name`."""

from __future__ import annotations

from ...lycoris_ops import SAFETENSORS, LycorisError
from ..host.files import file_names, file_path

FOLDERS = ("checkpoints", "diffusion_models", "text_encoders")
LOADED = "the connected model"
"""The choice that stands for a connected model in place of a file."""


def model_names() -> list[str]:
    """Every file that can be read piece by piece, as `folder/name`."""
    return [f"{folder}/{name}" for folder in FOLDERS for name in file_names(folder, SAFETENSORS)]


def model_path(model: str) -> str:
    """The full path of a file given as `folder/name`. Raises LycorisError for another folder or no file."""
    folder, _, name = model.partition("/")
    if folder not in FOLDERS:
        raise LycorisError(
            "the name of the base must begin with the folder that it is in",
            file=model,
            expected=" or ".join(f"{known}/<file>" for known in FOLDERS),
        )
    return file_path(folder, name)
