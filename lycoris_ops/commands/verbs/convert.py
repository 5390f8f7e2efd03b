"""Write an adapter in the dialect of another tool, or in another dtype."""

from __future__ import annotations

import argparse
import dataclasses

from ... import WRITTEN_DIALECTS, LycorisError, describe_saved, load_adapter, save_adapter
from ..shared import (
    add_dtype,
    add_json,
    add_model,
    add_output,
    check_spares_models,
    dtype_of,
    progress_bar,
    shapes_of_model,
    show,
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", help="the adapter to read")
    add_output(command, "the .safetensors file to write, or for peft and mlx a folder")
    command.add_argument(
        "--dialect", required=True, choices=WRITTEN_DIALECTS, help="the tool whose names and tensors to write"
    )
    add_dtype(command, "the factors")
    add_model(command, "the model that the adapter is for, needed where names are translated")
    command.add_argument(
        "--metadata",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="add an entry to the metadata; KEY= removes one",
    )
    command.add_argument(
        "--drop-unread",
        action="store_true",
        help="leave out keys that nothing reads, and embeddings that the dialect cannot hold",
    )
    add_json(command)


def run(options: argparse.Namespace) -> int:
    check_spares_models(options)
    result = save_adapter(
        load_adapter(options.file),
        options.out,
        options.dialect,
        dtype_of(options),
        dict(_metadata(text) for text in options.metadata),
        model=shapes_of_model(options),
        drop_unread=options.drop_unread,
        overwrite=options.overwrite,
        progress=progress_bar("layers made"),
    )
    show(options, dataclasses.asdict(result), describe_saved(result))
    return 0


def _metadata(text: str) -> tuple[str, str | None]:
    """The key and value of KEY=VALUE. The value is None for KEY=, which removes the key."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise LycorisError("E-argument-metadata-malformed", got=text or "nothing")
    return key, value or None
