"""The code on the pages of the documentation."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a language on `docs/<page>.md`."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(page: str, folder: Path, before: str = "") -> dict[str, Any]:
    """Run all Python of a page as one script in a folder, which is the current one; what it has defined.

    `before` is what the page takes for known.
    """
    script = folder / f"{page}.py"
    script.write_text("\n".join([before, *blocks(page, "python")]), encoding="utf-8")
    try:
        return runpy.run_path(str(script))
    finally:
        script.unlink()
