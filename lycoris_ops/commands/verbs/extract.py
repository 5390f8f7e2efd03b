"""Write the difference of a tuned model and its base as an adapter."""

from __future__ import annotations

import argparse

from ... import describe_fit, extract_adapter, parse_size, read_shapes, save_adapter
from ..fitting import add_kind, add_result, check_place, kind_of, shown
from ..shared import add_json, add_output, progress_bar


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("base", help="the .safetensors model that the other one was tuned from")
    command.add_argument("tuned", help="the tuned .safetensors model")
    add_output(command, "the .safetensors file to write, or for peft a folder")
    add_kind(command, same=False)
    add_result(command, "the dialect of the file, comfy by default")
    command.add_argument(
        "--strict", action="store_true", help="fail if the models do not have the same layers"
    )
    add_json(command)


def run(options: argparse.Namespace) -> int:
    check_place(options, "comfy")
    made = extract_adapter(
        options.base,
        options.tuned,
        options.algorithm,
        parse_size(options.size),
        **kind_of(options),
        strict=options.strict,
        progress=progress_bar("steps done, one or two for each layer"),
    )
    result = save_adapter(
        made,
        options.out,
        options.dialect or "comfy",
        model=read_shapes([options.base]),
        overwrite=options.overwrite,
    )
    return shown(options, made, result, describe_fit(made))
