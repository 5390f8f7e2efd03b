"""Settings that are given as text: for some layers, and for an optimiser."""

from __future__ import annotations

import re
from typing import Any

from ....lycoris_ops import RuleError, phrase, without_comment

WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}
EXAMPLE = "*attn2*: algorithm lokr, factor 8"
SAMPLE = "seed 7, 768 x 512"
SAMPLE_LINE = re.compile(r"(?:seed\s+(\d+))?,?\s*(?:(\d+)\s*x\s*(\d+))?", re.IGNORECASE)
ARGUMENTS = "betas=0.9,0.99 eps=1e-6"
INPUTS = {"lr": "learning_rate", "weight_decay": "weight_decay"}
"""Arguments of optimisers that are inputs of the node, by what torch calls them."""

Sampling = tuple[int | None, tuple[int, int] | None]
"""The seed of a sample, and its width and height; None for what is missing."""


def overrides_of(text: str) -> dict[str, dict[str, Any]]:
    """Parse lines such as `*attn2*: algorithm lokr, factor 8` into options by pattern.

    Comments after `#` and empty lines are skipped. Options and patterns are those of `create_lycoris`. Raises
    RuleError for any other line.
    """
    overrides: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = without_comment(line).strip()
        if not line:
            continue
        # Split from the right, since a regular expression may contain a colon.
        pattern, colon, options = line.rpartition(":")
        pairs = [option.split() for option in options.split(",")]
        if not colon or not pattern.strip() or any(len(pair) != 2 for pair in pairs):
            raise RuleError(
                "E-overrides-line", key=phrase("R-line", number=number), got=line, expected=EXAMPLE
            )
        if pattern.strip() in overrides:
            raise RuleError(
                "E-overrides-pattern-repeated", key=phrase("R-line", number=number), got=pattern.strip()
            )
        overrides[pattern.strip()] = {name: _value(word) for name, word in pairs}
    return overrides


def arguments_of(text: str) -> dict[str, Any]:
    """Parse an optimiser's arguments such as `betas=0.9,0.99 eps=1e-6`; several numbers are a tuple.

    Raises RuleError for what is no argument, and for one that is given twice.
    """
    arguments: dict[str, Any] = {}
    for piece in text.split():
        name, equals, value = piece.partition("=")
        if not (equals and name.isidentifier() and value):
            raise RuleError(
                "E-optimiser-argument-malformed", key="optimiser_args", got=piece, expected=ARGUMENTS
            )
        if name in INPUTS:
            raise RuleError(
                "E-optimiser-argument-is-an-input", key="optimiser_args", input=INPUTS[name], got=piece
            )
        if name in arguments:
            raise RuleError("E-optimiser-argument-repeated", key="optimiser_args", got=name)
        words = value.strip("()[]").split(",")
        arguments[name] = tuple(map(_value, words)) if len(words) > 1 else _value(value)
    return arguments


def sampled_as(text: str) -> list[Sampling]:
    """Parse lines such as `seed 7, 768 x 512`: the seed, and width and height; None for what is missing.
    Empty lines at the end are ignored.

    Raises RuleError for any other line.
    """
    samplings: list[Sampling] = []
    for number, line in enumerate(text.rstrip().splitlines(), 1):
        match = SAMPLE_LINE.fullmatch(without_comment(line).strip())
        if match is None:
            raise RuleError(
                "E-sample-settings-not-understood",
                key=phrase("R-sample-settings-line", number=number),
                got=line,
                expected=SAMPLE,
            )
        seed, width, height = match.groups()
        samplings.append((int(seed) if seed else None, (int(width), int(height)) if width else None))
    return samplings


def _value(word: str) -> Any:
    if word.lower() in WORDS:
        return WORDS[word.lower()]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word
