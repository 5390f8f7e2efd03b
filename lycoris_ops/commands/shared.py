"""Arguments that several verbs have, and how they show their results."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from .. import WRITABLE, Progress, Shape, read_shapes

DTYPES = {name.replace("bfloat", "bf").replace("float", "fp"): dtype for name, dtype in WRITABLE.items()}
"""By their short names: fp32, bf16, fp16."""
BAR = 40
"""Characters of the progress bar."""


def add_model(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="FILE",
        help=f"{what}: a .safetensors file, of which the header alone is read; again for each part",
    )


def shapes_of_model(options: argparse.Namespace) -> dict[str, Shape] | None:
    return read_shapes(options.model) if options.model else None


def add_dtype(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--dtype", choices=DTYPES, help=f"the dtype of {what}, if not their own")


def dtype_of(options: argparse.Namespace) -> torch.dtype | None:
    return DTYPES[options.dtype] if options.dtype else None


def add_output(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("-o", "--out", required=True, help=what)
    command.add_argument("--overwrite", action="store_true", help="replace a file of that name")


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print the report as JSON")


def show(options: argparse.Namespace, data: Any, words: str) -> None:
    """Print a result in the form that was asked for."""
    print(json.dumps(data, indent=2) if options.json else words)


def progress_bar(what: str) -> Progress:
    """A bar where someone is looking, else nothing but the last line."""

    def update(done: int, total: int) -> None:
        if sys.stderr.isatty():
            filled = BAR * done // total
            print(f"\r[{'#' * filled}{'.' * (BAR - filled)}] {done}/{total}", end="", file=sys.stderr)
        if done == total:
            print(f"{chr(10) if sys.stderr.isatty() else ''}{total} {what}", file=sys.stderr)

    return update
