"""The host's folders, and the files in them."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args

from ...lycoris_ops import SAFETENSORS, STATE, LycorisError, WriteError, check_name

REMEMBERED = 2.0
"""Seconds for which the list of folders of pictures is remembered."""
LONGEST = 255 - len("._00001_.safetensors.0123456789abcdef.part")
"""The most bytes in the name of an output: what disks take, without what an unfinished file's name adds."""


def file_names(folder: str, endings: Sequence[str]) -> list[str]:
    """The files with these endings in one of the host's model folders, as its own loaders list them.

    Training states, which may lie there beside the checkpoints of a training, are left out.
    """
    known = folder_paths.get_filename_list(folder)
    return [name for name in known if name.lower().endswith(tuple(endings)) and not name.endswith(STATE)]


def folders_of(folder: str) -> list[str]:
    """The paths on disk of one of the host's model folders."""
    return folder_paths.get_folder_paths(folder)


def is_file(folder: str, name: str) -> bool:
    """Whether there is a file of this name in one of the host's model folders."""
    return _full_path(folder, name) is not None


def file_path(folder: str, name: str) -> str:
    """The full path of a file in one of the host's model folders. Raises LycorisError if it is not there."""
    path = _full_path(folder, name)
    if path is None:
        raise LycorisError(
            "E-host-file-absent" if name else "E-host-file-not-chosen",
            file=name,
            folder=folder,
        )
    return path


def _full_path(folder: str, name: str) -> str | None:
    try:
        return folder_paths.get_full_path(folder, name)
    except ValueError:
        # The host raises this on Windows for a path on another drive.
        return None


def user_text(name: str) -> str | None:
    """The text of a file in the host's user folder; None where there is none.

    Raises LycorisError for a file that is no text.
    """
    path = Path(folder_paths.get_user_directory()) / name
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise LycorisError("E-file-not-text", file=str(path), got=str(error)) from error


def output_path(prefix: str, ending: str) -> Path:
    """The path for a file in the output folder: the prefix, the next free number, the ending.

    The number is counted as by the host's own save nodes: `loras/adapter_00001_.safetensors`. A backslash
    separates folders on every system, because workflows are shared. A prefix may have the ending of
    safetensors already. Raises WriteError for one that names no file, leaves the output folder or cannot be a
    name on the disk. The host makes the folder where it is missing.
    """
    prefix = prefix.replace("\\", "/").removesuffix(SAFETENSORS[0])
    root, _ = _root_and_place(prefix)
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    except OSError as error:
        raise WriteError("E-output-folder-not-made", file=prefix, got=str(error.strerror)) from error
    return Path(folder) / f"{name}_{counter:05}_{ending}"


def has_output_folder(prefix: str) -> bool:
    """Whether the folder of `output_path` is there already. Raises WriteError as `output_path` does."""
    _, wanted = _root_and_place(_with_date(prefix.replace("\\", "/")))
    return wanted.parent.is_dir()


def _with_date(prefix: str) -> str:
    """A prefix with the host's values for %year% and the like. Without a picture, width and height are 0."""
    now = time.localtime()
    values = {"year": now.tm_year, "month": now.tm_mon, "day": now.tm_mday}
    values |= {"hour": now.tm_hour, "minute": now.tm_min, "second": now.tm_sec, "width": 0, "height": 0}
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", str(value) if name in ("width", "height") else f"{value:02}")
    return prefix


def _root_and_place(prefix: str) -> tuple[Path, Path]:
    """The output folder, and where a prefix lies in it."""
    check_name(prefix)
    # The host checks this too, but its error does not say what to do.
    root = Path(os.path.realpath(folder_paths.get_output_directory()))
    # Path.resolve would raise an error of its own for a link to itself.
    wanted = Path(os.path.realpath(root / prefix))
    outside = not wanted.is_relative_to(root)
    if outside or wanted == root or prefix.endswith("/"):
        raise WriteError(
            "E-output-name-outside" if outside else "E-output-name-empty",
            file=prefix,
            got=str(wanted),
            root=str(root),
        )
    if (long := len(os.fsencode(wanted.name))) > LONGEST:
        raise WriteError(
            "E-file-name-too-long", file=prefix, count=len(wanted.name), long=long, longest=LONGEST
        )
    return root, wanted


def output_name(path: Path) -> str:
    """A path relative to the output folder. Raises WriteError for one on another drive of Windows."""
    root = os.path.realpath(folder_paths.get_output_directory())
    try:
        return Path(os.path.relpath(path, root)).as_posix()
    except ValueError as error:
        raise WriteError("E-file-on-another-drive", file=str(path), root=root) from error


def picture_folders() -> list[str]:
    """The folders in the host's input folder that hold a file, by their paths there.

    The list may be `REMEMBERED` seconds old, because the host asks several times in a row.
    """
    return [*_remembered(folder_paths.get_input_directory(), int(time.monotonic() / REMEMBERED))]


@lru_cache(maxsize=1)
def _remembered(home: str, _when: int) -> list[str]:
    return [name for name, filled in _walked(home).items() if filled]


def _walked(home: str) -> dict[str, bool]:
    """The folders in a folder, by their paths there, and whether each holds a file, also further below.

    Links are followed, unlike in the host's own list: with a link a user allows reading a folder elsewhere.
    """
    below: list[str] = []
    filled: set[str] = set()
    # For each folder, the real folders above it. Following a link back to one of them would never end.
    ways = {home: {os.path.realpath(home)}}
    for here, folders, files in os.walk(home, followlinks=True):
        way = ways.pop(here)
        if any(not name.startswith(".") for name in files):
            folder = Path(here).relative_to(home)
            filled.update(parent.as_posix() for parent in (folder, *folder.parents))
        for name in sorted(folders):
            path = os.path.join(here, name)
            real = os.path.realpath(path)
            if name.startswith(".") or real in way:
                folders.remove(name)
            else:
                ways[path] = {*way, real}
                below.append(Path(path).relative_to(home).as_posix())
    return {name: name in filled for name in sorted(below)}


def picture_folder(name: str) -> Path:
    """The full path of one of `picture_folders`. Raises LycorisError for any other folder."""
    home = Path(folder_paths.get_input_directory())
    if name not in _walked(str(home)):
        raise LycorisError(
            "E-picture-folder-absent" if name else "E-picture-folder-not-chosen", file=name, home=str(home)
        )
    return home / name


def kept_folder() -> Path:
    """The folder for encoded data. The host serves no files from folders that begin with `__`."""
    return Path(folder_paths.get_user_directory()) / "__lycoris" / "encoded"


def shown_path(path: str | Path) -> str:
    """A path from one of the host's folders on: `output/loras/mine.safetensors`.

    Folders are named as in the host's API, wherever they are on disk. Any other path is shown in full.
    """
    shown = shown_text(str(path))
    # The path as written comes first: links within a folder may lead out of it.
    return Path(shown if shown != str(path) else shown_text(os.path.realpath(path))).as_posix()


def shown_text(text: str) -> str:
    """A text for users, with the names of the host's folders in place of their paths on this machine."""
    names = _folder_names()
    paths = "|".join(re.escape(path) for path in sorted(names, key=len, reverse=True))
    # Only whole paths and beginnings of paths: not /data in my/data or in /database.
    return re.sub(rf"(?<![^\s\"'`(\[:,;=])(?:{paths})(?![\w-])", lambda match: names[match[0]], text)


def _folder_names() -> dict[str, str]:
    """The names of the host's folders, by path. A model folder outside of them has the name of its kind."""
    named = {
        folder_paths.base_path: "ComfyUI",
        folder_paths.models_dir: "models",
        folder_paths.get_temp_directory(): "temp",
        folder_paths.get_input_directory(): "input",
        folder_paths.get_user_directory(): "user",
        folder_paths.get_output_directory(): "output",
    }
    for kind, (folders, *_) in folder_paths.folder_names_and_paths.items():
        elsewhere = [
            folder for folder in folders if not any(Path(folder).is_relative_to(home) for home in named)
        ]
        named |= dict.fromkeys(elsewhere, kind)
    real = {os.path.realpath(path): name for path, name in named.items()}
    # Some are given with a slash at the end.
    names = {path.rstrip("/\\"): name for path, name in {**real, **named}.items()}
    # Python doubles the backslashes in what it quotes.
    return {**{path.replace("\\", "\\\\"): name for path, name in names.items()}, **names}


def file_tensors(path: str) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, as the host's own nodes hand them on."""
    tensors: Any = comfy.utils.load_torch_file(path, safe_load=True)
    return tensors


def workflow_metadata(hidden: Any) -> dict[str, str]:
    """The workflow as the host's own save nodes write it, or nothing if the user turned metadata off."""
    if args.disable_metadata or hidden is None:
        return {}
    values = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {key: json.dumps(value) for key, value in values.items() if value is not None}
