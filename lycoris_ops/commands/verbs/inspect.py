"""Show what an adapter file holds, which layers of a model it matches, and what it changes."""

from __future__ import annotations

import argparse
from pathlib import Path

from ... import (
    Entry,
    Stack,
    check_png,
    describe,
    describe_examination,
    draw_examination,
    examination_data,
    examine,
    in_words,
    load_adapter,
    matched,
    resolve,
    summary,
)
from ..shared import MODEL, add_json, add_model, shapes_of_model, show


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", help="the adapter: .safetensors, or .pt, .ckpt, .bin of plain tensors")
    add_model(command, "a model to match it with")
    command.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="FILE",
        help="another adapter to measure it against; repeat the option for several",
    )
    command.add_argument(
        "--changes", action="store_true", help="measure what is changed, block by block and layer by layer"
    )
    command.add_argument("--plot", metavar="FILE", help="draw what is changed to a .png file; needs Pillow")
    command.add_argument(
        "--base",
        metavar="FILE",
        help=f"{MODEL}: measures changes relative to its weights; needed for kinds that depend on them",
    )
    add_json(command)


def run(options: argparse.Namespace) -> int:
    if options.plot:
        check_png(Path(options.plot))
    adapter = load_adapter(options.file)
    data = summary(adapter)
    shapes = shapes_of_model(options)
    words = [in_words(data)]
    if shapes is not None:
        resolution = resolve(Stack([Entry(adapter)]), shapes, absent_because="no file given holds it")
        (entry,) = resolution.entries
        data["match"] = matched(entry)
        words.append(describe(resolution))
    if options.changes or options.plot or options.beside or options.base:
        measured = examine(
            [(each, 1.0) for each in (adapter, *map(load_adapter, options.beside))], base=options.base
        )
        data["changes"] = examination_data(measured)
        words.append(describe_examination(measured))
        if options.plot:
            draw_examination(measured, options.plot)
            words.append(f"drawn to {options.plot}")
    show(options, data, "\n\n".join(words))
    return 0
