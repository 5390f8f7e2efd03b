"""Write a model with adapters merged into it."""

from __future__ import annotations

import argparse

from ... import Entry, LycorisError, Stack, describe, load_adapter, matched, merge_checkpoint
from ..shared import add_dtype, add_json, add_output, dtype_of, progress_bar, show


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "base", help="the .safetensors checkpoint, diffusion model or text encoder to merge into"
    )
    command.add_argument(
        "--adapter",
        action="append",
        nargs="+",
        required=True,
        metavar=("FILE", "STRENGTH"),
        help="an adapter, its strength (1 by default), and its strength on the text encoders (the same by "
        "default); repeat the option for each adapter",
    )
    add_output(command, "the .safetensors file to write")
    add_dtype(command, "all float tensors")
    command.add_argument(
        "--strict", action="store_true", help="fail if a layer of an adapter cannot be matched"
    )
    add_json(command)


def run(options: argparse.Namespace) -> int:
    result = merge_checkpoint(
        options.base,
        Stack(_entry(*values) for values in options.adapter),
        options.out,
        dtype_of(options),
        strict=options.strict,
        overwrite=options.overwrite,
        progress=progress_bar("bytes written"),
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
    show(options, found, f"{describe(result.resolution)}\n\n{result}")
    return 0


def _entry(file: str, *strengths: str) -> Entry:
    """An adapter with up to two strengths, given as texts. Raises LycorisError for any others."""
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
