"""Show what an adapter file holds, and which layers of a model it matches."""

from __future__ import annotations

import argparse

from ... import Entry, Stack, describe, in_words, load_adapter, matched, resolve, summary
from ..shared import add_json, add_model, shapes_of_model, show


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", help="the adapter: .safetensors, or .pt, .ckpt, .bin of plain tensors")
    add_model(command, "a model to match it with")
    add_json(command)


def run(options: argparse.Namespace) -> int:
    adapter = load_adapter(options.file)
    found = summary(adapter)
    shapes = shapes_of_model(options)
    words = [in_words(found)]
    if shapes is not None:
        resolution = resolve(Stack([Entry(adapter)]), shapes, absent_because="no file given holds it")
        (entry,) = resolution.entries
        found["match"] = matched(entry)
        words.append(describe(resolution))
    show(options, found, "\n\n".join(words))
    return 0
