"""What a prompt gives a node, checked against the node's schema before the node runs.

The host itself checks only some of it. A link can bring a value of any type, a number in place of a model or
of a stack passes, and so does NaN in place of a number.
"""

from __future__ import annotations

import inspect
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from numbers import Integral, Real
from typing import Any, cast

from ..lycoris_ops import LycorisError
from .host import io


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    # NaN compares as false, and `math.isfinite` would fail for an integer that is too large for a float.
    return isinstance(value, Real) and abs(cast("float", value)) <= sys.float_info.max


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _has_samples(value: object) -> bool:
    return isinstance(value, Mapping) and hasattr(value.get("samples"), "shape")


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "STRING": (_is_text, "a text"),
    "COMBO": (_is_text, "a text"),
    "FLOAT": (_is_number, "a finite number"),
    "INT": (_is_whole, "a whole number"),
    "BOOLEAN": (lambda value: isinstance(value, bool), "true or false"),
    "MODEL": (lambda value: hasattr(value, "model_state_dict"), "a link to a loaded model"),
    "CLIP": (lambda value: hasattr(value, "patcher"), "a link to a loaded text encoder"),
    # Not by its class: a second copy of the pack, loaded under another name, has a class of its own.
    "LYCORIS_STACK": (lambda value: hasattr(value, "entries"), "a link to a node with a LyCORIS stack"),
    "LYCORIS_PLAN": (lambda value: hasattr(value, "rows"), "a link to Plan LyCORIS Ranks"),
    "LATENT": (_has_samples, "a link to latents"),
    "CONDITIONING": (lambda value: isinstance(value, list), "a link to a conditioning"),
    "MASK": (lambda value: hasattr(value, "shape"), "a link to a mask"),
}
"""The host's name of an input's type, to whether a value is of it, and what is expected in words."""

MANY = ("LATENT", "CONDITIONING", "MASK")
"""Types of which a node that takes lists gets any number. Of any other type it gets one value."""


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """A node's `execute` that raises LycorisError for an input that is not what the node's schema says.

    A choice is also looked up in the schema's list, unless the node judges it in its own `validate_inputs`.
    The host does the same with a literal. An optional input that is not there has the schema's default.

    To a node that takes lists the host gives every value as a list. Only inputs of the types `MANY` stay so.
    """
    signature = inspect.signature(execute)

    @wraps(execute)
    def run(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> io.NodeOutput:
        schema = cls.define_schema()
        if schema.is_input_list:
            inputs = {one.id: _alone(one, inputs[one.id]) for one in schema.inputs if one.id in inputs}
        defaults = {one.id: default for one in schema.inputs if (default := _default(one)) is not None}
        bound = signature.bind(cls, *args, **{**_unset(defaults, signature, args), **inputs})
        judged = inspect.signature(cls.validate_inputs).parameters
        for one in schema.inputs:
            value = bound.arguments.get(one.id)
            if value is None and signature.parameters[one.id].default is not inspect.Parameter.empty:
                continue
            for name, kind, each in _values(one, value):
                check(name, kind, each)
            options = getattr(one, "options", None)
            if options and one.id not in judged and value not in options:
                problem = f"the input `{one.id}` is none of its choices"
                raise LycorisError(problem, got=_shown(value), expected=", ".join(options))
        return execute(*bound.args, **bound.kwargs)

    return run


def _alone(one: Any, value: Any) -> Any:
    """The value of an input of a node that takes lists: the list where it may be many, else its one value."""
    if one.get_io_type() in MANY or not isinstance(value, list):
        return value
    if len(value) != 1:
        raise LycorisError(f"the input `{one.id}` takes one value", got=f"{len(value)} values", expected="1")
    return value[0]


def _default(one: Any) -> Any:
    """What the schema says an optional input is where nothing is given, None where it says nothing."""
    return getattr(one, "default", None) if one.optional else None


def _unset(
    defaults: Mapping[str, Any], signature: inspect.Signature, args: tuple[Any, ...]
) -> dict[str, Any]:
    """The defaults of the inputs that are not given by their place."""
    by_place = list(signature.parameters)[1 : len(args) + 1]
    return {name: value for name, value in defaults.items() if name not in by_place}


def check(name: str, kind: str, value: object) -> None:
    """Raise LycorisError for a value of the input `name` that is not of the host's type `kind`."""
    fits, expected = KINDS[kind]
    if not fits(value):
        raise LycorisError(f"the input `{name}` cannot be used", got=_shown(value), expected=expected)


def _values(one: Any, value: Any) -> Iterator[tuple[str, str, Any]]:
    """The name, the host's type and the value of an input, or of each member of one that grows."""
    template = getattr(one, "template", None)
    kind = one.get_io_type() if template is None else ""
    if kind in MANY and isinstance(value, list):
        for number, each in enumerate(value, 1):
            yield f"{one.id}, number {number}", kind, each
    elif template is None:
        yield one.id, one.get_io_type(), value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            # None stands for a member that nothing is linked to.
            if each is not None:
                yield name, template.input.get_io_type(), each


def _shown(value: object) -> str:
    """A value, or its type where the value may be long or nested."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return reprlib.repr(value)
    return f"a {type(value).__name__}"
