"""What the site takes from elsewhere in the repository: help pages of the nodes, and pages of the root.

Each fact stands once: the help pages are those that the nodes show, and the page of errors is made of their
tables.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
HELP = ROOT / "lycoris_nodes" / "web" / "docs"
BROUGHT = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "performance.md": "tests/bench/README.md",
    "security.md": "SECURITY.md",
}
"""Pages of the site that are files of the repository."""


def on_config(config: Any) -> Any:
    """Put every node into the table of contents, by the title of its help page."""
    nodes = next(entry["Nodes"] for entry in config.nav if "Nodes" in entry)
    nodes += [
        {title(page.read_text(encoding="utf-8")): f"nodes/{page.name}"} for page in sorted(HELP.glob("*.md"))
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    def add(path: str, text: str) -> None:
        files.append(File.generated(config, path, content=text))

    for path, source in BROUGHT.items():
        add(path, (ROOT / source).read_text(encoding="utf-8"))
    pages = {page: page.read_text(encoding="utf-8") for page in sorted(HELP.glob("*.md"))}
    for page, text in pages.items():
        add(f"nodes/{page.name}", linked(text, pages))
    add("nodes/index.md", index(pages))
    add("errors.md", errors(pages))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page of the command line, with the help of each command."""
    if page.file.src_path != "command-line.md":
        return markdown
    return markdown.replace("<!-- options -->", "\n\n".join(helps()))


def helps() -> list[str]:
    verbs = sorted(file.stem for file in (ROOT / "lycoris_ops" / "commands" / "verbs").glob("[a-z]*.py"))
    # As wide as the page shows without a bar.
    wide = {**os.environ, "COLUMNS": "88", "NO_COLOR": "1"}
    parts: list[str] = []
    for verb in verbs:
        asked = [sys.executable, "-m", "lycoris_ops", verb, "--help"]
        told = subprocess.run(asked, cwd=ROOT, env=wide, capture_output=True, text=True, check=True).stdout
        parts.append(f"## {verb}\n\n```text\n{told.rstrip()}\n```")
    return parts


def title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def linked(text: str, pages: dict[Path, str]) -> str:
    """A help page with the bold names of other nodes as links to their pages."""
    names = {title(other): page.name for page, other in pages.items()}

    def link(found: re.Match[str]) -> str:
        name = found[1]
        return f"[**{name}**]({names[name]})" if name in names and name != title(text) else found[0]

    return re.sub(r"\*\*([^*\n]+)\*\*", link, text)


def index(pages: dict[Path, str]) -> str:
    """The list of the nodes with the first sentence of each page."""
    lines = ["# The nodes", "", "| node | what it does |", "|---|---|"]
    for page, text in pages.items():
        paragraph = text.split("\n\n")[1].replace("\n", " ")
        first = re.split(r"(?<=\.)\s", paragraph, maxsplit=1)[0]
        lines.append(f"| [{title(text)}]({page.name}) | {first} |")
    return "\n".join(lines) + "\n"


def errors(pages: dict[Path, str]) -> str:
    """The tables of errors of all help pages on one page."""
    parts = [
        "# Every error and what to do",
        "A message says which file, which key or layer, what was found, what was expected and what to do, as "
        "far as these are known. Here they stand by the node that shows them, as on its help page. `…` is a "
        "name or a number.",
    ]
    for page, text in pages.items():
        found = re.search(r"^## Errors\n\n(.+?)(?=\n## |\Z)", text, re.M | re.S)
        if found:
            parts += [f"## {title(text)}", f"See [the page of the node](nodes/{page.name}).", found[1]]
    return "\n\n".join(part.strip() for part in parts) + "\n"
