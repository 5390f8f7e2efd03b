"""Write several adapters as one."""

from __future__ import annotations

import argparse
from typing import Any

from ... import LycorisError, merge_adapters, merge_methods, parse_size
from ..fitting import add_base, add_kind, add_result, check_place, checked_names, kind_of, write
from ..shared import add_adapters, add_json, add_output, progress_bar, stack_of

EXACT = "exact"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_adapters(command)
    add_output(command, "the .safetensors file to write, or for peft and mlx a folder")
    command.add_argument(
        "--method", default="sum", choices=merge_methods(), metavar="METHOD", help=", ".join(merge_methods())
    )
    command.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the method, see below, such as density=0.3; may be given several times",
    )
    command.add_argument(
        "--norm-limit",
        type=float,
        metavar="C",
        help="bound each merged change to C times the strongest adapter's change of the same weight",
    )
    add_kind(command, same=False, size=EXACT, also="; exact loses nothing")
    add_base(command, "needed where adapters name layers in different ways, and for kinds that depend on it")
    add_result(command, "the dialect of the file; by default the names stay as they are")
    add_json(command)
    methods: dict[str, list[str]] = {}
    for name, method in merge_methods().items():
        for option in method.options:
            methods.setdefault(str(option), []).append(name)
    for text, names in methods.items():
        command.add_argument_group(f"--option of {', '.join(names)}", text)


def run(options: argparse.Namespace) -> int:
    stack = stack_of(options)
    # With a base, the layers get the model's names.
    own = None if options.base else next((entry.adapter.dialect for entry in stack), None)
    check_place(options, own)
    method_options: dict[str, Any] = dict(_option(text) for text in options.option)
    # Check here: `merge_adapters` would take an option such as `seed` for its own argument.
    merge_methods()[options.method].checked(method_options)
    adapter = merge_adapters(
        stack,
        options.method,
        None if options.size == EXACT else parse_size(options.size),
        algorithm=options.algorithm,
        base=options.base,
        norm_limit=options.norm_limit,
        **kind_of(options),
        prepare=checked_names(options, own),
        **method_options,
        progress=progress_bar("layers"),
    )
    return write(options, adapter)


def _option(text: str) -> tuple[str, float | str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise LycorisError("E-argument-option-malformed", got=text)
    try:
        return name, float(value)
    except ValueError:
        return name, value
