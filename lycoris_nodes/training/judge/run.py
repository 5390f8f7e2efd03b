"""Judge adapters: by their losses, with halving, then by pictures where the losses are nearly equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from PIL.Image import Image
from torch import Tensor

from ....lycoris_ops import (
    ALONE,
    Contender,
    Judgement,
    Picture,
    Place,
    Resolution,
    Stack,
    TrainError,
    acting,
    judge,
    judgement_picture,
    paragraph,
    parse_values,
    phrase,
    resolve,
)
from ...host.page import end_if_interrupted
from ...host.sampling import can_show, check_vae, decoded_picture, embeddings, rough_picture
from ...host.weights import weight_shapes
from ...schema.inputs import AS_FAMILY
from ..data.captions import Text
from ..data.families import trained_family
from ..data.latents import Latent, has_pictures, parts_of
from ..data.loss import DiffusionLoss
from ..data.samples import described, guidance_in_words, judged, masks_in_words, samples_of
from ..data.texts import TextEncoder
from ..model.session import Session
from ..node.experts import expert_in_words, times_of_expert
from ..node.memory import memory_advice, memory_of_pass, within_memory
from ..node.opening import opened_both
from ..node.previews import sample
from ..node.settings import Asked
from .files import judged_files
from .likeness import Likeness, drift, nearness
from .networks import Networks

GOLDEN = 0.6180339887
"""The fraction of the golden ratio. Its multiples modulo 1 are evenly spread, however many are taken."""
FINALISTS = 4
"""The most pairs of nearly equal loss that are compared by their pictures."""
SEEN = 16
"""The most pictures of the data that the samples are compared with."""


@dataclass(frozen=True)
class Judged:
    """The result."""

    stack: Stack
    """The best adapter at its strength."""
    judgement: Judgement
    picture: Picture
    samples: Sequence[Image]
    """Pictures sampled with the best."""
    report: str


def run_judge(asked: Asked, tell: Callable[[str, int, int], None]) -> Judged:
    """Judge as asked. `tell` is called at each stage, see `stages`.

    Raises LycorisError for files, links and data that cannot be judged.
    """
    entries, strengths = judged_files(asked.stack, asked.training), parse_values(asked.strengths)
    _check_links(asked)
    shapes = weight_shapes(asked.model, asked.clip)
    for entry in resolve(Stack(entries), shapes, absent_because=phrase("R-no-clip-linked")).entries:
        # Check each alone: an adapter that fits nothing would pass beside one that fits.
        Resolution((entry,)).check()
    memory = memory_of_pass(asked.model, asked.latents, asked.batch_size, asked.positive)
    advice = memory_advice(checkpointed=True, batch_size=asked.batch_size, vae=asked.vae is not None)
    with (
        within_memory(*advice),
        opened_both(
            asked.model, asked.clip, memory=memory, recompute=False, precision=AS_FAMILY, seed=asked.seed
        ) as (session, encoder),
    ):
        family = trained_family(session.model)
        held = samples_of(
            session,
            asked.latents,
            asked.positive,
            texts=asked.captions,
            encoder=encoder,
            masks=asked.masks,
            seed=asked.seed,
            tell=partial(tell, "captions"),
        )
        times = times_of_expert(family.times, asked.expert, asked.model)
        loss = DiffusionLoss(session=session, times=times, encoder=encoder)
        networks = Networks(asked.model, asked.clip, session, encoder)
        batches = judged(held, asked.batch_size, asked.times)
        judgement = judge(
            session.network,
            [Contender(entry.name, partial(networks.of, entry)) for entry in entries],
            strengths,
            batches,
            loss,
            order=spread(asked.times, len(batches) // asked.times),
            share=asked.share,
            seed=asked.seed,
            told=partial(tell, "measuring"),
        )
        seen = asked.clip_vision is not None
        finalists = [*judgement.alike[:FINALISTS], ALONE] if seen else [judgement.best]
        prompts = _prompts(asked, held[0].latent)
        others = [(conditioning[:1], None) for conditioning in asked.other_positive[: asked.samples]]
        count = len(finalists) * len([*prompts, *others])
        samples: dict[Place, list[Tensor]] = {}
        for number, finalist in enumerate(finalists):
            network = None if finalist == ALONE else networks.of(entries[finalist[0]])
            with (
                session.sampling(),
                acting(network, judgement.strengths[finalist[1]]) if network else nullcontext(),
            ):
                samples[finalist] = [
                    _sampled(asked, session, encoder, held[0].latent, *prompt, asked.seed + index)
                    for index, prompt in enumerate([*prompts, *others])
                ]
            tell("picturing", (number + 1) * count // len(finalists), count)
    # The model is closed: other models may take its place.
    pictures = {pair: [_picture(asked, latent) for latent in each] for pair, each in samples.items()}
    likeness = _likeness(asked, pictures, len(prompts)) if asked.clip_vision is not None else {}
    if len(likeness) > 1:
        chosen = max(likeness, key=lambda pair: likeness[pair].score)
        words = phrase("R-these-nearest-data") + (f" {phrase('R-least-drift')}" if others else "")
        judgement = replace(judgement, chosen=chosen, because=words)
    best = entries[judgement.best[0]]
    notes = [
        *([] if judgement.helps else [phrase("R-stack-has-nearest-one")]),
        *expert_in_words(asked.expert, times, asked.because),
        *(
            phrase("R-text-encoders-not-judged-because", name=name, count=count)
            for name, count in networks.left_out.items()
        ),
        *guidance_in_words(family, asked.positive),
        *masks_in_words(asked.latents, asked.masks, "latents"),
    ]
    data = phrase("R-data-2", held=described(held, asked.batch_size))
    lines, head = str(judgement).splitlines(), 1 + judgement.at_edge
    table = [f"{judgement.called(pair)}: {like}" for pair, like in likeness.items()]
    return Judged(
        Stack([replace(best, strength=judgement.strengths[judgement.best[1]], strength_clip=None)]),
        judgement,
        judgement_picture(judgement, {pair: like.numbers for pair, like in likeness.items()}),
        [picture for picture in pictures[judgement.best][: len(prompts)] if picture is not None],
        # The box folds what follows an empty line.
        paragraph([*lines[:head], *notes, "", *lines[head:], *table, data]),
    )


def spread(times: int, batches: int) -> list[int]:
    """An order of the batches of `judged`: for any n, its first n are spread over times and samples.

    Batch b at time t has the number t * batches + b. Within the order, every `times` numbers in a row
    have each time once.
    """
    order = sorted(range(times), key=lambda time: time * GOLDEN % 1)
    return [
        time * batches + (start + index) % batches
        for start in range(batches)
        for index, time in enumerate(order)
    ]


def _check_links(asked: Asked) -> None:
    """Raise TrainError if an input is linked and another that it needs is not."""
    needed = {"captions": "clip", "clip_vision": "vae", "other_positive": "clip_vision"}
    for name, other in needed.items():
        if getattr(asked, name) and getattr(asked, other) is None:
            raise TrainError("E-input-needs-another", key=name, other=other)
    pictured = can_show(asked.model, asked.vae) and all(
        has_pictures([latent_alone.shape for latent_alone in parts_of(latent["samples"])])
        for latent in asked.latents
    )
    if asked.clip_vision is not None and not (pictured and asked.samples):
        raise TrainError(
            "E-judge-vision-without-samples" if pictured else "E-judge-vision-without-pictures",
            key="samples",
        )
    if asked.vae is not None and pictured and asked.samples:
        check_vae(asked.vae, parts_of(asked.latents[0]["samples"])[0].shape)


def _prompts(asked: Asked, like: Latent) -> list[tuple[Any, Text | None]]:
    """The first distinct captions, with their texts where text encoders are judged. Empty for latents that
    cannot be shown."""
    if not (has_pictures(like.shapes) and can_show(asked.model, asked.vae)):
        return []
    texts = list(asked.captions) or [None]
    prompts_found: dict[Any, tuple[Any, Text | None]] = {}
    for number, conditioning in enumerate(asked.positive):
        words = texts[number % len(texts)]
        text = None if words is None else Text(words, conditioning[0][1])
        prompts_found.setdefault((id(conditioning), words), (conditioning[:1], text))
    return list(prompts_found.values())[: asked.samples]


def _sampled(
    asked: Asked,
    session: Session,
    encoder: TextEncoder | None,
    like: Latent,
    conditioning: Any,
    text: Text | None,
    seed: int,
) -> Tensor:
    """The latent that the model samples for a prompt, with the adapters as they are now."""
    said = encoder.conditioning(text) if encoder and text is not None else conditioning
    empty = asked.empty_caption[0] if asked.empty_caption else None
    return sample(session, like.shapes, said, empty, seed=seed, tell=lambda done, of: end_if_interrupted())


def _picture(asked: Asked, latent: Tensor) -> Image | None:
    return rough_picture(asked.model, latent) if asked.vae is None else decoded_picture(asked.vae, latent)


def _likeness(asked: Asked, pictures: Mapping[Place, Sequence[Any]], prompts: int) -> dict[Place, Likeness]:
    """The likeness of each finalist, except the model alone, with which they are compared."""
    singles = [latent for each in asked.latents for latent in parts_of(each["samples"])[0].split(1)][:SEEN]
    see = partial(embeddings, asked.clip_vision)
    data = see([decoded_picture(asked.vae, latent) for latent in singles])
    seen = {pair: see(each) for pair, each in pictures.items()}
    before = seen[ALONE][prompts:]
    return {
        pair: Likeness(
            nearness(vectors[:prompts], data), drift(vectors[prompts:], before) if len(before) else None
        )
        for pair, vectors in seen.items()
        if pair != ALONE
    }
