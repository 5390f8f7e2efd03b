"""Read a config of another trainer."""

from __future__ import annotations

import importlib
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import yaml

from ....lycoris_ops import ALGORITHMS as KINDS
from ....lycoris_ops import LycorisError, discover, phrase
from ...schema.checks import places, ranges
from ..data.targets import GAMMA
from ..node.schema import inputs
from . import trainers

OFF = (None, False, "", 0, "none", "None", [], {})
"""Values that leave a setting off."""
OF_ANOTHER_FORM = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
"""The errors that reading a malformed value raises."""
DTYPES = {
    **dict.fromkeys(("bf16", "bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp16", "float16"), "float16"),
    **dict.fromkeys(("fp32", "float32", "float"), "float32"),
}
"""The dtypes of files, by what trainers call them."""
OPTIMISERS = {
    **dict.fromkeys(("adamw", "adam"), "adamw"),
    **dict.fromkeys(("adamw8bit", "adamw_8bit", "adam8bit", "adam_8bit", "pagedadamw8bit"), "adamw8bit"),
    # Prodigy is a later D-Adaptation: a rate of 1 means the same for both.
    **dict.fromkeys(("prodigy", "dadaptadam", "dadaptation", "dadapt_adam"), "prodigy"),
    **dict.fromkeys(("sgd", "sgdnesterov"), "sgd"),
    **dict.fromkeys(("adamwschedulefree", "schedule_free_adamw", "schedulefree"), "schedulefree"),
    **dict.fromkeys(("muon",), "muon"),
}
"""Optimisers by what trainers call them, in lower case.

Their Adafactor has none here: its steps are as large as the rate, and torch's are shares of each weight."""
SKIPPED = "put CLIP Set Last Layer before LyCORIS Training Pictures"
OF_PICTURES = "set on LyCORIS Training Pictures"
SAMPLED = "link `sample_positive`, and set `output.sample_settings`"
SAMPLING = "link the model through ModelSamplingDiscrete"
ALGORITHMS = {
    **dict.fromkeys(("lora", "locon", "networks.lora"), "lora"),
    **dict.fromkeys(("loha", "networks.loha"), "loha"),
    **dict.fromkeys(("lokr", "networks.lokr"), "lokr"),
    **dict.fromkeys(("diag-oft", "oft", "networks.oft"), "oft"),
    **dict.fromkeys(("oft_2", "oft_v2", "oftv2"), "oftv2"),
    **{name: name for name in ("boft", "full", "ia3", "glora")},
}
"""Kinds by what trainers call them, in lower case."""
WHOLE = 1_000_000
"""A rank that no layer reaches: both factors of a LoKr stay whole."""
MOST_TEXT = 1 << 16
"""The most characters of a config. Configs in use have some thousands."""
MOST_VALUES = 10_000
"""The most values of a config, where one that YAML repeats by its name counts each time."""
MOST_ALIASES = 8
"""The most repetitions by name in YAML. Each can hold others, so that their work is a product."""
OPTION = re.compile(r"\s--\w")
"""The beginning of a setting in a line of a command."""
SCRIPT = re.compile(r"\.py\b")
"""The end of the name of a script."""
REMARK = re.compile(r"^[ \t]*(?:#|::|rem\b).*$", re.MULTILINE | re.IGNORECASE)
"""A line that shells and Windows ignore."""
GOES_ON = re.compile(r"[\\^`][ \t\r]*\n|\n(?=[ \t]*--\w)")
"""The end of a line after which a command goes on."""
OPERATOR = re.compile(r"&&?|\|\|?|;|\d?>>?\S*")
"""A word after which another command begins, or the name of a file for the output."""
TOML_LINE = re.compile(r"^[ \t]*[\w.-]+[ \t]*=", re.MULTILINE)
"""A line that only a TOML has."""
DECAY = 0.01
"""The default weight decay of AdamW in torch and bitsandbytes, which these trainers keep."""


@dataclass(frozen=True)
class Table:
    """The settings of a trainer whose meaning does not depend on others.

    For each name `inputs` has what `Config.put` takes, or with a mapping of words `Config.choose`. The others
    have what `Config.elsewhere`, `Config.unused` and `Config.without_effect` take, several names in one text.
    """

    inputs: Mapping[str, tuple[Any, ...]]
    elsewhere: Mapping[str, str]
    unused: str
    without_effect: Mapping[str, Any]


class Config:
    """A config's settings, taken one by one, and the inputs that they become.

    Settings that are not taken have no counterpart. docs/other-trainers.md is made from the calls of each
    trainer's `read`.
    """

    def __init__(self, table: Mapping[str, Any], within: str = "") -> None:
        """`within` is the prefix of the settings' names, for a table inside another setting."""
        self.left = dict(table)
        self.within = within
        self._ranges = ranges(inputs())
        self.values: dict[str, Any] = {}
        """Values of the node's inputs, by their own names."""
        self.pictures: dict[str, Any] = {}
        """The same for LyCORIS Training Pictures."""
        self.notes: list[str] = []
        """In words, settings that mean something else here or have no counterpart."""

    def read(self, table: Table) -> None:
        """Read the settings of a table."""
        for key, (name, *how) in table.inputs.items():
            (self.choose if isinstance(how[0], Mapping) else self.put)(key, name, *how)
        for where, keys in table.elsewhere.items():
            self.elsewhere(where, *keys.split())
        self.without_effect(table.without_effect)
        self.unused(*table.unused.split())

    def inside(self, key: str, table: Mapping[str, Any]) -> Config:
        """A config of the table that a setting holds. Pass it to `add` when it has been read."""
        return type(self)(table, f"{self.within}{key}: ")

    def add(self, inner: Config) -> None:
        """Take over the values and notes of an inner config, and note the settings that it did not take."""
        self.values |= inner.values
        self.pictures |= inner.pictures
        left = [f"{inner.within}{key}={value}" for key, value in inner.rest().items()]
        self.notes += [*inner.notes, *left]

    def take(self, key: str, default: Any = None) -> Any:
        """Take out a setting: its value, or `default` if it is missing or `OFF`."""
        value = self.left.pop(key, None)
        return default if value in OFF else value

    def rest(self) -> dict[str, Any]:
        """The settings that were not taken, without those that are `OFF`, or tables of such."""
        return {key: value for key, value in self.left.items() if not _is_off(value)}

    def put(
        self,
        key: str,
        name: str,
        read: Callable[[Any], Any] = lambda value: value,
        usual: Any = None,
        zero: bool = False,
    ) -> None:
        """Set the input `name` from a setting. `read` converts its value, to None if it has no counterpart.

        `usual` is the trainer's default. With `zero` a 0 is a value like others, and not `OFF`. Raises
        LycorisError for a value that cannot be read, or that the input does not allow.
        """
        written = self.left.get(key)
        value = self.take(key, usual)
        if zero and written is not False and str(written) in ("0", "0.0"):
            value = written
        if value is None:
            return
        try:
            converted = read(value)
        except OF_ANOTHER_FORM as error:
            raise LycorisError(
                "E-config-value-unreadable", key=f"{self.within}{key}", got=str(value)
            ) from error
        if converted is None:
            self.notes.append(f"{self.within}{key} = {value}")
            return
        low, high = self._ranges.get(name, (None, None))
        if low is not None and high is not None and not low <= converted <= high:
            raise LycorisError(
                "E-config-value-out-of-range",
                key=f"{self.within}{key}",
                low=f"{low:g}",
                high=f"{high:g}",
                got=str(value),
            )
        self.values[name] = converted

    def choose(self, key: str, name: str, choices: Mapping[str, Any], usual: Any = None) -> None:
        """`put` for one of several words, in upper or lower case."""
        self.put(key, name, lambda value: choices.get(str(value).lower()), usual)

    def everywhere(self, algorithm: str, options: Mapping[str, str]) -> None:
        """Put settings without an input of their own into the line of `overrides` for all layers.

        `options` maps the trainer's names to ours. An option that the kind `algorithm` lacks is dropped, as
        the trainers ignore it too. A text "0" counts as missing.
        """
        taken = [(ours, self.take(theirs)) for theirs, ours in options.items()]
        asked = [(ours, value) for ours, value in taken if value not in (None, "0")]
        if asked_options := [f"{ours} {value}" for ours, value in asked if _has(algorithm, ours)]:
            self.values["overrides"] = f"*: {', '.join(asked_options)}"

    def whole(self, algorithm: str, key: str) -> None:
        """Set the rank to `WHOLE` if this setting keeps the factors of a LoKr whole."""
        if str(self.take(key)).lower() == "true" and algorithm == "lokr":
            self.values["rank"] = WHOLE

    def elsewhere(self, where: str, *keys: str) -> None:
        """For the keys that are present, note where a workflow sets them."""
        present = [key for key in keys if self.take(key) is not None]
        if present:
            self.notes.append(f"{self.within}{', '.join(present)}: {where}")

    def unused(self, *keys: str) -> None:
        """Drop keys that do not affect what is learned."""
        for key in keys:
            self.left.pop(key, None)

    def without_effect(self, settings: Mapping[str, Any]) -> None:
        """Drop settings that have these values, at which they do nothing."""
        for key, value in settings.items():
            if self.left.get(key) == value:
                del self.left[key]

    def times(
        self,
        key: str,
        choices: Mapping[str, tuple[str, float | None]],
        *,
        usual: Any = None,
        shift: str = "",
        usual_shift: float = 1.0,
    ) -> None:
        """Read how times are drawn: a word that stands for a distribution and the shift that goes with it.

        The shift 0 is the model's usual one. None stands for the value of the setting `shift`, which does
        nothing beside the others.
        """
        word = str(self.left.get(key) or usual).lower()
        self.choose(key, "times", {word: times for word, (times, _) in choices.items()}, usual)
        if word not in choices:
            return
        shift_of_word = choices[word][1]
        if shift_of_word is None:
            self.put(shift, "shift", float, usual_shift)
        else:
            self.values["shift"] = shift_of_word
            self.unused(shift)

    def resolution(self, key: str, sides: Callable[[Any], Sequence[int]]) -> None:
        """Read the sides of the squares whose numbers of pixels the pictures are trained at."""
        value = self.take(key)
        if value is None:
            return
        try:
            squares = sorted({side for side in sides(value) if side > 0}, reverse=True)
        except OF_ANOTHER_FORM:
            squares = []
        shown = ", ".join(map(str, squares)) or str(value)
        if squares:
            self.pictures["resolution"] = shown
        self.notes.append(f"{self.within}{key} = {shown}: {OF_PICTURES}")

    def schedule(self, key: str, cycles_key: str = "", usual: str = "") -> None:
        """Read a schedule by its common name, and the number of its cycles."""
        name, cycles = self.take(key, usual), self.take(cycles_key)
        word = str(name or "").lower()
        if word in ("cosine_with_restarts", "cosine_with_hard_restarts"):
            self.values |= {"schedule": "cosine", "restarts": max(0, int(cycles or 1) - 1)}
        elif word in ("constant", "constant_with_warmup"):
            self.values["schedule"] = "constant"
        elif word in ("cosine", "linear", "rex"):
            self.values["schedule"] = word
        elif word:
            self.notes.append(f"the schedule {name}")

    def min_snr(self, key: str) -> None:
        """Turn on the weighting min-snr. Its gamma is a constant here."""
        gamma = self.take(key)
        if gamma is None:
            return
        self.values["weighting"] = "min-snr"
        if float(gamma) != GAMMA:
            self.notes.append(f"{key} = {gamma}: {GAMMA:g} is used")

    def optimiser(self, key: str, arguments: Mapping[str, Any]) -> None:
        """Read an optimiser and its arguments. AdamW's weight decay is `DECAY` where none is given.

        Arguments of an optimiser without a counterpart are noted with it.
        """
        written = str(self.left.get(key) or "AdamW")
        name = written.lower()
        if name not in OPTIMISERS:
            self.unused(key)
            texts = (f"{argument}={value}" for argument, value in arguments.items() if value not in OFF)
            self.notes.append(f"{self.within}{key} = {' '.join([written, *texts])}")
            return
        self.choose(key, "optimiser", OPTIMISERS)
        decay = arguments.get("weight_decay")
        if decay is None and OPTIMISERS.get(name) in ("adamw", "adamw8bit") and "adamw" in name:
            decay = DECAY
        if decay is not None:
            self.values["weight_decay"] = float(decay)
        texts = {
            name: _argument(value)
            for name, value in arguments.items()
            if name != "weight_decay" and value not in OFF
        }
        if texts:
            self.values["optimiser_args"] = " ".join(f"{name}={text}" for name, text in texts.items())


def _is_off(value: Any) -> bool:
    inner = cast("dict[str, Any]", value).values() if isinstance(value, dict) else ()
    return value in OFF or (bool(inner) and all(map(_is_off, inner)))


def _has(algorithm: str, option: str) -> bool:
    """Whether layers of a kind have this option."""
    kind: Any = KINDS[algorithm]
    if option == "rslora":
        return kind.table.scaled_by_alpha
    return option in ("conv_rank", "conv_alpha") or option in kind.init_options()


def _argument(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, cast("list[Any]", value)))
    return "".join(str(value).split()).strip("()[]")


@dataclass(frozen=True)
class Translated:
    """A config of another trainer, for the nodes here."""

    trainer: str
    values: Mapping[str, Any]
    """For Train LoRA / LyCORIS, by the inputs' names in a prompt."""
    pictures: Mapping[str, Any]
    """For LyCORIS Training Pictures."""
    notes: Sequence[str]
    """What has no counterpart or belongs to another node."""


def translated(text: str) -> Translated:
    """Translate a config for Train LoRA / LyCORIS.

    Raises LycorisError for a text that is no config of a known trainer, and for values that cannot be read.
    """
    # Some editors put a byte order mark in front.
    table = _table(text.lstrip("\ufeff"))
    known = discover(trainers.__name__)
    for trainer in known:
        try:
            table_of_trainer = trainer.config_of(table)
            if table_of_trainer is None:
                continue
            config = Config(table_of_trainer)
            trainer.read(config)
        except OF_ANOTHER_FORM as error:
            raise LycorisError(
                "E-config-value-unparsable", name=type(error).__name__, error=error, NAME=trainer.NAME
            ) from error
        left = [f"{key} = {value}" for key, value in config.rest().items()]
        named = places(inputs())
        values = {named[name]: value for name, value in config.values.items()}
        return Translated(trainer.NAME, values, config.pictures, [*config.notes, *left])
    raise LycorisError(
        "E-config-in-another-file" if "config_file" in table else "E-config-trainer-unknown",
        got=", ".join(map(str, list(table)[:6])) or phrase("R-empty-text"),
        expected=", ".join(f"{trainer.NAME} ({trainer.FORM})" for trainer in known),
        named=table.get("config_file"),
    )


def _table(text: str) -> dict[str, Any]:
    """The text as a table: JSON, TOML, YAML or a command line."""
    if len(text) > MOST_TEXT:
        raise LycorisError("E-config-too-long", count=len(text), most_text=MOST_TEXT)
    wrong: dict[str, str] = {}
    # A command line with a colon in a text would be a table in YAML too.
    forms = {"JSON": json.loads, "TOML": _toml, "a command line": _command, "YAML": _yaml}
    for form, read in forms.items():
        try:
            values_read = read(text)
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            wrong[form] = f"as {form}: {' '.join(str(error).split())}"
            continue
        if isinstance(values_read, dict):
            if _count(values_read, {}) > MOST_VALUES:
                raise LycorisError("E-config-too-many-values", most_values=MOST_VALUES)
            return cast("dict[str, Any]", values_read)
    likely = "JSON" if text.lstrip().startswith("{") else "TOML" if TOML_LINE.search(text) else "YAML"
    raise LycorisError("E-config-not-a-config", got=wrong.get(phrase("R-command-line"), wrong.get(likely)))


def _count(value: Any, known: dict[int, float]) -> float:
    """How many values a value holds, itself included; infinity for one that holds itself."""
    if not isinstance(value, dict | list | tuple | set):
        # A repeated text takes its length each time.
        return 1 + len(value) / 100 if isinstance(value, str) else 1
    if id(value) not in known:
        known[id(value)] = math.inf
        inner = cast("dict[Any, Any]", value).values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(member, known) for member in cast("Iterable[Any]", inner))
    return known[id(value)]


def _command(text: str) -> dict[str, Any] | None:
    """The settings of a command line of a shell or of Windows; None for other texts.

    Of several commands, such as those of a script, the one with the most settings counts.
    """
    filled = (line for line in REMARK.sub("", text).splitlines() if line.strip())
    lines = GOES_ON.sub(" ", "\n".join(filled)).splitlines()
    commands = [command for line in lines if _is_command(line) for command in _commands(shlex.split(line))]
    return max(commands, key=len, default=None)


def _is_command(line: str) -> bool:
    """Whether a line has settings of a command, with or without the script that it starts."""
    script = SCRIPT.search(line)
    return line.lstrip().startswith("--") or bool(script and OPTION.search(line, script.end()))


def _commands(words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The settings of each command in a line."""
    settings: dict[str, list[str]] = {}
    values: list[str] = []
    for word in (*words, ";"):
        if OPERATOR.fullmatch(word):
            yield {name: _value(words_of_option) for name, words_of_option in settings.items()}
            settings, values = {}, []
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            values = settings[name] = [value] if equals else []
        elif not word.endswith(".py"):
            values.append(word)


def _value(words: Sequence[str]) -> Any:
    """The value of a setting of a command line: a switch, one value, or several."""
    if len(words) != 1:
        return list(words) or True
    try:
        return json.loads(words[0])
    except ValueError:
        return words[0]


class _YamlLoader(yaml.SafeLoader):
    """A loader that refuses more than `MOST_ALIASES` repetitions by name, before it makes any value."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > MOST_ALIASES:
                raise yaml.YAMLError(f"more than {MOST_ALIASES} repetitions by name")
        return super().compose_node(parent, index)


def _yaml(text: str) -> Any:
    return yaml.load(text, _YamlLoader)


def _toml(text: str) -> Any:
    try:
        toml: Any = importlib.import_module("tomllib")
    except ImportError:
        # Python 3.10 does not have it; this package is the same.
        try:
            toml = importlib.import_module("tomli")
        except ImportError:
            return None
    return toml.loads(text)


QUOTES = "\"'"


def flat(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a table and of the tables in it, by their own names."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(cast("dict[str, Any]", value))
        else:
            yield key, value


def pairs(texts: Any) -> dict[str, str]:
    """Settings that are given as texts such as `algo=lokr`: a list of them, or one text."""
    settings = (
        text.partition("=") for text in (texts.split() if isinstance(texts, str) else map(str, texts))
    )
    return {name.strip(QUOTES): value.strip(QUOTES) for name, equals, value in settings if equals}
