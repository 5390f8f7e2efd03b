"""Train both experts of a model in one run, one after the other, into a pair of files."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ....lycoris_ops import TrainError, phrase
from ...apply.experts import told_expert
from ...files.pairs import HIGH, LOW, Expert, expert_of
from ...host.families import family_of
from ...host.files import workflow_metadata
from ...schema.inputs import AS_FAMILY
from .experts import ALL, named_for, trained_expert
from .run import Job, sketches_of_data
from .runs import RunKey, claimed_runs, runs_of
from .settings import Asked, settings_of

LINKS: dict[Expert, str] = {HIGH: "model", LOW: "low_noise_model"}
"""The inputs of the two models."""


@contextmanager
def jobs_of(asked: Asked, hidden: Any) -> Generator[list[Job]]:
    """The trainings that are asked for, with their folders claimed; two if both experts are linked.

    Raises TrainError where the two models are not the experts of one model, and whatever `runs_of` raises.
    """
    if asked.low_noise_model is None:
        expert, because = trained_expert(asked.expert, asked.model, hidden)
        asked_for = [(of_expert(asked, expert), because)]
    else:
        _check_pair(asked)
        asked_for = [
            (
                of_expert(asked, expert, model=getattr(asked, link), low_noise_model=None),
                _because(asked, expert, hidden),
            )
            for expert, link in LINKS.items()
        ]
    data, metadata = sketches_of_data(asked), workflow_metadata(hidden)
    keys = [key_of(each) for each, _ in asked_for]
    with claimed_runs(lambda: runs_of(keys, data, resume=asked.resume, checkpoint=asked.resume_from)) as runs:
        yield [
            Job(each, run, because, data, metadata)
            for (each, because), run in zip(asked_for, runs, strict=True)
        ]


def of_expert(asked: Asked, expert: str, **changed: Any) -> Asked:
    """What is asked for, as if only this expert were to be trained."""
    prefix, stack = named_for(asked.filename_prefix, expert), asked.stack
    if stack is not None and expert != ALL:
        stack = stack.of_expert(low_noise=expert == LOW)
    return Asked(**{**vars(asked), "expert": expert, "filename_prefix": prefix, "stack": stack, **changed})


def key_of(asked: Asked) -> RunKey:
    """The name and settings by which `runs_of` finds an earlier training."""
    return RunKey(asked.filename_prefix, asked.dialect, settings_of(asked))


def _because(asked: Asked, expert: Expert, hidden: Any) -> str:
    """Why a model is trained as this expert. Raises TrainError where its name says that it is the other."""
    link = LINKS[expert]
    expert_told, because = told_expert(getattr(asked, link), hidden, link)
    if expert_told not in (None, expert):
        raise TrainError(
            "E-expert-is-the-other", key=link, expert_told=expert_told, because=because, expert=expert
        )
    return because or phrase("R-linked", link=link)


def _check_pair(asked: Asked) -> None:
    """Raise TrainError for what cannot be trained as two experts in one run."""
    models = [getattr(asked, link).model for link in LINKS.values()]
    kinds = [(type(model).__name__, family_of(model).boundary) for model in models]
    if models[0] is models[1] or kinds[0] != kinds[1] or kinds[0][1] is None:
        raise TrainError(
            "E-experts-do-not-match",
            key="low_noise_model",
            got=phrase("R-same-model-twice")
            if models[0] is models[1]
            else " and ".join(map(_in_words, kinds)),
        )
    for name, neutral, what in (
        ("expert", AS_FAMILY, phrase("R-each-model-trained-at-own")),
        ("resume_from", "", phrase("R-checkpoint-belongs-one-expert")),
        ("clip", None, phrase("R-text-encoders-trained-beside-one")),
    ):
        if getattr(asked, name) != neutral:
            raise TrainError(
                "E-experts-setting-unusable",
                key=name,
                what=what,
                got=str(getattr(asked, name)) if neutral is not None else "a link",
                expected=repr(neutral) if neutral is not None else "none",
            )
    unclear = [expert for expert in LINKS if expert_of(named_for(asked.filename_prefix, expert)) != expert]
    if unclear:
        raise TrainError("E-pair-name-ends-in-noise", key="filename_prefix", got=asked.filename_prefix)


def _in_words(kind: tuple[str, float | None]) -> str:
    name, boundary = kind
    return f"{name}, {'without experts' if boundary is None else f'divided at {boundary:g}'}"
