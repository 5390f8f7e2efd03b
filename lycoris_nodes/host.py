"""The one door to the host application: everything that the nodes use of ComfyUI passes here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy.cli_args import args
from comfy.weight_adapter import WeightAdapterBase
from comfy_api.latest import ComfyExtension, io

from ..lycoris_ops import LycorisError, WriteError

__all__ = [
    "ComfyExtension",
    "WeightAdapterBase",
    "add_patches",
    "file_names",
    "file_path",
    "io",
    "output_path",
    "progress",
    "weight_shapes",
    "workflow_metadata",
]


def file_names(folder: str, endings: Sequence[str]) -> list[str]:
    """The files of one of the host's model folders, as its own loaders list them."""
    return [name for name in folder_paths.get_filename_list(folder) if name.lower().endswith(tuple(endings))]


def file_path(folder: str, name: str) -> str:
    """The full path of a file in one of the host's model folders. Raises LycorisError if missing."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise LycorisError(
            "the file is not there any more",
            file=name,
            expected="a file in " + " or ".join(folder_paths.get_folder_paths(folder)),
            hint="Put it back, or refresh the node list and choose another",
        )
    return path


def output_path(prefix: str, ending: str) -> Path:
    """The next free numbered name for a prefix in the output folder, as the host's savers count.

    Raises WriteError for a prefix that names no file or leaves the output folder.
    """
    root = Path(folder_paths.get_output_directory()).resolve()
    wanted = (root / prefix).resolve()
    if wanted == root or not wanted.is_relative_to(root) or prefix.endswith(("/", "\\")):
        raise WriteError(
            "the file name leaves the output folder" if wanted != root else "the file name is empty",
            file=prefix,
            got=str(wanted),
            expected=f"a name below {root}",
            hint="Use a relative name such as checkpoints/merged",
        )
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    return Path(folder) / f"{name}_{counter:05}_{ending}"


def weight_shapes(patcher: Any) -> dict[str, tuple[int, ...]]:
    """Every key of a loaded model with its shape."""
    return {
        # The parameter itself: the state dict of a quantised weight holds its packed data.
        key: tuple(comfy.utils.get_attr(patcher.model, key).shape if key.endswith(".weight") else value.shape)
        for key, value in patcher.model_state_dict().items()
    }


def add_patches(patched: Any, patches: Mapping[str, WeightAdapterBase]) -> None:
    """Hand one patch per weight to the host, which applies it when it loads the model.

    Raises LycorisError where the host does not take one: it would be dropped in silence.
    """
    taken = set(patched.add_patches(patches, 1.0, 1.0))
    refused = sorted(set(patches) - taken)
    if refused:
        raise LycorisError(
            "the host did not take the patch of a weight",
            key=refused[0],
            got=f"{len(refused)} of {len(patches)} patches refused",
            expected="every patch taken",
        )


def progress(total: int) -> Callable[[int, int], None]:
    """A progress bar on the running node, which also ends the work when the user interrupts it."""
    bar = comfy.utils.ProgressBar(total)

    def update(done: int, of: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, of)

    return update


def workflow_metadata(hidden: Any) -> dict[str, str]:
    """The workflow as the host's own savers put it into a file, or nothing if the user turned it off."""
    if args.disable_metadata or hidden is None:
        return {}
    values = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {key: json.dumps(value) for key, value in values.items() if value is not None}
