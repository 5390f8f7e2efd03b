"""Answer the front end's questions: about files and trainings, and about what a text means.

Each route is a function whose one parameter says what it takes: a dataclass for a table in JSON or for a
query, or a text. What it returns is sent as JSON. The only thing that an answer can change is to set a
stopped training aside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache, partial
from typing import Any, get_type_hints

from ..lycoris_ops import About, LycorisError, about, has_experts, parse_json, peek_adapter
from .files.facts import Facts, facts_of
from .files.loras import ListedFile, listed_once, lora_files, lora_name, lora_names, lora_path
from .files.models import ModelQuestion, known_files, told_model
from .files.pairs import HIGH, Expert, expert_of, partner_of
from .files.thumbnails import thumbnail
from .host.files import shown_text
from .host.language import PageWords, page_words, remember
from .host.page import Answer, answer_get, answer_post
from .schema.kept import KeptReport, kept
from .stacks.bars import painted_rules, shown_bars, weighed_bars
from .stacks.curves import DrawnCurves, drawn
from .stacks.entries import RefusedRow, refused_rows
from .stacks.rows import Row, parse_rows, row_table
from .training.configs import Translated, translated
from .training.node import schema
from .training.node.told import Told, TrainingQuestion, told
from .training.slider.schema import inputs as inputs_of_slider

ROOT = "/lycoris/adapters"
MOST_TEXTS = 512
"""The most texts in a list of a question."""


@dataclass(frozen=True)
class FileQuestion:
    file: str = ""


@dataclass(frozen=True)
class FilesQuestion:
    files: Sequence[str]


@dataclass(frozen=True)
class NodesQuestion:
    nodes: str = ""
    """The host's keys of nodes, with commas between them."""


@dataclass(frozen=True)
class ConfigQuestion:
    text: str


@dataclass(frozen=True)
class WordsQuestion:
    language: str = ""


@dataclass(frozen=True)
class LanguageQuestion:
    """Says in which language a page wants the reports of its prompts."""

    page: str
    language: str


@dataclass(frozen=True)
class ReadRows:
    rows: Sequence[Row]


@dataclass(frozen=True)
class PairOfFiles:
    """The files for the two experts of a model."""

    file: str
    low_noise: str
    sure: bool
    """Whether their names leave no doubt."""


@dataclass(frozen=True)
class AboutFile(About):
    """What a file and the files beside it say of it."""

    file: str
    title: str
    preview: str
    """`picture` or `clip`; "" where there is none."""
    tags_beside: Sequence[str]
    expert: Expert | None
    """The expert that the file is for when it is alone in a row; None if its models have only one."""
    pair: PairOfFiles | None


@dataclass(frozen=True)
class ModelFacts:
    """What is known of the model that the loading nodes on the page load."""

    file: str
    """As `folder/name`; "" where no model is connected or its file is not known."""
    family: str
    families: Sequence[str]


def files() -> Sequence[ListedFile]:
    return lora_files()


def facts(asked: FilesQuestion) -> Mapping[str, Facts]:
    """The facts of files by their names. Names that are no adapter file are skipped."""
    names = {*asked.files}
    found = facts_of([name for name in lora_names() if name in names])
    return {name: replace(facts, error=shown_text(facts.error)) for name, facts in found.items()}


def about_file(asked: FileQuestion) -> AboutFile:
    name = lora_name(asked.file)
    said = about(peek_adapter(lora_path(name)))
    facts = facts_of([name])[name]
    expert, pair = _experts(name, facts.families)
    known = {
        **vars(said),
        "triggers": facts.triggers,
        "stated": facts.stated,
        "problems": facts.problems,
    }
    more = [tag for tag in facts.tags if tag not in dict(said.tags)]
    return AboutFile(
        **known,
        file=name,
        title=facts.title,
        preview=facts.preview,
        tags_beside=more,
        expert=expert,
        pair=pair,
    )


def _experts(name: str, families: Sequence[str]) -> tuple[Expert | None, PairOfFiles | None]:
    if not has_experts(families):
        return None, None
    own, partner = expert_of(name) or HIGH, partner_of(name, lora_names())
    if partner is None or not has_experts(facts_of([partner.file])[partner.file].families):
        return own, None
    high, low = (partner.file, name) if partner.expert == HIGH else (name, partner.file)
    return own, PairOfFiles(high, low, partner.sure)


@listed_once()
def rows(text: str) -> ReadRows:
    """The rows of a text in any known form, with the names that their files have here."""
    return ReadRows(
        [
            replace(
                row, file=_name_here(row.file), low_noise=_name_here(row.low_noise) if row.low_noise else ""
            )
            for row in parse_rows(text)
        ]
    )


def _name_here(name: str) -> str:
    try:
        return lora_name(name)
    except LycorisError:
        # The row itself shows that the file is missing.
        return name


def rows_refused(text: str) -> Sequence[RefusedRow]:
    return refused_rows(text)


def model(asked: ModelQuestion) -> ModelFacts:
    files = known_files(asked)
    known = told_model(files) if files else None
    return ModelFacts(
        files[0] if files else "", known.family if known else "", known.families if known else ()
    )


def training(asked: TrainingQuestion) -> Told:
    return told(asked, inputs_of_slider() if asked.type == "LycorisSlider" else schema.inputs())


def config(asked: ConfigQuestion) -> Translated:
    return translated(asked.text)


def curve(text: str) -> DrawnCurves:
    return drawn(text)


def words(asked: WordsQuestion) -> PageWords:
    return page_words(asked.language)


def language(asked: LanguageQuestion) -> None:
    remember(asked.page, asked.language)


def reports(asked: NodesQuestion) -> Sequence[KeptReport]:
    return kept(asked.nodes.split(","))


Route = Callable[..., Any]
GET: Mapping[str, Route] = {
    ROOT: files,
    f"{ROOT}/about": about_file,
    "/lycoris/reports": reports,
    "/lycoris/words": words,
}
POST: Mapping[str, Route] = {
    f"{ROOT}/facts": facts,
    "/lycoris/rows": rows,
    "/lycoris/rows/refused": rows_refused,
    "/lycoris/model": model,
    "/lycoris/training": training,
    "/lycoris/config": config,
    "/lycoris/bars": shown_bars,
    "/lycoris/rules": weighed_bars,
    "/lycoris/paint": painted_rules,
    "/lycoris/curve": curve,
    "/lycoris/language": language,
}


def add_routes() -> None:
    for path, act in GET.items():
        answer_get(path, partial(_answered, act))
    answer_get(f"{ROOT}/preview", _preview)
    for path, act in POST.items():
        answer_post(path, partial(_answered, act), _error)


# No route answers with an HTTP error, which a browser would log: files without a picture are common, and the
# front end shows a file that is missing on its row.
def _preview(query: Mapping[str, str]) -> Answer:
    try:
        return Answer(200, *thumbnail(lora_path(lora_name(query.get("file", "")))))
    except LycorisError:
        return Answer(204, "image/jpeg", b"")


def _answered(act: Route, sent: str | Mapping[str, str]) -> Answer:
    """The answer of a route to the text or the query that was sent."""
    try:
        kind = question_type(act)
        if kind is None:
            return _json(act())
        return _json(act(sent if kind is str else _question(kind, sent)))
    except LycorisError as error:
        return _error(error)
    except ValueError as error:
        return _error(_unread(repr(error)))


@cache
def question_type(act: Route) -> type | None:
    """What a route takes: a dataclass, or `str` for a text; None for nothing."""
    return next((hint for name, hint in get_type_hints(act).items() if name != "return"), None)


def _question(kind: type, sent: str | Mapping[str, str]) -> Any:
    """The question of a text in JSON or of a query.

    Raises LycorisError where a field is missing or of another type.
    """
    table = parse_json(sent) if isinstance(sent, str) else sent
    if not isinstance(table, Mapping):
        raise _unread(f"a {type(table).__name__}")
    hints = get_type_hints(kind)
    given = {field.name: table[field.name] for field in fields(kind) if field.name in table}
    for field in fields(kind):
        if field.name not in given and field.default is MISSING:
            raise _unread(f"no {field.name!r}")
        words, fits = FORMS[hints[field.name]]
        if field.name in given and not fits(given[field.name]):
            raise _unread(f"{field.name} that is not {words}")
    return kind(**given)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MOST_TEXTS and all(isinstance(one, str) for one in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(one, int | float) and math.isfinite(one) for one in value.values()
    )


FORMS: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("a text", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    Sequence[str]: ("a short list of texts", _are_texts),
    Mapping[str, float]: ("a table of numbers", _are_numbers),
    Mapping[str, Any] | None: ("a table", lambda value: isinstance(value, dict)),
}
"""The types of the fields of questions: each in words, and a test of a value."""


def _unread(got: str) -> LycorisError:
    return LycorisError("E-question-unreadable", got=got)


def _error(error: LycorisError) -> Answer:
    return _json({"error": shown_text(str(error))})


def _json(value: Any) -> Answer:
    return Answer(200, "application/json", json.dumps(value, default=_plain).encode())


def _plain(value: Any) -> Any:
    """A value that JSON does not know: a row as it stands in workflows, or another dataclass."""
    if isinstance(value, Row):
        return row_table(value)
    return {field.name: getattr(value, field.name) for field in fields(value)}
