"""Nothing is published under the words that stand for a publisher's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import release

FILLED = """
Repository = "https://forge.example/someone/lycoris-nodes"
PublisherId = "someone"
"""
EMPTY = """
Repository = "https://example.invalid/lycoris-nodes"
PublisherId = "your-publisher-id"
DisplayName = "LyCORIS nodes"
"""


def test_placeholders_are_found() -> None:
    assert release.placeholders(FILLED) == []
    assert release.placeholders(EMPTY) == EMPTY.strip().splitlines()[:2]


def test_publishing_with_placeholders_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text(EMPTY, encoding="utf-8")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["release", "--publish"])
    monkeypatch.setattr(release, "make_tools", lambda: pytest.fail("something was made"))
    with pytest.raises(SystemExit) as refused:
        release.main()
    told = str(refused.value)
    assert all(line in told for line in release.placeholders(EMPTY))
    assert "pyproject.toml" in told and "Put the publisher's id" in told
