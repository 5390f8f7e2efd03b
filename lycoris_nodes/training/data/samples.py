"""Turn the graph's latents, captions and masks, in lists or batches, into samples to train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....lycoris_ops import Sketch, TrainError, located, phrase, sketches
from ...host.families.family import Family
from ...host.sampling import NOISE_MASK
from ...host.training import held
from ..model.session import Session
from .captions import Caption, Text, caption_of
from .latents import Latent, latent_of, mask_of
from .loss import Sample, batches_of
from .texts import TextEncoder
from .widths import check_width

CPU = torch.device("cpu")

BESIDE = (
    *("reference_latents", "reference_latents_method", "reference_latents_text_embeds", "clip_vision_output"),
    *("clip_vision_outputs", "clip_vision_output_ref", "unclip_conditioning", "concat_latent_image"),
    *("concat_mask", "concat_mask_index", "concat_image", "time_dim_replace", "time_dim_concat"),
    *("guiding_frame_index", "keyframe_idxs", "guide_attention_entries", "reference_motion", "control_video"),
    *("camera_conditions", "vace_frames", "vace_mask", "vace_strength", "pose_video_latent", "ref_latent"),
    *("driving_mask_28ch", "ref_mask_28ch", "ref_mask_flag", "context_latents", "stable_cascade_prior"),
    *("face_video_pixels", "audio_embed", "audio_inject_scale", "ref_audio", "condition", "lq_latent"),
    *("reference_audio_timbre_latents", "seconds_start", "seconds_total", "frame_rate", "fps"),
    *(
        "motion_bucket_id",
        "augmentation_level",
        "noise_augmentation",
        "degrade_sigma",
        "elevation",
        "azimuth",
    ),
    *("minimax_keyframes", "minimax_frame_count", "minimax_refs", "minimax_visual_cond_noise_aug"),
    *("minimax_audio_cond_noise_aug", "time_conditioning"),
    *("width", "height", "crop_w", "crop_h", "target_width", "target_height", "aspect_ratio"),
)
"""Settings of a conditioning that do not come from its text. They are kept where the text is dropped."""

Latents = Sequence[Mapping[str, Any]]
"""A batch of latents, under `samples`, for each link or list member."""
_Place = tuple[int, int]
"""The `id` of the tensor that holds a picture or mask, and its index there."""
Captions = Sequence[Sequence[Any]]
"""A conditioning for each link or list member, mostly of one text; Resolution Bucket gives several."""


def samples_of(
    session: Session,
    latents: Latents,
    captions: Captions,
    *,
    texts: Sequence[str] = (),
    encoder: TextEncoder | None = None,
    masks: Sequence[Tensor] = (),
    empty: Captions = (),
    weight: float = 1.0,
    seed: int = 0,
    name: str = "latents",
    tell: Callable[[int, int], None] = lambda number, count: None,
) -> list[Sample]:
    """A sample on the CPU for each latent, with its caption and mask. A single caption or mask is for all.

    Where an `encoder` is trained, `texts` are the captions, and `captions` give the settings beside them.
    `empty` is the empty caption, which replaces captions that are dropped; an encoder encodes its own. `tell`
    is called with the number of each sample and the count. Without `masks` the `noise_mask` of a latent is
    its mask. A `noise_mask` with frames is not: it marks the frames that the model is given, such as the
    first one of a video. Errors call the latents `name`.

    Raises TrainError where there is no latent, where the counts differ, and for a sample that cannot be
    trained on, with its number.
    """
    singles = list(_singles(latents))
    if not singles:
        raise TrainError("E-latents-absent", key=name)
    count = len(singles)
    conditionings = _for_each(
        [text for conditioning in captions for text in conditioning], count, "captions", name
    )
    flat = [placed for mask in masks for placed in _planes(mask)]
    weights = _for_each(flat, count, "masks", name) if flat else list(_noise_masks(latents, name))
    words: list[str | None] = [None] * count
    if encoder:
        if not texts:
            raise TrainError("E-encoder-needs-texts", key=name.replace("latents", "captions"))
        words = _for_each(list(texts), count, "texts", name)
    nothing = [text for conditioning in empty for text in conditioning]
    if len(nothing) > 1:
        raise TrainError("E-caption-empty-several", key="empty_caption", got=len(nothing))
    captions_made: dict[tuple[Any, ...], Caption] = {}

    def encoded(of: Any, conditioning: Any, latent: Latent, words: str | None = None) -> Caption:
        """Encode a conditioning, once for latents of one size. `of` says what it is made from."""
        key = (of, words, latent.shapes, id(latent.noise_mask))
        if key not in captions_made:
            captions_made[key] = _encoded(session, encoder, seed, conditioning, latent, words)
        return captions_made[key]

    samples: list[Sample] = []
    # A picture that is repeated is the same tensor, and is converted and held once.
    known: dict[tuple[_Place, _Place | None], Latent] = {}
    masked: dict[tuple[_Place, _Place], Tensor] = {}
    for number, ((origin, single), text, word, mask, kept_key) in enumerate(
        zip(singles, conditionings, words, weights, _given(latents, name), strict=True), 1
    ):
        tell(number, count)
        with _numbered(name, number, count):
            key, masks_of_it = kept_key or (None, None)
            if (origin, key) not in known:
                latent = latent_of(session.model, single, CPU, masks_of_it)
                known[origin, key] = replace(latent, values=held(latent.values, session.device))
            latent = known[origin, key]
        with _numbered("captions", number, count):
            caption = encoded(id(text), text, latent, word)
        own = None
        with _numbered("masks" if flat else NOISE_MASK, number, count):
            if mask is not None:
                both = (origin, mask[0])
                if both not in masked:
                    masked[both] = held(mask_of(session.model, mask[1], latent), session.device)
                own = masked[both]
        without = None
        if encoder:
            without = encoded(id(text), text, latent, "")
        elif nothing:
            without = encoded(*_identified(text, nothing[0]), latent)
        samples.append(Sample(latent, caption, own, weight, without))
    return samples


def sketches_of(**kinds: Sequence[Any]) -> dict[str, list[Sketch]]:
    """Sketches of each kind of data by its name, see `sketches`. Empty kinds are left out."""
    return {name: sketches(_parts(value) for value in values) for name, values in kinds.items() if values}


def epochs_of(
    samples: Sequence[Sample], size: int, prior: Sequence[Sample] = ()
) -> Callable[[int], list[list[Sample]]]:
    """The batches of each epoch: all samples in a new order, in batches that fit in one pass of the model.

    The same number of samples of `prior`, for regularisation, is mixed in. They are drawn anew for each
    epoch; if `prior` has fewer, some are drawn several times.
    """

    def epoch(number: int) -> list[list[Sample]]:
        mixed = [samples[index] for index in torch.randperm(len(samples)).tolist()]
        if prior:
            orders = [torch.randperm(len(prior)) for _ in range(-(-len(samples) // len(prior)))]
            mixed += [prior[index] for index in torch.cat(orders)[: len(samples)].tolist()]
            mixed = [mixed[index] for index in torch.randperm(len(mixed)).tolist()]
        batches = [[mixed[index] for index in batch] for batch in batches_of(mixed, size)]
        # Else samples of one size would come one after another.
        return [batches[index] for index in torch.randperm(len(batches)).tolist()]

    return epoch


def judged(samples: Sequence[Sample], size: int, times: int) -> list[list[Sample]]:
    """Fixed batches for a validation: each sample at `times` evenly spaced quantiles of the noise times.

    No caption is dropped.
    """
    return [
        [replace(samples[index], share=(number + 0.5) / times, without=None) for index in batch]
        for number in range(times)
        for batch in batches_of(samples, size)
    ]


def described(samples: Sequence[Sample], size: int) -> str:
    """In words: the number and the sizes of the samples, and how batches of this size turn out."""
    sizes = Counter(_size(sample) for sample in samples)
    listed = ", ".join(f"{words} x{count}" for words, count in sizes.most_common())
    batches = len(batches_of(samples, size))
    text = phrase("R-batches-epoch", count=len(samples), listed=listed, batches=batches)
    if size > 1 and batches == len(samples) > 1:
        text += phrase("R-no-two-fit-one-batch", size=size)
    strengths = [sample.strength for sample in (samples[0], *samples[0].others)]
    if len(strengths) > 1:
        text += phrase("R-each-step-trains-at-strengths", value=[f"{strength:g}" for strength in strengths])
    if masked := sum(sample.mask is not None for sample in samples):
        text += phrase("R-mask-2", masked=masked)
    if partly := sum(sample.latent.noise_mask is not None for sample in samples):
        text += phrase("R-partly-given-model-does-not", partly=partly)
    return text


def _encoded(
    session: Session,
    encoder: TextEncoder | None,
    seed: int,
    conditioning: Any,
    latent: Latent,
    words: str | None,
) -> Caption:
    """A caption on the CPU. It is encoded from `words` if an encoder and words are given."""
    rows = getattr(conditioning[0], "shape", (1,))[0]
    if rows != 1:
        raise TrainError("E-caption-texts-several", rows=rows)
    if encoder and words is not None:
        with torch.no_grad():
            caption = encoder.caption(Text(words, conditioning[1]), latent)
    else:
        caption = caption_of(session.model, [conditioning], latent, seed=seed, device=session.device)
    check_width(session, caption, latent)
    return caption.moved(lambda tensor: held(tensor, session.device))


def without_text(conditioning: Any, nothing: Any) -> Any:
    """The empty caption `nothing` with a conditioning's settings in BESIDE."""
    return [nothing[0], {**nothing[1], **_beside(conditioning)}]


def _beside(conditioning: Any) -> dict[str, Any]:
    return {name: conditioning[1][name] for name in BESIDE if name in conditioning[1]}


def _identified(conditioning: Any, nothing: Any) -> tuple[Any, Any]:
    """`without_text`, after a key that identifies it."""
    kept = _beside(conditioning)
    said = [value if isinstance(value, int | float) else id(value) for value in kept.values()]
    return (id(nothing), *zip(kept, said, strict=True)), without_text(conditioning, nothing)


def _parts(value: Any) -> list[Tensor | str]:
    """The tensors and texts in a value, in a fixed order."""
    if isinstance(value, Tensor):
        return [value]
    if getattr(value, "is_nested", False):
        return list(value.unbind())
    if isinstance(value, Mapping):
        table: Mapping[Any, Any] = value
        return [datum for name in sorted(table, key=str) for datum in _parts(table[name])]
    if isinstance(value, list | tuple):
        return [datum for inner in value for datum in _parts(inner)]
    return [repr(value)] if isinstance(value, str | bool | int | float) else []


def _singles(latents: Latents) -> Iterator[tuple[_Place, Any]]:
    """Each latent (1, C, ...) of lists and batches. A batch of nested latents is one sample."""
    for latent in latents:
        samples = latent["samples"]
        latents_alone = [samples] if getattr(samples, "is_nested", False) else samples.split(1)
        for index, single in enumerate(latents_alone):
            yield (id(samples), index), single


def _planes(mask: Tensor) -> list[tuple[_Place, Tensor]]:
    """Each mask (H, W) of a batch."""
    return [((id(mask), index), plane) for index, plane in enumerate(mask.reshape(-1, *mask.shape[-2:]))]


def _is_given(latent: Mapping[str, Any]) -> bool:
    """Whether a `noise_mask` marks what the model is given: it has frames, or its latent several parts."""
    mask, samples = latent.get(NOISE_MASK), latent["samples"]
    if getattr(samples, "is_nested", False) and mask is not None:
        return True
    return isinstance(mask, Tensor) and mask.ndim == samples.ndim == 5


def _given(latents: Latents, name: str) -> Iterator[tuple[_Place, list[Tensor]] | None]:
    """For each latent, the parts of a `noise_mask` that marks what the model is given, see `_is_given`."""
    for latent in latents:
        count = sum(1 for _ in _singles([latent]))
        mask: Any = latent.get(NOISE_MASK)
        if not _is_given(latent):
            yield from [None] * count
        elif getattr(latent["samples"], "is_nested", False):
            yield (id(mask), 0), list(mask.unbind()) if getattr(mask, "is_nested", False) else [mask]
        else:
            rows = [((id(mask), index), [row]) for index, row in enumerate(mask.split(1))]
            yield from _for_each(rows, count, NOISE_MASK, name)


def _noise_masks(latents: Latents, name: str) -> Iterator[tuple[_Place, Tensor] | None]:
    """The `noise_mask` of each latent, as Set Latent Noise Mask and VAE Encode (for Inpainting) give it."""
    for number, latent in enumerate(latents, 1):
        count = sum(1 for _ in _singles([latent]))
        mask = latent.get(NOISE_MASK)
        if mask is None or _is_given(latent):
            yield from [None] * count
            continue
        with _numbered(name, number, len(latents)):
            if not isinstance(mask, Tensor) or mask.ndim > 4:
                raise TrainError(
                    "E-latent-mask-unusable",
                    noise_mask=NOISE_MASK,
                    got=str(list(mask.shape)) if isinstance(mask, Tensor) else phrase("R-several-parts"),
                )
            yield from _for_each(_planes(mask), count, NOISE_MASK, name)


def _for_each(values: list[Any], count: int, what: str, name: str) -> list[Any]:
    """A value for each latent. Raises TrainError where their numbers differ, unless there is one for all."""
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise TrainError("E-captions-miscount", key=name, what=what, count=len(values), latents=count)
    return values


def masks_in_words(latents: Latents, masks: Sequence[Tensor], name: str) -> list[str]:
    """In words, how the `noise_mask` of latents is used; [] if there is none."""
    if not any(latent.get(NOISE_MASK) is not None and not _is_given(latent) for latent in latents):
        return []
    if masks:
        return [phrase("R-not-used-because-masks-linked", noise_mask=NOISE_MASK, name=name)]
    return [phrase("R-their-mask", noise_mask=NOISE_MASK, name=name)]


def guidance_in_words(family: Family, captions: Sequence[Any]) -> list[str]:
    """The guidance at which a model is trained and measured, if it has one, and that of the captions, which
    is not used there."""
    said = {settings.get("guidance") for caption in captions for _, settings in caption}
    others = said - {None, family.guidance}
    if family.guidance is None:
        return []
    line = phrase("R-losses-at-guidance-at-usually", guidance=family.guidance, name=family.name)
    if others:
        line += phrase("R-guidance-captions-sampling", str=sorted(map(str, others)))
    return [line]


def _size(sample: Sample) -> str:
    return " and ".join(" x ".join(map(str, shape[2:])) for shape in sample.latent.shapes)


def _numbered(name: str, number: int, count: int) -> located:
    """Name in errors which of several items it was."""
    return located(place=phrase("R-number", name=name, number=number, count=count))
