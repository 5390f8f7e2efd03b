"""Inputs and outputs that several nodes share."""

from __future__ import annotations

from typing import Any

from ...lycoris_ops import FITTED, PRESETS, WRITABLE, LycorisError, Phrase, Stack
from ..host.page import io, progress
from ..host.weights import compute_device
from ..stacks.rows import LARGEST, STRENGTHS
from .checks import AS_FAMILY as AS_FAMILY
from .checks import check

LOAD, SHAPE, SAVE, TRAIN = "lycoris/load", "lycoris/shape", "lycoris/save", "lycoris/train"
"""The categories of nodes."""
STACK = io.Custom("LYCORIS_STACK")
LORA_STACK = io.Custom("LORA_STACK")
PLAN = io.Custom("LYCORIS_PLAN")

NOTHING_CHANGED = Phrase("R-no-stack-nothing-changed")
NOTHING_SAVED = Phrase("R-no-stack-nothing-saved")
NOTHING_HANDED = Phrase("R-no-stack-nothing-handed-on")
NOTHING_MERGED = Phrase("R-no-stack-nothing-merged")
NOTHING_RESIZED = Phrase("R-no-stack-nothing-resized")


def stack_input(tooltip: str) -> Any:
    """A stack, or the LORA_STACK of another pack. The node gets a stack in both cases, see `checks.READ`.

    It is always optional: nothing arrives if the node that makes it is switched off.
    """
    return io.MultiType.Input("stack", types=[STACK, LORA_STACK], optional=True, tooltip=tooltip)


def no_stack(verb: str, stack: Stack | None) -> LycorisError:
    """The error of a node that can do nothing without adapters: none came, or an empty stack."""
    return LycorisError("E-stack-unlinked" if stack is None else "E-stack-empty", verb=verb)


def strength_input(name: str, tooltip: str) -> Any:
    """A strength, the same for all nodes: two decimals, and up to `LARGEST`."""
    return io.Float.Input(
        name, default=1.0, min=-LARGEST, max=LARGEST, step=0.01, round=0.01, tooltip=tooltip
    )


def check_strength(name: str, value: Any) -> None:
    """Raise LycorisError for a strength that is no finite number in the range. None means not known yet."""
    if value is None:
        return
    check(name, "FLOAT", value)
    if abs(value) > LARGEST:
        raise LycorisError("E-input-unusable", name=name, got=str(value), expected=STRENGTHS)


def output(kind: Any, name: str, tooltip: str, *, many: bool = False) -> Any:
    """An output of one of the host's types that is shown by its name; `many` gives a list."""
    return kind.Output(name, display_name=name, is_output_list=many, tooltip=tooltip)


def stack_output(tooltip: str) -> Any:
    return output(STACK, "stack", tooltip)


def optional_model(model: str, clip: str) -> list[Any]:
    """A model and a text encoder that need not be linked, given their tooltips."""
    return optional(io.Model.Input("model", tooltip=model), io.Clip.Input("clip", tooltip=clip))


AS_IT_IS = "as in the file"
DTYPES = {AS_IT_IS: None, **WRITABLE}
"""The choices for the dtype of a written file; None keeps the dtype of each tensor."""


def dtype_input(tooltip: str) -> Any:
    return io.Combo.Input("dtype", options=list(DTYPES), default=AS_IT_IS, tooltip=tooltip)


def size_input() -> Any:
    return io.String.Input(
        "size",
        default="auto",
        tooltip="How large the adapter is to be. rank 16: this rank everywhere. 50MB: the size of the file; "
        "2000000: parameters. Both are spread over the layers where they keep most. 90%: as little as keeps "
        "that share of the energy. 1/100: that share of the weights' parameters. auto: it grows until more "
        "bytes would keep little more; no layer gets larger than it was.",
    )


def algorithm_input(*more: str) -> Any:
    return io.Combo.Input(
        "algorithm",
        options=[*FITTED, "auto", *more],
        default="lora",
        tooltip="The kind of the layers. auto: for each layer the kind that keeps most for its bytes, and "
        "never one larger than the layer was."
        + (" same: the kind that each layer has." if "same" in more else ""),
    )


def optional(*inputs: Any) -> list[Any]:
    """Inputs that need not be there."""
    for item in inputs:
        item.optional = True
    return list(inputs)


def advanced(*inputs: Any) -> list[Any]:
    """Inputs that are folded away on a node, and need not be there."""
    for item in inputs:
        item.advanced = True
    return optional(*inputs)


def number_input(
    name: str, tooltip: str, *, most: float, default: float = 0.0, step: float = 0.01, **more: Any
) -> Any:
    """A number from 0 on."""
    return io.Float.Input(name, default=default, min=0.0, max=most, step=step, tooltip=tooltip, **more)


def count_input(name: str, tooltip: str, *, most: int, default: int = 0, least: int = 0) -> Any:
    """A whole number."""
    return io.Int.Input(name, default=default, min=least, max=most, tooltip=tooltip)


def usual_input(
    name: str, tooltip: str, usual: str = "as is usual for the model", *, several: bool = False
) -> Any:
    """A number from 0 on, or `auto` for what is usual. The node gets 0 for `auto`.

    With `several` there may be more, with commas between them; the node gets a list, empty for `auto`.

    It is a text, so that the page can say what is usual. Numbers and links to numbers are taken as well.
    """
    number: Any = io.MultiType.Input(
        io.String.Input(name, default=AS_FAMILY, tooltip=f"{tooltip} {AS_FAMILY}: {usual}."),
        # The order makes it another type, see `checks.USUAL_NUMBERS`.
        types=[io.Int, io.Float] if several else [io.Float, io.Int],
    )
    number.default = AS_FAMILY
    return number


def fit_inputs() -> list[Any]:
    """More inputs of nodes that make layers of a given kind and size."""
    return advanced(
        dtype_input(
            "The dtype of the tensors. 'as in the file': the source's dtype. A merged layer gets the widest "
            "dtype of its sources, and what is extracted gets float16."
        ),
        io.Boolean.Input(
            "tucker",
            default=False,
            tooltip="On: convolutions get a Tucker core, which takes less for the same rank.",
        ),
        count_input("largest_rank", "The highest rank that a layer may get; 0 leaves it open.", most=4096),
        seed_input("The seed of random bases. Any seed gives nearly the same layers."),
    )


def fit_options(dtype: str, tucker: bool, largest_rank: int, seed: int) -> dict[str, Any]:
    """The inputs of `fit_inputs` as the library's options, with the host's device and progress bar."""
    return {
        "dtype": DTYPES[dtype],
        "tucker": tucker,
        "largest": largest_rank or None,
        "seed": seed,
        "device": compute_device(),
        # The total comes with the first update.
        "progress": progress(1),
    }


def training_inputs(what: str) -> list[Any]:
    """The model, latents and captions of a node that trains or plans."""
    return [
        io.Model.Input("model", tooltip=f"The model to {what}. It stays as it is."),
        io.Latent.Input(
            "latents",
            tooltip="The encoded pictures or videos: a list from the data set nodes, or batches from VAE "
            "Encode. Several sizes are fine.",
        ),
        io.Conditioning.Input(
            "positive",
            tooltip="The encoded captions: a list with one for each latent in the same order, or one for "
            "all.",
        ),
    ]


def choice_inputs() -> list[Any]:
    """Which modules of a model are trained."""
    return [
        io.Combo.Input(
            "preset",
            options=[AS_FAMILY, *PRESETS],
            default=AS_FAMILY,
            tooltip="Which layers are trained. auto: as is usual for the model. full: linear layers and "
            "convolutions. full-lin: linear layers. attn-mlp: those of the blocks that the model repeats, "
            "without modulation and embedders. attn-only: those of attentions alone.",
        ),
        io.String.Input(
            "include",
            default="",
            tooltip="More layers, by name: patterns with spaces between them, such as `*.norm*` or "
            "`/blocks\\.[0-9]\\./`.",
        ),
        io.String.Input(
            "exclude", default="", tooltip="Layers to leave out, by patterns with spaces between them."
        ),
    ]


USUAL, OWN = "usual", "own"


def group_input(name: str, tooltip: str, inputs: list[Any]) -> Any:
    """Inputs that the front end shows only if the user chooses `own`. All are optional."""
    (group,) = advanced(
        io.DynamicCombo.Input(
            name,
            options=[io.DynamicCombo.Option(USUAL, []), io.DynamicCombo.Option(OWN, advanced(*inputs))],
            tooltip=f"{tooltip} {USUAL}: as is usual for the model. {OWN}: as set below.",
        )
    )
    return group


def mask_input() -> Any:
    return io.Mask.Input(
        "masks",
        optional=True,
        tooltip="Where each picture is learned: white is learned, black is ignored. One for each latent, in "
        "the size of its picture, or one for all.",
    )


def seed_input(tooltip: str) -> Any:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        # Else the front end draws another seed after each run, and no training could be resumed.
        control_after_generate=False,
        tooltip=tooltip,
    )
