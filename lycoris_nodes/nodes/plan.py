"""The node Plan LyCORIS Ranks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...lycoris_ops import Plan, parse_size, phrase, plan_picture, plan_ranks, probe
from ..host.page import io, picture_tensor, progress
from ..schema.checks import checked
from ..schema.inputs import (
    AS_FAMILY,
    PLAN,
    TRAIN,
    advanced,
    choice_inputs,
    count_input,
    mask_input,
    output,
    seed_input,
    training_inputs,
)
from ..schema.report import report_output, stages, with_report
from ..training.data.families import trained_family
from ..training.data.loss import DiffusionLoss
from ..training.data.samples import guidance_in_words, masks_in_words, samples_of
from ..training.model.session import opened
from ..training.node.experts import expert_in_words, times_of_expert, trained_expert
from ..training.node.memory import (
    checkpointing_input,
    is_checkpointed,
    memory_advice,
    memory_for,
    within_memory,
)

LEAST = 8
"""After this many latents the measurement may end, if they agree."""


class LycorisPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisPlan",
            display_name="Plan LyCORIS Ranks",
            category=TRAIN,
            description="Measures on some latents what each layer of a model could learn, and divides a size "
            "among the layers so that they learn most. Train LoRA / LyCORIS follows the plan, and each "
            "layer starts in the directions in which it has most to learn.",
            search_aliases=["lora rank", "rank allocation", "layer ranks", "adalora", "plan lora"],
            is_output_node=True,
            is_input_list=True,
            inputs=[
                *training_inputs("measure"),
                io.String.Input(
                    "size",
                    default="auto",
                    tooltip="How large the adapter may be. auto: it grows until more gains too little. "
                    "50MB: the size of the file in bfloat16. 2000000: parameters. rank 16: this rank "
                    "everywhere. 90%: the smallest that gains this share of what full weights would. 1/100: "
                    "that share of the model's parameters.",
                ),
                io.String.Input(
                    "algorithms",
                    default="auto",
                    tooltip="The kinds that a layer may get: lora, lokr or both; auto is lora, all is both.",
                ),
                count_input(
                    "batches",
                    "The most latents that are measured, each with noise of its own. 8 or 16 are enough if "
                    "they agree. The report says how many were measured, and whether that was too few. If "
                    "there are fewer latents than this, they are measured several times.",
                    most=1000,
                    default=32,
                    least=1,
                ),
                seed_input("The seed of the noise in the measurement."),
                mask_input(),
                *advanced(
                    *choice_inputs(),
                    count_input(
                        "largest_rank",
                        "The highest rank that a layer may get.",
                        most=4096,
                        default=128,
                        least=1,
                    ),
                    checkpointing_input(),
                    io.String.Input(
                        "edited",
                        default="",
                        multiline=True,
                        tooltip="A plan as text, in the form of the output `text`, to use in place of a new "
                        "one. Its layers still start in the measured directions.",
                    ),
                ),
            ],
            outputs=[
                output(PLAN, "plan", "The plan, for Train LoRA / LyCORIS."),
                output(io.Image, "picture", "The size, rank and gain of each layer."),
                output(io.String, "text", "The plan as JSON, to be kept, edited and given back."),
                report_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls,
        *,
        model: Any,
        latents: Sequence[Mapping[str, Any]],
        positive: Sequence[Any],
        size: str,
        algorithms: str,
        batches: int,
        seed: int,
        preset: str,
        include: str,
        exclude: str,
        largest_rank: int,
        edited: str,
        checkpointing: str,
        masks: Sequence[Any] = (),
    ) -> io.NodeOutput:
        wanted = parse_size(size)
        kinds: Any = algorithms if algorithms in ("auto", "all") else algorithms.replace(",", " ").split()
        recompute = is_checkpointed(model, checkpointing)
        memory = memory_for(model, latents, 1, checkpointed=recompute)
        advice = memory_advice(checkpointed=recompute)
        with within_memory(*advice), opened(model, checkpointing=recompute, memory=memory) as session:
            family = trained_family(session.model)
            expert, because = trained_expert(AS_FAMILY, model, cls.hidden)
            times = times_of_expert(family.times, expert, model)
            loss = DiffusionLoss(session=session, times=times)
            samples = samples_of(session, latents, positive, masks=masks, seed=seed)
            # In random order, since the first ones may be enough.
            drawn = torch.Generator().manual_seed(seed)
            rounds = range(-(-batches // len(samples)))
            order = [at for _ in rounds for at in torch.randperm(len(samples), generator=drawn).tolist()]
            tell = stages(cls.hidden)

            def counted(module: Any, batch: Any) -> Any:
                # Each batch is one latent at one noise.
                tell("measuring", min(next(numbers), batches), batches)
                return loss(module, batch)

            numbers = itertools.count(1)
            measured = probe(
                session.network,
                [[samples[at]] for at in order[:batches]],
                counted,
                preset=family.preset if preset == AS_FAMILY else preset,
                include=[*(family.include if preset == AS_FAMILY else ()), *include.split()],
                exclude=exclude.split(),
                algorithms="lora" if kinds == "auto" else kinds,
                largest=largest_rank,
                least=LEAST,
                seed=seed,
                progress=progress(1),
            )
        if edited.strip():
            plan = Plan.of_json(edited, probe=measured)
        else:
            plan = plan_ranks(measured, size=wanted, algorithms=kinds)
        picture = plan_picture(plan)
        notes = [
            phrase("R-loss-over-latents", loss=measured.loss, batches=measured.batches),
            *expert_in_words(expert, times, because),
            *guidance_in_words(family, positive),
        ]
        report = "\n".join(
            [f"{plan.verdict()}\n", f"{plan}\n", *notes, *masks_in_words(latents, masks, "latents")]
        )
        shown = picture_tensor(picture.image())
        return with_report(plan, shown, plan.json(), report=report, picture=picture)
