"""Models that are one of two experts, as in Wan 2.2: each is trained at its own times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ....lycoris_ops import SAFETENSORS, TrainError, phrase
from ...apply.experts import told_expert
from ...files.pairs import HIGH, LOW, expert_of
from ...host.families import family_named, family_of
from ...host.families.times import Times
from ...schema.inputs import AS_FAMILY

ALL = "all"
CHOICES = (AS_FAMILY, ALL, HIGH, LOW)


def trained_expert(choice: str, patcher: Any, hidden: Any) -> tuple[str, str]:
    """The expert that a model is trained as, or `ALL`, and why.

    `auto` takes it from the name of the model's file, as Apply LyCORIS Stack does. Raises TrainError where an
    expert is chosen for a model without experts.
    """
    expert, why = told_expert(patcher, hidden) if choice == AS_FAMILY else (choice, phrase("R-chosen"))
    if expert in (None, ALL):
        return ALL, why
    if family_of(patcher.model).boundary is not None:
        return expert, why
    if choice == AS_FAMILY:
        return ALL, ""
    raise TrainError(
        "E-expert-not-for-model",
        key="expert",
        choice=choice,
        name=type(patcher.model).__name__,
        as_family=AS_FAMILY,
        all=ALL,
    )


def expert_of_files(choice: str, names: Sequence[str], kinds: Sequence[str]) -> str:
    """The expert that `trained_expert` will find, by the names of the model's files, before it is loaded.

    `kinds` are the names of the host's classes of the model; empty if its file does not tell.
    """
    if choice != AS_FAMILY:
        return choice
    expert = next(filter(None, map(expert_of, names)), None)
    return expert if expert and (not kinds or family_named(kinds).boundary is not None) else ALL


def times_of_expert(times: Times, expert: str, patcher: Any) -> Times:
    """The times of an expert; all for `ALL`."""
    boundary = family_of(patcher.model).boundary
    if expert == ALL or boundary is None:
        return times
    return replace(times, between=(boundary, 1.0) if expert == HIGH else (0.0, boundary))


def named_for(prefix: str, expert: str) -> str:
    """The name of a training that ends in its expert, so that the two files are recognised as a pair."""
    stem = prefix.removesuffix(SAFETENSORS[0])
    return prefix if expert in (ALL, expert_of(prefix)) else f"{stem}_{expert.replace(' ', '_')}"


def expert_in_words(expert: str, times: Times, because: str) -> list[str]:
    """A note on the times of an expert, and why the model counts as this expert; none for `ALL`."""
    if expert == ALL:
        return []
    least, most = times.between
    whose = phrase("R-times-expert", replace=expert.replace(" ", "-"), because=because)
    return [phrase("R-noise-at-times-from", least=least, most=most, whose=whose)]
