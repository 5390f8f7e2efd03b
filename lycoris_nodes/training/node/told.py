"""What the page shows before a training: the usual settings for the model, and a stopped training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ....lycoris_ops import Fingerprint, LycorisError, read_shapes
from ...files.models import known_files, model_path
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


def told(asked: Mapping[str, Any], inputs: Sequence[Any]) -> dict[str, Any]:
    """What the page shows on a node with these inputs: `usual`, and `running` or `stopped`.

    The request `asked` has these entries:

    - `node` and `page`: the keys of the node and of the page.
    - `model` and `clip`: as in `known_files`.
    - `values`: the values of the node's widgets, by their names in a prompt. Without them the answer is only
      `usual`.
    - `linked`: the inputs that another node gives.
    - `anew`: whether to set aside the stopped training that Run would resume.

    Raises LycorisError for values that cannot be used.
    """
    linked = (*asked["linked"], "stack")
    known = asked_of(literals(inputs, asked.get("values", {})))
    kinds, own = _classes_of(known_files(asked))
    family = family_named(kinds, own) if kinds else None
    answer: dict[str, Any] = {"usual": _usual(known, family, linked)}
    if "values" not in asked:
        return answer
    live = running.get(str(asked["node"]))
    if live and live["page"] == asked["page"]:
        return {**answer, "running": live}
    # The same keys that the node makes when it runs.
    expert = expert_of_files(known.expert, asked["model"], kinds)
    experts = (*LINKS,) if LINKS[LOW] in linked else (expert,)
    keys = [key_of(of_expert(known, expert)) for expert in experts]
    if asked.get("anew"):
        begin_anew(keys, unknown=linked)
    resume = bool(known.resume or known.resume_from)
    return {**answer, "stopped": _stopped(keys, linked, inputs, resume=resume)}


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


def _stopped(keys: Sequence[RunKey], linked: Sequence[str], inputs: Sequence[Any], *, resume: bool) -> Any:
    offer = offer_of(keys, unknown=linked, resume=resume)
    if offer is None:
        return None
    drawn = shown(offer.state.history(), offer.run.folder)
    theirs, settings = offer.state.settings, offer.wanted
    others = {name: value for name, value in theirs.items() if settings.get(name, value) != value}
    return {
        **drawn,
        "expert": settings["expert"] if len(keys) == 2 else "",
        "step": offer.state.step,
        "steps": offer.state.of,
        "differences": offer.differences,
        "others": {key: others[name] for name, key in places(inputs).items() if name in others},
    }


def decimal(value: float) -> str:
    """A number in plain decimals: 0.00005 and not 5e-05."""
    return f"{value:.8f}".rstrip("0").rstrip(".")
