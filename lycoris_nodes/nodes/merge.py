"""The node Merge LoRAs / LyCORIS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...lycoris_ops import (
    Adapter,
    Entry,
    LycorisError,
    MergeMethod,
    Stack,
    describe_fit,
    fit_verdict,
    merge_adapters,
    merge_methods,
    orthogonal_adapters,
    parse_size,
    phrase,
)
from ..host.page import io
from ..host.weights import connected_weights
from ..schema.checks import checked
from ..schema.inputs import (
    NOTHING_MERGED,
    SHAPE,
    advanced,
    algorithm_input,
    fit_inputs,
    fit_options,
    number_input,
    optional_model,
    stack_input,
    stack_output,
)
from ..schema.report import report_output, with_fit, with_report

EXACT = "exact"
SUM = "sum"
TOGETHER, APART = "one adapter", "one adapter each"


class LycorisMergeAdapters(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisMergeAdapters",
            display_name="Merge LoRAs / LyCORIS",
            category=SHAPE,
            description="Makes one adapter from a stack of any mix of kinds, by their true changes. The sum "
            "is exact: the new adapter does at strength 1 what the stack does. Other methods combine changes "
            "that disturb each other.",
            search_aliases=[
                "merge lora",
                "combine loras",
                "lora merger",
                "ties",
                "dare",
                "slerp lora",
                "merge lycoris",
                "merge loras into one",
            ],
            is_output_node=True,
            inputs=[
                stack_input("The adapters to merge. Their strengths and block rules go into the result."),
                io.DynamicCombo.Input(
                    "method",
                    options=[
                        io.DynamicCombo.Option(name, _inputs(method))
                        for name, method in sorted(merge_methods().items(), key=_place)
                    ],
                    tooltip="How the changes are combined. sum: exactly what the stack does. average, "
                    "slerp, karcher, model_stock: for variants of one thing. tsv, knots, regression, "
                    "core_space, iso: for adapters of different things, by the directions that they use. "
                    "ties, dare, della, breadcrumbs, sce, magnitude_prune, nearswap: value by value.",
                ),
                io.String.Input(
                    "size",
                    default=EXACT,
                    tooltip="How large the result is to be. exact: nothing is lost, each layer has the "
                    "rank that its merged change needs. Else as in Resize / Convert LoRA: rank 16, 50MB, "
                    "90%, 1/100, auto.",
                ),
                algorithm_input(),
                *optional_model(
                    "The model that the adapters are for. Needed where they come from different "
                    "tools, where block rules are set, and for kinds whose change depends on the weights "
                    "(DoRA, OFT, BOFT, IA3, GLoRA, T-LoRA).",
                    "The text encoder, if adapters change it and a model is given.",
                ),
                *advanced(
                    number_input(
                        "norm_limit",
                        "Each layer of the result is at most this many times as strong as in the adapter in "
                        "which it is strongest. This keeps a sum of many adapters from burning the picture. "
                        "0 is no limit.",
                        most=100.0,
                        step=0.05,
                    )
                ),
                *fit_inputs(),
            ],
            outputs=[stack_output("A stack of the merged adapter, at strength 1."), report_output()],
        )

    @classmethod
    @checked
    def execute(
        cls,
        method: Any,
        stack: Stack | None = None,
        size: str = EXACT,
        algorithm: str = "lora",
        model: Any = None,
        clip: Any = None,
        norm_limit: float = 0.0,
        **fit: Any,
    ) -> io.NodeOutput:
        if not stack:
            report = NOTHING_MERGED if stack is None else phrase("R-nothing-was-merged-stack-empty")
            return with_report(stack, report=report, state="nothing")
        name, options = _chosen(method)
        base, fitted = connected_weights(model, clip), fit_options(**fit)
        if options.pop("result", TOGETHER) == APART:
            _check_apart(size=size.strip().lower(), algorithm=algorithm, norm_limit=norm_limit, **fit)
            # The parts keep their ranks.
            common = {name: fitted[name] for name in ("dtype", "device", "progress")}
            adapters = orthogonal_adapters(stack, name, base=base, **common, **options)
            live = [entry for entry in stack if not entry.off]
            entries = [
                Entry(adapter, entry.strength, entry.strength_clip)
                for adapter, entry in zip(adapters, live, strict=True)
            ]
            return with_fit(Stack(entries))
        merged = merge_adapters(
            stack,
            name,
            None if size.strip().lower() == EXACT else parse_size(size),
            algorithm=algorithm,
            base=base,
            norm_limit=norm_limit or None,
            **fitted,
            **options,
        )
        if size.strip().lower() == "auto" and (why := not_worth(merged)):
            return with_report(stack, report=f"{why}\n\n{describe_fit(merged)}", state="partly")
        return with_fit(Stack([Entry(merged)]))


def _check_apart(**settings: Any) -> None:
    """Raise LycorisError for settings that have no effect where each adapter gets its own part."""
    usual = {"size": EXACT, "algorithm": "lora", "norm_limit": 0.0, "tucker": False, "largest_rank": 0}
    for name, value in usual.items():
        if settings[name] != value:
            raise LycorisError(
                "E-merge-size-without-effect",
                key=name,
                apart=APART,
                got=str(settings[name]),
                expected=str(value),
            )


def not_worth(merged: Adapter) -> str:
    """Why the adapters are not merged, if the result would be larger than they are together; "" otherwise."""
    report = merged.report
    if report is None or report.source_size is None or merged.size <= report.source_size:
        return ""
    return phrase("R-not-merged-adapters-stay-they", merged=fit_verdict(merged)[1], exact=EXACT)


def _place(method: tuple[str, Any]) -> tuple[bool, str]:
    """The sort key of a method in the list. A new node starts with the first one."""
    return method[0] != SUM, method[0]


def _inputs(method: MergeMethod) -> list[Any]:
    """The settings of a method, which the node shows while the method is chosen."""
    inputs: list[Any] = []
    for option in method.options:
        if option.choices:
            widget = io.Combo.Input(
                option.name, options=list(option.choices), default=str(option.default), tooltip=option.what
            )
        else:
            widget = io.Float.Input(
                option.name,
                default=float(option.default),
                min=option.low,
                max=option.high,
                step=0.01 if option.high <= 100 else 0.1,
                tooltip=option.what,
            )
        inputs.append(widget)
    if method.parts is not None:
        inputs.append(
            io.Combo.Input(
                "result",
                options=[TOGETHER, APART],
                default=TOGETHER,
                tooltip=f"{TOGETHER}: the sum. {APART}: a stack in which each adapter has its own part, "
                "orthogonal to the others, so that strengths can still be changed.",
            )
        )
    return inputs


def _chosen(method: Any) -> tuple[str, dict[str, Any]]:
    """The method and its options, as the host gives them: a group, or the name alone."""
    if isinstance(method, Mapping):
        options = {name: value for name, value in method.items() if name != "method" and value is not None}
        return str(method.get("method", SUM)), options
    return str(method), {}
