"""The page `docs/coverage.md`: how many layers of each architecture are found, under whose names.

    python3 tests/harness/environment.py -- python -m tools.coverage [--write]

prints the page; with --write it writes the file instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from tests.harness.dialects import DIALECTS, adapter, cases, names, shapes_of
from tests.harness.encoder_names import encoder_cases, encoder_names, encoders_of
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process
from tests.harness.zoo import ENCODERS, SPECIES, supported

PAGE = ROOT / "docs" / "coverage.md"
HEAD = """# What is matched

Names of layers are matched against the model's own list. Each row is a model of ComfyUI's own class. Each of
its layers that an adapter can change was looked up under the names that other software uses, and a cell says
how many were found. A cell has several counts where dialects name different layers. The page is written by
`python -m tools.coverage --write`, and a test compares it.
"""
GROUPS = {
    "ComfyUI's names": ("host", "lycoris"),
    "diffusers' names": ("diffusers", "anima"),
    "diffusers' fused attention": ("fused",),
    "the checkpoint's names": ("published",),
}
"""The columns of the page, each with the sources (`Dialect.source`) of the names that it counts."""

Case = tuple[str, str]
"""An architecture and a dialect; for text encoders, an architecture and a tool."""
Counts = Mapping[Case, tuple[int, int]]
"""For each case: how many layers matched, and how many there are."""


def count(ops: ModuleType, architecture: str, dialect: str, folder: Path) -> tuple[int, int]:
    """How many layers of a model are found under a dialect's names, and how many there are.

    ops: the library. folder: where the adapter for all layers is written.
    """
    named = names(architecture, dialect)
    return _count(
        ops, adapter(named, DIALECTS[dialect].tensors)[0], shapes_of(architecture), folder, len(named)
    )


def count_encoders(ops: ModuleType, architecture: str, tool: str, folder: Path) -> tuple[int, int]:
    """The same two numbers for the text encoders of an architecture, under a tool's names."""
    named, tensors = encoder_names(architecture, tool)
    shapes = {key: tuple(value.shape) for key, value in encoders_of(architecture).state_dict().items()}
    return _count(ops, adapter(named, tensors)[0], shapes, folder, len(named))


def _count(
    ops: ModuleType, tensors: Mapping[str, object], shapes: Mapping[str, object], folder: Path, layers: int
) -> tuple[int, int]:
    from safetensors.torch import save_file

    save_file(tensors, folder / "adapter.safetensors")
    stack = ops.Stack([ops.Entry(ops.load_adapter(folder / "adapter.safetensors"))])
    (found,) = ops.resolve(stack, shapes).entries
    return found.count(), layers


def page(models: Counts, encoders: Counts) -> str:
    """The whole text: a table of diffusion models, the tools of each column, and a table of text encoders."""
    lines = [HEAD, _row("architecture", *GROUPS), _row(*["---"] * (len(GROUPS) + 1))]
    for architecture in SPECIES:
        cells = [_together(models, architecture, sources) for sources in GROUPS.values()]
        if any(cells):
            lines.append(_row(architecture, *cells))
    lines.append("")
    for group, sources in GROUPS.items():
        tools = [name for name, dialect in DIALECTS.items() if dialect.source in sources]
        lines.append(f"- {group}: {'; '.join(tools)}")
    lines += ["", _row("text encoders of", "layers matched"), _row("---", "---")]
    for architecture in ENCODERS:
        cells = [
            f"{tool}: {_text(counts)}" for (name, tool), counts in encoders.items() if name == architecture
        ]
        lines.append(_row(architecture, "; ".join(cells)))
    return "\n".join([*lines, ""])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _text(counts: tuple[int, int]) -> str:
    return "{} of {}".format(*counts)


def _together(counts: Counts, architecture: str, sources: Sequence[str]) -> str:
    """One cell: an architecture's counts in the dialects of some sources, equal counts once."""
    mine = (
        _text(found)
        for (name, dialect), found in counts.items()
        if name == architecture and DIALECTS[dialect].source in sources
    )
    return ", ".join(dict.fromkeys(mine))


def measured(
    ops: ModuleType,
    which: Sequence[Case],
    measure: Callable[[ModuleType, str, str, Path], tuple[int, int]],
    known: Counts,
) -> dict[Case, tuple[int, int]]:
    """The counts of all cases. Those in `known` are not measured again."""
    with TemporaryDirectory() as folder:
        return {case: known.get(case) or measure(ops, *case, Path(folder)) for case in which}


def main(arguments: Sequence[str]) -> None:
    boot_in_process(facts().comfyui, base_directory(ROOT / ".cache" / facts().host / "coverage", ROOT))
    import lycoris_ops as ops

    known = [case for case in cases() if supported(case[0])]
    text = page(measured(ops, known, count, {}), measured(ops, encoder_cases(), count_encoders, {}))
    if "--write" not in arguments:
        print(text)
        return
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
