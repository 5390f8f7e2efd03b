"""Each error, and each line of a report, has a code with a text in `messages.json` and the values of it."""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from string import Formatter

import pytest

import lycoris_ops as lyc
from lycoris_ops import messages
from lycoris_ops.errors import FileFormatError
from tests.harness.facts import ROOT
from tests.harness.messages import called, known_texts, prose, raised, sources, spoken

CODE = re.compile(r"\b([ER](?:-[a-z0-9]+)+)")
PARTS = {"problem", "got", "expected", "hint"}
WORDS = re.compile(r"[a-z]{3,} [a-z]{3,} [a-z]{3,}")
PLACES = {"file", "place", "key", "weight"}
TEXTS = known_texts()
LOCALES = ROOT / "locales"
LANGUAGES = sorted(folder.name for folder in LOCALES.iterdir() if folder.name != "en")
TREES = [ast.parse(file.read_text(encoding="utf-8")) for file in sources()]
CALLS: dict[str, list[ast.Call]] = defaultdict(list)
for _, code, call in raised(TREES):
    CALLS[code].append(call)
PHRASES: dict[str, list[ast.Call]] = defaultdict(list)
for node in (node for tree in TREES for node in ast.walk(tree)):
    if isinstance(node, ast.Call) and called(node) == "phrase":
        for code in spoken(node.args[0]):
            PHRASES[code].append(node)
NAMED = {
    node.value
    for tree in TREES
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant) and str(node.value).startswith("R-")
}
ERRORS = {code for code in TEXTS if code.startswith("E-")}


def names_in(text: str) -> set[str]:
    return {name.partition(".")[0] for _, name, _, _ in Formatter().parse(text) if name is not None}


def values_of(code: str) -> set[str]:
    return set[str]().union(*map(names_in, TEXTS[code].values()))


def test_the_library_has_the_texts_of_its_own_codes() -> None:
    own = json.loads((ROOT / "lycoris_ops" / "messages.json").read_text(encoding="utf-8"))
    scripts = [file.read_text(encoding="utf-8") for file in sources() if "lycoris_ops" in file.parts]
    codes = {code for script in scripts for code in CODE.findall(script) if code in TEXTS}
    assert codes and sorted(codes - own.keys()) == []


def test_every_code_has_a_text_and_every_text_a_code() -> None:
    assert sorted(ERRORS - CALLS.keys()) == []
    assert [code for code in CALLS if code.startswith("E-") and code not in TEXTS] == []
    assert [code for code in TEXTS if not re.fullmatch(r"[ER](-[a-z0-9]+)+", code)] == []
    assert [code for code in ERRORS if "problem" not in TEXTS[code] or TEXTS[code].keys() - PARTS] == []
    assert sorted(NAMED) == sorted(TEXTS.keys() - ERRORS)
    assert [code for code in NAMED if TEXTS[code].keys() != {"text"}] == []


@pytest.mark.parametrize("code", sorted(PHRASES))
def test_a_line_has_the_values_of_its_text(code: str) -> None:
    for call in PHRASES[code]:
        given = {word.arg for word in call.keywords}
        codes = [words for words in spoken(call.args[0]) if words in TEXTS]
        used = set[str]().union(*map(values_of, codes))
        assert None in given or values_of(code) <= given <= used, ast.unparse(call)


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_an_error_is_raised_with_the_values_of_its_text(code: str) -> None:
    for call in CALLS[code]:
        given = {word.arg for word in call.keywords}
        assert None in given or values_of(code) <= given, ast.unparse(call)
        codes = [words for argument in call.args for words in spoken(argument) if words in TEXTS]
        used = set[str]().union(*map(values_of, codes))
        assert given - used <= PARTS | PLACES | {"error", "meant"}, ast.unparse(call)


@pytest.mark.parametrize("place", ["report", "inspect/masks.py", "ranks/picture.py"])
def test_reports_and_charts_have_no_words_of_their_own(place: str) -> None:
    assert list(prose(ROOT / "lycoris_ops" / place)) == []


def test_a_path_within_a_kept_text_is_shown_as_others_are() -> None:
    error = lyc.LycorisError("E-file-absent", hint=lyc.Phrase("R-sentence", {"words": "/home/x/secret"}))
    error.shown_as(lambda text: text.replace("/home/x/", "~/"))
    assert error.hint == "~/secret."


def test_a_text_is_filled_with_values(monkeypatch: pytest.MonkeyPatch) -> None:
    text = {
        "problem": "{names:or} of {key} for {count:layer|layers} and {other:part|parts}",
        "got": "{names:list} {{}}",
    }
    monkeypatch.setattr("lycoris_ops.errors.messages", lambda: {"E-here": text})
    error = FileFormatError("E-here", key="unet", names=["a", "b", "{c}"], count=1, other=2, hint="Do it")
    assert error.problem == "a, b or {c} of unet for 1 layer and 2 parts"
    assert (error.code, error.got, error.expected, error.hint) == ("E-here", "a, b, {c} {}", None, "Do it")
    assert str(lyc.LycorisError("no {code} at all")) == "no {code} at all"


def test_texts_are_in_the_language_of_the_moment() -> None:
    texts = {
        "E-file-absent": {"problem": "niet"},
        "R-sentence": {"text": "{words}!"},
        "R-colon": {"text": " - "},
    }
    lyc.add_language("test", lambda: texts)
    try:
        error = lyc.LycorisError("E-file-absent", place="row 2")
        kept = lyc.Phrase("R-sentence", {"words": "row 2"})
        english = error.told()
        with lyc.speaking("test"):
            assert error.told() == "row 2 - niet!" and str(kept) == "row 2!"
            # A text that the language lacks is in English.
            assert lyc.phrase("R-told-expected", words="x") == "Expected: x."
        with lyc.speaking("unknown"):
            assert error.told() == english
        assert error.told() == english != "row 2 - niet!"
        lyc.set_language(lambda: "test")
        assert str(kept) == "row 2!"
    finally:
        lyc.set_language(lambda: "en")
        messages._others.pop("test")


def fields_of(text: str) -> list[tuple[str, str]]:
    """The values of a text with their formats. Words for one and for several are a language's own."""
    parts = Formatter().parse(text)
    return sorted(
        (name, "" if "|" in (spec or "") else spec or "") for _, name, spec, _ in parts if name is not None
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_in_every_language_with_the_same_values(language: str) -> None:
    own = json.loads((LOCALES / language / "main.json").read_text(encoding="utf-8"))["lycoris"]["texts"]
    english = {(code, part): text for code, parts in TEXTS.items() for part, text in parts.items()}
    others = {(code, part): text for code, parts in own.items() for part, text in parts.items()}
    assert sorted(english.keys() - others.keys()) == [] and sorted(others.keys() - english.keys()) == []
    assert [at for at, text in english.items() if fields_of(text) != fields_of(others[at])] == []
    # Names, numbers and values alone are the same in all languages.
    same = [text for at, text in english.items() if others[at] == text]
    assert [
        text for text in same if re.search(r"[a-z]{3,} [a-z]{3,} [a-z]{3,}", text) and "pip" not in text
    ] == []
