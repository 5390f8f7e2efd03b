"""The language of the page that asks: of a route, or of the prompt that is checked or runs.

A language is a folder in `locales`. Its `main.json` has the texts of the nodes, which the host reads. Under
`lycoris` it has the `texts` of errors and reports by their codes, and by their English the words of the
`page`, the `notes` of the templates and the shown `choices`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from server import PromptServer

from ...lycoris_ops import add_language, languages, set_language, speak

FOLDER = Path(__file__).parents[2] / "locales"
MOST = 256
"""The most pages whose language is known. Beyond this the oldest is forgotten."""
LONGEST = 64
"""The most letters of a language or of a page's name."""
_of_pages: dict[str, str] = {}


def add_languages() -> None:
    """Add the languages of the folder, and let each page have its errors and reports in its own."""
    for file in sorted(FOLDER.glob("*/main.json")):
        if file.parent.name not in languages():
            add_language(file.parent.name, lambda name=file.parent.name: words_in(name).get("texts", {}))
    set_language(lambda: _of_pages.get(PromptServer.instance.client_id or "", ""))
    PromptServer.instance.add_on_prompt_handler(_speak_of_prompt)


@dataclass(frozen=True)
class PageWords:
    """The page's own words; none in English, which is their key."""

    page: Mapping[str, str]
    notes: Mapping[str, str]
    choices: Mapping[str, Mapping[str, Mapping[str, str]]]


def page_words(language: str) -> PageWords:
    """The page's own words in the nearest language."""
    own = words_in(known(language))
    return PageWords(*(own.get(field.name, {}) for field in fields(PageWords)))


@cache
def words_in(language: str) -> dict[str, Any]:
    """The own texts of a language."""
    return json.loads((FOLDER / language / "main.json").read_text(encoding="utf-8")).get("lycoris", {})


def known(language: str) -> str:
    """The nearest language that has texts: `zh` for `zh-TW`, English for an unknown one."""
    name = language[:LONGEST]
    return next((each for each in (name, name.partition("-")[0]) if each in languages()), languages()[0])


def remember(page: str, language: str) -> None:
    """Note the language of a page, which is named by its client id. Longer names are no page's."""
    if len(page) > LONGEST:
        return
    _of_pages.pop(page, None)
    _of_pages[page] = known(language)
    while len(_of_pages) > MOST:
        del _of_pages[next(iter(_of_pages))]


def _speak_of_prompt(prompt: dict[str, Any]) -> dict[str, Any]:
    """Check a prompt in the language of the page that sent it."""
    speak(_of_pages.get(str(prompt.get("client_id")), languages()[0]))
    return prompt
