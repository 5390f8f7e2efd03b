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
    phrase,
)
from ...host.files import shown_path
from ..data.loss import DiffusionLoss
from ..model.session import Session
from .runs import Offer


def rate_in_words(options: TrainOptions, text_rate: float | None) -> str:
    rate = phrase("R-optimiser-s-own") if options.lr is None else f"{options.lr:g}"
    texts = "" if text_rate is None else phrase("R-text-encoders-at-times", text_rate=text_rate)
    all_steps = phrase("R-takes-all-steps") if options.warmup >= (options.steps or 1) else ""
    falls = phrase("R-after-warm-up", schedule=options.schedule, warmup=options.warmup, all_steps=all_steps)
    again = phrase("R-restarted", restarts=options.restarts) if options.restarts else ""
    own = (
        ("LoRA+ at", options.lora_plus),
        (phrase("R-weight-decay"), options.weight_decay),
        (
            phrase("R-gradients-clipped-at"),
            options.clip_norm if options.clip_norm != TrainOptions.clip_norm else None,
        ),
    )
    more = "".join(f", {name} {value:g}" for name, value in own if value)
    args = "".join(f", {name} {value}" for name, value in options.optimiser_options.items())
    return f"{rate}{texts}, {options.optimiser}{args}, {falls}{again}{more}"


def searched_in_words(searched: Searched, apart: int) -> list[str]:
    """What a search found and how it judged; [] without a search."""
    if searched.race is None:
        return []
    judges = phrase("R-judged-on-took-no-part", apart=apart) if apart else ""
    return [f"{searched}{judges}", *str(searched.race).splitlines()[1:]]


def rescue_in_words(path: Path, steps: int, of: int, *, chosen: bool) -> str:
    """What was kept of a training that stopped early, and how to continue it.

    `chosen` says that it began at a checkpoint of `resume_from`, where it would begin again.
    """
    first = phrase("R-empty-resume-from-then-run") if chosen else "Run"
    return phrase("R-stopped-after-steps-kept-same", steps=steps, of=of, path=shown_path(path), first=first)


def left_in_words(other: Offer, data: Mapping[str, Sequence[Sketch]]) -> str:
    """Which stopped training a new one leaves as it is, why, and how to resume it."""
    changed = data_changes(other.state.data, data)
    apart = [*other.differences, *(f"{name}: {what}" for name, what in changed.items())]
    return phrase("R-began-anew-other-settings-or", in_words=other.run.in_words, value="; ".join(apart))


def finished_in_words(result: TrainResult) -> str:
    """Where a whole training is, whose last sample was not drawn."""
    return phrase("R-all-steps-done-file", steps=result.steps, output=shown_path(str(result.output)))


def loss_in_words(loss: DiffusionLoss, *, masked: bool) -> str:
    """`masked` says whether any sample has a mask."""
    times = loss.times
    shift = f"{times.shift:g}" if isinstance(times.shift, int | float) else phrase("R-size")
    dropped = phrase("R-captions-dropped", caption_dropout=loss.caption_dropout)
    kind = (
        loss.loss_type
        if loss.loss_type in ("l1", "l2")
        else phrase("R-from-on", loss_type=loss.loss_type, delta=loss.delta)
    )
    prior = ""
    if loss.masked_prior:
        does = phrase("R-what-masks-leave-out") if masked else phrase("R-does-nothing-there-no-masks")
        prior = phrase("R-masked-prior", masked_prior=loss.masked_prior, does=does)
    return phrase(
        "R-times-shift-weighting",
        kind=kind,
        distribution=times.distribution,
        shift=shift,
        weighting=loss.weighting,
        dropped=dropped,
        prior=prior,
    )


def memory_in_words(session: Session, *, scaled: bool) -> str:
    lines = [
        phrase("R-computed-again", blocks=session.blocks)
        if session.blocks
        else phrase("R-all-activations-kept")
    ]
    if session.fetching:
        lines.append(phrase("R-fetched-again", fetching=session.fetching))
    lines.append(phrase("R-computed-scaled" if scaled else "R-computed", dtype=dtype_name(session.dtype)))
    return ", ".join(lines)
