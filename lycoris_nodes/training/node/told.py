"""What the page shows before a training: the usual settings for the model, and a stopped training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ....lycoris_ops import Fingerprint, LycorisError, read_shapes
from ...files.models import ModelQuestion, known_files, model_path
from ...files.pairs import LOW
from ...host.families import family_named
from ...host.families.family import Family
from ...host.training import classes_of_file
from ...schema.checks import literals, places
from .experts import expert_of_files
from .live import running, shown
from .pair import LINKS, key_of, of_expert
from .runs import RunKey, begin_anew, offer_of
from .schema import asked_of
from .settings import Asked, rate_of, text_rate_of


@dataclass(frozen=True)
class TrainingQuestion(ModelQuestion):
    """About a node of training, or of training data."""

    node: str
    """The host's key of the node."""
    page: str
    """The host's key of the page."""
    linked: Sequence[str]
    """The inputs that another node gives."""
    type: str = ""
    """The node's class."""
    values: Mapping[str, Any] | None = None
    """The values of the node's widgets, by name in a prompt. Without them the answer is only `usual`."""
    anew: bool = False
    """Whether to set aside the stopped training that Run would resume."""


@dataclass(frozen=True)
class Stopped:
    """A training that Run would resume, or leave as it is if settings differ."""

    name: str
    folder: str
    losses: Sequence[tuple[int, float]]
    validation: Sequence[tuple[int, float]]
    samples: Sequence[tuple[int, float]]
    """The pictures, each by its step, with the time at which it was made."""
    expert: str
    """The expert that was being trained, of a training of both; else ""."""
    step: int
    steps: int
    differences: Sequence[str]
    others: Mapping[str, Any]
    """The settings that differ, with its own values, by the inputs' names in a prompt."""


@dataclass(frozen=True)
class Told:
    """What the page shows on a node before a training."""

    usual: Mapping[str, str]
    """What `auto` stands for, by the names of inputs."""
    running: Mapping[str, Any] | None = None
    """The last message of the training that runs."""
    stopped: Stopped | None = None


def told(asked: TrainingQuestion, inputs: Sequence[Any]) -> Told:
    """What the page shows on a node with these inputs.

    Raises LycorisError for values that cannot be used.
    """
    linked = (*asked.linked, "stack")
    known = asked_of(literals(inputs, asked.values or {}))
    kinds, own = _classes_of(known_files(asked))
    family = family_named(kinds, own) if kinds else None
    usual = _usual(known, family, linked)
    if asked.values is None:
        return Told(usual)
    live = running.get(asked.node)
    if live and live["page"] == asked.page:
        return Told(usual, running=live)
    # The same keys that the node makes when it runs.
    expert = expert_of_files(known.expert, asked.model, kinds)
    experts = (*LINKS,) if LINKS[LOW] in linked else (expert,)
    keys = [key_of(of_expert(known, expert)) for expert in experts]
    if asked.anew:
        begin_anew(keys, unknown=linked)
    resume = bool(known.resume or known.resume_from)
    return Told(usual, stopped=_stopped(keys, linked, inputs, resume=resume))


def _classes_of(files: Sequence[str]) -> tuple[Sequence[str], str]:
    """The names of the host's classes of a model by the header of its file, see `classes_of_file`; empty
    where they are unknown."""
    if not files:
        return (), ""
    try:
        return _classes(Fingerprint.of(model_path(files[0])))
    except LycorisError:
        # Other packs load formats that are not read here, such as GGUF.
        return (), ""


@lru_cache(maxsize=16)
def _classes(file: Fingerprint) -> tuple[Sequence[str], str]:
    return classes_of_file(read_shapes([file.path]))


def _usual(known: Asked, family: Family | None, linked: Sequence[str]) -> dict[str, str]:
    """What `auto` stands for, by the names of inputs."""
    if family is None:
        return {}
    from_file = "plan" in linked
    options = {} if from_file else {"algorithm": known.algorithm}
    rate = rate_of(known, family, options)
    shift = family.times.shift
    usual: dict[str, Any] = {"shift": shift if isinstance(shift, float | int) else None}
    usual["resolution"] = family.resolution
    usual["rank"] = None if from_file else family.rank
    usual["alpha"] = None if from_file else known.rank or family.rank
    usual["learning_rate"] = rate
    usual["text_learning_rate"] = rate and rate * text_rate_of(known, rate)
    return {"family": family.name, **{name: decimal(value) for name, value in usual.items() if value}}


def _stopped(
    keys: Sequence[RunKey], linked: Sequence[str], inputs: Sequence[Any], *, resume: bool
) -> Stopped | None:
    offer = offer_of(keys, unknown=linked, resume=resume)
    if offer is None:
        return None
    theirs, settings = offer.state.settings, offer.wanted
    others = {name: value for name, value in theirs.items() if settings.get(name, value) != value}
    return Stopped(
        **shown(offer.state.history(), offer.run.folder),
        expert=settings["expert"] if len(keys) == 2 else "",
        step=offer.state.step,
        steps=offer.state.of,
        differences=offer.differences,
        others={key: others[name] for name, key in places(inputs).items() if name in others},
    )


def decimal(value: float) -> str:
    """A number in plain decimals: 0.00005 and not 5e-05."""
    return f"{value:.8f}".rstrip("0").rstrip(".")
