"""The node Extract LoRA / LyCORIS."""

from __future__ import annotations

from typing import Any

from ...lycoris_ops import Entry, Fingerprint, LycorisError, Stack, extract_adapter, parse_size, phrase
from ..files.codec import HostCodec
from ..files.models import LOADED, model_names, model_path
from ..host.page import io
from ..host.weights import LoadedWeights
from ..schema.checks import checked, file_stamp
from ..schema.inputs import (
    SHAPE,
    algorithm_input,
    fit_inputs,
    fit_options,
    optional,
    size_input,
    stack_output,
)
from ..schema.report import report_output, valid, with_fit, with_report


class LycorisExtractAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisExtractAdapter",
            display_name="Extract LoRA / LyCORIS",
            category=SHAPE,
            description="Makes an adapter from what a tuned model has learned: its difference from the "
            "model that it was tuned from. Files are read weight by weight, so even large ones need little "
            "memory. Differences that are only rounding are left out.",
            search_aliases=[
                "extract lora",
                "lora from checkpoint",
                "subtract models",
                "model difference",
                "extract lycoris",
                "extract locon",
            ],
            is_output_node=True,
            inputs=[
                _file("tuned_file", "The tuned model, as a file"),
                _file("base_file", "The model that it was tuned from, as a file"),
                size_input(),
                algorithm_input(),
                io.Boolean.Input(
                    "strict",
                    default=False,
                    tooltip="Off: weights that only one of the models has are reported. On: they are an "
                    "error.",
                ),
                *optional(
                    io.Model.Input("tuned_model", tooltip="The tuned model, loaded, with all its patches."),
                    io.Model.Input("base_model", tooltip="The model that it was tuned from, loaded."),
                    io.Clip.Input("tuned_clip", tooltip="The tuned text encoder, loaded."),
                    io.Clip.Input("base_clip", tooltip="The text encoder that it was tuned from, loaded."),
                ),
                *fit_inputs(),
            ],
            outputs=[stack_output("A stack of the adapter, at strength 1."), report_output()],
        )

    @classmethod
    def validate_inputs(cls, tuned_file: str | None = None, base_file: str | None = None) -> bool | str:
        return valid(lambda: cls.fingerprint_inputs(tuned_file, base_file))

    @classmethod
    def fingerprint_inputs(cls, tuned_file: str | None = None, base_file: str | None = None, **_: Any) -> str:
        def stamp(file: str) -> str:
            return file if file == LOADED else Fingerprint.of(model_path(file)).stamp

        return f"{file_stamp('tuned_file', tuned_file, stamp)} {file_stamp('base_file', base_file, stamp)}"

    @classmethod
    @checked
    def execute(
        cls,
        tuned_file: str,
        base_file: str,
        size: str,
        algorithm: str,
        strict: bool,
        tuned_model: Any = None,
        base_model: Any = None,
        tuned_clip: Any = None,
        base_clip: Any = None,
        **fit: Any,
    ) -> io.NodeOutput:
        loaded = (tuned_model, base_model, tuned_clip, base_clip)
        if tuned_file == base_file == LOADED and all(model is None for model in loaded):
            report = phrase("R-nothing-was-extracted-no-models")
            return with_report(None, report=report, state="nothing")
        adapter = extract_adapter(
            _source("base", base_file, base_model, base_clip),
            _source("tuned", tuned_file, tuned_model, tuned_clip),
            algorithm,
            parse_size(size),
            codec=HostCodec(),
            strict=strict,
            name="extracted" if tuned_file == LOADED else None,
            **fit_options(**fit),
        )
        return with_fit(Stack([Entry(adapter)]))


def _file(name: str, what: str) -> Any:
    return io.Combo.Input(
        name,
        options=[LOADED, *model_names()],
        default=LOADED,
        tooltip=f"{what}; or `{LOADED}` for the one that is connected to the inputs below.",
    )


def _source(side: str, file: str, model: Any, clip: Any) -> Any:
    """The weights of one side: a file, or what is connected.

    Raises LycorisError where both are given, or neither.
    """
    connected = model is not None or clip is not None
    if (file != LOADED) == connected:
        raise LycorisError(
            "E-extract-model-ambiguous", side=side, loaded=LOADED, got="both" if connected else "neither"
        )
    return LoadedWeights(phrase("R-model", side=side), model, clip) if connected else model_path(file)
