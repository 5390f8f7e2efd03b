"""Answer the front end's questions: about files and trainings, and about what a text means.

The only thing that an answer can change is to set a stopped training aside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ..lycoris_ops import LycorisError, about, has_experts, parse_json, peek_adapter
from .files.facts import facts_of
from .files.loras import listed_once, lora_files, lora_name, lora_names, lora_path
from .files.models import known_files, told_model
from .files.pairs import HIGH, expert_of, partner_of
from .files.thumbnails import thumbnail
from .host.files import shown_text
from .host.language import page_words, remember
from .host.page import Answer, answer_get, answer_post
from .schema.kept import kept
from .stacks.bars import shown_bars, weighed_bars
from .stacks.curves import drawn
from .stacks.rows import parse_rows, row_table
from .training.configs import translated
from .training.node import schema
from .training.node.told import told
from .training.slider.schema import inputs as inputs_of_slider

ROOT = "/lycoris/adapters"
FIELDS = {
    **dict.fromkeys(("file", "rules", "text", "type"), (str, "a text")),
    **dict.fromkeys(("model", "clip", "linked"), (list, "a short list of texts")),
    "values": (dict, "a table"),
}
"""The fields of the page's questions: what each must be, and that in words."""
MOST_TEXTS = 256
"""The most texts in a list of a question."""


def add_routes() -> None:
    answer_get(ROOT, lambda query: _json(lora_files()))
    _answer_post(f"{ROOT}/facts", _facts)
    answer_get(f"{ROOT}/about", _about)
    answer_get(f"{ROOT}/preview", _preview)
    # A text may be longer than a URL.
    _answer_post("/lycoris/rows", _rows)
    _answer_post("/lycoris/model", lambda text: _answered(_model, text))
    _answer_post("/lycoris/training", lambda text: _answered(_training, text))
    _answer_post("/lycoris/config", lambda text: _answered(translated, text))
    _answer_post("/lycoris/bars", lambda text: _answered(shown_bars, text))
    _answer_post("/lycoris/rules", lambda text: _answered(weighed_bars, text))
    _answer_post("/lycoris/curve", lambda text: _json(drawn(text)))
    answer_get("/lycoris/words", lambda query: _json(page_words(query.get("language", ""))))
    _answer_post("/lycoris/language", _language)
    answer_get("/lycoris/reports", lambda query: _json(kept(query.get("nodes", "").split(","))))


def _answer_post(path: str, answer: Callable[[str], Answer]) -> None:
    answer_post(path, answer, _error)


# No route answers with an HTTP error, which a browser would log: files without a picture are common,
# and the front end shows a file that is missing on its row.
def _about(query: Mapping[str, str]) -> Answer:
    try:
        name = lora_name(query.get("file", ""))
        said = about(peek_adapter(lora_path(name)))
        facts = facts_of([name])[name]
        words = {
            "triggers": facts.triggers,
            "stated": facts.stated,
            "problems": facts.problems,
        }
        more = [tag for tag in facts.tags if tag not in dict(said.tags)]
        beside = {"title": facts.title, "preview": facts.preview, "tags_beside": more}
        return _json({"file": name, **asdict(said), **words, **beside, **_of_experts(name, facts.families)})
    except LycorisError as error:
        return _error(error)


def _of_experts(name: str, families: Sequence[str]) -> dict[str, Any]:
    """The expert that a file is for when it is alone in a row, and the two files of its pair.

    Both are None for a file whose models have only one expert.
    """
    if not has_experts(families):
        return {"expert": None, "pair": None}
    own, partner = expert_of(name) or HIGH, partner_of(name, lora_names())
    if partner is None or not has_experts(facts_of([partner.file])[partner.file].families):
        return {"expert": own, "pair": None}
    high, low = (partner.file, name) if partner.expert == HIGH else (name, partner.file)
    return {"expert": own, "pair": {"file": high, "low_noise": low, "sure": partner.sure}}


def _facts(text: str) -> Answer:
    """The facts of the files named in a JSON list. Names that are no adapter file are skipped."""
    try:
        asked = parse_json(text)
    except ValueError:
        asked = []
    names = {str(name) for name in asked} if isinstance(asked, list) else set[str]()
    facts_by_name = facts_of([name for name in lora_names() if name in names])
    shown = {
        name: {**asdict(facts), "error": shown_text(facts.error)} for name, facts in facts_by_name.items()
    }
    return _json(shown)


@listed_once()
def _rows(text: str) -> Answer:
    """The rows of a text in any known form, with the names that their files have here."""
    try:
        rows = [
            replace(
                row, file=_name_here(row.file), low_noise=_name_here(row.low_noise) if row.low_noise else ""
            )
            for row in parse_rows(text)
        ]
    except LycorisError as error:
        return _error(error)
    return _json({"rows": [row_table(row) for row in rows]})


def _model(asked: dict[str, Any]) -> dict[str, Any]:
    """What is known of the model that the loading nodes on the page load, see `known_files`."""
    files = known_files(asked)
    model = told_model(files) if files else None
    known = {"family": model.family if model else "", "families": model.families if model else ()}
    return {"file": files[0] if files else "", **known}


def _language(text: str) -> Answer:
    try:
        remember(text)
    except LycorisError as error:
        return _error(error)
    except ValueError as error:
        return _unread(repr(error))
    return _json({})


def _name_here(name: str) -> str:
    try:
        return lora_name(name)
    except LycorisError:
        # The row itself shows that the file is missing.
        return name


def _preview(query: Mapping[str, str]) -> Answer:
    try:
        return Answer(200, *thumbnail(lora_path(lora_name(query.get("file", "")))))
    except LycorisError:
        return Answer(204, "image/jpeg", b"")


def _training(asked: dict[str, Any]) -> dict[str, Any]:
    of_slider = asked.get("type") == "LycorisSlider"
    return told(asked, inputs_of_slider() if of_slider else schema.inputs())


def _answered(act: Callable[[dict[str, Any]], dict[str, Any]], text: str) -> Answer:
    try:
        asked = parse_json(text)
        if not isinstance(asked, dict):
            return _unread(f"a {type(asked).__name__}")
        for name, (kind, words) in FIELDS.items():
            value = asked.get(name, kind())
            if not isinstance(value, kind) or (isinstance(value, list) and not _are_texts(value)):
                return _unread(f"{name} that is not {words}")
        return _json(act(asked))
    except LycorisError as error:
        return _error(error)
    except KeyError as error:
        return _unread(f"no {error}")
    except ValueError as error:
        return _unread(repr(error))


def _are_texts(values: Sequence[Any]) -> bool:
    return len(values) <= MOST_TEXTS and all(isinstance(value, str) for value in values)


def _unread(got: str) -> Answer:
    return _error(LycorisError("E-question-unreadable", got=got))


def _error(error: LycorisError) -> Answer:
    return _json({"error": shown_text(str(error))})


def _json(value: Any) -> Answer:
    return Answer(200, "application/json", json.dumps(value).encode())
