"""What the page knows of the server: `lycoris_nodes/web/routes.js`, made of `lycoris_nodes/routes.py`.

    python -m tests.harness.routes --write

writes it: the types of all questions and answers, and the constants that both sides need. Run it in the
environment of the tests. A test compares the file with the present code.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .facts import ROOT, facts
from .launch import base_directory, boot_in_process, loaded_pack

FILE = ROOT / "lycoris_nodes" / "web" / "routes.js"
HEAD = """\
// Made by `python -m tests.harness.routes --write` from `lycoris_nodes/routes.py`: change that.
"""
PLAIN = {str: "string", bool: "boolean", int: "number", float: "number", NoneType: "null", Any: "any"}


def script(routes: ModuleType, rows: ModuleType, loras: ModuleType) -> str:
    """The text of the file, given modules of the loaded pack."""
    types = _Types({rows.Row})
    parts: list[str] = []
    for name, table in (("Gets", routes.GET), ("Posts", routes.POST)):
        lines: list[str] = []
        for path, act in table.items():
            asked = routes.question_type(act)
            question = types.of(asked, may_lack=True) if asked else "{}"
            answer = types.of(get_type_hints(act)["return"])
            lines.append(f' *   "{path}": [asked: {question}, answer: {answer}],\n')
        parts.append(f"/**\n * @typedef {{{{\n{''.join(lines)} * }}}} {name}\n */\n")
    kinds = {name: PLAIN[_plainest(hint)] for name, hint in get_type_hints(rows.Row).items()}
    constants = {
        "ROW_VERSION": rows.VERSION,
        "ROW_FIELDS": kinds,
        "SIGNALS": rows.SIGNALS,
        "ENDINGS": loras.ENDINGS,
    }
    values = "".join(
        f"export const {name} = /** @type {{const}} */ ({json.dumps(value)})\n"
        for name, value in constants.items()
    )
    return "\n".join([HEAD, *types.written, *parts, values])


def _plainest(hint: Any) -> Any:
    """The type of a value that is there."""
    return next((one for one in get_args(hint) if one is not NoneType), hint)


class _Types:
    """The types that have been written so far. Classes of `rows` may lack all fields that have a default."""

    def __init__(self, rows: set[type]) -> None:
        self.rows = rows
        self.written: list[str] = []
        self._names: dict[str, type] = {}

    def of(self, hint: Any, *, may_lack: bool = False) -> str:
        """How TypeScript writes a type. The fields that a question `may_lack` are those with a default."""
        if hint in PLAIN:
            return PLAIN[hint]
        origin, inner = get_origin(hint), get_args(hint)
        if origin in (Union, UnionType):
            return " | ".join(map(self.of, inner))
        if origin is Literal:
            return " | ".join(map(json.dumps, inner))
        if origin is not None and issubclass(origin, Mapping):
            return f"Record<string, {self.of(inner[1])}>"
        if origin is tuple and inner[-1] is not Ellipsis:
            return f"[{', '.join(map(self.of, inner))}]"
        if origin is not None and issubclass(origin, Sequence):
            one = self.of(inner[0])
            return f"({one})[]" if "|" in one else f"{one}[]"
        self._write(hint, may_lack or hint in self.rows)
        return hint.__name__

    def _write(self, kind: type, may_lack: bool) -> None:
        name = kind.__name__
        if name in self._names:
            if self._names[name] is not kind:
                raise LookupError(f"two classes of the routes are called {name}")
            return
        self._names[name] = kind
        begin, end = ("{{", "}}") if is_dataclass(kind) else ("{[", "]}")
        members = "".join(f" *   {member},\n" for member in self._members(kind, may_lack))
        self.written.append(f"/**\n * @typedef {begin}\n{members} * {end} {name}\n */\n")

    def _members(self, kind: Any, may_lack: bool) -> Iterator[str]:
        hints = get_type_hints(kind)
        names = [field.name for field in fields(kind)] if is_dataclass(kind) else kind._fields
        lacking = (
            {one.name for one in fields(kind) if one.default is not MISSING}
            if is_dataclass(kind) and may_lack
            else set()
        )
        for name in names:
            # A field of a question that is None is left out.
            hint = _plainest(hints[name]) if name in lacking else hints[name]
            written = self.of(hint)
            # In a row, a number may be a text as it was typed.
            typed = " | string" if kind in self.rows and written == "number" else ""
            yield f"{name}{'?' * (name in lacking)}: {written}{typed}"


def made() -> str:
    """The text of the file, with the pack loaded by the host in this process."""
    base = base_directory(ROOT / ".cache" / facts().host / "promises", ROOT)
    boot_in_process(facts().comfyui, base)
    pack = loaded_pack(base).__name__
    names = ("routes", "stacks.rows", "files.loras")
    return script(*(importlib.import_module(f"{pack}.lycoris_nodes.{name}") for name in names))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.harness.routes --write")
    FILE.write_text(made(), encoding="utf-8")
    print(FILE.relative_to(ROOT))
