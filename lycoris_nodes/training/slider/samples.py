"""The samples of a slider, for the training of Train LoRA / LyCORIS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ....lycoris_ops import TrainError, parse_values, phrase
from ...host.sampling import empty_latent
from ...stacks.rows import LARGEST, STRENGTHS
from ..data.loss import Guide, Sample
from ..data.samples import Captions, Latents, samples_of, sketches_of
from ..data.texts import TextEncoder
from ..model.session import Session
from ..node.live import Live
from ..node.previews import sample
from ..node.settings import Asked


def strengths_of(text: str) -> tuple[float, ...]:
    """The strengths of a text such as `-1, 1`.

    Raises LycorisError unless some are below 0 and some above, none is 0, and all are strengths that the
    loaders take.
    """
    strengths = parse_values(text)
    if -LARGEST <= min(strengths) < 0 < max(strengths) <= LARGEST and 0 not in strengths:
        return strengths
    raise TrainError("E-slider-strengths-one-sided", key="strengths", strengths=STRENGTHS, got=text)


def slider_samples(asked: Asked, session: Session, _encoder: TextEncoder | None, live: Live) -> list[Sample]:
    """The samples of a slider. Each is learned at all strengths in one step.

    With the captions `less` and `more` each latent has a guide between them, see `DiffusionLoss`. Where the
    latents are empty, the model first samples pictures of `positive` in their sizes. Without these captions
    the latents are opposed pictures, in rows with a picture for each strength. All pictures of a row get the
    same noise, as in the visual sliders of "Concept sliders" (Gandikota et al., 2311.12092).

    Raises TrainError if only one of `less` and `more` is given, and with both if they are the same or the
    guidance is 0. Without them, raises it for empty latents, for pictures that do not fill their rows, and
    for a row whose pictures have several sizes or are all the same.
    """
    strengths = strengths_of(asked.strengths)
    if bool(asked.less) is not bool(asked.more):
        raise TrainError("E-slider-end-missing", key="less" if asked.more else "more")
    tell = partial(live.stage, "captions")
    if not asked.more:
        if _is_empty(asked.latents):
            raise TrainError("E-slider-nothing-to-learn", key="latents")
        samples = samples_of(
            session, asked.latents, asked.positive, masks=asked.masks, seed=asked.seed, tell=tell
        )
        return _rows(samples, strengths)
    _check_ends(asked)
    captions: dict[str, Captions] = {name: getattr(asked, name) for name in ("positive", "less", "more")}
    latents: Latents = asked.latents
    if _is_empty(latents):
        latents, captions = _sampled(asked, session, live, captions)
    own, less, more = (
        samples_of(session, latents, texts, masks=asked.masks, seed=asked.seed, name=name, tell=tell)
        for name, texts in captions.items()
    )
    first, *others = strengths
    slider: list[Sample] = []
    for what, down, up in zip(own, less, more, strict=True):
        guided = replace(what, strength=first, guide=Guide(down.caption, up.caption, asked.guidance))
        slider.append(replace(guided, others=tuple(replace(guided, strength=each) for each in others)))
    return slider


def _check_ends(asked: Asked) -> None:
    """Raise TrainError if there is nothing to learn between the captions `less` and `more`."""
    if not asked.guidance:
        raise TrainError("E-slider-guidance-0", key="guidance")
    less, more = sketches_of(less=asked.less, more=asked.more).values()
    for number in range(max(len(less), len(more))):
        if less[number % len(less)] == more[number % len(more)]:
            raise TrainError(
                "E-slider-ends-same-prompt",
                key=phrase("R-more-number", number=number % len(more) + 1, count=len(more)),
            )


def _rows(samples: Sequence[Sample], strengths: Sequence[float]) -> list[Sample]:
    """Opposed pictures as rows, each with one picture for each strength."""
    if len(samples) % len(strengths):
        raise TrainError(
            "E-slider-row-pictures-missing", key="latents", pictures=len(samples), strengths=len(strengths)
        )
    rows: list[Sample] = []
    for start in range(0, len(samples), len(strengths)):
        opposing = [
            replace(opposed, strength=strength)
            for opposed, strength in zip(samples[start : start + len(strengths)], strengths, strict=True)
        ]
        if any(opposed.latent.shapes != opposing[0].latent.shapes for opposed in opposing):
            raise TrainError(
                "E-slider-sizes-differ",
                key=phrase("R-latents-number", start=start + 1, start_2=start + len(opposing)),
                got=", ".join(str(list(opposed.latent.values.shape)) for opposed in opposing),
            )
        if all(torch.equal(opposed.latent.values, opposing[0].latent.values) for opposed in opposing):
            raise TrainError(
                "E-slider-pictures-same",
                key=phrase("R-latents-number", start=start + 1, start_2=start + len(opposing)),
            )
        rows.append(replace(opposing[0], others=tuple(opposing[1:])))
    return rows


def _is_empty(latents: Latents) -> bool:
    # Latents of several parts, such as video and sound, are taken as they are.
    return all(isinstance(latent["samples"], Tensor) and not latent["samples"].any() for latent in latents)


def _sampled(
    asked: Asked, session: Session, live: Live, captions: Mapping[str, Captions]
) -> tuple[Latents, dict[str, Captions]]:
    """Latents that the model samples in the sizes of empty ones, and their captions by kind.

    As many as `asked.pictures`, or as many more as make all prompts of `positive` equally frequent. Raises
    TrainError, before it samples, for a number of prompts that is neither one nor that of `positive`.
    """
    texts = {
        name: [text for conditioning in conditionings for text in conditioning]
        for name, conditionings in captions.items()
    }
    prompts = texts["positive"]
    for name, ends in texts.items():
        if len(ends) not in (1, len(prompts)):
            raise TrainError("E-prompts-miscount", key=name, count=len(ends), prompts=len(prompts))
    empty = [latent for each in asked.latents for latent in empty_latent(session.patcher, each).split(1)]
    repeats = -(-asked.pictures // len(prompts))
    count = repeats * len(prompts)
    nothing = asked.empty_caption[0] if asked.empty_caption else None
    latents: list[Mapping[str, Tensor]] = []
    with session.sampling():
        for number in range(count):
            live.stage("picturing", number, count)
            zeros = empty[number % len(empty)]
            latent = sample(
                session,
                [zeros.shape],
                [prompts[number % len(prompts)]],
                nothing,
                seed=asked.seed + number,
                tell=lambda done, of: None,
            )
            latents.append({"samples": latent})
    return latents, {name: [ends if len(ends) == 1 else ends * repeats] for name, ends in texts.items()}
