"""The inputs of Train LyCORIS Slider: its own, and those of Train LoRA / LyCORIS that suit it."""

from __future__ import annotations

from typing import Any

from ...host.page import io
from ...schema.inputs import advanced, count_input, number_input, optional
from ..node.schema import settings

UNUSED = (
    *("clip", "captions", "text_learning_rate", "caption_dropout", "prior_weight", "search", "search_share"),
    *("regularisation_latents", "regularisation_positive", "regularisation_captions"),
    *("validation_latents", "validation_positive", "validation_captions", "validate_every"),
    "saved",
)
"""The inputs of Train LoRA / LyCORIS that a slider has no use for."""

SCHEDULE = "constant between prompts, and cosine from opposed pictures"
"""What the schedule `auto` is."""


def inputs() -> list[Any]:
    return [
        io.Model.Input("model", tooltip="The model to train for. It stays as it is."),
        io.Latent.Input(
            "latents",
            tooltip="With `less` and `more`: encoded pictures of `positive`, or an empty latent of the size "
            "in which the model is to sample such pictures. Without `less` and `more`: opposed pictures, "
            "one for each of the strengths in turn.",
        ),
        io.Conditioning.Input(
            "positive",
            tooltip="The encoded prompt of the thing itself. Several prompts, such as one of a woman and "
            "one of a man, keep other attributes from changing too.",
        ),
        *optional(
            io.Conditioning.Input("less", tooltip="The encoded prompt with less of the attribute."),
            io.Conditioning.Input("more", tooltip="The encoded prompt with more of the attribute."),
        ),
        io.String.Input(
            "strengths",
            default="-1, 1",
            tooltip="The strengths to train at, on both sides of 0. Opposed pictures come in this "
            "order: with -1, 1 the one with less first.",
        ),
        number_input(
            "guidance",
            "How far the slider goes at strengths -1 and 1. A guidance of 1 takes it as far as `less` and "
            "`more`, 2 takes it twice as far.",
            most=20.0,
            default=1.0,
            step=0.1,
        ),
        count_input(
            "steps",
            "How many updates of the weights, each at all strengths. 200 to 500 are usual.",
            most=1_000_000,
            default=500,
            least=1,
        ),
        *settings("loras/slider", ("steps", *UNUSED), SCHEDULE),
        *advanced(
            count_input(
                "pictures",
                "How many pictures the model samples if `latents` is an empty latent.",
                most=1000,
                default=16,
                least=1,
            )
        ),
    ]
