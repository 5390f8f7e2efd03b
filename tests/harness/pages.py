"""The pages of `docs/api` and `docs/errors`, and the parts of their indexes that are made from the source.

    python3 tests/harness/environment.py -- python -m tests.harness.pages [--write]

prints them; with --write it writes the pages. The site replaces the tables of names by the docstrings.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from .facts import ROOT
from .messages import all_kinds, cell, parsed, sources, tables

DOCS = ROOT / "docs"
HELP = ROOT / "lycoris_nodes" / "web" / "docs"
GROUPS = {
    "Adapters and their files": "reading files algorithms names layers writing",
    "Stacks, rules and schedules": "stack rules changes",
    "Patch, bypass and bake": "patch bypass bake",
    "Merge, resize and extract": "merge resize extract fit",
    "Inspect and report": "inspect report charts",
    "Train": "train modules",
    "Ranks": "ranks",
    "Errors and the rest": "errors messages discovery maths version",
}
"""The groups of public names, each with the modules of `lycoris_ops` that its names come from."""
NAMES, ERRORS = "<!-- names -->", "<!-- errors -->"
"""The marks before the parts that are made."""
AREAS = {
    "Adapter files": "lycoris_ops/files",
    "Names, dialects and PEFT": "lycoris_ops/names lycoris_ops/peft lycoris_ops/reading",
    "Layers and algorithms": "lycoris_ops/algorithms lycoris_ops/changes",
    "Patch, bypass and bake": "lycoris_ops/bake lycoris_ops/bypass lycoris_ops/devices.py lycoris_ops/layers"
    " lycoris_ops/modules lycoris_ops/patch lycoris_ops/processes.py lycoris_nodes/apply",
    "Stacks, rules and schedules": "lycoris_ops/expressions.py lycoris_ops/rules lycoris_ops/stack"
    " lycoris_nodes/stacks",
    "Merge, extract and save": "lycoris_ops/charts.py lycoris_ops/extract lycoris_ops/fit lycoris_ops/inspect"
    " lycoris_ops/merge lycoris_ops/resize lycoris_ops/writing",
    "Ranks": "lycoris_ops/ranks",
    "Networks": " ".join(
        f"lycoris_ops/train/{name}.py"
        for name in (
            *("claims", "create", "extras", "in_peft", "member", "naming", "network", "passing"),
            *("strengths", "tensors", "untied"),
        )
    ),
    "Training": "lycoris_ops/train",
    "Training in ComfyUI": "lycoris_nodes/training",
    "Training pictures": "lycoris_nodes/dataset lycoris_nodes/training/data",
    "Command line": "lycoris_ops/commands",
    "Nodes": "lycoris_nodes lycoris_ops",
}
"""The areas of messages, each with the folders and files of its sources. The longest fitting path counts."""


def offered() -> Iterator[tuple[str, str]]:
    """The public names, each with the module that it comes from."""
    for node in parsed(ROOT / "lycoris_ops" / "__init__.py").body:
        if isinstance(node, ast.ImportFrom):
            for one in node.names:
                if one.asname and not one.asname.startswith("_"):
                    yield one.asname, node.module or one.name


def group_of(module: str) -> str:
    """The group of the names of a module."""
    top = module.partition(".")[0]
    for group, modules in GROUPS.items():
        if top in modules.split():
            return group
    raise LookupError(f"no group of tests/harness/pages.py has the names of lycoris_ops.{module}")


def names_of(group: str) -> list[str]:
    return [name for name, module in offered() if group_of(module) == group]


def page_of(group: str, folder: str) -> str:
    """The page of a group of names or of an area of messages."""
    return f"{folder}/{re.sub(r'[^a-z]+', '-', group.lower())}.md"


def api(group: str) -> str:
    """A table of the public names of a group, with the first paragraph of each name's docstring."""
    lines = ["| name | what it is |", "|---|---|"]
    for name, module in offered():
        if group_of(module) == group:
            file, said = said_of(ROOT / "lycoris_ops", module, name)
            if not said:
                raise LookupError(f"lycoris_ops.{name} has no docstring")
            lines.append(f"| [`{name}`](../../{file.relative_to(ROOT).as_posix()}) | {cell(said)} |")
    return "\n".join(lines)


def api_index() -> str:
    """The groups, each with a link to its page and its names."""
    rows = [
        f"| [{group}]({page_of(group, 'api')}) | {', '.join(f'`{name}`' for name in names_of(group))} |"
        for group in GROUPS
    ]
    return "\n".join(["| page | names |", "|---|---|", *rows])


def said_of(folder: Path, module: str, name: str) -> tuple[Path, str]:
    """The file that defines a name of a module, and the first paragraph of the name's docstring."""
    path = folder.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    body = parsed(file).body
    for node, after in itertools.pairwise([*body, ast.Pass()]):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return file, first(ast.get_docstring(node))
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(one, ast.Name) and one.id == name for one in targets):
                said = after.value if isinstance(after, ast.Expr) else None
                return file, first(said.value if isinstance(said, ast.Constant) else None)
        if isinstance(node, ast.ImportFrom):
            for one in node.names:
                if (one.asname or one.name) == name:
                    base = file.parents[node.level - 1]
                    return said_of(base, node.module or one.name, one.name)
    part = f"{module}.{name}"
    if path.is_dir() and path != folder.joinpath(*part.split(".")):
        return said_of(folder, part, name)
    return file, first(ast.get_docstring(parsed(file)))


def first(text: object) -> str:
    return " ".join(str(text or "").partition("\n\n")[0].split())


def helps() -> Mapping[str, str]:
    """The English help pages, by the name of their node."""
    return {page.stem: page.read_text(encoding="utf-8") for page in sorted(HELP.glob("*.md"))}


def title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def area_of(file: Path) -> str:
    """The area of the messages of a source."""
    path = f"{file.relative_to(ROOT).as_posix()}/"
    fitting = [
        (len(start), area)
        for area, starts in AREAS.items()
        for start in starts.split()
        if path.startswith(f"{start}/")
    ]
    return max(fitting)[1]


def errors_index() -> str:
    """Links to the pages of areas and to the errors of each node, and the classes of errors."""
    areas = [f"- [{area}]({page_of(area, 'errors')})" for area in AREAS]
    listed = [
        f"- [{title(text)}](../{(HELP / name).relative_to(ROOT).as_posix()}.md#errors)"
        for name, text in helps().items()
        if "\n## Errors\n" in text
    ]
    kinds = [f"| `{kind}` | {cell(said)} |" for kind, said in all_kinds().items()]
    parts = ["## Messages by area", areas, "## Errors of each node", listed]
    parts += ["## Classes in Python", ["| class | meaning |", "|---|---|", *kinds]]
    return "\n\n".join(part if isinstance(part, str) else "\n".join(part) for part in parts)


def made() -> dict[str, str]:
    """The texts of the pages, by name, as they are without the site."""
    pages = {
        name: f"{(DOCS / name).read_text(encoding='utf-8').partition(mark)[0]}{mark}\n\n{make()}\n"
        for name, mark, make in (("api.md", NAMES, api_index), ("errors.md", ERRORS, errors_index))
    }
    for group in GROUPS:
        pages[page_of(group, "api")] = f"# {group}\n\n{NAMES}\n\n{api(group)}\n"
    for area in AREAS:
        files = [file for file in sources() if area_of(file) == area]
        head = f"# Errors: {area}\n\n[How to read a message and its code](../errors.md)"
        pages[page_of(area, "errors")] = f"{head}\n\n{tables(files)}\n"
    return pages


def main() -> None:
    for name, text in made().items():
        if "--write" in sys.argv[1:]:
            (DOCS / name).parent.mkdir(exist_ok=True)
            (DOCS / name).write_text(text, encoding="utf-8")
            print(f"docs/{name}")
        else:
            print(text)


if __name__ == "__main__":
    main()
