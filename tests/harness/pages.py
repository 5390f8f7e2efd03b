"""The parts of `docs/api.md` and `docs/errors.md` that are made from the source.

    python3 tests/harness/environment.py -- python -m tests.harness.pages [--write]

prints them; with --write it writes them into the pages. The site makes its own of the same parts.
"""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

from .facts import ROOT
from .messages import cell, tables

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
MARKS = {"api.md": "<!-- names -->", "errors.md": "<!-- errors -->"}
"""What stands before the part that is made, on each page."""
ALL = "All messages, by class in Python"
"""The heading of the messages."""


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


def api(link: Callable[[str, Path], str], heading: Callable[[str], str] = str) -> str:
    """A table for each group of public names, with the first paragraph of each name's docstring.

    link: where a name leads, from the name and the file of its source. heading: a group's heading.
    """
    rows: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name, module in offered():
        file, said = said_of(ROOT / "lycoris_ops", module, name)
        if not said:
            raise LookupError(f"lycoris_ops.{name} has no docstring")
        rows[group_of(module)].append(f"| [`{name}`]({link(name, file)}) | {cell(said)} |")
    return "\n\n".join(
        "\n".join([f"## {heading(group)}", "", "| name | what it is |", "|---|---|", *lines])
        for group, lines in rows.items()
    )


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


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def helps() -> Mapping[str, str]:
    """The English help pages, by the name of their node."""
    return {page.stem: page.read_text(encoding="utf-8") for page in sorted(HELP.glob("*.md"))}


def title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def source_of(_: str, file: Path) -> str:
    return f"../{file.relative_to(ROOT).as_posix()}"


def errors() -> str:
    """Links to the errors of each node, and all messages."""
    listed = [
        f"- [{title(text)}](../{(HELP / name).relative_to(ROOT).as_posix()}.md#errors)"
        for name, text in helps().items()
        if "\n## Errors\n" in text
    ]
    return "\n\n".join(["## Nodes", "\n".join(listed), f"## {ALL}", tables()])


def made() -> dict[str, str]:
    """The texts of the pages, by name, as they are without the site."""
    parts = {"api.md": api(source_of), "errors.md": errors()}
    heads = {
        name: (DOCS / name).read_text(encoding="utf-8").partition(mark)[0] for name, mark in MARKS.items()
    }
    return {name: f"{heads[name]}{MARKS[name]}\n\n{part}\n" for name, part in parts.items()}


def main() -> None:
    for name, text in made().items():
        if "--write" in sys.argv[1:]:
            (DOCS / name).write_text(text, encoding="utf-8")
            print(f"docs/{name}")
        else:
            print(text)


if __name__ == "__main__":
    main()
