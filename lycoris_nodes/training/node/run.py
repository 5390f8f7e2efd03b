"""Run a training: open the models, prepare the data, make the network, train it, and report."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ....lycoris_ops import (
    WRITABLE,
    LycorisNetwork,
    MatchError,
    Race,
    Searched,
    Sketch,
    StepReport,
    TrainError,
    TrainOptions,
    TrainResult,
    faults_in_comfy,
    join_networks,
    paragraph,
    phrase,
    search_network,
    train_network,
)
from ...host.families.family import Family
from ...host.files import shown_path
from ...host.sampling import can_show, check_vae
from ...host.training import grid_of, ratios_of
from ...schema.inputs import AS_FAMILY
from ..data.captions import Text
from ..data.families import trained_family
from ..data.latents import has_pictures
from ..data.loss import DiffusionLoss, Sample
from ..data.samples import (
    described,
    epochs_of,
    guidance_in_words,
    judged,
    masks_in_words,
    samples_of,
    sketches_of,
)
from ..data.tags import metadata_of_captions
from ..data.texts import TextEncoder
from ..model.session import Session
from .experts import expert_in_words
from .live import Live, shown
from .memory import is_checkpointed, memory_advice, memory_for, within_memory
from .opening import opened_both
from .overrides import Sampling, arguments_of, overrides_of, sampled_as
from .previews import Previews, Prompt
from .report import (
    finished_in_words,
    left_in_words,
    loss_in_words,
    memory_in_words,
    rate_in_words,
    rescue_in_words,
    searched_in_words,
)
from .runs import ANEW, Run, check_room_for, differences
from .settings import (
    TEXT_PRESET,
    Asked,
    parts_of,
    rate_of,
    schedule_of,
    settings_of,
    start_of,
    text_rate_of,
    times_of,
)

DRAWS = 4
"""At how many evenly spaced times each held-out latent is judged, as in kohya-ss/sd-scripts."""
KEEP = 3
"""How many of the checkpoints of `checkpoint_every` are kept by default."""
SAMPLES, APART = 10, 50
"""How many pictures are sampled where a VAE is linked, and the fewest steps between two: a picture takes as
long as about 13 steps."""
SAMPLED = (
    *("latents", "positive", "captions", "masks", "empty_caption", "less", "more"),
    *("regularisation_latents", "regularisation_positive", "regularisation_captions"),
    *("validation_latents", "validation_positive", "validation_captions"),
)
"""The inputs of data. A stopped training is found by them too."""

PLACES = ("output", "state", "picture")
"""The paths of a result."""


@dataclass(frozen=True)
class FinishedTraining:
    """The result of a training."""

    result: TrainResult
    name: str
    report: str
    shown: Mapping[str, Any]
    """What the page draws of it."""
    race: Race | None
    """The search before it, if there was one."""

    @property
    def state(self) -> str:
        """How the report is marked, as in `with_report`."""
        history = self.result.history
        if history.verdict(self.result.saved)[0]:
            return "partly"
        return "all" if history.validation else "nothing"


@dataclass(frozen=True)
class Job:
    """What is asked of the training of one model."""

    asked: Asked
    run: Run
    """Where it begins or resumes."""
    because: str
    """Why the model is trained as this expert, see `trained_expert`."""
    data: Mapping[str, Sequence[Sketch]]
    """The `sketches_of_data`."""
    metadata: Mapping[str, str]
    """Of the file."""


DataOf = Callable[[Asked, Session, "TextEncoder | None", Live], list[Sample]]
"""Makes the samples to train on, once the model is open."""


def latents_with_captions(
    asked: Asked, session: Session, encoder: TextEncoder | None, live: Live
) -> list[Sample]:
    return samples_of(
        session,
        asked.latents,
        asked.positive,
        texts=asked.captions,
        encoder=encoder,
        masks=asked.masks,
        empty=asked.empty_caption,
        seed=asked.seed,
        tell=partial(live.stage, "captions"),
    )


def sketches_of_data(asked: Asked) -> dict[str, list[Sketch]]:
    """Sketches of the data, by which a stopped training is recognised."""
    return sketches_of(**{name: getattr(asked, name, ()) for name in SAMPLED})


@dataclass(frozen=True)
class Prepared:
    """The open model, the samples in its form, and their loss."""

    session: Session
    encoder: TextEncoder | None
    family: Family
    loss: DiffusionLoss
    samples: list[Sample]
    prior: list[Sample]
    """For regularisation."""
    held: list[Sample]
    steps: int


@dataclass(frozen=True)
class Built:
    """What is trained, and how."""

    network: LycorisNetwork
    options: TrainOptions
    text_rate: float | None
    """The rate of the text encoders, as a share of the model's."""
    searched: Searched
    apart: int
    """How many samples judged the search alone."""
    previews: Previews


def train(
    job: Job,
    tell: Callable[[dict[str, Any]], None],
    rescued: Callable[[str], None],
    data_of: DataOf,
    passes: int,
) -> FinishedTraining:
    """Train as asked, or resume the stopped training.

    `data_of` makes the samples; a batch of them takes the memory of
    `passes` passes of the model.

    `tell` gets the progress, see `Live`. `rescued` gets a text on what was saved when an exception or the
    user stops the training, because a node that does not finish has no output.

    Raises LycorisError for what cannot be trained, before the first step.
    """
    asked, run = job.asked, job.run
    arguments, sampled = arguments_of(asked.optimiser_args), sampled_as(asked.sample_settings)
    live = Live(tell, asked.steps)
    live.folder = run.folder
    live.other = run.other.run.output.stem if run.other else ""
    if run.state:
        live.resumed, live.history = run.state.step, run.state.history()
    live.stage("loading", 0, 0)
    advice = memory_advice(
        checkpointed=is_checkpointed(asked.model, asked.checkpointing),
        batch_size=asked.batch_size,
        encoder=asked.clip is not None,
        vae=asked.vae is not None,
        optimiser=asked.optimiser,
    )
    with within_memory(*advice), _opened(asked, passes) as (session, encoder):
        prepared = _prepare(asked, session, encoder, live, data_of)
        live.steps = prepared.steps
        built = _build(job, prepared, arguments, sampled, live)
        result = _loop(job, prepared, built, live, rescued)
        report = _report(job, prepared, built, result)
    # The network is in its file, and the next one may need the memory.
    result = replace(result, searched=None)
    drawn = shown(result.history, run.folder)
    return FinishedTraining(result, run.output.stem, report, drawn, built.searched.race)


def _prepare(
    asked: Asked, session: Session, encoder: TextEncoder | None, live: Live, data_of: DataOf
) -> Prepared:
    """Bring the samples into the form of the model."""
    family = trained_family(session.model)
    loss = DiffusionLoss(
        session=session,
        times=times_of(asked, family),
        weighting=asked.weighting,
        caption_dropout=asked.caption_dropout if encoder or asked.empty_caption else 0.0,
        noise_offset=asked.noise_offset,
        loss_type=asked.loss_type,
        delta=asked.huber_c,
        masked_prior=asked.masked_prior,
        encoder=encoder,
    )
    samples = data_of(asked, session, encoder, live)
    _check_samples(asked, session, samples[0].latent.shapes)
    knows = {"empty": asked.empty_caption, "weight": asked.prior_weight}
    # At a weight of 0 their steps would learn nothing.
    prior = (
        _beside(asked, session, encoder, "regularisation", "regularisation", **knows)
        if asked.prior_weight
        else []
    )
    # A single caption for all latents also serves the held-out ones.
    caption = asked.positive if sum(map(len, asked.positive)) == 1 else ()
    usual = (caption, asked.captions if len(asked.captions) == 1 else ())
    held = _beside(asked, session, encoder, "validation", "held-out", usual)
    steps = asked.steps
    if asked.epochs:
        with torch.random.fork_rng(devices=()):
            batches = epochs_of(samples, asked.batch_size, prior)(0)
        steps = asked.epochs * -(-len(batches) // asked.accumulation)
    return Prepared(session, encoder, family, loss, samples, prior, held, steps)


def _build(
    job: Job, prepared: Prepared, arguments: Mapping[str, Any], sampled: Sequence[Sampling], live: Live
) -> Built:
    """Make the network and the options of its training, or choose both by a search."""
    asked, run, steps = job.asked, job.run, prepared.steps
    session, encoder, held = prepared.session, prepared.encoder, prepared.held
    network, rate, text_rate = _network(asked, prepared.family, session, encoder)
    halves = [session.dtype, *([encoder.session.dtype] if encoder else [])]
    check_room_for(run.output, network, asked.keep if asked.checkpoint_every else 0)
    options = TrainOptions(
        steps=steps,
        optimiser=asked.optimiser,
        optimiser_options=arguments,
        lr=rate,
        lora_plus=asked.loraplus_ratio or None,
        weight_decay=asked.weight_decay,
        schedule=schedule_of(asked),
        warmup=asked.warmup,
        restarts=asked.restarts,
        search=asked.search,
        search_share=asked.search_share,
        accumulation=asked.accumulation,
        clip_norm=asked.max_grad_norm or None,
        max_weight_norm=asked.max_weight_norm or None,
        ema=asked.ema or None,
        scaled=torch.float16 in halves,
        data=job.data,
        settings=settings_of(asked),
        seed=asked.seed,
        validate_every=(asked.validate_every or max(1, steps // 10)) if held else None,
        saved=asked.saved,
        checkpoint_every=asked.checkpoint_every or None,
        keep=asked.keep,
        output=run.output,
        # The claimed folder of a new training holds no state, but perhaps what a killed one has left.
        overwrite=run.state is None,
        dialect=asked.dialect,
        dtype=WRITABLE[asked.dtype],
        # A user who wants no workflow in files wants no captions either.
        metadata=job.metadata and {**job.metadata, **metadata_of_captions(asked.positive)},
        bar=False,
        picture=False,
    )
    race_batches, judges, apart = _race_data(prepared.samples, held, prepared.prior, asked.batch_size)
    searched = search_network(
        network,
        race_batches,
        prepared.loss,
        options,
        steps=steps,
        validation=judges,
        resumed=run.state is not None,
        told=live.raced,
    )
    if searched.network is not network:
        # The session must remove it too.
        (encoder.session if encoder else session).networks.append(searched.network)
    options = replace(searched.options, search="off")
    previews = _previews(asked, prepared, searched.network, sampled, live, run.folder)
    return Built(searched.network, options, text_rate, searched, apart, previews)


def _loop(
    job: Job, prepared: Prepared, built: Built, live: Live, rescued: Callable[[str], None]
) -> TrainResult:
    """Train the network, and draw its samples meanwhile."""
    asked, run, steps, previews = job.asked, job.run, prepared.steps, built.previews
    epochs = epochs_of(prepared.samples, asked.batch_size, prepared.prior)

    def kept(path: Path, done: int) -> None:
        rescued(rescue_in_words(path, done, steps, chosen=bool(asked.resume_from)))

    def stepped(report: StepReport) -> None:
        live.stepped(report)
        # The last sample comes when the file is written.
        if report.step < steps and previews.due(report.step):
            previews.make(report.step)

    def batches(epoch: int) -> list[list[Sample]]:
        # Called for the first epoch once the network is in place.
        if run.state and asked.resume_from and not live.has_stepped:
            previews.forget_after(run.state.step)
        if previews.due(0) and not live.history.losses:
            with torch.random.fork_rng():
                previews.make(0)
        return epochs(epoch)

    held_out = judged(prepared.held, asked.batch_size, DRAWS)
    with _meant(run, job.data), previews.of_training():
        result = train_network(
            built.network,
            batches,
            prepared.loss,
            built.options,
            validation=(lambda epoch: live.counted("measuring", held_out)) if prepared.held else None,
            resume=(run.state.path if asked.resume_from else built.options.folder) if run.state else None,
            progress=stepped,
            validated=live.validated,
            rescued=kept,
        )
    if result.steps == steps and previews.due(steps):
        with _written(result, rescued):
            previews.make(steps)
    return result


def _report(job: Job, prepared: Prepared, built: Built, result: TrainResult) -> str:
    """What was trained, and how, in words."""
    asked, run, rough = job.asked, job.run, built.previews.rough
    changed = differences(run.state.settings, settings_of(asked)) if run.state else []
    samples, loss, family, size = prepared.samples, prepared.loss, prepared.family, asked.batch_size
    captions = [*asked.positive, *asked.regularisation_positive, *asked.validation_positive]
    left_out = asked.regularisation_latents and not asked.prior_weight
    paths = {name: shown_path(path) for name in PLACES if (path := getattr(result, name))}
    sought = searched_in_words(built.searched, built.apart)
    layers = (member.layer for member in built.network.members.values())
    masked = any(sample.mask is not None for sample in samples)
    return paragraph(
        [
            *str(replace(result, **paths)).splitlines(),
            *sought[:1],
            *expert_in_words(asked.expert, loss.times, job.because),
            *([phrase("R-went-on-other-settings", value="; ".join(changed))] if changed else []),
            *([left_in_words(run.other, job.data)] if run.other else []),
            *([phrase("R-began-beside-trains-name-now", beside=run.beside)] if run.beside else []),
            *guidance_in_words(family, captions),
            *masks_in_words(asked.latents, asked.masks, "latents"),
            *masks_in_words(asked.regularisation_latents, (), "regularisation_latents"),
            *([phrase("R-regularisation-latents-left-out-because")] if left_out else []),
            *masks_in_words(asked.validation_latents, (), "validation_latents"),
            *faults_in_comfy(layers, asked.dialect),
            *([phrase("R-samples-rough-vae-had-no", rough=rough)] if rough else []),
            phrase("R-train-further-raise-steps-turn"),
            # The box folds what follows an empty line.
            "",
            *sought[1:],
            phrase("R-model-defaults", name=family.name, source=family.source),
            phrase("R-data", samples=described(samples, size)),
            *([phrase("R-preserved", prior=described(prepared.prior, size))] if prepared.prior else []),
            *([phrase("R-held-out-2", held=described(prepared.held, size))] if prepared.held else []),
            phrase("R-rate", options=rate_in_words(built.options, built.text_rate)),
            phrase("R-loss", loss=loss_in_words(loss, masked=masked)),
            phrase("R-memory", session=memory_in_words(prepared.session, scaled=bool(built.options.scaled))),
            *built.network.report.splitlines(),
        ]
    )


@contextmanager
def _written(result: TrainResult, rescued: Callable[[str], None]) -> Generator[None]:
    """A context for what follows a whole training. Where it is stopped, the page is told of the file."""
    try:
        yield
    except BaseException:
        rescued(finished_in_words(result))
        raise


def _race_data(
    samples: Sequence[Sample], held: Sequence[Sample], prior: Sequence[Sample], size: int
) -> tuple[Callable[[int], list[list[Sample]]], list[list[Sample]], int]:
    """The batches of a race, those that judge it, and how many samples are set apart for judging.

    Held-out samples judge. Without them an eighth of the samples, at least one, is set apart to judge: only
    the training after the race sees these. If there are fewer than four samples, the race trains on all, and
    judges by all with other noise.
    """
    apart = 0 if held or len(samples) < 4 else max(1, len(samples) // 8)
    trained = samples[: len(samples) - apart]
    judges = held or samples[len(trained) :] or samples
    return epochs_of(trained, size, prior), judged(judges, size, DRAWS), apart


@contextmanager
def _meant(run: Run, data: Mapping[str, Sequence[Sketch]]) -> Generator[None]:
    """Add a hint to errors that say that the stopped training had another model or network."""
    try:
        yield
    except (MatchError, TrainError) as error:
        if run.state and error.file == str(run.state.path):
            # With text encoders all layers have other names.
            theirs, ours = (bool(sketches.get("captions")) for sketches in (run.state.data, data))
            same = phrase("R-give-same-inputs")
            if theirs is not ours:
                same = phrase("R-link-texts-again" if theirs else "R-unlink-texts-again")
            error.values["hint"] = phrase("R-training-resume", in_words=run.in_words, same=same, anew=ANEW)
        raise


def _opened(asked: Asked, passes: int) -> AbstractContextManager[tuple[Session, TextEncoder | None]]:
    """A context in which the model, and the text encoders if they are trained, are open for training."""
    for name in ("captions", "regularisation_captions", "validation_captions"):
        if getattr(asked, name) and asked.clip is None:
            raise TrainError("E-caption-texts-without-encoder", key=name)
    recompute = is_checkpointed(asked.model, asked.checkpointing)
    data = [*asked.latents, *asked.regularisation_latents, *asked.validation_latents]
    size = asked.batch_size * passes
    memory = memory_for(asked.model, data, size, captions=asked.positive, checkpointed=recompute)
    return opened_both(
        asked.model,
        asked.clip,
        memory=memory,
        recompute=recompute,
        precision=asked.precision,
        seed=asked.seed,
    )


def _beside(
    asked: Asked,
    session: Session,
    encoder: TextEncoder | None,
    kind: str,
    called: str,
    usual: tuple[Any, Any] = ((), ()),
    **how: Any,
) -> list[Sample]:
    """The samples from the inputs `<kind>_latents` and its captions; none without these latents.

    `called` names the kind in errors. `usual` are encoded captions and texts for a kind without its own.
    """
    latents, captions, texts = (
        getattr(asked, f"{kind}_{suffix}") for suffix in ("latents", "positive", "captions")
    )
    if not latents and (captions or texts):
        captions_input = "positive" if captions else "captions"
        raise TrainError("E-captions-without-latents", key=f"{kind}_{captions_input}", called=called)
    if not latents:
        return []
    captions, texts = captions or usual[0], texts or usual[1]
    name = f"{kind}_latents"
    return samples_of(
        session, latents, captions, texts=texts, encoder=encoder, seed=asked.seed, name=name, **how
    )


def _network(
    asked: Asked, family: Family, session: Session, encoder: TextEncoder | None
) -> tuple[LycorisNetwork, float | None, float | None]:
    """The network, its learning rate, and the text encoders' rate as a share of that."""
    start, overrides = start_of(asked.stack, asked.model, asked.clip), overrides_of(asked.overrides)
    of_text = None
    if start and encoder:
        start, of_text = parts_of(start, asked.model, asked.clip)
    fresh: dict[str, Any] = {"algorithm": asked.algorithm, "rank": asked.rank or family.rank}
    origin = fresh if asked.plan is None and start is None else {"plan": asked.plan, "weights": start}
    rate = rate_of(asked, family, origin)
    shared: dict[str, Any] = {
        "seed": asked.seed,
        **{name: getattr(asked, name) for name in ("input_dropout", "rank_dropout", "module_dropout")},
        **({"alpha": asked.alpha} if asked.alpha else {}),
        # A magnitude for each output, as PEFT and the paper have it.
        **({"dora": "output"} if asked.dora else {}),
    }
    # A plan or a file already says which modules are trained.
    usual = (family.preset, family.include) if origin is fresh else (None, ())
    preset, include = usual if asked.preset == AS_FAMILY else (asked.preset, ())
    network = session.adapted(
        preset=preset,
        include=[*include, *asked.include.split()],
        exclude=asked.exclude.split(),
        overrides=overrides,
        **shared,
        **origin,
    )
    if encoder is None:
        return network, rate, None
    share = text_rate_of(asked, rate)
    own: dict[str, Any] = {"preset": TEXT_PRESET, **fresh} if of_text is None else {"weights": of_text}
    texts = encoder.adapted(lr=share, **shared, **own)
    # The encoders' session ends first, so it removes this network, and only then restores flags.
    joined = join_networks({"diffusion_model": network, "text_encoders": texts})
    encoder.session.networks.append(joined)
    return joined, rate, share


def _check_samples(asked: Asked, session: Session, shapes: Sequence[torch.Size]) -> None:
    """Raise TrainError if samples on the way are asked for and could not be shown."""
    if asked.vae is None and not asked.sample_every:
        return
    if has_pictures(shapes) and can_show(session.patcher, asked.vae):
        if asked.vae is not None:
            check_vae(asked.vae, shapes[0])
        return
    raise TrainError(
        "E-samples-not-shown"
        if asked.vae is not None or not has_pictures(shapes)
        else "E-samples-not-decoded",
        key="sample_every" if asked.vae is None else "vae",
        got=type(session.model).__name__,
    )


def _previews(
    asked: Asked,
    prepared: Prepared,
    network: LycorisNetwork,
    settings: Sequence[Sampling],
    live: Live,
    folder: Path,
) -> Previews:
    session, encoder, samples = prepared.session, prepared.encoder, prepared.samples
    # The first of several captions in one conditioning.
    first = asked.positive[0][:1]
    empty = asked.empty_caption[0] if asked.empty_caption else None

    def said() -> list[Any]:
        return encoder.conditioning(Text(asked.captions[0], first[0][1])) if encoder else first

    def nothing() -> list[Any]:
        return encoder.conditioning(Text("", first[0][1])) if encoder else empty or first

    texts = [lambda text=text: text for text in asked.sample_positive] or [said]
    shapes = samples[0].latent.shapes
    strengths = sorted(sample.strength for sample in (samples[0], *samples[0].others))
    prompts = _prompts(asked, session, texts, settings, shapes)
    if not asked.sample_positive and prompts[0].shapes == shapes:
        # The first caption, and what its clip gives to the model.
        prompts = [replace(prompts[0], given=samples[0].latent)]
    return Previews(
        session=session,
        network=network,
        every=asked.sample_every or (max(prepared.steps // SAMPLES, APART) if asked.vae is not None else 0),
        steps=prepared.steps,
        told=partial(live.stage, "sampling"),
        folder=folder,
        prompts=[replace(prompt, strength=strength) for prompt in prompts for strength in strengths],
        negative=nothing if encoder or empty else None,
        vae=asked.vae,
    )


def _prompts(
    asked: Asked,
    session: Session,
    texts: Sequence[Callable[[], list[Any]]],
    settings: Sequence[Sampling],
    shapes: Sequence[torch.Size],
) -> list[Prompt]:
    """The prompts with their seeds and sizes. Raises TrainError for a size that the model cannot make."""
    if len(settings) > len(texts):
        raise TrainError(
            "E-sample-lines-too-many", key="sample_settings", lines=len(settings), prompts=len(texts)
        )
    settings = [*settings, *[(None, None)] * (len(texts) - len(settings))]
    grid, pixels = grid_of(session.model), ratios_of(session.model)[2]
    prompts: list[Prompt] = []
    for number, (text, (seed, size)) in enumerate(zip(texts, settings, strict=True), 1):
        own = shapes
        if size:
            if any(side % grid or not side for side in size):
                raise TrainError(
                    "E-size-not-for-model",
                    key=phrase("R-sample-settings-line", number=number),
                    grid=grid,
                    got="{} x {}".format(*size),
                )
            first, *others = shapes
            own = [torch.Size((*first[:-2], size[1] // pixels, size[0] // pixels)), *others]
        prompts.append(Prompt(text, own, asked.seed if seed is None else seed))
    return prompts
