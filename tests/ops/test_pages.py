"""The pages of the documentation: what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
HELP = ROOT / "lycoris_nodes" / "web" / "docs"
# What docs/hooks.py brings into the site.
BROUGHT = {"contributing.md", "changelog.md", "performance.md", "security.md", "errors.md", "nodes/index.md"}
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    for target in {one or other for one, other in targets}:
        if "://" in target:
            continue
        path, _, anchor = unquote(target).partition("#")
        if page.parent.name == "docs" and path in BROUGHT:
            continue
        found = HELP / path.removeprefix("nodes/") if path.startswith("nodes/") else page.parent / path
        found = found if path else page
        assert found.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    words = re.sub(r"<[^>]*>|\]\([^)]*\)", " ", (ROOT / "README.md").read_text(encoding="utf-8")).split()
    assert len(words) <= 700
