"""Write a model with adapters merged into it."""

from __future__ import annotations

import argparse

from ... import describe, matched, merge_checkpoint
from ..shared import add_adapters, add_dtype, add_json, add_output, dtype_of, progress_bar, show, stack_of


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "base",
        help="the .safetensors checkpoint, diffusion model or text encoder to merge into; for a model in "
        "several files, its index or its folder",
    )
    add_adapters(command)
    add_output(command, "the .safetensors file to write; a folder or an index if the base is one")
    add_dtype(command, "all float tensors")
    command.add_argument(
        "--strict", action="store_true", help="fail if a layer of an adapter cannot be matched"
    )
    add_json(command)


def run(options: argparse.Namespace) -> int:
    result = merge_checkpoint(
        options.base,
        stack_of(options),
        options.out,
        dtype_of(options),
        strict=options.strict,
        overwrite=options.overwrite,
        progress=progress_bar("bytes written"),
    )
    data = {
        "path": result.path,
        "size": result.size,
        "merged": result.merged,
        "copied": result.copied,
        "strange": list(result.strange),
        "adapters": [
            {"file": entry.entry.adapter.path, **matched(entry)} for entry in result.resolution.entries
        ],
    }
    show(options, data, f"{describe(result.resolution)}\n\n{result}")
    return 0
