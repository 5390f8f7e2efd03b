"""The pages of the documentation: what they link to is there, and drawings show what the library computes."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.harness.messages import SIMILAR, Message, messages
from tests.harness.pages import made
from tools.drawings import FOLDER, drawings

ROOT = Path(__file__).parents[2]
HELP = ROOT / "lycoris_nodes" / "web" / "docs"
ROOTS = [ROOT / f"{name}.md" for name in ("README", "SECURITY", "CONTRIBUTING")]
PAGES = [*ROOTS, *sorted((ROOT / "docs").rglob("*.md")), *sorted(HELP.rglob("*.md"))]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in {one or other for one, other in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)}:
        if "://" in target:
            continue
        path, _, anchor = unquote(target).partition("#")
        # The front end looks for the pictures of a help page in one folder, whatever the page's language.
        folder = HELP if path.startswith("pictures/") and HELP in page.parents else page.parent
        found = folder / path if path else page
        assert found.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 700


def test_every_help_page_is_in_the_list_of_nodes_by_its_title() -> None:
    listed = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[([^\]]+)\]\(\S+/(\w+)\.md\), `(\w+)` \|", listed, re.M)
    titles = {page.stem: page.read_text("utf-8").partition("\n")[0] for page in HELP.glob("*.md")}
    assert sorted(rows) == sorted((title.removeprefix("# "), name, name) for name, title in titles.items())


def shape(text: str) -> tuple[int, ...]:
    """How many rows of tables, headings, items of lists and pictures a page has."""
    return tuple(len(re.findall(start, text, re.M)) for start in (r"^\|", r"^#", r"^(?:- |\d\. )", r"^!\["))


def named(text: str) -> set[str]:
    """The names of inputs and outputs in the first columns of tables."""
    cells = " ".join(" ".join(line.split("|")[1:3]) for line in text.splitlines() if line.startswith("|"))
    return set(re.findall(r"`([a-z_]+)`", cells))


@pytest.mark.parametrize("page", sorted(HELP.glob("*.md")), ids=lambda page: page.stem)
def test_a_help_page_tells_of_errors_and_is_the_same_in_chinese(page: Path) -> None:
    english, chinese = page.read_text(encoding="utf-8"), (HELP / page.stem / "zh.md").read_text("utf-8")
    assert "\n## Errors\n" in english
    assert shape(chinese) == shape(english)
    assert named(chinese) == named(english)


def test_drawings_are_what_the_library_computes_now() -> None:
    drawn = dict(drawings())
    assert {path.stem for path in FOLDER.glob("merge-*.svg")} == set(drawn) - {"curves"}
    for name, drawing in drawn.items():
        kept = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
        hint = f"{name}: run `python -m tools.drawings`"
        assert NUMBER.sub("", kept) == NUMBER.sub("", drawing.svg()), hint
        both = (map(float, NUMBER.findall(text)) for text in (kept, drawing.svg()))
        assert all(abs(one - other) < 1 for one, other in zip(*both, strict=True)), hint


SOURCE = """
class LycorisError(Exception):
    "Bad input."

class FileError(LycorisError):
    "A bad file."

raise FileError(f"{name} is damaged" if name else "it is damaged", hint="Get another copy" + "")
raise LycorisError("too many", expected=f"at most {most}")
raise unknown_name("no such file", name, files, error=FileError)
raise ValueError("no message of ours")
raise FileError("E-empty", count=2, hint="Fill it")
"""
TEXTS = {"E-empty": {"problem": "the {what} has {count:row|rows}", "expected": "{more:or}, as in {{}}"}}


def test_messages_are_read_from_where_they_are_made() -> None:
    assert list(messages([ast.parse(SOURCE)], TEXTS)) == [
        Message("FileError", "", "… is damaged", "Get another copy."),
        Message("FileError", "", "it is damaged", "Get another copy."),
        Message("LycorisError", "", "too many", "Expected: at most …."),
        Message("FileError", "", "no such file", SIMILAR),
        Message("FileError", "E-empty", "the … has …", "Fill it."),
    ]


def test_the_pages_of_names_and_of_errors_are_current() -> None:
    pages = made()
    for name, text in pages.items():
        kept = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert kept == text, f"docs/{name}: run `python -m tests.harness.pages --write`"
    docs = ROOT / "docs"
    folders = {
        page.relative_to(docs).as_posix() for name in ("api", "errors") for page in docs.glob(f"{name}/*")
    }
    assert folders == {name for name in pages if "/" in name}
    assert "| the disk is full |" in pages["errors/adapter-files.md"]
