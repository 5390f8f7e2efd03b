"""The node Train LoRA / LyCORIS."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from PIL.Image import Image

from ...lycoris_ops import (
    ALGORITHMS,
    WRITABLE,
    WRITTEN,
    Adapter,
    Entry,
    History,
    LycorisError,
    Plan,
    Stack,
    StepReport,
    TrainError,
    TrainOptions,
    load_adapter,
    optimisers,
    paragraph,
    schedules,
    train_network,
    trainable,
)
from ..host import file_tensors, io, progress, shown_pictures, workflow_metadata
from ..inputs import checked
from ..overrides import EXAMPLE, overrides_of
from ..pictures import beside, curves, picture_tensor
from ..previews import Previews
from ..room import checkpointing_input, is_checkpointed, memory_for
from ..runs import adapter_path, check_room, resumed_path
from ..samples import batches_in_order, described, epochs_of, samples_of
from ..training import (
    DISTRIBUTIONS,
    WEIGHTINGS,
    DiffusionLoss,
    Family,
    Sample,
    Session,
    Times,
    Weighting,
    family_of,
    opened,
)
from ..wires import (
    AS_FAMILY,
    CATEGORY,
    PLAN,
    choice_inputs,
    mask_input,
    report_output,
    seed_input,
    stack_input,
    stack_output,
    training_inputs,
    with_report,
)

FAMILY_RATED = ("adamw", "adamw8bit", "muon")
"""The optimisers whose usual rates are those of the families of models. Others have rates of their own."""
DRAWS = 4
"""How many noises and times each held-out latent is judged at."""
KEEP = 3
"""How many of the checkpoints of every so many steps are kept."""
PREVIEW = 1.0
"""Seconds between two pictures of the curves on the node."""


class LycorisTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisTrain",
            display_name="Train LoRA / LyCORIS",
            category=CATEGORY,
            description="Trains a LoRA / LyCORIS of any kind on latents and captions, for any model. The "
            "file is saved in the output folder, and the stack goes straight into Apply LyCORIS Stack. Stop "
            "keeps what was learned.",
            search_aliases=[
                *("train lora", "lora training", "lora trainer", "fine-tune", "dreambooth", "train style"),
                *("train lokr", "train loha"),
            ],
            is_output_node=True,
            is_input_list=True,
            inputs=[*training_inputs("train for"), *_usual_inputs(), *_more_links(), *_advanced_inputs()],
            outputs=[
                stack_output("The trained LoRA / LyCORIS at strength 1, for Apply LyCORIS Stack."),
                io.Custom("LORA_MODEL").Output(
                    "lora",
                    display_name="lora",
                    tooltip="The same for ComfyUI's own Load LoRA Model and Save LoRA Weights.",
                ),
                io.Custom("LOSS_MAP").Output(
                    "loss_map", display_name="loss_map", tooltip="All losses, for ComfyUI's Plot Loss Graph."
                ),
                io.Image.Output(
                    "curves", display_name="curves", tooltip="A picture of the losses over the steps."
                ),
                io.Int.Output(
                    "steps_done",
                    display_name="steps",
                    tooltip="How many steps were made, in all runs together.",
                ),
                io.String.Output("path", display_name="path", tooltip="The full path of the saved file."),
                report_output(),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    @checked
    def execute(
        cls,
        *,
        model: Any,
        latents: Sequence[Mapping[str, Any]],
        positive: Sequence[Any],
        steps: int,
        learning_rate: float,
        algorithm: str,
        rank: int,
        filename_prefix: str,
        resume: bool,
        seed: int,
        preset: str,
        include: str,
        exclude: str,
        overrides: str,
        optimiser: str,
        schedule: str,
        warmup: float,
        batch_size: int,
        accumulation: int,
        times: str,
        shift: float,
        weighting: str,
        caption_dropout: float,
        noise_offset: float,
        max_weight_norm: float,
        ema: float,
        checkpointing: str,
        validate_every: int,
        checkpoint_every: int,
        sample_every: int,
        dialect: Any,
        dtype: str,
        plan: Plan | None = None,
        stack: Stack | None = None,
        masks: Sequence[Any] = (),
        empty_caption: Sequence[Any] = (),
        validation_latents: Sequence[Mapping[str, Any]] = (),
        validation_positive: Sequence[Any] = (),
    ) -> io.NodeOutput:
        start, settings = _start_of(stack), overrides_of(overrides)
        output = (resumed_path if resume else adapter_path)(filename_prefix, dialect)
        recompute = is_checkpointed(model, checkpointing)
        memory = memory_for(model, latents, batch_size, checkpointed=recompute)
        with opened(model, checkpointing=recompute, memory=memory) as session:
            family = family_of(session.model)
            loss = DiffusionLoss(
                session=session,
                times=_times(family, times, shift),
                weighting=Weighting(weighting),
                caption_dropout=caption_dropout if empty_caption else 0.0,
                noise_offset=noise_offset,
            )
            samples = samples_of(session, latents, positive, masks=masks, empty=empty_caption, seed=seed)
            held = _held_out(session, validation_latents, validation_positive, positive, seed)
            given: dict[str, Any] = {"algorithm": algorithm, "rank": rank or family.rank}
            if plan is not None or start is not None:
                given = {"plan": plan, "weights": start}
            network = session.adapted(
                preset=_preset(preset, family, given),
                include=include.split(),
                exclude=exclude.split(),
                overrides=settings,
                seed=seed,
                **given,
            )
            check_room(output, network, KEEP if checkpoint_every else 0)
            options = TrainOptions(
                steps=steps,
                optimiser=optimiser,
                lr=learning_rate or _usual_rate(family, optimiser, given),
                schedule=schedule,
                warmup=warmup,
                accumulation=accumulation,
                max_weight_norm=max_weight_norm or None,
                ema=ema or None,
                seed=seed,
                validate_every=(validate_every or max(1, steps // 10)) if held else None,
                checkpoint_every=checkpoint_every or None,
                keep=KEEP,
                output=output,
                dialect=dialect,
                dtype=WRITABLE[dtype],
                metadata=workflow_metadata(cls.hidden),
                bar=False,
                picture=False,
            )
            previews = Previews(
                session=session,
                network=network,
                every=sample_every,
                folder=Path(str(options.folder)),
                like=samples[0].latent,
                captions=positive,
                empty=empty_caption,
                seed=seed,
            )
            live = _Live(steps, previews)
            result = train_network(
                network,
                epochs_of(samples, batch_size),
                loss,
                options,
                validation=batches_in_order(held, batch_size) * DRAWS if held else None,
                resume=options.last_state if resume else None,
                progress=live.stepped,
                validated=live.validated,
            )
            report = paragraph(
                [
                    *str(result).splitlines(),
                    f"model: {family.name}; defaults of {family.source}",
                    f"data: {described(samples, batch_size)}",
                    *([f"held out: {described(held, batch_size)}"] if held else []),
                    f"rate: {_in_words(options)}",
                    f"loss: {_loss_in_words(loss)}",
                    f"memory: {_memory_in_words(session)}",
                    *network.report.splitlines(),
                ]
            )
        picture = picture_tensor(curves(result.history, result.steps, output.stem))
        # PEFT's file is in a folder.
        path = str(result.output)
        return with_report(
            Stack([Entry(load_adapter(path))]),
            file_tensors(path),
            {
                "loss": [value for _, value in result.history.losses],
                # ComfyUI's nodes pass over it.
                "validation": list(result.history.validation),
            },
            picture,
            result.steps,
            path,
            report=report,
            shown=shown_pictures(picture, cls),
        )


def _usual_inputs() -> list[Any]:
    """The settings that most users look at."""
    return [
        io.Int.Input(
            "steps",
            default=1000,
            min=1,
            max=1_000_000,
            tooltip="How many updates of the weights. 1000 to 2000 are usual for 10 to 50 pictures.",
        ),
        io.Float.Input(
            "learning_rate",
            default=0.0,
            min=0.0,
            max=10.0,
            step=0.000001,
            tooltip="How far each step goes. 0: as is usual for the model, the algorithm and the optimiser. "
            "Too high a rate spoils pictures or ends in an error, too low a rate learns little.",
        ),
        io.Combo.Input(
            "algorithm",
            # Norms get their own kind wherever they are included.
            options=[name for name in trainable() if name != "norm"],
            default="lora",
            tooltip="The kind of adapter. lora is read by every tool; lokr is the smallest; loha, oft, boft "
            "and others behave differently. A plan or a stack has its own.",
        ),
        io.Int.Input(
            "rank",
            default=0,
            min=0,
            max=4096,
            tooltip="The size of each layer: more can hold more detail and makes a larger file. 0: as is "
            "usual for the model. alpha is always the rank.",
        ),
        io.String.Input(
            "filename_prefix",
            default="loras/trained",
            tooltip="The name of the training in the output folder; a number is added, and no file is "
            "overwritten. Its checkpoints are in a folder beside the file.",
        ),
        io.Boolean.Input(
            "resume",
            default=False,
            tooltip="On: go on with the latest training of this name that was stopped, exactly as if it had "
            "not been. Or with a finished one, for more steps. All other settings must be as before.",
        ),
        seed_input("What all chance is made of: the same seed and inputs give the same file."),
    ]


def _more_links() -> list[Any]:
    """What can be linked beside the data."""
    return [
        PLAN.Input(
            "plan",
            optional=True,
            tooltip="The layers, algorithms and ranks from Plan LyCORIS Ranks, in place of those set here.",
        ),
        stack_input(
            optional=True,
            tooltip="An adapter to go on from, of any tool: its layers, algorithms and ranks stay. A new "
            "file is written.",
        ),
        mask_input(),
        io.Conditioning.Input(
            "empty_caption",
            optional=True,
            tooltip="The encoded empty text. With it, captions are dropped now and then, which keeps CFG "
            "working well.",
        ),
        io.Latent.Input(
            "validation_latents",
            optional=True,
            tooltip="Latents that are not trained on. Their loss tells whether what is learned holds beyond "
            "the pictures that it is learned from.",
        ),
        io.Conditioning.Input(
            "validation_positive",
            optional=True,
            tooltip="The captions of the held-out latents, one for each, or one for all. Without them those "
            "of `positive`, if it is one for all.",
        ),
    ]


def _advanced_inputs() -> list[Any]:
    """The settings that the front end folds away."""
    return [
        *choice_inputs(),
        io.String.Input(
            "overrides",
            default="",
            multiline=True,
            optional=True,
            advanced=True,
            tooltip=f"Other settings for some layers, one line for each pattern: `{EXAMPLE}`.",
        ),
        io.Combo.Input(
            "optimiser",
            options=sorted(optimisers()),
            default="adamw",
            optional=True,
            advanced=True,
            tooltip="How steps are made of gradients. adamw needs nothing installed. prodigy finds the "
            "learning rate itself; it, schedulefree and adamw8bit need packages of their own.",
        ),
        io.Combo.Input(
            "schedule",
            options=list(schedules()),
            default="constant",
            optional=True,
            advanced=True,
            tooltip="How the learning rate falls over the steps.",
        ),
        io.Float.Input(
            "warmup",
            default=0.05,
            min=0.0,
            max=100_000.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="Steps in which the learning rate rises at the start. Below 1 it is a share of all "
            "steps.",
        ),
        io.Int.Input(
            "batch_size",
            default=1,
            min=1,
            max=1024,
            optional=True,
            advanced=True,
            tooltip="Latents in one pass of the model, of those that have one size. More is smoother and "
            "takes more memory.",
        ),
        io.Int.Input(
            "accumulation",
            default=1,
            min=1,
            max=1024,
            optional=True,
            advanced=True,
            tooltip="Batches in one step. As smooth as larger batches, in the memory of one.",
        ),
        io.Combo.Input(
            "times",
            options=[AS_FAMILY, *(name for name in DISTRIBUTIONS if name != "sigmoid")],
            default=AS_FAMILY,
            optional=True,
            advanced=True,
            tooltip="How much noise is trained at. auto: as is usual for the model. uniform: all amounts "
            "equally. logit-normal: mostly those in the middle.",
        ),
        io.Float.Input(
            "shift",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            optional=True,
            advanced=True,
            tooltip="Moves training towards more noise where above 1. 0: as is usual for the model.",
        ),
        io.Combo.Input(
            "weighting",
            options=list(WEIGHTINGS),
            default="none",
            optional=True,
            advanced=True,
            tooltip="How much the loss counts at each amount of noise. none is what most trainers do. "
            "min-snr and debiased are for Stable Diffusion and SDXL.",
        ),
        io.Float.Input(
            "caption_dropout",
            default=0.1,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="The share of captions that are left out, if `empty_caption` is linked.",
        ),
        io.Float.Input(
            "noise_offset",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="Lets Stable Diffusion and SDXL learn very bright and dark pictures: 0.05 is usual. Not "
            "for flow models.",
        ),
        io.Float.Input(
            "max_weight_norm",
            default=0.0,
            min=0.0,
            max=1000.0,
            step=0.1,
            optional=True,
            advanced=True,
            tooltip="The largest norm of each layer's change, against overfitting. 0: no limit.",
        ),
        io.Float.Input(
            "ema",
            default=0.0,
            min=0.0,
            max=0.9999,
            step=0.0001,
            round=False,
            optional=True,
            advanced=True,
            tooltip="The decay of an average of the weights that is saved in their place, such as 0.99. 0: "
            "none.",
        ),
        checkpointing_input(),
        io.Int.Input(
            "validate_every",
            default=0,
            min=0,
            max=1_000_000,
            optional=True,
            advanced=True,
            tooltip="Steps between two validations, if `validation_latents` is linked. 0: ten in all.",
        ),
        io.Int.Input(
            "checkpoint_every",
            default=0,
            min=0,
            max=1_000_000,
            optional=True,
            advanced=True,
            tooltip=f"Steps between two checkpoints, of which the latest {KEEP} are kept. 0: only the last "
            "and the best.",
        ),
        io.Int.Input(
            "sample_every",
            default=0,
            min=0,
            max=1_000_000,
            optional=True,
            advanced=True,
            tooltip="Steps between two pictures that are sampled with the first caption, always from one "
            "noise. They are rough, shown on the node and kept beside the checkpoints. 0: none.",
        ),
        io.Combo.Input(
            "dialect",
            options=list(WRITTEN),
            default="comfy",
            optional=True,
            advanced=True,
            tooltip="The tool whose layer names are written: comfy (ComfyUI's own names), kohya (sd-scripts, "
            "most web interfaces), peft, diffusers or lycoris.",
        ),
        io.Combo.Input(
            "dtype",
            options=list(WRITABLE),
            default="float32",
            optional=True,
            advanced=True,
            tooltip="The dtype of the saved file. float32 is as trained; bfloat16 halves its size.",
        ),
    ]


def _start_of(stack: Stack | None) -> Adapter | None:
    """The adapter to go on from. Raises LycorisError for a stack of several, or one that was changed."""
    if stack is None:
        return None
    names = ", ".join(entry.adapter.name for entry in stack) or "none"
    if len(stack) != 1:
        raise LycorisError(
            "a training goes on from one adapter",
            got=f"a stack of {len(stack)}: {names}",
            expected="a stack of one",
            hint="Link one Load LoRA / LyCORIS, without a stack before it",
        )
    (entry,) = stack
    if entry.strength != 1 or entry.rules is not None:
        raise LycorisError(
            "a training goes on from an adapter as it is in its file",
            file=names,
            got=f"strength {entry.strength:g}" + (" and block rules" if entry.rules is not None else ""),
            expected="strength 1 and no block rules",
        )
    return entry.adapter


def _held_out(
    session: Session,
    latents: Sequence[Mapping[str, Any]],
    captions: Sequence[Any],
    trained: Sequence[Any],
    seed: int,
) -> list[Sample]:
    if not latents:
        if captions:
            raise TrainError("there are held-out captions without latents", key="validation_positive")
        return []
    return samples_of(session, latents, captions or trained, seed=seed, name="validation_latents")


def _preset(preset: str, family: Family, given: Mapping[str, Any]) -> str | None:
    if preset != AS_FAMILY:
        return preset
    # A plan or a file says itself which modules are trained.
    return family.preset if "algorithm" in given else None


def _usual_rate(family: Family, optimiser: str, given: Mapping[str, Any]) -> float | None:
    """The rate where none is given; None is the optimiser's own."""
    if optimiser not in FAMILY_RATED:
        return None
    algorithm = given.get("algorithm")
    return family.lr * (1.0 if algorithm is None else ALGORITHMS[algorithm].fresh_rate)


def _times(family: Family, distribution: str, shift: float) -> Times:
    if distribution == AS_FAMILY:
        return replace(family.times, shift=shift) if shift else family.times
    return Times(distribution, shift=shift or 1.0)


class _Live:
    """What the node shows while it trains: how far it is, the curves, and the latest sample."""

    def __init__(self, steps: int, previews: Previews) -> None:
        self.steps = steps
        self.previews = previews
        self.sample: Image | None = None
        self.history = History()
        self._update = progress(steps)
        self._first: int | None = None
        self._began = self._drawn = time.monotonic()

    def stepped(self, report: StepReport) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = report.step, now
        self.history.losses.append((report.step, report.loss))
        picture = None
        due = self.previews.due(report.step)
        if due:
            self.sample = self.previews.make(report.step)
        if due or now - self._drawn >= PREVIEW:
            self._drawn = now
            picture = curves(self.history, self.steps, self._title(report.step, now))
            picture = picture if self.sample is None else beside(picture, self.sample)
        self._update(report.step, self.steps, picture)

    def validated(self, step: int, loss: float) -> None:
        self.history.validation.append((step, loss))

    def _title(self, step: int, now: float) -> str:
        made = step - (self._first or 0)
        if not made:
            return f"step {step} of {self.steps}"
        seconds = (now - self._began) / made
        left = timedelta(seconds=round((self.steps - step) * seconds))
        return f"step {step} of {self.steps}, {seconds:.2f} s a step, {left} left"


def _in_words(options: TrainOptions) -> str:
    rate = "that of the optimiser" if options.lr is None else f"{options.lr:g}"
    return f"{rate}, {options.optimiser}, {options.schedule} after a warm-up of {options.warmup:g}"


def _loss_in_words(loss: DiffusionLoss) -> str:
    times = loss.times
    shift = f"{times.shift:g}" if isinstance(times.shift, int | float) else "by size"
    dropped = f"{loss.caption_dropout:.0%} of the captions dropped"
    return f"{times.distribution} times, shift {shift}; weighting {loss.weighting.name}; {dropped}"


def _memory_in_words(session: Session) -> str:
    lines = [f"{session.blocks} blocks are computed again" if session.blocks else "all activations are kept"]
    if session.fetching:
        lines.append(f"{session.fetching} layers are fetched again")
    return ", ".join(lines)
