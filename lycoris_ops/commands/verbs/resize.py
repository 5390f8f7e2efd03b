"""Write an adapter in another size, or with layers of another kind."""

from __future__ import annotations

import argparse

from ... import load_adapter, parse_size, resize_adapter
from ..fitting import add_base, add_kind, add_result, check_place, checked_names, kind_of, write
from ..shared import add_json, add_output, progress_bar


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", help="the adapter to read")
    add_output(command, "the .safetensors file to write, or for peft and mlx a folder")
    add_kind(command, same=True)
    add_base(
        command, "needed for kinds that depend on its weights, and to write the names of another dialect"
    )
    add_result(command, "the dialect of the file; by default the names stay as they are")
    add_json(command)


def run(options: argparse.Namespace) -> int:
    source = load_adapter(options.file)
    check_place(options, source.dialect)
    adapter = resize_adapter(
        source,
        parse_size(options.size),
        options.algorithm,
        options.base,
        **kind_of(options),
        prepare=checked_names(options, source.dialect),
        progress=progress_bar("steps done, one or two for each layer"),
    )
    return write(options, adapter)
