"""The command line: `python -m lycoris_ops inspect|convert|bake`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch

from ..adapters.adapter import load_adapter
from ..adapters.save import describe_saved, save_adapter
from ..bake.checkpoint import merge_checkpoint
from ..errors import LycorisError
from ..maths.shapes import Shape
from ..names.model_files import read_shapes
from ..names.written import WRITTEN
from ..report.applied import describe
from ..report.summary import in_words, matched, summary
from ..stack.resolve import resolve
from ..stack.stack import Entry, Stack

BAD_INPUT = 2
INTERRUPTED = 130
"""What shells give a command that Ctrl-C ended."""
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
    except KeyboardInterrupt:
        print("error: interrupted, nothing was written", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m lycoris_ops",
        description="Look at LoRA and LyCORIS files, write them anew, merge them into models.",
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

    bake = commands.add_parser("bake", help="write a model with adapters merged into it")
    bake.set_defaults(run=_bake)
    bake.add_argument(
        "base", help="the .safetensors checkpoint, diffusion model or text encoder to merge into"
    )
    bake.add_argument(
        "--adapter",
        action="append",
        nargs="+",
        required=True,
        metavar=("FILE", "STRENGTH"),
        help="an adapter, its strength (1 unless given), and one for the text encoders (the same unless "
        "given); again for each adapter",
    )
    bake.add_argument("-o", "--out", required=True, help="the .safetensors file to write")
    bake.add_argument("--dtype", choices=DTYPES, help="the dtype of all float tensors, if not their own")
    bake.add_argument("--strict", action="store_true", help="fail where a layer of an adapter meets nothing")
    for command in (convert, bake):
        command.add_argument("--overwrite", action="store_true", help="replace a file of that name")
    for command in (inspect, convert, bake):
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
        (entry,) = resolution.entries
        found["match"] = matched(entry)
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
        overwrite=options.overwrite,
        progress=_progress("layers made"),
    )
    print(json.dumps(dataclasses.asdict(result), indent=2) if options.json else describe_saved(result))
    return 0


def _bake(options: argparse.Namespace) -> int:
    stack = Stack(_entry(*values) for values in options.adapter)
    result = merge_checkpoint(
        options.base,
        stack,
        options.out,
        DTYPES[options.dtype] if options.dtype else None,
        strict=options.strict,
        overwrite=options.overwrite,
        progress=_progress("bytes written"),
    )
    found = {
        "path": result.path,
        "size": result.size,
        "merged": result.merged,
        "copied": result.copied,
        "adapters": [
            {"file": entry.entry.adapter.path, **matched(entry)} for entry in result.resolution.entries
        ],
    }
    words = f"{describe(result.resolution)}\n\n{result.merged} weights merged, {result.copied} tensors kept"
    print(json.dumps(found, indent=2) if options.json else f"{words}\n{result.path}")
    return 0


def _entry(file: str, *strengths: str) -> Entry:
    try:
        values = [float(text) for text in strengths]
    except ValueError:
        values = None
    if values is None or len(values) > 2:
        raise LycorisError(
            "an adapter must be given as FILE [STRENGTH [CLIP]]", file=file, got=" ".join(strengths)
        )
    clip = values[1] if len(values) == 2 else None
    return Entry(load_adapter(file), values[0] if values else 1.0, clip)


def _metadata(text: str) -> tuple[str, str | None]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise LycorisError("metadata must be given as KEY=VALUE", got=text or "nothing")
    return key, value or None


def _progress(what: str) -> Callable[[int, int], None]:
    """A bar where someone is looking, else nothing but the last line."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            filled = 40 * done // total
            print(f"\r[{'#' * filled}{'.' * (40 - filled)}] {done}/{total}", end="", file=sys.stderr)
        if done == total:
            print(f"{chr(10) if sys.stderr.isatty() else ''}{total} {what}", file=sys.stderr)

    return show
