"""What the verbs share: arguments, the progress bar, and how results are shown."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from .. import (
    WRITABLE,
    Entry,
    LycorisError,
    Progress,
    Shape,
    Stack,
    WriteError,
    load_adapter,
    read_shapes,
)
from ..files.model_file import ModelFile
from ..files.writing import check_other

DTYPES = {name.replace("bfloat", "bf").replace("float", "fp"): dtype for name, dtype in WRITABLE.items()}
"""The dtypes to choose from, by short names: fp32, bf16, fp16."""
MODEL = "a .safetensors model, or the folder or index of one in several files"
"""What is taken for a model, in words for the help."""
BAR = 40
"""The width of the progress bar in characters."""


def add_model(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="FILE",
        help=f"{what}: {MODEL} (only headers are read); repeat the option for a model in several parts",
    )


def shapes_of_model(options: argparse.Namespace) -> dict[str, Shape] | None:
    """The keys and shapes of the model given by --model; None without it."""
    return read_shapes(options.model) if options.model else None


def add_dtype(command: argparse.ArgumentParser, what: str, usual: str = "each keeps its own") -> None:
    command.add_argument("--dtype", choices=DTYPES, help=f"write {what} in this dtype; by default {usual}")


def dtype_of(options: argparse.Namespace) -> torch.dtype | None:
    """The dtype given by --dtype; None without it."""
    return DTYPES[options.dtype] if options.dtype else None


def add_adapters(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--adapter",
        action="append",
        nargs="+",
        required=True,
        metavar=("FILE", "STRENGTH"),
        help="an adapter, its strength (1 by default), and its strength on the text encoders (the same by "
        "default); repeat the option for each adapter",
    )


def stack_of(options: argparse.Namespace) -> Stack:
    """The adapters given by --adapter. Raises LycorisError for strengths that are no numbers."""
    return Stack(_entry(*values) for values in options.adapter)


def _entry(file: str, *strengths: str) -> Entry:
    """An adapter with up to two strengths, given as texts. Raises LycorisError for other texts."""
    try:
        values = [float(text) for text in strengths]
    except ValueError:
        values = None
    if values is None or len(values) > 2:
        raise LycorisError("E-argument-adapter-malformed", file=file, got=" ".join(strengths))
    clip = values[1] if len(values) == 2 else None
    return Entry(load_adapter(file), values[0] if values else 1.0, clip)


def add_output(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("-o", "--out", required=True, help=what)
    command.add_argument("--overwrite", action="store_true", help="replace an existing file of that name")


def check_spares_models(options: argparse.Namespace) -> None:
    """Raise WriteError where the adapter to write would replace a file of a model that it is made from."""
    models = (getattr(options, name, None) for name in ("base", "tuned"))
    out = Path(options.out)
    # Not `Path.exists`, which raises for a name that is too long for the disk.
    if not os.path.exists(out):
        return
    for model in filter(None, (*models, *getattr(options, "model", ()))):
        source = ModelFile.open(model)
        for path in (source.path, *(shard.path for shard in source.shards)):
            check_other(out, path, "a file of the model")


def output_state(options: argparse.Namespace) -> list[tuple[str, int, int, int]]:
    """Name, inode, size and time of each file at the output; [] for verbs without one.

    It differs once a file has been written there.
    """
    if not hasattr(options, "out"):
        return []
    out = Path(options.out)
    try:
        # For PEFT it is a folder.
        files = sorted(out.glob("*")) if out.is_dir() else [out]
        states = [(file.name, file.lstat()) for file in files if os.path.lexists(file)]
    except (OSError, ValueError):
        return []
    return [(name, at.st_ino, at.st_size, at.st_mtime_ns) for name, at in states]


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print the report as JSON")


def show(options: argparse.Namespace, data: Any, words: str) -> None:
    """Print a result: `data` as JSON where --json was given, else `words`.

    A reader that has seen enough, such as `head`, is no error. Raises WriteError where nothing can be
    printed.
    """
    try:
        print(json.dumps(data, indent=2) if options.json else words, flush=True)
    except OSError as error:
        # The rest would fail once more as the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise WriteError("E-report-not-printable", got=str(error.strerror)) from error


def progress_bar(what: str) -> Progress:
    """Show a progress bar on a terminal. At the end print the total and `what` it counts, in logs too.

    Both are printed to stderr, so that stdout holds only the result.
    """

    def update(done: int, total: int) -> None:
        # No bar in a log: each step would be a line.
        if sys.stderr.isatty():
            filled = BAR * done // total
            print(f"\r[{'#' * filled}{'.' * (BAR - filled)}] {done}/{total}", end="", file=sys.stderr)
        if done == total:
            print(f"{chr(10) if sys.stderr.isatty() else ''}{total} {what}", file=sys.stderr)

    return update
