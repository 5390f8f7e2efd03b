"""Check what a prompt gives a node against the node's schema, before the node runs.

The host itself checks only some of it. A link can bring a value of any type: the host passes a number for a
model or a stack, and NaN for a number.
"""

from __future__ import annotations

import difflib
import inspect
import reprlib
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import wraps
from numbers import Integral, Real
from typing import Any, cast

import torch

from ...lycoris_ops import LycorisError
from ..host.files import shown_text
from ..host.page import io, running_node
from ..stacks.lora_stack import from_lora_stack, is_lora_stack
from ..stacks.typed import read_number
from .kept import keep


def _is_number(value: object) -> bool:
    # NaN compares as false, and `math.isfinite` would fail for an integer that is too large for a float.
    return isinstance(value, Real) and abs(cast("float", value)) <= sys.float_info.max


AS_FAMILY = "auto"
"""The choice of the usual value for the model's family."""
USUAL_NUMBER = "STRING,FLOAT,INT"
"""The host's type of a number or the text `auto` in its place, see `inputs.usual_input`."""

USUAL_NUMBERS = "STRING,INT,FLOAT"
"""The same for one or several numbers."""
SEVERAL = 8
"""The most numbers in one input."""


def _usual_number(value: Any) -> float | None:
    """The typed or linked number; 0 for the usual value of the model, None if it is no number."""
    if isinstance(value, str):
        # Workflows of earlier versions may have what is usual behind it, as in `auto: 16`.
        text = value.strip()
        value = 0 if not text or text.startswith(AS_FAMILY) else read_number(text)
    if value is None or not _is_number(value) or value < 0:
        return None
    return int(value) if value == int(value) else float(value)


def _usual_numbers(value: Any) -> list[float] | None:
    """The typed or linked numbers; none for the usual value of the model, None if some are no numbers."""
    texts = value.split(",") if isinstance(value, str) else [value]
    numbers = [_usual_number(text) for text in texts]
    if len(texts) == 1 and numbers == [0]:
        return []
    return None if len(texts) > SEVERAL or not all(numbers) else cast("list[float]", numbers)


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("STRING", "COMBO"), (lambda value: isinstance(value, str), "a text")),
    "FLOAT": (_is_number, "a finite number"),
    "INT": (lambda value: isinstance(value, Integral) and type(value) is not bool, "a whole number"),
    USUAL_NUMBER: (lambda value: _usual_number(value) is not None, f"a number from 0 on, or {AS_FAMILY}"),
    USUAL_NUMBERS: (
        lambda value: _usual_numbers(value) is not None,
        f"a number from 0 on, up to {SEVERAL} with commas between them, or {AS_FAMILY}",
    ),
    "BOOLEAN": (lambda value: isinstance(value, bool), "true or false"),
    "MODEL": (lambda value: hasattr(value, "model_state_dict"), "a link to a loaded model"),
    "VAE": (lambda value: hasattr(value, "decode"), "a link to a loaded VAE"),
    "CLIP": (lambda value: hasattr(value, "patcher"), "a link to a loaded text encoder"),
    "AUDIO_ENCODER": (lambda value: hasattr(value, "encode_audio"), "a link to a loaded audio encoder"),
    "CLIP_VISION": (lambda value: hasattr(value, "encode_image"), "a link to a loaded CLIP vision model"),
    # Not by its class: a second copy of the pack, loaded under another name, has a class of its own.
    "LYCORIS_STACK": (lambda value: hasattr(value, "entries"), "a link to a node with a LyCORIS stack"),
    "LYCORIS_STACK,LORA_STACK": (
        lambda value: hasattr(value, "entries") or is_lora_stack(value),
        "a link to a node with a LyCORIS stack or a LORA_STACK",
    ),
    "LORA_STACK": (is_lora_stack, "a link to a node with a LORA_STACK"),
    "LORA_MODEL": (lambda value: isinstance(value, Mapping), "a link to a node with a LORA_MODEL"),
    "LYCORIS_PLAN": (lambda value: hasattr(value, "rows"), "a link to Plan LyCORIS Ranks"),
    "LATENT": (
        lambda value: isinstance(value, Mapping) and hasattr(value.get("samples"), "shape"),
        "a link to latents",
    ),
    "CONDITIONING": (lambda value: isinstance(value, list), "a link to a conditioning"),
    "MASK": (lambda value: hasattr(value, "shape"), "a link to a mask"),
    "IMAGE": (lambda value: hasattr(value, "shape"), "a link to pictures"),
    # Judged by the node: hosts hand it on in several forms.
    "CURVE": (lambda value: True, "a curve of the Curve Editor"),
}
"""By the host's name of a type: a test of a value, and what is expected in words."""

READ: dict[str, Callable[[Any], Any]] = {
    "LYCORIS_STACK,LORA_STACK": lambda value: value if hasattr(value, "entries") else from_lora_stack(value),
    USUAL_NUMBER: _usual_number,
    USUAL_NUMBERS: _usual_numbers,
}
"""How a value is converted for the node, by the host's name of its type."""

MANY = ("LATENT", "CONDITIONING", "MASK")
"""Types of inputs that may have many values in a node that takes lists. Other inputs have one."""


def is_many(item: Any) -> bool:
    """Whether an input may have many values in a node that takes lists. A text input may if it takes only
    links."""
    kind = item.get_io_type()
    return kind in MANY or (kind == "STRING" and bool(item.force_input))


class NodeError(LycorisError):
    """An error in a run, as the host shows it: in lines, the verdict first."""

    def __str__(self) -> str:
        return self.problem


class NodeMemoryError(NodeError, torch.cuda.OutOfMemoryError):
    """Also an OutOfMemoryError, so that the host unloads all models."""


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Wrap a node's `execute`: raise LycorisError for an input that the node's schema does not have or allow.

    A choice is also looked up in the schema's list, unless the node judges it in its own `validate_inputs`.
    The host does the same with a literal. An optional input that is not given gets the schema's default.

    The host gives a node that takes lists every value as a list. Only inputs for which `is_many` is true stay
    lists. The inputs of a group are passed one by one, as if there were no groups. A group that `execute`
    takes by its own name is passed whole, and the node itself judges it.

    What the node shows is kept for pages that are opened later, errors included.
    """
    signature = inspect.signature(execute)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())

    @wraps(execute)
    def run(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> io.NodeOutput:
        hidden = getattr(cls, "hidden", None)
        try:
            output = execute(cls, **_made(cls, args, inputs))
        except LycorisError as error:
            error.shown_as(shown_text)
            if running_node() is None:
                raise
            message = error.told()
            keep(hidden, {"text": (message,), "lycoris": ({"state": "error"},)})
            of_memory = isinstance(error, torch.cuda.OutOfMemoryError)
            raise (NodeMemoryError if of_memory else NodeError)(message) from error
        keep(hidden, output.ui if isinstance(output.ui, Mapping) else None)
        return output

    def _made(cls: type[io.ComfyNode], args: Sequence[Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        schema = cls.define_schema()
        by_place = dict(list(signature.bind_partial(cls, *args).arguments.items())[1:])
        known, values = _named(schema.inputs, {**by_place, **inputs}, signature.parameters, cls)
        judged = inspect.signature(cls.validate_inputs).parameters
        arguments = {name: value for name, value in values.items() if name not in known}
        for name, item in known.items():
            if name in values:
                value = _alone(item, values[name]) if schema.is_input_list else values[name]
                arguments[name] = _checked(item, value, signature.parameters, judged)
            elif item.optional and ((absent := _absent(item, schema)) is not None or takes_all):
                arguments[name] = _read(item, absent)
        return arguments

    return run


def places(inputs: Sequence[Any]) -> dict[str, str]:
    """The names of a node's inputs in a prompt, by input. In a group they begin with the group's name."""
    grouped = {each.id: f"{group.id}.{each.id}" for group, each in _grouped(inputs)}
    return {**{item.id: item.id for item in inputs}, **grouped}


def ranges(inputs: Sequence[Any]) -> dict[str, tuple[float, float]]:
    """The least and the largest value of a node's inputs that take numbers, in groups too."""
    every = (*inputs, *(each for _, each in _grouped(inputs)))
    bounds = {item.id: (getattr(item, "min", None), getattr(item, "max", None)) for item in every}
    return {name: (low, high) for name, (low, high) in bounds.items() if low is not None and high is not None}


def literals(inputs: Sequence[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a node's inputs as `checked` gives them, from widget values by their names in a prompt.

    An input that is not given gets the schema's default. Raises LycorisError for a value that cannot be used.
    """
    named = places(inputs)
    every = (*inputs, *(each for _, each in _grouped(inputs)))
    known = [(item, getattr(item, "default", None)) for item in every]
    return {
        item.id: _checked(item, values.get(named[item.id], default), {}, (item.id,))
        for item, default in known
        if default is not None
    }


def _grouped(inputs: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """The inputs that are in groups, each after its group."""
    for item in inputs:
        for choice in getattr(item, "options", None) or ():
            for each in getattr(choice, "inputs", ()):
                yield item, each


def completed(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, with a schema that asks the host for what all nodes need.

    The host then passes all values of a prompt, so that `checked` can refuse unknown inputs, and the
    workflow, which only prompts from the page have. In every run it sends what the node shows, even if the
    result comes from its cache. ComfyUI before 0.20 cannot do this: there the page asks for kept reports.
    """
    define = node.define_schema.__func__

    def define_schema(cls: type[io.ComfyNode]) -> io.Schema:
        schema = define(cls)
        schema.accept_all_inputs = True
        schema.has_intermediate_output = True
        wanted = (io.Hidden.prompt, io.Hidden.extra_pnginfo)
        schema.hidden = [*dict.fromkeys((*(schema.hidden or ()), *wanted))]
        return schema

    node.define_schema = classmethod(define_schema)  # pyright: ignore[reportAttributeAccessIssue]
    return node


def _named(
    schema: Sequence[Any],
    values_given: Mapping[str, Any],
    parameters: Mapping[str, Any],
    cls: type[io.ComfyNode],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs and the values by name, as if there were no groups.

    Raises LycorisError for an unknown name. In a prompt of the page it may be a widget that another pack has
    added to the node. There it is left out, unless it is close to the name of an input.
    """
    known, names, values = dict[str, Any](), dict[str, str](), dict[str, Any]()
    for item in schema:
        choices = [option for option in getattr(item, "options", None) or () if hasattr(option, "inputs")]
        group = values_given.get(item.id)
        if choices and item.id not in parameters:
            inner = {each.id: each for choice in choices for each in choice.inputs}
            known |= inner
            names |= {name: f"{item.id}.{name}" for name in inner}
            held = group.items() if isinstance(group, Mapping) else ()
            # The choice itself has the name of the group, and None marks a value that the prompt leaves out.
            values |= {name: value for name, value in held if name != item.id and value is not None}
            continue
        names[item.id] = item.id
        if not choices:
            known[item.id] = item
        if item.id in values_given:
            values[item.id] = group
    hidden = getattr(cls, "hidden", None)
    of_page = bool((getattr(hidden, "extra_pnginfo", None) or {}).get("workflow"))
    for name in sorted(values_given.keys() - {item.id for item in schema} | values.keys() - names.keys()):
        near = difflib.get_close_matches(name.rpartition(".")[2], names, 1)
        if name in names.values():
            hint = f"It needs another choice of `{name.partition('.')[0]}`"
        elif near:
            hint = f"Is it {names[near[0]]}?"
        elif of_page:
            continue
        else:
            hint = "Take it out: it may be of another version of the node"
        expected = ", ".join(names.values())
        raise LycorisError("E-input-unknown", key=name, expected=expected, hint=hint)
    return known, {name: value for name, value in values.items() if name in names}


def _checked(item: Any, value: Any, parameters: Mapping[str, Any], judged: Container[str]) -> Any:
    """The value of an input as the node gets it. Raises LycorisError where the input does not allow it."""
    taken = parameters.get(item.id)
    if value is None and (item.optional if taken is None else taken.default is not inspect.Parameter.empty):
        return None
    for where, kind, each in _values(item, value):
        check(where, kind, each)
    options = getattr(item, "options", None)
    if options and item.id not in judged and value not in options:
        raise LycorisError("E-input-not-a-choice", id=item.id, got=_shown(value), expected=", ".join(options))
    return _read(item, value)


def _alone(item: Any, value: Any) -> Any:
    """The value of an input of a node that takes lists: the list if `is_many`, else its one value."""
    if is_many(item) or not isinstance(value, list):
        return value
    if len(value) != 1:
        raise LycorisError("E-input-takes-one-value", id=item.id, count=len(value))
    return value[0]


def _absent(item: Any, schema: io.Schema) -> Any:
    """The value of an optional input that is not given: the schema's default, if there is one."""
    default = getattr(item, "default", None)
    return () if default is None and schema.is_input_list and is_many(item) else default


def check(name: str, kind: str, value: object) -> None:
    """Raise LycorisError for a value of the input `name` that is not of the host's type `kind`."""
    fits, expected = KINDS[kind]
    if not fits(value):
        raise LycorisError("E-input-unusable", name=name, got=_shown(value), expected=expected)


def file_stamp(name: str, file: str | None, stamp: Callable[[str], str]) -> str:
    """The `stamp` of the file that an input names.

    It is "" for None: another node gives the name, and has not run yet.
    """
    if file is None:
        return ""
    check(name, "COMBO", file)
    return stamp(file)


def _values(item: Any, value: Any) -> Iterator[tuple[str, str, Any]]:
    """The name, the host's type and the value of an input, or of each member of a growing input."""
    template = getattr(item, "template", None)
    kind = item.get_io_type() if template is None else ""
    if template is None and is_many(item) and isinstance(value, list):
        for number, each in enumerate(value, 1):
            yield f"{item.id}, number {number}", kind, each
    elif template is None:
        yield item.id, item.get_io_type(), value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            # None marks a member that nothing is linked to.
            if each is not None:
                yield name, template.input.get_io_type(), each


def _read(item: Any, value: Any) -> Any:
    """The value of an input as the node gets it, or the values of a growing input's members."""
    template = getattr(item, "template", None)
    kind = (item if template is None else template.input).get_io_type()
    if kind not in READ or value is None:
        return value
    if template is None:
        return READ[kind](value)
    return {name: None if each is None else READ[kind](each) for name, each in value.items()}


def _shown(value: object) -> str:
    """A value, or its type where the value may be long or nested."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return reprlib.repr(value)
    return f"a {type(value).__name__}"
