"""Every message that a LycorisError of the source can have, read from where it is made."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter

from .facts import ROOT

PACKAGES = ("lycoris_ops", "lycoris_nodes")
BASE = "LycorisError"
NAMED = "unknown_name"
"""The function that makes the error for a name that is none of the known ones."""
WORDS = re.compile(r"[A-Za-z]{2}\S* \S*[A-Za-z]{2}")
PHRASES = ("phrase", "Phrase")
"""What gives a text by its code."""
PASSED = "error"
"""The parameter by which a function gets the class of its error."""
SIMILAR = "Take one of the names that it lists; it asks about the most similar one."
COMPUTED = "It says what was expected."


@dataclass(frozen=True)
class Message:
    """One message of an error of a kind, its code, and what it says beside, with … for each value."""

    kind: str
    code: str
    problem: str
    beside: str


def tables(files: Collection[Path]) -> str:
    """The messages of some sources in Markdown: a part for each class, with a table."""
    kinds = all_kinds()
    trees = [parsed(file) for file in files]
    found = sorted(
        set(messages(trees, known_texts(), kinds)),
        key=lambda one: (one.problem.lstrip("…` ").lower(), one.problem, one.beside, one.code),
    )
    parts: list[str] = []
    for kind in kinds:
        rows = [
            f"| {cell(one.problem)} | {cell(one.beside)} | {one.code and f'`{one.code}`'} |"
            for one in found
            if one.kind == kind
        ]
        if rows:
            table = "\n".join(
                ["| message | what to do, or what was expected | code |", "|---|---|---|", *rows]
            )
            parts.append(f"## {kind}\n\n{table}")
    return "\n\n".join(parts)


@cache
def all_kinds() -> dict[str, str]:
    """The classes of errors of both packages, each with the first line of its docstring."""
    return known_kinds([parsed(file) for file in sources()])


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def known_texts() -> dict[str, dict[str, str]]:
    """The texts of both packages by code."""
    files = [ROOT / package / "messages.json" for package in PACKAGES]
    return {code: texts for file in files for code, texts in json.loads(file.read_text("utf-8")).items()}


def cell(text: str) -> str:
    """A text as it stands in a table of Markdown."""
    code = text.replace("\n", " ").replace("|", "\\|").split("`")
    return "`".join(
        re.sub(r"([<*_\[])", r"\\\1", part) if n % 2 == 0 else part for n, part in enumerate(code)
    )


def sources() -> list[Path]:
    return [file for name in PACKAGES for file in sorted((ROOT / name).rglob("*.py"))]


def messages(
    trees: Collection[ast.Module],
    texts: Mapping[str, Mapping[str, str]],
    kinds: Mapping[str, str] | None = None,
) -> Iterator[Message]:
    """What the calls in `trees` can say: by their codes in `texts`, or in words of their own.

    kinds: the classes of errors; by default those that `trees` define.
    """
    for kind, code, call in raised(trees, kinds):
        named = called(call) == NAMED
        given = {word.arg: word.value for word in call.keywords}
        own = {part: plain(text) for part, text in texts.get(code, {"problem": code}).items()}
        yield Message(
            kind, code if code in texts else "", own["problem"], SIMILAR if named else beside(own, given)
        )


def raised(
    trees: Collection[ast.Module], kinds: Mapping[str, str] | None = None
) -> Iterator[tuple[str, str, ast.Call]]:
    """The kind and the code, or the words, of each error that a call in `trees` makes, with the call."""
    kinds = kinds or known_kinds(trees)
    for tree in trees:
        makers = {
            node.name: node.returns.id
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            and isinstance(node.returns, ast.Name)
            and node.returns.id in kinds
        }
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            name = called(call)
            given = {word.arg: word.value for word in call.keywords}
            if name in kinds or name == NAMED:
                kind = called_kind(given.get("error")) if name == NAMED else name
                yield from ((kind, words, call) for words in spoken(call.args[0]))
            elif name in makers or name == PASSED:
                words = (words for argument in call.args for words in spoken(argument))
                kind = makers.get(name, BASE)
                yield from ((kind, code, call) for code in words if code.startswith("E-"))


def plain(text: str) -> str:
    """A text with … for each value."""
    return "".join(fixed + ("" if name is None else "…") for fixed, name, _, _ in Formatter().parse(text))


def beside(own: Mapping[str, str], given: Mapping[str | None, ast.expr]) -> str:
    """What a message says to do, or expects; "" where it says neither."""
    if advice := [own["hint"]] if "hint" in own else spoken(given.get("hint")):
        return ended(", or: ".join(advice))
    if expected := [own["expected"]] if "expected" in own else spoken(given.get("expected")):
        return ended(f"Expected: {', or '.join(expected)}")
    return COMPUTED if given.keys() & {"hint", "expected"} else ""


def ended(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."


def known_kinds(trees: Collection[ast.Module]) -> dict[str, str]:
    """LycorisError and what is derived from it, each with the first line of its docstring."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    kinds: dict[str, str] = {}
    while True:
        found = {
            one.name: (ast.get_docstring(one) or "").partition("\n")[0]
            for one in classes
            if one.name == BASE or any(isinstance(base, ast.Name) and base.id in kinds for base in one.bases)
        }
        if found == kinds:
            return kinds
        kinds = found


def called(call: ast.Call) -> str:
    function = call.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def called_kind(given: ast.expr | None) -> str:
    return given.id if isinstance(given, ast.Name) else BASE


def prose(where: Path) -> Iterator[str]:
    """Texts of several words without a code, in a source or in those of a folder."""
    for file in sorted(where.rglob("*.py")) or [where]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        silent = (node for node in ast.walk(tree) if _says_nothing(node))
        apart = {id(part) for node in silent for part in ast.walk(node)}
        yield from (
            f"{file.name}:{node.lineno}: {node.value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and id(node) not in apart and WORDS.search(str(node.value))
        )


def _says_nothing(node: ast.AST) -> bool:
    """Whether the texts in a node are not for users: docstrings, types, and what a programmer did wrong."""
    if isinstance(node, ast.Call) and called(node) == "cast":
        return True
    if isinstance(node, ast.Raise):
        return isinstance(node.exc, ast.Call) and called(node.exc) in ("TypeError", "ValueError")
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def spoken(node: ast.expr | None) -> tuple[str, ...]:
    """The texts that an expression can be, with … for values; none where it has no words of its own."""
    if isinstance(node, ast.Call) and called(node) in PHRASES:
        return tuple(plain(known_texts()[code]["text"]) for code in spoken(node.args[0]))
    if isinstance(node, ast.IfExp):
        return spoken(node.body) + spoken(node.orelse)
    if isinstance(node, ast.BoolOp):
        return tuple(text for value in node.values for text in spoken(value))
    if isinstance(node, ast.BinOp):
        return tuple(left + right for left in spoken(node.left) for right in spoken(node.right))
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
        return ("".join(map(str, parts)),)
    return (node.value,) if isinstance(node, ast.Constant) and isinstance(node.value, str) else ()
