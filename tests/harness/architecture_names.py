"""The record of what diffusers calls the layers of the host's models, `architecture_names.toml`.

    python3 tests/harness/environment.py -- python -m tests.harness.architecture_names [--write]

makes the record anew out of the installed diffusers and the host's own classes (`in_diffusers.recorded`), and
prints it; with --write it writes the file instead. A test in `tests/host` compares the file with what is made
anew, and the library's tests read it alone.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tomllib

from .listings import expand

PATH = Path(__file__).with_suffix(".toml")
HEAD = """# What diffusers calls the layers of the host's models: written by
# `python -m tests.harness.architecture_names --write`. {0-1} stands for 0 and for 1, on both sides.
# `layers` are the host's with the shapes of their weights, and `diffusers` has for a name the layers that it
# stands for, one below the other, with the first of their rows and the end where it is not all of them.
"""
PLACE = re.compile(r"(\S+)(?: (\d+)-(\d+))?")

Shape = tuple[int, ...]
Rows = tuple[tuple[str, tuple[int, int] | None], ...]
"""Layers of the host by their paths, each with the first row and the end, or None for all of its rows."""


@dataclass(frozen=True)
class Record:
    """The layers of one model of the host, and diffusers' names for them."""

    layers: Mapping[str, Shape]
    diffusers: Mapping[str, Rows]


@cache
def records() -> Mapping[str, Record]:
    """The record by architecture. `X, in files` is X in the layout of its published checkpoints."""
    tables = tomllib.loads(PATH.read_text(encoding="utf-8"))
    return {
        name: Record(
            {path: tuple(shape) for key, shape in table["layers"].items() for path in expand(key)},
            dict(entry for key, value in table["diffusers"].items() for entry in _expanded(key, value)),
        )
        for name, table in tables.items()
    }


def _expanded(key: str, value: str) -> Iterator[tuple[str, Rows]]:
    names = list(expand(key))
    places: list[list[tuple[str, tuple[int, int] | None]]] = [[] for _ in names]
    for text in value.split(", "):
        match = PLACE.fullmatch(text)
        assert match, text
        rows = (int(match[2]), int(match[3])) if match[2] else None
        for found, path in zip(places, expand(match[1]), strict=True):
            found.append((path, rows))
    return zip(names, map(tuple, places), strict=True)


def text(found: Mapping[str, Record]) -> str:
    """The record as the file has it."""
    lines = [HEAD]
    for name, record in found.items():
        layers = {path: str(list(shape)) for path, shape in record.layers.items()}
        meanings = {name: f'"{_written(rows)}"' for name, rows in record.diffusers.items()}
        for part, entries in (("layers", layers), ("diffusers", meanings)):
            lines.append(f'\n["{name}".{part}]\n')
            lines += [f'"{key}" = {value}\n' for key, value in _folded(entries).items()]
    return "".join(lines)


def _written(rows: Rows) -> str:
    return ", ".join(f"{path} {part[0]}-{part[1]}" if part else path for path, part in rows)


def _folded(entries: Mapping[str, str]) -> Mapping[str, str]:
    """The entries with those as one that differ in the number of a block alone."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for key, value in entries.items():
        number = next(iter(re.findall(r"\.(\d+)\.", key)), "")
        block = re.compile(rf"(?<=\.){number}(?=\.)")
        parts = [block.sub("{#}", part, count=1) for part in value.split(", ")] if number else [value]
        # A layer of another block, or of none, stays as it is.
        whole = value.startswith("[") or all("{#}" in part for part in parts)
        template = (block.sub("{#}", key, count=1), ", ".join(parts)) if number and whole else (key, value)
        groups[template].append(int(number or 0))
    folded: dict[str, str] = {}
    for (key, value), numbers in groups.items():
        runs = f"{{{','.join(map(str, numbers))}}}" if len(numbers) > 1 else str(numbers[0])
        folded[key.replace("{#}", runs)] = value.replace("{#}", runs)
    return folded


def main() -> None:
    from . import in_diffusers
    from .facts import ROOT, facts
    from .launch import base_directory, boot_in_process

    boot_in_process(facts().comfyui, base_directory(ROOT / ".cache" / facts().host / "names", ROOT))
    made = text(in_diffusers.recorded())
    if "--write" in sys.argv[1:]:
        PATH.write_text(made, encoding="utf-8")
    else:
        print(made, end="")


if __name__ == "__main__":
    main()
