"""Collect pages for the site from elsewhere in the repository: help pages of the nodes, root pages, the API.

No fact is written twice: the site shows the nodes' own help pages. Pages link to files of
the repository, so that they can be read on a forge too.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from tests.harness.pages import AREAS, GROUPS, NAMES, names_of, page_of, title

ROOT = Path(__file__).resolve().parents[1]
HELP = "lycoris_nodes/web/docs"
BROUGHT = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "performance.md",
    "README.md": "index.md",
}
"""Files of the repository, and their pages in the site. Each file becomes its page, except README.md: docs/
has its own home page."""
NOWHERE = "not-in-the-site"


def on_config(config: Any) -> Any:
    """Put every node, and every page of the API and of errors, into the table of contents."""
    nodes = next(entry["Nodes"] for entry in config.nav if "Nodes" in entry)
    nodes += [{title(text): f"nodes/{name}.md"} for name, text in helps("")]
    nodes.append({"节点（中文）": "nodes/zh/index.md"})
    library = next(entry["Library"] for entry in config.nav if "Library" in entry)
    library.append({"Python API": ["api.md", *({group: page_of(group, "api")} for group in GROUPS)]})
    guides = next(entry["Guides"] for entry in config.nav if "Guides" in entry)
    guides.append({"Errors": ["errors.md", *({area: page_of(area, "errors")} for area in AREAS)]})
    return config


def on_files(files: Files, config: Any) -> Files:
    def add(path: str, text: str) -> None:
        files.append(File.generated(config, path, content=text))

    for source, path in BROUGHT.items():
        if path != "index.md":
            add(path, read(source))
    both = {language: dict(helps(language)) for language in ("", "zh")}
    for language, folder, other in (
        ("", "nodes", "[中文](zh/{}.md)"),
        ("zh", "nodes/zh", "[English](../{}.md)"),
    ):
        pages = both[language]
        for name, text in pages.items():
            head, _, rest = text.partition("\n")
            translated = f"\n{other.format(name)}\n" if name in both["" if language else "zh"] else ""
            add(f"{folder}/{name}.md", f"{head}\n{translated}{rest}")
    add("nodes/zh/index.md", chinese_index(both["zh"]))
    for source, folder in ((f"{HELP}/pictures", "nodes/pictures"), ("workflows", "workflows")):
        for picture in sorted((ROOT / source).glob("*.*")):
            if picture.suffix in (".webp", ".jpg"):
                path = f"{folder}/{picture.name}"
                files.append(File.generated(config, path, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Insert the generated part of a page, and turn links to files of the repository into the site's."""
    path = page.file.src_uri
    made = {"command-line.md": ("<!-- options -->", commands)}
    made |= {page_of(group, "api"): (NAMES, partial(members, group)) for group in GROUPS}
    if path in made:
        mark, make = made[path]
        # The text after the mark is for readers without the site.
        markdown = markdown.partition(mark)[0] + make()
    markdown = re.sub(r'(\]\(|src=")([^)\s"]+)', lambda found: found[1] + link_of(found[2], path), markdown)
    return re.sub(rf"\[([^\[\]]*)\]\({NOWHERE}\)", r"\1", markdown)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Inline the drawings, so that their text has the page's colour."""

    def drawn(found: re.Match[str]) -> str:
        name = posixpath.basename(found[1])
        return re.sub(r"<style>.*?</style>", "", read(f"docs/pictures/{name}"))

    content = re.sub(r'<img[^>]* src="([^"]*pictures/[\w-]+\.svg)"[^>]*>', drawn, content)
    for group in GROUPS:
        if page.file.src_uri == page_of(group, "api"):
            shown = set(re.findall(r'id="lycoris_ops\.(\w+)"', content))
            if lost := sorted(set(names_of(group)) - shown):
                raise PluginError(f"{', '.join(lost)}: public, and not on the page of the API")
    return content


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def link_of(target: str, page: str) -> str:
    """The target of a link as the site has it; NOWHERE for a file that is not in the site.

    A link that does not lead to a file of the repository stays as it is.
    """
    path, mark, anchor = target.partition("#")
    source = source_of(page)
    # The front end looks for the pictures of a help page in one folder, whatever the page's language.
    folder = HELP if path.startswith("pictures/") and source.startswith(HELP) else posixpath.dirname(source)
    found = posixpath.normpath(posixpath.join(folder, unquote(path)))
    if "://" in target or not path or not (ROOT / found).exists():
        return target
    there = site_of(found)
    return quote(posixpath.relpath(there, posixpath.dirname(page))) + mark + anchor if there else NOWHERE


def source_of(page: str) -> str:
    """The file of the repository that a page of the site is made from."""
    for source, path in BROUGHT.items():
        if path == page and page != "index.md":
            return source
    if found := re.fullmatch(r"nodes/(?:(zh)/)?(Lycoris\w+)\.md", page):
        return f"{HELP}/{found[2]}/zh.md" if found[1] else f"{HELP}/{found[2]}.md"
    return f"docs/{page}"


def site_of(source: str) -> str:
    """Where a file of the repository is in the site; "" where it is not."""
    if source in BROUGHT:
        return BROUGHT[source]
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    if found := re.fullmatch(rf"{HELP}/(Lycoris\w+)(/zh)?\.md", source):
        return f"nodes/zh/{found[1]}.md" if found[2] else f"nodes/{found[1]}.md"
    if source.startswith(f"{HELP}/pictures/"):
        return f"nodes/{source.removeprefix(f'{HELP}/')}"
    return source if source.startswith("workflows/") else ""


def helps(language: str) -> Iterator[tuple[str, str]]:
    """The help pages in a language ("" for English), each with the name of its node."""
    for page in sorted((ROOT / HELP).glob("*/zh.md" if language else "*.md")):
        yield (page.parent.name if language else page.stem), page.read_text(encoding="utf-8")


def chinese_index(pages: dict[str, str]) -> str:
    """The list of the nodes in Chinese, with the first sentence of each page."""
    lines = ["# 节点", "", "| 节点 | 作用 |", "|---|---|"]
    for name, text in pages.items():
        paragraph = next(part for part in text.split("\n\n")[1:] if not part.startswith("!["))
        first, end, _ = paragraph.replace("\n", " ").partition("。")
        first = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", first)
        lines.append(f"| [{title(text)}]({name}.md) | {first}{end} |")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """The help of each command."""
    verbs = sorted(file.stem for file in (ROOT / "lycoris_ops" / "commands" / "verbs").glob("[a-z]*.py"))
    # As wide as the page shows without a scroll bar.
    wide = {**os.environ, "COLUMNS": "88", "NO_COLOR": "1"}
    parts: list[str] = []
    for verb in verbs:
        asked = [sys.executable, "-m", "lycoris_ops", verb, "--help"]
        told = subprocess.run(asked, cwd=ROOT, env=wide, capture_output=True, text=True, check=True).stdout
        parts.append(f"## {verb}\n\n```text\n{told.rstrip()}\n```")
    return "\n\n".join(parts)


def members(group: str) -> str:
    """The docstrings of the public names of a group."""
    return "\n\n".join(f"::: lycoris_ops.{name}" for name in names_of(group))
