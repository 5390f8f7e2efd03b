"""Write the difference of a tuned model and its base as an adapter."""

from __future__ import annotations

import argparse

from ... import extract_adapter, parse_size
from ..fitting import add_kind, add_result, check_place, checked_names, kind_of, write
from ..shared import MODEL, add_json, add_output, progress_bar


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("base", help=f"the model that the other was tuned from: {MODEL}")
    command.add_argument("tuned", help="the tuned model, likewise")
    add_output(command, "the .safetensors file to write, or for peft and mlx a folder")
    add_kind(command, same=False)
    add_result(command, "the dialect of the file; by default the layers have the model's own names", "fp16")
    command.add_argument(
        "--strict", action="store_true", help="fail if the models do not have the same layers"
    )
    add_json(command)


def run(options: argparse.Namespace) -> int:
    check_place(options, None)
    adapter = extract_adapter(
        options.base,
        options.tuned,
        options.algorithm,
        parse_size(options.size),
        **kind_of(options),
        strict=options.strict,
        prepare=checked_names(options, None),
        progress=progress_bar("steps done, one or two for each layer"),
    )
    return write(options, adapter)
