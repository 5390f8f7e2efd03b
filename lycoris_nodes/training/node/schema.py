"""The inputs and outputs of Train LoRA / LyCORIS: those that most users look at, and groups of the others.

A group is a choice of `usual` or `own`, and the front end shows its inputs only with `own`. An input in a
group is named by the group's name, a dot and its own.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from functools import partial
from typing import Any

from ....lycoris_ops import SAVED, SEARCHES, WRITABLE, WRITTEN_DIALECTS, optimisers, schedules, trainable
from ...host.families.times import DISTRIBUTIONS
from ...host.page import io
from ...schema.checks import is_many, literals
from ...schema.inputs import (
    AS_FAMILY,
    PLAN,
    advanced,
    choice_inputs,
    count_input,
    group_input,
    mask_input,
    number_input,
    optional,
    output,
    seed_input,
    stack_input,
    stack_output,
    training_inputs,
    usual_input,
)
from ...schema.report import report_output
from ..data.losses import LOSSES
from ..data.targets import WEIGHTINGS
from .experts import CHOICES
from .memory import checkpointing_input
from .overrides import ARGUMENTS, EXAMPLE, SAMPLE
from .run import KEEP
from .settings import PRECISIONS, Asked

_every = partial(count_input, most=1_000_000)
_dropout = partial(number_input, most=0.99)
_texts = partial(io.String.Input, force_input=True)


def inputs() -> list[Any]:
    return [*training_inputs("train for"), *settings()]


def settings(
    prefix: str = "loras/trained", without: Container[str] = (), usual_schedule: str = ""
) -> list[Any]:
    """The inputs beside the model and its data, except those of the ids `without`.

    `usual_schedule` says in words which schedule `auto` is, where that depends on the data.
    """

    def those(items: list[Any]) -> list[Any]:
        return [item for item in items if item.id not in without]

    groups = [
        group_input("layers", "Which layers are trained.", those(_layers())),
        group_input(
            "optimisation",
            "The optimiser, its schedule and the batches.",
            those(_optimisation(usual_schedule)),
        ),
        group_input("noise", "At which amounts of noise the model is trained.", those(_noise())),
        group_input("regularisation", "What keeps the training from overfitting.", those(_regularisation())),
        group_input("speed", "Precision and memory.", those(_speed())),
        group_input("output", "What is saved and shown on the way, and how.", those(_output())),
    ]
    # New ones come last, because saved workflows hold values by their places.
    return [*those(_usual(prefix)), *those(_links()), *groups, *_rare()]


def asked_of(values: Mapping[str, Any]) -> Asked:
    """The inputs of a training, given some of them: the others have their defaults, and no links."""
    links = {item.id: () if is_many(item) else None for item in inputs() if item.optional}
    return Asked(**{**links, **literals(inputs(), {}), **values})


def outputs() -> list[Any]:
    return [
        stack_output(
            "The trained LoRA / LyCORIS at strength 1, for Apply LyCORIS Stack. With `low_noise_model` it is "
            "the pair for both models."
        ),
        output(
            io.LoraModel,
            "lora",
            "The same for ComfyUI's own Load LoRA Model and Save LoRA Weights. For a pair it is the "
            "high-noise one.",
        ),
        output(io.LossMap, "loss_map", "All losses, for ComfyUI's Plot Loss Graph."),
        output(io.Image, "curves", "A picture of the losses over the steps, and of what a search tried."),
        io.Int.Output(
            "steps_done",
            display_name="steps",
            tooltip="How many steps were made, in all runs together.",
        ),
        output(io.String, "path", "The full path of the saved file. For a pair it is the high-noise one."),
        report_output(),
    ]


def _usual(prefix: str) -> list[Any]:
    """The settings that most users look at."""
    return [
        count_input(
            "steps",
            "How many updates of the weights. 1000 to 2000 are usual for 10 to 50 pictures.",
            most=1_000_000,
            default=1000,
            least=1,
        ),
        usual_input(
            "learning_rate",
            "How far each step goes, such as 1e-4. Too high a rate spoils pictures or ends in an error, too "
            "low a rate learns little.",
        ),
        io.Combo.Input(
            "algorithm",
            # Norms get their own kind wherever they are included.
            options=[name for name in trainable() if name != "norm"],
            default="lora",
            tooltip="The kind of adapter. lora is read by every tool; lokr is the smallest; loha, oft, boft "
            "and others behave differently. A plan or a stack has its own.",
        ),
        usual_input(
            "rank",
            "The size of each layer: more can hold more detail and makes a larger file.",
        ),
        io.String.Input(
            "filename_prefix",
            default=prefix,
            tooltip="The name of the training in the output folder; a number is added, and no file is "
            "overwritten. Its checkpoints are in a folder beside the file.",
        ),
        *advanced(
            io.Boolean.Input(
                "resume",
                default=False,
                tooltip="Off: a stopped training of this name goes on by itself if all settings and data are "
                "as before, exactly as if it had never stopped. On: the nearest one goes on with the present "
                "settings and data, even a finished one, for more steps.",
            ),
            seed_input("The seed of all randomness: the same seed and inputs give the same file."),
        ),
    ]


def _links() -> list[Any]:
    """What can be linked beside the data."""
    return optional(
        PLAN.Input(
            "plan",
            tooltip="The layers, algorithms and ranks from Plan LyCORIS Ranks, in place of those set here.",
        ),
        stack_input(
            "An adapter to go on from, of any tool: its layers, algorithms and ranks stay. A new "
            "file is written."
        ),
        mask_input(),
        io.Conditioning.Input(
            "empty_caption",
            tooltip="The encoded empty text. With it, captions are dropped now and then, which keeps CFG "
            "working well. Not needed with `clip`.",
        ),
        io.Clip.Input(
            "clip",
            tooltip="With it the text encoders are trained too, at a rate of their own, on the texts in "
            "`captions`.",
        ),
        _texts(
            "captions",
            tooltip="The captions of `positive` as texts, which the text encoders are trained on: one for "
            "each latent in the same order, or one for all.",
        ),
        io.Vae.Input(
            "vae",
            tooltip="With it, pictures are sampled on the way and shown on the node: at the start, and ten "
            "more times or every `sample_every` steps.",
        ),
        io.Conditioning.Input(
            "sample_positive",
            tooltip="Encoded prompts that are sampled on the way in place of the first caption. The pictures "
            "of all are shown side by side.",
        ),
        io.Latent.Input(
            "regularisation_latents",
            tooltip="Latents of what the model is not to forget, such as other pictures of the same kind of "
            "thing. Each epoch trains on as many of them as of `latents`.",
        ),
        io.Conditioning.Input(
            "regularisation_positive",
            tooltip="Their captions, without the trigger word: one for each, or one for all.",
        ),
        _texts("regularisation_captions", tooltip="The same as texts, where the text encoders are trained."),
        io.Latent.Input(
            "validation_latents",
            tooltip="Latents that are not trained on. Their loss tells whether what is learned holds for "
            "other pictures too.",
        ),
        io.Conditioning.Input(
            "validation_positive",
            tooltip="The captions of the held-out latents, one for each, or one for all. Without them the "
            "caption of `positive` is used, if it is one for all.",
        ),
        _texts("validation_captions", tooltip="The same as texts, where the text encoders are trained."),
        io.Model.Input(
            "low_noise_model",
            tooltip="For Wan 2.2 of 14 B, with the high-noise model in `model`: both are trained, one after "
            "the other, each at its own part of the noise, into a pair of files.",
        ),
    )


def _rare() -> list[Any]:
    return advanced(
        io.String.Input(
            "resume_from",
            default="",
            tooltip="The checkpoint to go on from, such as step-000500 or best, of the nearest training "
            "of this name. It goes on with the present settings, as with `resume`, and replaces the file and "
            "the later checkpoints of that training. Empty: the newest one.",
        ),
    )


def _layers() -> list[Any]:
    return [
        *choice_inputs(),
        usual_input(
            "alpha",
            "The change of each layer is scaled by alpha / rank. A lower alpha learns more slowly, as a "
            "lower rate does.",
            usual="the rank",
        ),
        io.Boolean.Input(
            "dora",
            default=False,
            tooltip="On: lora, loha and lokr also learn the norm of each row of a weight (DoRA). Slower, and "
            "often a little better at low ranks.",
        ),
        io.String.Input(
            "overrides",
            default="",
            multiline=True,
            tooltip=f"Other settings for some layers, one line for each pattern: `{EXAMPLE}`.",
        ),
    ]


def _optimisation(usual_schedule: str) -> list[Any]:
    usual = f" {AS_FAMILY}: {usual_schedule}." if usual_schedule else ""
    return [
        io.Combo.Input(
            "optimiser",
            options=sorted(optimisers()),
            default="adamw",
            tooltip="How gradients become steps. adamw needs nothing installed. prodigy finds the "
            "learning rate itself; it, schedulefree and adamw8bit need packages of their own.",
        ),
        io.Combo.Input(
            "schedule",
            options=[*([AS_FAMILY] if usual_schedule else []), *schedules()],
            default=AS_FAMILY if usual_schedule else "constant",
            tooltip=f"How the learning rate falls over the steps.{usual}",
        ),
        count_input("restarts", "How often the schedule begins anew after the warm-up.", most=1000),
        number_input(
            "warmup",
            "Steps in which the learning rate rises at the start. Below 1 it is a share of all steps.",
            most=100_000.0,
            default=0.05,
        ),
        count_input(
            "batch_size",
            "Latents in one pass of the model, all of one size. More is smoother and takes more memory.",
            most=1024,
            default=1,
            least=1,
        ),
        count_input(
            "accumulation",
            "Batches in one step. As smooth as larger batches, in the memory of one.",
            most=1024,
            default=1,
            least=1,
        ),
        count_input(
            "epochs",
            "Passes over all latents, in place of `steps`. 0: `steps` counts.",
            most=100_000,
        ),
        number_input(
            "weight_decay",
            "Each step shrinks the factors by this number times the rate: 0.01 is usual for AdamW elsewhere.",
            most=10.0,
            step=0.001,
            round=False,
        ),
        number_input(
            "max_grad_norm",
            "The largest norm of all gradients together; larger ones are scaled down. 0: no limit.",
            most=1000.0,
            default=1.0,
            step=0.1,
        ),
        number_input(
            "loraplus_ratio",
            "The learning rate of the factor up as a multiple of down's (LoRA+): 16 in the paper. 0: the "
            "same.",
            most=1000.0,
            step=1.0,
        ),
        io.String.Input(
            "optimiser_args",
            default="",
            tooltip=f"Further arguments of the optimiser, such as `{ARGUMENTS}`.",
        ),
        usual_input(
            "text_learning_rate",
            "The learning rate of the text encoders, if `clip` is linked: usually a tenth of the model's.",
        ),
        io.Combo.Input(
            "search",
            options=list(SEARCHES),
            default="off",
            tooltip="What small trainings search for first. rate: the best learning rate for these settings. "
            "all: the kind too, of at most this size: LoRA with planned ranks, LoKr, LoRA. What is found is "
            "kept, and used again for the same data.",
        ),
        number_input(
            "search_share",
            "What the search may cost at most, as a share of the steps.",
            most=10.0,
            default=0.4,
            step=0.05,
        ),
    ]


def _noise() -> list[Any]:
    return [
        io.Combo.Input(
            "times",
            options=[AS_FAMILY, *DISTRIBUTIONS],
            default=AS_FAMILY,
            tooltip="The amounts of noise to train at. auto: as is usual for the model. uniform: all amounts "
            "equally. logit-normal: mostly those in the middle.",
        ),
        usual_input("shift", "Above 1 it moves training towards more noise."),
        io.Combo.Input(
            "weighting",
            options=list(WEIGHTINGS),
            default="none",
            tooltip="How much the loss counts at each amount of noise. none is what most trainers do. "
            "min-snr and debiased are for Stable Diffusion and SDXL.",
        ),
        io.Combo.Input(
            "loss_type",
            options=list(LOSSES),
            default="l2",
            tooltip="How errors count. l2: by their square. huber, smooth_l1: large ones less, which "
            "tolerates pictures that do not fit the others. l1: by their size.",
        ),
        number_input(
            "huber_c",
            "For huber and smooth_l1: errors above this count less than their square.",
            most=10.0,
            default=0.1,
        ),
        number_input(
            "noise_offset",
            "Lets Stable Diffusion and SDXL learn very bright and dark pictures: 0.05 is usual. Not "
            "for flow models, nor for models of zero terminal SNR, which learn it without.",
            most=1.0,
        ),
        io.Combo.Input(
            "expert",
            options=list(CHOICES),
            default=AS_FAMILY,
            tooltip="For Wan 2.2, whose two experts are separate models: the part of the noise to train at. "
            "auto: by the expert in the name of the model's file. all: all of it, as without experts.",
        ),
    ]


def _regularisation() -> list[Any]:
    return [
        number_input(
            "caption_dropout",
            "The share of captions that are left out, if `empty_caption` or `clip` is linked.",
            most=1.0,
            default=0.1,
        ),
        number_input(
            "prior_weight",
            "How much `regularisation_latents` count beside `latents`.",
            most=100.0,
            default=1.0,
            step=0.05,
        ),
        _dropout("input_dropout", "The share of each layer's input that is left out in a pass."),
        _dropout("rank_dropout", "The share of each layer's rank that is left out in a pass."),
        _dropout("module_dropout", "The share of the layers that are left out in a pass."),
        number_input(
            "max_weight_norm",
            "The largest norm of each layer's change, against overfitting. 0: no limit.",
            most=1000.0,
            step=0.1,
        ),
        number_input(
            "ema",
            "The decay of an average of the weights, such as 0.99. The average is saved. 0: none.",
            most=0.9999,
            step=0.0001,
            round=False,
        ),
        number_input(
            "masked_prior",
            "How strongly masked-out parts are held to the prediction without the adapter. 0: they may "
            "change. Takes a third more time.",
            most=10.0,
            step=0.05,
        ),
    ]


def _speed() -> list[Any]:
    return [
        io.Combo.Input(
            "precision",
            options=list(PRECISIONS),
            default=AS_FAMILY,
            tooltip="What the model computes in. auto: what ComfyUI chose when it loaded the model. Trained "
            "weights stay in float32, and in fp16 the loss is scaled.",
        ),
        checkpointing_input(),
    ]


def _output() -> list[Any]:
    return [
        _every(
            "validate_every",
            "Steps between two validations, if `validation_latents` is linked. 0: ten in all.",
        ),
        _every(
            "checkpoint_every",
            "Steps between two checkpoints. 0: only `best` and `last`. `last` is written every ten minutes "
            "in any case.",
        ),
        _every(
            "sample_every",
            "Steps between two pictures that are sampled with the first caption, always from the same "
            "noise. They are shown on the node and kept beside the checkpoints. 0: ten in all if `vae` is "
            "linked, else none. Without a VAE they are rough.",
        ),
        io.Combo.Input(
            "dialect",
            options=list(WRITTEN_DIALECTS),
            default="comfy",
            tooltip="The tool whose layer names are written: comfy (ComfyUI's own names), kohya (sd-scripts, "
            "most web interfaces), peft, diffusers, lycoris or mlx (mlx-lm). ComfyUI's own loaders ignore "
            "some kinds (ia3, oftv2, boft_peft) and most files in PEFT's names: the report says it.",
        ),
        io.Combo.Input(
            "dtype",
            options=list(WRITABLE),
            default="float32",
            tooltip="The dtype of the saved file. float32 is as trained; bfloat16 halves its size.",
        ),
        count_input(
            "keep",
            "How many of the checkpoints of `checkpoint_every` are kept: the latest. Judge LyCORIS finds the "
            "best of them.",
            most=1000,
            default=KEEP,
            least=1,
        ),
        io.String.Input(
            "sample_settings",
            default="",
            multiline=True,
            tooltip=f"The seed and size of each sampled prompt, a line for each in order: `{SAMPLE}`. Else "
            "they are the seed of the training, and the size of the first latent.",
        ),
        io.Combo.Input(
            "saved",
            options=list(SAVED),
            default="best",
            tooltip="The weights that the file gets, if `validation_latents` is linked: those with the "
            "lowest held-out loss (best), or those of the last step (last).",
        ),
    ]
