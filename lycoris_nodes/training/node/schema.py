"""The inputs and outputs of Train LoRA / LyCORIS: those that most users look at, and groups of the others.

A group is a choice of `usual` or `own`, and only with `own` the front end shows what is in it. An input in a
group is named by the group's name, a dot and its own.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from functools import partial
from typing import Any

from ....lycoris_ops import SEARCHES, WRITABLE, WRITTEN_DIALECTS, optimisers, schedules, trainable
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
from ..data.times import DISTRIBUTIONS
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


def settings(prefix: str = "loras/trained", without: Container[str] = ()) -> list[Any]:
    """All that a training is given beside the model and its data, but for some of them."""

    def those(found: list[Any]) -> list[Any]:
        return [one for one in found if one.id not in without]

    groups = [
        group_input("layers", "Which layers are trained.", those(_layers())),
        group_input("optimisation", "How steps are made, in batches of which size.", those(_optimisation())),
        group_input("noise", "At which amounts of noise the model is trained.", those(_noise())),
        group_input(
            "regularisation", "What keeps the training from learning by heart.", those(_regularisation())
        ),
        group_input("speed", "Precision and memory.", those(_speed())),
        group_input("output", "What is saved and shown on the way, and how.", those(_output())),
    ]
    # New ones come last, because saved workflows hold values by their places.
    return [*those(_usual(prefix)), *those(_links()), *groups, *_rare()]


def asked_of(given: Mapping[str, Any]) -> Asked:
    """What a training asks, of a node with some of these inputs: the others are as usual, and not linked."""
    links = {one.id: () if is_many(one) else None for one in inputs() if one.optional}
    return Asked(**{**links, **literals(inputs(), {}), **given})


def outputs() -> list[Any]:
    return [
        stack_output("The trained LoRA / LyCORIS at strength 1, for Apply LyCORIS Stack."),
        output(io.LoraModel, "lora", "The same for ComfyUI's own Load LoRA Model and Save LoRA Weights."),
        output(io.LossMap, "loss_map", "All losses, for ComfyUI's Plot Loss Graph."),
        output(io.Image, "curves", "A picture of the losses over the steps, and of what a search tried."),
        io.Int.Output(
            "steps_done",
            display_name="steps",
            tooltip="How many steps were made, in all runs together.",
        ),
        output(io.String, "path", "The full path of the saved file."),
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
                tooltip="Off: a training of this name that was stopped goes on by itself where all settings "
                "and data are as before, exactly as if it had not been. On: the latest one goes on with the "
                "settings of now, also a finished one, for more steps.",
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
            "thing. As many of them as of `latents` are trained on.",
        ),
        io.Conditioning.Input(
            "regularisation_positive",
            tooltip="Their captions, without the trigger word: one for each, or one for all.",
        ),
        _texts("regularisation_captions", tooltip="The same as texts, where the text encoders are trained."),
        io.Latent.Input(
            "validation_latents",
            tooltip="Latents that are not trained on. Their loss tells whether what is learned holds beyond "
            "the pictures that it is learned from.",
        ),
        io.Conditioning.Input(
            "validation_positive",
            tooltip="The captions of the held-out latents, one for each, or one for all. Without them those "
            "of `positive`, if it is one for all.",
        ),
        _texts("validation_captions", tooltip="The same as texts, where the text encoders are trained."),
    )


def _rare() -> list[Any]:
    return advanced(
        io.String.Input(
            "resume_from",
            default="",
            tooltip="The checkpoint to go on from, such as step-000500 or best, of the latest training "
            "of this name. It goes on with the settings of now, as with `resume`. Empty: the newest one.",
        ),
    )


def _layers() -> list[Any]:
    return [
        *choice_inputs(),
        usual_input(
            "alpha",
            "The change of each layer is scaled by alpha / rank, and a lower one learns as slowly as a lower "
            "rate.",
            usual="the rank",
        ),
        io.Boolean.Input(
            "dora",
            default=False,
            tooltip="On: lora, loha and lokr also learn how long each row of a weight is (DoRA). Slower, and "
            "often a little better at low ranks.",
        ),
        io.String.Input(
            "overrides",
            default="",
            multiline=True,
            tooltip=f"Other settings for some layers, one line for each pattern: `{EXAMPLE}`.",
        ),
    ]


def _optimisation() -> list[Any]:
    return [
        io.Combo.Input(
            "optimiser",
            options=sorted(optimisers()),
            default="adamw",
            tooltip="How steps are made of gradients. adamw needs nothing installed. prodigy finds the "
            "learning rate itself; it, schedulefree and adamw8bit need packages of their own.",
        ),
        io.Combo.Input(
            "schedule",
            options=list(schedules()),
            default="constant",
            tooltip="How the learning rate falls over the steps.",
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
            "How often all latents are gone through, in place of `steps`. 0: as many steps as are set.",
            most=100_000,
        ),
        number_input(
            "weight_decay",
            "How far each step draws the factors back to zero, as a share of the rate: 0.01 is usual for "
            "AdamW elsewhere.",
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
            "How many times the rate of down the factor up gets (LoRA+): 16 is the paper's. 0: the same "
            "rate.",
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
            "The learning rate of the text encoders, if `clip` is linked: usually a tenth of that of the "
            "model.",
        ),
        io.Combo.Input(
            "search",
            options=list(SEARCHES),
            default="off",
            tooltip="What small trainings find before the training. rate: the best learning rate for what is "
            "set here. all: the kind too, of at most this size: LoRA with planned ranks, LoKr, LoRA. What is "
            "found is kept, and used again for the same data.",
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
            tooltip="How much noise is trained at. auto: as is usual for the model. uniform: all amounts "
            "equally. logit-normal: mostly those in the middle.",
        ),
        usual_input("shift", "Moves training towards more noise where above 1."),
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
            tooltip="How a difference counts. l2: by its square. huber, smooth_l1: large ones less, which "
            "bears pictures that do not fit the others. l1: by its size.",
        ),
        number_input(
            "huber_c",
            "For huber and smooth_l1: from where on a difference counts less than its square.",
            most=10.0,
            default=0.1,
        ),
        number_input(
            "noise_offset",
            "Lets Stable Diffusion and SDXL learn very bright and dark pictures: 0.05 is usual. Not "
            "for flow models, nor for those of zero terminal SNR, which learn it without.",
            most=1.0,
        ),
        io.Combo.Input(
            "expert",
            options=list(CHOICES),
            default=AS_FAMILY,
            tooltip="For Wan 2.2, whose two experts are models of their own: at which part of the noise the "
            "model is trained. auto: that of the expert that the name of the model's file says. all: at all "
            "of it, as a model without experts is.",
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
        _dropout("input_dropout", "The share of what goes into each layer that it does not see in a pass."),
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
            "The decay of an average of the weights that is saved in their place, such as 0.99. 0: none.",
            most=0.9999,
            step=0.0001,
            round=False,
        ),
        number_input(
            "masked_prior",
            "How much what masks leave out is held to what the model makes of it without the adapter. 0: it "
            "may change. Takes a third more time.",
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
            tooltip="What the model computes in. auto: what ComfyUI has chosen when it loaded the model. "
            "What is trained stays in float32, and in fp16 the loss is scaled.",
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
            "Steps between two checkpoints. 0: only the best, and the last, which is written every ten "
            "minutes too.",
        ),
        _every(
            "sample_every",
            "Steps between two pictures that are sampled with the first caption, always from one "
            "noise. They are shown on the node and kept beside the checkpoints. 0: ten in all if `vae` is "
            "linked, else none. Without a VAE they are rough.",
        ),
        io.Combo.Input(
            "dialect",
            options=list(WRITTEN_DIALECTS),
            default="comfy",
            tooltip="The tool whose layer names are written: comfy (ComfyUI's own names), kohya (sd-scripts, "
            "most web interfaces), peft, diffusers or lycoris. ComfyUI's own loaders ignore some kinds "
            "(ia3, oftv2, boft_peft) and most files in PEFT's names: the report says it.",
        ),
        io.Combo.Input(
            "dtype",
            options=list(WRITABLE),
            default="float32",
            tooltip="The dtype of the saved file. float32 is as trained; bfloat16 halves its size.",
        ),
        count_input(
            "keep",
            "How many of the checkpoints of every so many steps are kept: the latest. Judge LyCORIS finds "
            "the best of them.",
            most=1000,
            default=KEEP,
            least=1,
        ),
        io.String.Input(
            "sample_settings",
            default="",
            multiline=True,
            tooltip=f"How prompts are sampled, a line for each in order, such as `{SAMPLE}`. What is not "
            "said: the seed of the training, and the size of the first latent.",
        ),
    ]
