"""The node Judge LyCORIS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...lycoris_ops import LycorisError, parse_values
from ..host.page import ExecutionBlocker, io, picture_tensor, progress
from ..schema.checks import checked
from ..schema.inputs import (
    AS_FAMILY,
    TRAIN,
    advanced,
    count_input,
    mask_input,
    number_input,
    optional,
    output,
    seed_input,
    stack_input,
    stack_output,
)
from ..schema.report import report_output, stages, valid, with_report
from ..training.judge.files import stamp_of
from ..training.judge.run import run_judge
from ..training.node.experts import trained_expert
from ..training.node.settings import Asked


class LycorisJudge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisJudge",
            display_name="Judge LyCORIS",
            category=TRAIN,
            description="Finds the best checkpoint of a training and its best strength, or the best of "
            "several files, by the loss on pictures that were not trained on. Poor ones drop out early, so "
            "that it takes a fifth of the time.",
            search_aliases=[
                *("best checkpoint", "best epoch", "lora strength", "validate lora", "evaluate lora"),
                *("overfitting", "compare lora"),
            ],
            is_output_node=True,
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that the files are for. It stays as it is."),
                io.Latent.Input(
                    "latents",
                    tooltip="Encoded pictures that were not trained on, such as `validation_latents` of "
                    "LyCORIS Training Pictures. On trained pictures the last checkpoint nearly always wins.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Their encoded captions: one for each in the same order, or one for all.",
                ),
                io.String.Input(
                    "training",
                    default="",
                    tooltip="The training whose checkpoints are judged. Link the output `path` of Train LoRA "
                    "/ LyCORIS, or write its `filename_prefix`, such as loras/trained, for the latest one.",
                ),
                io.String.Input(
                    "strengths",
                    default="0.4..1.2 in 5",
                    tooltip="The strengths at which each file is judged: 0.5, 0.8, 1, or 0.4..1.2 in 5 for "
                    "five from 0.4 to 1.2. The model alone is judged in any case.",
                ),
                stack_input("Files to judge: each adapter by itself, at the strengths above."),
                *optional(
                    io.Vae.Input(
                        "vae", tooltip="Decodes the samples of the best file. Without it they are rough."
                    ),
                    io.ClipVision.Input(
                        "clip_vision",
                        tooltip="Compares samples where the loss cannot tell which is best: the report names "
                        "the one that is nearest to the pictures of `latents` and drifts least. Needs `vae`.",
                    ),
                    io.Conditioning.Input(
                        "other_positive",
                        tooltip="Prompts for other things, which the adapter should not change. The drift is "
                        "how far their pictures are from the model's own.",
                    ),
                    io.Conditioning.Input(
                        "empty_caption",
                        tooltip="The encoded empty text. With it samples are made with CFG 5, except on "
                        "models that take their guidance as an input, such as Flux.",
                    ),
                    io.Clip.Input(
                        "clip",
                        tooltip="With it the layers for text encoders are judged too, on the texts in "
                        "`captions`.",
                    ),
                    io.String.Input(
                        "captions",
                        force_input=True,
                        tooltip="The captions of `positive` as texts: one for each, or one for all.",
                    ),
                ),
                mask_input(),
                count_input(
                    "samples",
                    "The number of captions for which the best file makes samples. 0: no samples.",
                    most=64,
                    default=4,
                ),
                seed_input(
                    "The seed of the noise, for losses and samples. With the seed of a training, and 4 for "
                    "`times`, the losses are the same as in its validation."
                ),
                *advanced(
                    number_input(
                        "share",
                        "The share of all passes of the model that may be made. 0.2: a fifth, and the worse "
                        "half drops out several times. 1: all, and nothing drops out.",
                        most=1.0,
                        default=0.2,
                        step=0.05,
                    ),
                    count_input(
                        "times",
                        "How many amounts of noise each latent is judged at, at most.",
                        most=64,
                        default=8,
                        least=1,
                    ),
                    count_input(
                        "batch_size",
                        "Latents in one pass of the model, all of one size.",
                        most=1024,
                        default=1,
                        least=1,
                    ),
                ),
            ],
            outputs=[
                stack_output("The best adapter at its best strength, for Apply LyCORIS Stack."),
                output(io.Image, "picture", "The loss of each file at each strength."),
                output(io.Image, "samples", "Pictures that the best file makes."),
                report_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, strengths: Sequence[str | None] = ()) -> bool | str:
        # A node that takes lists is given lists here too, with None where another node gives the text.
        return valid(*(lambda text=text: parse_values(text) for text in strengths if text is not None))

    @classmethod
    def fingerprint_inputs(cls, training: Sequence[str | None] = (), **_: Any) -> str:
        try:
            return "\n".join(stamp_of(name) for name in training if name and name.strip())
        except LycorisError as error:
            return str(error)

    @classmethod
    @checked
    def execute(cls, **asked: Any) -> io.NodeOutput:
        tell, bar = stages(cls.hidden), progress(1)

        def tell_stage(stage: str, done: int, of: int) -> None:
            tell(stage, done, of)
            bar(done, of)

        expert, because = trained_expert(AS_FAMILY, asked["model"], cls.hidden)
        judged = run_judge(Asked(**asked, expert=expert, because=because), tell_stage)
        judgement = judged.judgement
        samples = torch.cat([picture_tensor(sample) for sample in judged.samples]) if judged.samples else None
        return with_report(
            judged.stack,
            picture_tensor(judged.picture.image()),
            # Nothing downstream is run without pictures.
            ExecutionBlocker(None) if samples is None else samples,
            report=judged.report,
            state="all" if judgement.helps else "partly",
            picture=judged.picture,
        )
