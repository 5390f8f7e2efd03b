"""The loss of a diffusion model, as the library's trainer calls it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ....lycoris_ops import TrainError, phrase
from ...host.families.times import Times
from ...host.page import end_if_interrupted
from ...host.sampling import ends_in_noise
from ...host.training import tokens_of, with_given
from ..model.session import Session
from .captions import Caption, joined
from .latents import Latent, means
from .losses import LOSSES
from .targets import noised, parametrisation_of, rows, sigma_at, weight_on_denoised
from .texts import TextEncoder


@dataclass(frozen=True, eq=False)
class Guide:
    """A target in place of a latent: the model's own prediction, moved towards that for another caption, see
    `DiffusionLoss`. Strengths below 0 move towards `less`, and those above 0 towards `more`."""

    less: Caption
    more: Caption
    by: float
    """How far the target moves at strengths -1 and 1: with 1, to the prediction for the other caption."""

    def goes_with(self, other: Guide) -> bool:
        """Whether both can guide rows of one batch."""
        return self.by == other.by and self.less.goes_with(other.less) and self.more.goes_with(other.more)


@dataclass(frozen=True, eq=False)
class Sample:
    """A latent with its caption, and how it is trained on."""

    latent: Latent
    caption: Caption
    mask: Tensor | None = None
    """How much each place counts, (1, 1, ..., h, w), see `mask_of`."""
    weight: float = 1.0
    """How much the sample counts in the loss, such as less than 1 for regularisation."""
    without: Caption | None = None
    """The empty caption, which replaces the caption where it is dropped."""
    share: float | None = None
    """The quantile of the times for a validation, see `Times.at`; None where the time is drawn."""
    strength: float = 1.0
    """The factor of the adapter's strength in its pass."""
    guide: Guide | None = None
    """The target in place of the latent."""
    others: tuple[Sample, ...] = ()
    """Samples learned in the same step, at the same time and noise, each at its own strength: other latents
    of the same size or, with a guide, the same latent and guide."""

    def goes_with(self, other: Sample) -> bool:
        """Whether both can be rows of one batch."""
        if (self.guide is None) is not (other.guide is None) or len(self.others) != len(other.others):
            return False
        return (
            self.latent.shapes == other.latent.shapes
            and self.strength == other.strength
            and self.caption.goes_with(other.caption)
            and (self.guide is None or other.guide is None or self.guide.goes_with(other.guide))
            and all(own.goes_with(another) for own, another in zip(self.others, other.others, strict=True))
        )


@dataclass(frozen=True, kw_only=True)
class DiffusionLoss:
    """`loss(module, samples)`: the weighted loss of the model's predictions, averaged over the samples.

    Samples are on the CPU; each batch is moved to the model. With `encoder`, captions that have a text are
    encoded in each pass, so that gradients reach the text encoders.

    All random numbers come from torch's generator of the CPU. Those of a validation are always the same (see
    `Trainer`). A batch takes one pass of the model for each group of samples that fit together: a sample's
    prediction is the same as when it is alone.

    The target of a sample with a guide comes from the model without the adapter, at the same noised latent:
    D(caption) + |strength| * by * (D(end) - D(caption)), where the end is `more` at strengths above 0 and
    `less` below (Gandikota et al., "Erasing concepts from diffusion models", 2303.07345, equation 7, with the
    other sign and the caption in place of the empty one; p1atdev/LECO calls it enhancing). "Concept sliders"
    (2311.12092, equation 8) take D(more) - D(less) at both ends. Where the model's path from one caption to
    the other is curved, that goes past what the captions show. The papers state their formulas for the noise.
    They hold for the denoised latent D too, because it is linear in the network's output.

    A sample with `others` and no guide is a row of opposed latents x_i at strengths s_i, noised to z_i. Their
    targets are x_i - a. The model without the adapter, D, makes errors x_i - D(z_i), and a is what the error
    would be at strength 0, where the slider changes nothing:

        a = sum_i w_i (x_i - D(z_i)), with the weights w of `_at_zero`

    So errors that the model makes alike at all latents of a row are not learned. The visual sliders of
    "Concept sliders" learn the latents x_i themselves.

    The loss of a sample with `others` is the mean over all of them. In a row of opposed latents each counts
    by the square of its strength, s_i^2 / mean(s^2), because the farthest are the hardest to reach.

    `noise_offset` is the factor of added noise that is constant in each channel, so that brightness is
    learned. It is for models that predict noise or v (kohya-ss/sd-scripts), and whose last step is not pure
    noise.

    Raises TrainError for a noise offset that does not suit the model, and for values out of range. If the
    user has interrupted the run, a call raises the host's own exception before it computes anything.
    """

    session: Session
    times: Times
    weighting: str = "none"
    """One of `WEIGHTINGS`."""
    caption_dropout: float = 0.0
    """The share of captions that are replaced by `Sample.without`, where there is one."""
    noise_offset: float = 0.0
    loss_type: str = "l2"
    """One of `LOSSES`."""
    delta: float = 0.1
    """The `delta` of these losses, above 0."""
    masked_prior: float = 0.0
    """How much the masked-out part counts. Its target is the prediction without the adapter
    (Nerogar/OneTrainer's masked prior preservation). A pass with a mask then becomes two."""
    encoder: TextEncoder | None = None

    def __post_init__(self) -> None:
        kind = parametrisation_of(self._sampling)
        noise_alone = ends_in_noise(self._sampling)
        if self.noise_offset and ("flow" in kind.name or noise_alone):
            raise TrainError(
                "E-noise-offset-not-for-model",
                key="noise_offset",
                got=phrase("R-model-2", name=kind.name)
                + (f" {phrase('R-learns-brightness-from-last-step')}" if noise_alone else ""),
            )
        if self.loss_type == "huber" and self.delta <= 0:
            raise TrainError("E-huber-from-0", key="huber_c", got=f"{self.delta:g}")
        if not 0 <= self.caption_dropout <= 1 or self.noise_offset < 0:
            raise TrainError(
                "E-share-out-of-range", caption_dropout=self.caption_dropout, noise_offset=self.noise_offset
            )

    @property
    def _sampling(self) -> Any:
        # Read in each pass: a patch of the model may replace it.
        return self.session.model.model_sampling

    def __call__(self, module: Any, samples: Sequence[Sample]) -> Tensor:
        """The loss, a scalar. The `module` of the adapters is not used."""
        end_if_interrupted()
        total = torch.zeros((), device=self.session.device)
        with self.encoder.one_pass() if self.encoder else nullcontext():
            drawn = [self._draw(sample) for sample in samples]
            for kind in _kinds([draw.sample for draw in drawn]):
                total = total + self._of([drawn[number] for number in kind]).sum()
        return total / len(samples)

    def _draw(self, sample: Sample) -> _Drawn:
        latent = sample.latent.values
        # Of several parts, those of the video count, as for sampling.
        tokens = tokens_of(self.session.model, sample.latent.shapes[0])
        share = torch.rand(1) if sample.share is None else torch.tensor([sample.share])
        time = self.times.at(share, tokens)
        noise = torch.randn(latent.shape)
        if self.noise_offset:
            channels = torch.randn((*latent.shape[:2], *(1 for _ in latent.shape[2:])))
            noise = noise + self.noise_offset * channels
        dropped = bool(torch.rand(()) < self.caption_dropout) and sample.without is not None
        caption = sample.without if dropped and sample.without else sample.caption
        if self.encoder and caption.text:
            caption = self.encoder.caption(caption.text, sample.latent)
        return _Drawn(replace(sample, caption=caption), time, noise)

    def _of(self, group: Sequence[_Drawn]) -> Tensor:
        """The weighted losses (B,) of samples that go with each other."""
        sigma = sigma_at(self._sampling, self._here(torch.cat([draw.time for draw in group])))
        noise = self._here(torch.cat([draw.noise for draw in group]))
        columns = list(zip(*((draw.sample, *draw.sample.others) for draw in group), strict=True))
        latents = [self._here(torch.cat([draw.latent.values for draw in column])) for column in columns]
        seen = [self._seen(*each, noise, sigma) for each in zip(columns, latents, strict=True)]
        wanted, alone, counts = latents, [None] * len(columns), [1.0] * len(columns)
        if columns[0][0].guide is not None:
            wanted, alone = self._guided(columns, seen[0], sigma)
        elif len(columns) > 1:
            at = [column[0].strength for column in columns]
            counts = _counts(at)
            captions = ([sample.caption for sample in column] for column in columns)
            alone = [self._alone(*each, sigma) for each in zip(captions, seen, strict=True)]
            wanted = _opposed(at, latents, alone)
        passes = zip(columns, seen, wanted, alone, strict=True)
        losses = [count * self._pass(*each, sigma) for count, each in zip(counts, passes, strict=True)]
        unit = weight_on_denoised(self._sampling, sigma)
        weight = weight_on_denoised(self._sampling, sigma, self.weighting) / unit
        return weight * torch.stack(losses).mean(0)

    def _seen(self, column: Sequence[Sample], latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """The noised latents (B, ...) of some samples, as the model takes them."""
        x = noised(self._sampling, sigma, noise, latent)
        mask = _rows([sample.latent.noise_mask for sample in column], latent[:1, :1])
        return (
            x if mask is None else with_given(self.session.model, x, sigma, noise, latent, self._here(mask))
        )

    def _pass(
        self, column: Sequence[Sample], x: Tensor, wanted: Tensor, alone: Tensor | None, sigma: Tensor
    ) -> Tensor:
        """The losses (B,) of one pass, of samples at one strength; `alone` as from `_alone`, if known."""
        captions = [sample.caption for sample in column]
        conds = self._conds(captions)
        with self.session.scaled(column[0].strength):
            predicted = self.session.prediction(x, sigma, conds)
        own = self._here(torch.tensor([sample.weight for sample in column]))
        # Weighted before the square: at a small sigma the square alone is tiny, and its weight huge.
        unit = rows(weight_on_denoised(self._sampling, sigma).sqrt(), x)
        values = LOSSES[self.loss_type]((predicted - wanted) * unit, self.delta)
        like, shapes = x[:1, :1], column[0].latent.shapes
        mask = _rows([sample.mask for sample in column], like)
        made_there = _rows([sample.latent.noise_mask for sample in column], like)
        if mask is None and made_there is None:
            return own * means(values, shapes, None)
        mask, made_there = (
            self._here(torch.ones_like(like) if weights is None else weights)
            for weights in (mask, made_there)
        )
        # Parts that the model is given are not learned.
        learned = mask * made_there
        loss = means(values, shapes, learned)
        outside = (1 - mask.clamp(max=1)) * made_there
        if self.masked_prior and outside.any():
            apart = (predicted - (self._alone(captions, x, sigma) if alone is None else alone)) * unit
            kept = LOSSES[self.loss_type](apart, self.delta)
            # The same divisor as within the mask, so that a place outside counts as much as one inside.
            loss = loss + self.masked_prior * means(kept, shapes, outside, learned)
        return own * loss

    def _guided(
        self, columns: Sequence[Sequence[Sample]], x: Tensor, sigma: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The targets of guided samples at x (B, ...), and what `_alone` gives, for each strength."""
        guides = [sample.guide for sample in columns[0] if sample.guide is not None]
        said = (
            [sample.caption for sample in columns[0]],
            [guide.less for guide in guides],
            [guide.more for guide in guides],
        )
        own, less, more = (self._alone(captions, x, sigma) for captions in said)
        at = [column[0].strength for column in columns]
        wanted = [own + abs(each) * guides[0].by * ((more if each > 0 else less) - own) for each in at]
        return wanted, [own] * len(columns)

    def _alone(self, captions: Sequence[Caption], x: Tensor, sigma: Tensor) -> Tensor:
        """The prediction at x (B, ...) without the adapters in training."""
        with torch.no_grad(), self.session.scaled(0.0):
            return self.session.prediction(x, sigma, self._conds(captions))

    def _conds(self, captions: Sequence[Caption]) -> Any:
        return joined([caption.moved(self._here) for caption in captions])

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.session.device, non_blocking=True)


def _counts(at: Sequence[float]) -> list[float]:
    """How much the latent at each strength counts, with a mean of 1."""
    mean = sum(each**2 for each in at) / len(at)
    return [each**2 / mean for each in at]


def _opposed(at: Sequence[float], latents: Sequence[Tensor], alone: Sequence[Tensor]) -> list[Tensor]:
    """The targets of rows of latents (B, ...), one for each strength."""
    triples = zip(_at_zero(tuple(at)), latents, alone, strict=True)
    shared = sum(weight * (latent - own) for weight, latent, own in triples)
    return [latent - shared for latent in latents]


@lru_cache(maxsize=16)
def _at_zero(strengths: tuple[float, ...]) -> list[float]:
    """The weight of the value at each strength in a least-squares curve's value at strength 0.

    The curve is a parabola, which takes nothing that is alike at both signs, such as the growth of an area on
    both sides, for an error at 0. Where its value at 0 would be less certain than one of the values is (the
    squares of the weights sum to more than 1), and for two strengths, it is a line.
    """
    powers = torch.tensor(strengths, dtype=torch.float64)[:, None] ** torch.arange(3)
    line, parabola = (torch.linalg.pinv(powers[:, :count])[0] for count in (2, 3))
    fits = len(set(strengths)) > 2 and float(parabola.square().sum()) <= 1
    return (parabola if fits else line).tolist()


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A sample with the caption, the time and the noise of one pass."""

    sample: Sample
    time: Tensor
    noise: Tensor


def _kinds(samples: Sequence[Sample], most: int | None = None) -> list[list[int]]:
    """Groups of samples, by number. Each goes with the first `most` samples of its group; None: with all."""
    kinds: list[list[int]] = []
    for number, sample in enumerate(samples):
        fitting = (kind for kind in kinds if all(sample.goes_with(samples[other]) for other in kind[:most]))
        kind = next(fitting, None)
        if kind is None:
            kinds.append([number])
        else:
            kind.append(number)
    return kinds


def _rows(masks: Sequence[Tensor | None], like: Tensor) -> Tensor | None:
    """Masks as rows of one tensor, each in the shape of `like` (1, 1, ...); all 1 if a sample has none."""
    if all(mask is None for mask in masks):
        return None
    return torch.cat([torch.ones(like.shape) if mask is None else mask.expand(like.shape) for mask in masks])


def batches_of(samples: Sequence[Sample], size: int) -> list[list[int]]:
    """Batches of at most `size` samples, by number, that fit in one pass of the model.

    Batches of one kind follow each other. The caller shuffles them. A sample is compared with only
    one of its kind, so that many samples take little time; the loss compares all samples of a batch.
    """
    return [kind[start : start + size] for kind in _kinds(samples, 1) for start in range(0, len(kind), size)]
