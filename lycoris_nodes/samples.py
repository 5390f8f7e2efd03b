"""From what the graph gives, latents, captions and masks in lists or batches, to what is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..lycoris_ops import LycorisError, TrainError
from .training import Caption, Sample, Session, batches_of, caption_of, latent_of, mask_of

Latents = Sequence[Mapping[str, Any]]
"""Of each link or member of a list, a batch of latents under `samples`."""
Captions = Sequence[Sequence[Any]]
"""Of each link or member of a list, a conditioning: mostly one text, of Resolution Bucket several."""


def samples_of(
    session: Session,
    latents: Latents,
    captions: Captions,
    *,
    masks: Sequence[Tensor] = (),
    empty: Captions = (),
    seed: int = 0,
    name: str = "latents",
) -> list[Sample]:
    """A sample for each latent, with its caption and mask; one caption or mask for all is used for all.

    `empty` is the caption of no text, which takes the place of others where captions are dropped. `name` is
    what the latents are called in errors.

    Raises TrainError where there is no latent, where the numbers differ, and for what cannot be trained on,
    with its number.
    """
    singles = list(_singles(latents))
    if not singles:
        raise TrainError("there are no latents", key=name, expected="at least one")
    count = len(singles)
    texts = _for_each([text for one in captions for text in one], count, "captions", name)
    flat = [mask for one in masks for mask in one.reshape(-1, *one.shape[-2:])]
    weights = _for_each(flat, count, "masks", name) if flat else [None] * count
    nothing = [text for one in empty for text in one]
    if len(nothing) > 1:
        raise TrainError("there is one caption of no text", key="empty_caption", got=f"{len(nothing)}")
    encoded = _Encoded(session.model, seed)
    found: list[Sample] = []
    for number, (single, text, weight) in enumerate(zip(singles, texts, weights, strict=True), 1):
        with _numbered(name, number, count):
            latent = latent_of(session.model, single, session.device)
        with _numbered("captions", number, count):
            caption = encoded(text, latent)
        with _numbered("masks", number, count):
            mask = None if weight is None else mask_of(session.model, weight, latent)
        without = encoded(nothing[0], latent) if nothing else None
        found.append(Sample(latent, caption, mask, without=without))
    return found


def epochs_of(samples: Sequence[Sample], size: int) -> Callable[[int], list[list[Sample]]]:
    """The batches of each epoch: all samples in another order, those of a batch in one pass of the model."""

    def epoch(number: int) -> list[list[Sample]]:
        mixed = [samples[index] for index in torch.randperm(len(samples)).tolist()]
        batches = [[mixed[index] for index in batch] for batch in batches_of(mixed, size)]
        # Else samples of one size would come one after another.
        return [batches[index] for index in torch.randperm(len(batches)).tolist()]

    return epoch


def batches_in_order(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """The samples in batches, always the same."""
    return [[samples[index] for index in batch] for batch in batches_of(samples, size)]


def described(samples: Sequence[Sample], size: int) -> str:
    """How many samples there are and of which sizes, in words, and what comes of batches of this size."""
    sizes = Counter(_size(sample) for sample in samples)
    listed = ", ".join(f"{words} x{count}" for words, count in sizes.most_common())
    batches = len(batches_of(samples, size))
    text = f"{len(samples)} latents ({listed}), batches in an epoch: {batches}"
    if size > 1 and batches == len(samples) > 1:
        text += f"; no two can be in one batch of {size}, because their sizes or captions differ in length"
    if masked := sum(sample.mask is not None for sample in samples):
        text += f"; {masked} with a mask"
    return text


class _Encoded:
    """Encodes captions, each once for latents of one size."""

    def __init__(self, model: Any, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._found: dict[tuple[Any, ...], Caption] = {}

    def __call__(self, text: Any, latent: Any) -> Caption:
        key = (id(text), latent.shapes)
        if key not in self._found:
            rows = getattr(text[0], "shape", (1,))[0]
            if rows != 1:
                raise TrainError("a caption is one text", got=f"{rows} in one conditioning", expected="1")
            self._found[key] = caption_of(self._model, [text], latent, seed=self._seed)
        return self._found[key]


def _singles(latents: Latents) -> Iterator[Any]:
    """Each latent (1, C, ...) of lists and batches. Of nested ones a batch is one sample."""
    for one in latents:
        samples = one["samples"]
        if getattr(samples, "is_nested", False):
            yield samples
        else:
            yield from samples.split(1)


def _for_each(values: list[Any], count: int, what: str, name: str) -> list[Any]:
    """A value for each latent. Raises TrainError where their numbers differ, unless there is one for all."""
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise TrainError(
            f"there are not as many {what} as latents",
            key=name,
            got=f"{len(values)} {what} and {count} latents",
            expected="one for each, or one for all",
        )
    return values


def _size(sample: Sample) -> str:
    return " and ".join(" x ".join(map(str, shape[2:])) for shape in sample.latent.shapes)


@contextmanager
def _numbered(name: str, number: int, count: int) -> Generator[None]:
    """Say in errors which one of several it is."""
    try:
        yield
    except LycorisError as error:
        where = f"{name}, number {number} of {count}"
        error.key = f"{where}: {error.key}" if error.key else where
        raise
