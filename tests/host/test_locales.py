"""The texts of the nodes in other languages are complete, and those in English are the nodes' own."""

from __future__ import annotations

import re

import pytest
from hosting import Host

from tests.harness.locales import FOLDER, NODE_TEXTS, keys_of, of_schemas, read, text_of

pytestmark = pytest.mark.host
LANGUAGES = sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())


def test_english_is_what_the_nodes_say(host: Host) -> None:
    own = of_schemas(host.nodes.NODE_CLASS_MAPPINGS)
    hint = "run `python -m tests.harness.locales --write`, then translate what is new"
    assert text_of(read("en")[NODE_TEXTS]) == text_of(own), hint


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_has_signs_of_the_front_ends_translations(language: str) -> None:
    """Older ones take these for links, plurals and values, and do not draw the node at all."""
    tables = [table for name, table in read(language).items() if name != "lycoris"]
    texts = [text for table in tables for text in table.values()]
    assert [text for text in map(text_of, texts) if re.search(r'[@|{}](?=[^"\n]*")', text)] == []


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_a_language_is_complete(language: str) -> None:
    english, own = read("en"), read(language)
    own.pop("lycoris")
    wanted, found = keys_of(english), keys_of(own)
    assert sorted(wanted - found) == [] and sorted(found - wanted) == []
    # No text is left as it is in English, but for names of inputs.
    texts = {node: table["description"] for node, table in english[NODE_TEXTS].items()}
    assert [node for node, text in texts.items() if own[NODE_TEXTS][node]["description"] == text] == []
