"""The structure that docs/architecture.md describes: which room imports which.

A room is a folder or a module directly in `lycoris_ops`.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PUBLIC = "__init__"
"""The name that the page has for `lycoris_ops/__init__.py`."""


def between(mark: str) -> str:
    """The code block between the comments that begin and end a part of the page."""
    text = GUIDE.partition(f"<!-- {mark}: begin -->")[2].partition(f"<!-- {mark}: end -->")[0]
    return text.partition("\n```")[2].partition("\n")[2].rpartition("```")[0]


def floors(mark: str) -> dict[str, int]:
    """The floor of each room in an order. Its first line is the highest, and rooms import lower ones only."""
    order = [line.split() for line in between(mark).splitlines() if line.strip()]
    return {room: -floor for floor, rooms in enumerate(order) for room in rooms}


ORDERS = {"lycoris_ops": floors("order"), "lycoris_nodes": floors("order of the nodes")}
"""The floors of the rooms of each package. A room of the nodes may be a folder within one."""


def room_of(path: tuple[str, ...], rooms: Collection[str]) -> str:
    """The room that a path below the package is in: the one with the longest name."""
    names = ("/".join(path[:end]) for end in range(len(path), 0, -1))
    return next((name for name in names if name in rooms), path[0] if path else PUBLIC)


def imports(file: Path, package: Path) -> Iterator[tuple[str, ...]]:
    """The modules of a package that a file imports by relative imports, as paths below the package.

    The path () stands for a name that the package itself offers.
    """
    folder = file.parent.relative_to(package.parent).parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*folder[: len(folder) - node.level + 1], *(node.module or "").split("."))
            path = tuple(part for part in base if part)
            if path[:1] == (package.name,):
                # `from .. import errors` names a module of the package, or what the package itself offers.
                for name in node.names:
                    if path[1:] or is_module(package, name.name):
                        yield (*path[1:], name.name)
                    else:
                        yield ()


def is_module(package: Path, name: str) -> bool:
    """Whether a package has a module or a folder of this name."""
    return (package / name).is_dir() or (package / f"{name}.py").exists()


@pytest.mark.parametrize("name", list(ORDERS))
def test_rooms_import_downwards_only(name: str) -> None:
    package, order = ROOT / name, ORDERS[name]
    seen: set[str] = set()
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package).with_suffix("").parts
        room = room_of(path, order)
        # `__main__` only starts `commands`, and must be where Python looks for it.
        if room == "__main__":
            continue
        if any(name.startswith(f"{room}/") for name in order):
            assert path[-1] == PUBLIC and not list(imports(file, package)), f"{file} is in none of the rooms"
            continue
        seen.add(room)
        for other in imports(file, package):
            used = room_of(other, order)
            assert used == room or order[used] < order[room], f"{file.name} in {room} imports {used}"
    assert seen == set(order)


def test_no_two_files_import_each_other() -> None:
    """Not for types either."""
    package = ROOT / "lycoris_ops"
    used: set[tuple[Path, Path]] = set()
    for file in package.rglob("*.py"):
        for path in imports(file, package):
            module = package.joinpath(*path[:-1]).with_suffix(".py")
            used |= {(file, module)} if module != file else set()
    assert len(used) > 1000
    assert not [(one.name, other.name) for one, other in used if (other, one) in used]


def test_a_word_is_the_name_of_one_class_alone() -> None:
    """Public classes of the library; those with an underscore are known in their own file alone."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "lycoris_ops").rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    assert len(found) > 100
    assert not {name: files for name, files in found.items() if len(files) > 1}


SURFACE = (ROOT / "lycoris_ops" / "__init__.py").read_text(encoding="utf-8")
OFFERED = {
    name.asname
    for node in ast.walk(ast.parse(SURFACE))
    if isinstance(node, ast.ImportFrom)
    for name in node.names
}
"""The names of the public surface."""


def test_the_nodes_use_the_public_surface_alone() -> None:
    nodes = ROOT / "lycoris_nodes"
    found = 0
    for file in [ROOT / "__init__.py", *sorted(nodes.rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and "lycoris_ops" in (node.module or ""):
                found += 1
                assert node.module == "lycoris_ops", f"{file.name} imports {node.module}"
                assert {name.name for name in node.names} <= OFFERED, file.name
            if isinstance(node, ast.Import):
                assert not any("lycoris_ops" in name.name for name in node.names), file.name
    assert found > 5


def test_few_files_know_of_several_processes() -> None:
    """Divided tensors, shares of weights, and the processes; the command line starts them."""
    found: set[str] = set()
    for file in (ROOT / "lycoris_ops").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        named = {one.module or "" for one in nodes if isinstance(one, ast.ImportFrom) and not one.level}
        named |= {name.name for one in nodes if isinstance(one, ast.Import) for name in one.names}
        named |= {ast.unparse(one) for one in nodes if isinstance(one, ast.Attribute)}
        if any(name.startswith("torch.distributed") for name in named):
            found.add(file.relative_to(ROOT / "lycoris_ops").as_posix())
    assert found == {"bypass/share.py", "commands/verbs/train.py", "maths/divided.py", "processes.py"}
