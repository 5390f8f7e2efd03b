"""The report of a training, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ....lycoris_ops import (
    Searched,
    Sketch,
    TrainOptions,
    TrainResult,
    data_changes,
    dtype_name,
    number_of,
)
from ...host.files import shown_path
from ..data.loss import DiffusionLoss
from ..model.session import Session
from .runs import Offer


def rate_in_words(options: TrainOptions, text_rate: float | None) -> str:
    rate = "the optimiser's own" if options.lr is None else f"{options.lr:g}"
    texts = "" if text_rate is None else f", text encoders at {text_rate:g} times that"
    all_steps = ", which takes all steps" if options.warmup >= (options.steps or 1) else ""
    falls = f"{options.schedule} after a warm-up of {options.warmup:g}{all_steps}"
    again = f", restarted {number_of(options.restarts, 'time')}" if options.restarts else ""
    own = (
        ("LoRA+ at", options.lora_plus),
        ("weight decay", options.weight_decay),
        ("gradients clipped at", options.clip_norm if options.clip_norm != TrainOptions.clip_norm else None),
    )
    more = "".join(f", {name} {value:g}" for name, value in own if value)
    args = "".join(f", {name} {value}" for name, value in options.optimiser_options.items())
    return f"{rate}{texts}, {options.optimiser}{args}, {falls}{again}{more}"


def searched_in_words(searched: Searched, apart: int) -> list[str]:
    """What a search found and how it judged; [] without a search."""
    if searched.race is None:
        return []
    judges = f", judged on {number_of(apart, 'latent')} that took no part in it" if apart else ""
    return [f"{searched}{judges}", *str(searched.race).splitlines()[1:]]


def rescue_in_words(path: Path, steps: int, of: int, *, chosen: bool) -> str:
    """What was kept of a training that stopped early, and how to continue it.

    `chosen` says that it began at a checkpoint of `resume_from`, where it would begin again.
    """
    first = "Empty `resume_from`, then run" if chosen else "Run"
    return (
        f"Stopped after {steps} of {of} steps, and kept in {shown_path(path)}. {first} with the same "
        "settings to train on from there."
    )


def left_in_words(other: Offer, data: Mapping[str, Sequence[Sketch]]) -> str:
    """Which stopped training a new one leaves as it is, why, and how to resume it."""
    changed = data_changes(other.state.data, data)
    apart = [*other.differences, *(f"{name}: {what}" for name, what in changed.items())]
    return (
        f"began anew: {other.run.in_words}, with other settings or data ({'; '.join(apart)}). To go on with "
        f"it, give its name as `filename_prefix`, and turn on `resume`"
    )


def finished_in_words(result: TrainResult) -> str:
    """Where a whole training is, whose last sample was not drawn."""
    return f"All {result.steps} steps are done, and the file is {shown_path(str(result.output))}."


def loss_in_words(loss: DiffusionLoss, *, masked: bool) -> str:
    """`masked` says whether any sample has a mask."""
    times = loss.times
    shift = f"{times.shift:g}" if isinstance(times.shift, int | float) else "by size"
    dropped = f"{loss.caption_dropout:.0%} of the captions dropped"
    kind = loss.loss_type if loss.loss_type in ("l1", "l2") else f"{loss.loss_type} from {loss.delta:g} on"
    prior = ""
    if loss.masked_prior:
        does = "for what masks leave out" if masked else "does nothing, as there are no masks"
        prior = f"; masked_prior {loss.masked_prior:g} {does}"
    return f"{kind}; {times.distribution} times, shift {shift}; weighting {loss.weighting}; {dropped}{prior}"


def memory_in_words(session: Session, *, scaled: bool) -> str:
    lines = [
        f"{number_of(session.blocks, 'block is', 'blocks are')} computed again"
        if session.blocks
        else "all activations are kept"
    ]
    if session.fetching:
        lines.append(f"{number_of(session.fetching, 'layer is', 'layers are')} fetched again")
    lines.append(f"computed in {dtype_name(session.dtype)}{', with a scaled loss' if scaled else ''}")
    return ", ".join(lines)
