"""The command line: `python -m lycoris_ops inspect|convert`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch

from .algebra import Shape
from .errors import LycorisError
from .files.adapter import load_adapter
from .files.model_files import read_shapes
from .files.naming import WRITTEN
from .inspecting import in_words, matched, summary
from .report import describe
from .resolve import resolve
from .save import describe_saved, save_adapter
from .stack import Entry, Stack

BAD_INPUT = 2
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class _Parser(argparse.ArgumentParser):
    """Errors on one line, as those of the library are shown."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except LycorisError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m lycoris_ops", description="Look at LoRA and LyCORIS files and write them anew."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    inspect = commands.add_parser("inspect", help="say what a file holds, and what of a model it meets")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("file", help="the adapter: .safetensors, or .pt, .ckpt, .bin of plain tensors")
    _add_model(inspect, "a model to match it with")

    convert = commands.add_parser("convert", help="write a file in another tool's dialect or another dtype")
    convert.set_defaults(run=_convert)
    convert.add_argument("file", help="the adapter to read")
    convert.add_argument("-o", "--out", required=True, help="the file to write; for peft a folder")
    convert.add_argument("--dialect", required=True, choices=WRITTEN, help="whose names and tensors to write")
    convert.add_argument("--dtype", choices=DTYPES, help="the dtype of the factors, if not their own")
    _add_model(convert, "the model that it is for, where the names cannot be told without")
    convert.add_argument(
        "--metadata",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="add metadata; KEY= takes it away",
    )
    convert.add_argument("--drop-unread", action="store_true", help="leave out what of the file is not read")
    for command in (inspect, convert):
        command.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _add_model(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="FILE",
        help=f"{what}: a .safetensors file, of which the header alone is read; again for each part",
    )


def _shapes(options: argparse.Namespace) -> dict[str, Shape] | None:
    return read_shapes(options.model) if options.model else None


def _inspect(options: argparse.Namespace) -> int:
    adapter = load_adapter(options.file)
    found = summary(adapter)
    shapes = _shapes(options)
    words = [in_words(found)]
    if shapes is not None:
        resolution = resolve(Stack([Entry(adapter)]), shapes, absent_because="no file given holds it")
        found["match"] = matched(resolution)
        words.append(describe(resolution))
    print(json.dumps(found, indent=2) if options.json else "\n\n".join(words))
    return 0


def _convert(options: argparse.Namespace) -> int:
    result = save_adapter(
        load_adapter(options.file),
        options.out,
        options.dialect,
        DTYPES[options.dtype] if options.dtype else None,
        dict(_metadata(text) for text in options.metadata),
        model=_shapes(options),
        drop_unread=options.drop_unread,
        progress=_show_progress,
    )
    print(json.dumps(dataclasses.asdict(result), indent=2) if options.json else describe_saved(result))
    return 0


def _metadata(text: str) -> tuple[str, str | None]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise LycorisError("metadata must be given as KEY=VALUE", got=text or "nothing")
    return key, value or None


def _show_progress(done: int, total: int) -> None:
    """A bar where someone is looking, else nothing but the last line."""
    if sys.stderr.isatty():
        filled = 40 * done // total
        print(f"\r[{'#' * filled}{'.' * (40 - filled)}] {done}/{total}", end="", file=sys.stderr)
    if done == total:
        print(f"{chr(10) if sys.stderr.isatty() else ''}{total} layers made", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
