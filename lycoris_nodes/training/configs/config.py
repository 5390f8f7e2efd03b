"""Read a config of another trainer."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import yaml

from ....lycoris_ops import LycorisError, discover
from ...schema.checks import places
from ..data.targets import GAMMA
from ..node.schema import inputs
from . import trainers

OFF = (None, False, "", 0, "none", "None", [], {})
"""Values that ask for nothing."""
OF_ANOTHER_FORM = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
"""What reading a value raises that is not as its trainer has it."""
DTYPES = {
    **dict.fromkeys(("bf16", "bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp16", "float16"), "float16"),
    **dict.fromkeys(("fp32", "float32", "float"), "float32"),
}
"""The dtypes of files, by what trainers call them."""
OPTIMISERS = {
    **dict.fromkeys(("adamw", "adam"), "adamw"),
    **dict.fromkeys(("adamw8bit", "adamw_8bit", "adam8bit", "adam_8bit"), "adamw8bit"),
    **dict.fromkeys(("prodigy",), "prodigy"),
    **dict.fromkeys(("adafactor",), "adafactor"),
    **dict.fromkeys(("sgd", "sgdnesterov"), "sgd"),
    **dict.fromkeys(("adamwschedulefree", "schedule_free_adamw", "schedulefree"), "schedulefree"),
    **dict.fromkeys(("muon",), "muon"),
}
"""Optimisers by what trainers call them, in small letters."""
ALGORITHMS = {
    **dict.fromkeys(("lora", "locon", "networks.lora", "networks.lora_flux", "networks.lora_sd3"), "lora"),
    **dict.fromkeys(("loha", "networks.loha"), "loha"),
    **dict.fromkeys(("lokr", "networks.lokr"), "lokr"),
    **dict.fromkeys(("diag-oft", "oft", "networks.oft", "networks.oft_flux"), "oft"),
    **dict.fromkeys(("oft_2", "oft_v2", "oftv2"), "oftv2"),
    **{name: name for name in ("boft", "full", "ia3", "glora")},
}
"""Kinds by what trainers call them, in small letters."""


WHOLE = 1_000_000
"""A rank above that of all layers: both factors of a LoKr stay whole."""
DECAY = 0.01
"""The weight decay of AdamW in torch and bitsandbytes, which these trainers leave to them."""


class Config:
    """The settings of a config, which are taken one by one, and what they become here.

    What nobody takes has no counterpart. docs/other-trainers.md is made of what a trainer's `read` calls.
    """

    def __init__(self, table: Mapping[str, Any], within: str = "") -> None:
        """`within` is the prefix of the settings' names, for a table inside another setting."""
        self.left = dict(table)
        self.within = within
        self.values: dict[str, Any] = {}
        """Values of the node's inputs, by their own names."""
        self.notes: list[str] = []
        """What means something else here, or has no counterpart, in words."""

    def inside(self, key: str, table: Mapping[str, Any]) -> Config:
        """The settings that one setting holds. What becomes of them is added by `add`."""
        return type(self)(table, f"{self.within}{key}: ")

    def add(self, inner: Config) -> None:
        """Take over what became of the settings within one. What is left there has no counterpart."""
        self.values |= inner.values
        left = [f"{inner.within}{key}={value}" for key, value in inner.left.items() if value not in OFF]
        self.notes += [*inner.notes, *left]

    def take(self, key: str, default: Any = None) -> Any:
        """A value, which then counts as understood; `default` where it is not there or asks for nothing."""
        value = self.left.pop(key, None)
        return default if value in OFF else value

    def put(
        self, key: str, name: str, read: Callable[[Any], Any] = lambda value: value, usual: Any = None
    ) -> None:
        """Give a setting's value to an input. `read` turns it into the input's value, or None if it has none.

        `usual` is what the trainer takes where the setting is missing.
        """
        value = self.take(key, usual)
        if value is None:
            return
        try:
            found = read(value)
        except OF_ANOTHER_FORM as error:
            raise LycorisError(
                "a setting has a value of another form than its trainer's",
                key=f"{self.within}{key}",
                got=str(value),
                hint="Set it right in the text, or take it out",
            ) from error
        if found is None:
            self.notes.append(f"{self.within}{key} = {value}")
        else:
            self.values[name] = found

    def choose(self, key: str, name: str, choices: Mapping[str, Any], usual: Any = None) -> None:
        """`put` for one of the words of a trainer, whatever their case."""
        self.put(key, name, lambda value: choices.get(str(value).lower()), usual)

    def everywhere(self, options: Mapping[str, str]) -> None:
        """Put settings that are no inputs of the node into the line of `overrides` that is for all layers.

        `options` are the names of theirs and of ours. A text "0" asks for nothing.
        """
        taken = [(ours, self.take(theirs)) for theirs, ours in options.items()]
        if found := [f"{ours} {value}" for ours, value in taken if value not in (None, "0")]:
            self.values["overrides"] = f"*: {', '.join(found)}"

    def whole(self, key: str) -> None:
        """Take a rank above that of all layers where this setting keeps the factors of a LoKr whole."""
        if str(self.take(key)).lower() == "true":
            self.values["rank"] = WHOLE

    def elsewhere(self, where: str, *keys: str) -> None:
        """For those of these keys that are there, say where a workflow sets the same."""
        found = [key for key in keys if self.take(key) is not None]
        if found:
            self.notes.append(f"{', '.join(found)}: {where}")

    def unused(self, *keys: str) -> None:
        """Take keys that make no difference to what is learned."""
        for key in keys:
            self.left.pop(key, None)

    def schedule(self, key: str, cycles_key: str = "", usual: str = "") -> None:
        """A schedule by the word that most trainers have for it, with the number of its cycles."""
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
        """The weighting min-snr, whose gamma is a constant here."""
        gamma = self.take(key)
        if gamma is None:
            return
        self.values["weighting"] = "min-snr"
        if float(gamma) != GAMMA:
            self.notes.append(f"{key} = {gamma}: {GAMMA:g} is used")

    def optimiser(self, key: str, arguments: Mapping[str, Any], usual: str = "AdamW") -> None:
        """An optimiser with its arguments. AdamW decays weights where nothing is said of that."""
        name = str(self.left.get(key) or usual).lower()
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


def _argument(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, cast("list[Any]", value)))
    return "".join(str(value).split()).strip("()[]")


def translated(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a config, the `text` of a request, is for Train LoRA / LyCORIS.

    Gives `trainer`, `values` by the inputs' names in a prompt, and `notes` on what has no counterpart. Raises
    LycorisError for a text that is no config of a trainer that is known.
    """
    table = _table(str(asked.get("text", "")))
    known = discover(trainers.__name__)
    for trainer in known:
        found = trainer.config_of(table)
        if found is None:
            continue
        config = Config(found)
        try:
            trainer.read(config)
        except OF_ANOTHER_FORM as error:
            raise LycorisError(
                "a setting has a value of another form than its trainer's",
                got=f"{type(error).__name__}: {error}",
                expected=f"a config of {trainer.NAME}",
            ) from error
        left = [f"{key} = {value}" for key, value in config.left.items() if value not in OFF]
        named = places(inputs())
        values = {named[name]: value for name, value in config.values.items()}
        return {"trainer": trainer.NAME, "values": values, "notes": [*config.notes, *left]}
    raise LycorisError(
        "no trainer that is known has such settings",
        got=", ".join(map(str, list(table)[:6])) or "an empty text",
        expected=", ".join(f"{trainer.NAME} ({trainer.FORM})" for trainer in known),
    )


def _table(text: str) -> dict[str, Any]:
    """The text as a table: JSON, TOML or YAML."""
    for read in (json.loads, _toml, yaml.safe_load):
        try:
            found = read(text)
        except (ValueError, yaml.YAMLError, RecursionError):
            continue
        if isinstance(found, dict):
            return cast("dict[str, Any]", found)
    raise LycorisError("the text is no config", expected="a table in TOML, YAML or JSON")


def _toml(text: str) -> Any:
    try:
        toml: Any = importlib.import_module("tomllib")
    except ImportError:
        # Before Python 3.11 the same code is a package.
        try:
            toml = importlib.import_module("tomli")
        except ImportError:
            return None
    return toml.loads(text)


def flat(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a table and of the tables in it, by their own names."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(cast("dict[str, Any]", value))
        else:
            yield key, value


def pairs(texts: Any) -> dict[str, str]:
    """Settings that are given as texts such as `algo=lokr`: a list of them, or one text."""
    parts = (text.partition("=") for text in (texts.split() if isinstance(texts, str) else map(str, texts)))
    return {name: value for name, equals, value in parts if equals}
