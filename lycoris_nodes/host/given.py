"""What a model is given beside a text: the ends of a clip, what surrounds a hole in a picture, clips that
control it, and references.

The host's own nodes make it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import nodes
import torch
from comfy.clip_vision import Output
from torch import Tensor

from ...lycoris_ops import TrainError, phrase
from .families import family_of
from .families.node import (
    BOTH,
    FIRST,
    NONE,
    NOTHING,
    SEEN,
    Beside,
    Made,
    See,
    Settings,
    Takes,
    inputs_of,
    nothing,
    of_node,
)

_TAKEN = ("penultimate_hidden_states", "last_hidden_state", "image_sizes")
"""The outputs of a CLIP vision model that video models use. The states of all layers are far larger."""


@dataclass(frozen=True)
class Given:
    """How the host's `node` makes the given parts: by `make`, or together with a text by `encode`."""

    node: str
    make: Callable[[Any, Tensor, Tensor | None, Beside], Made] | None
    """It takes a VAE, pixels (F, H, W, 3), a mask (1, H, W), and what belongs to the clip."""
    masked: bool = False
    """Whether masks say what to paint, and not what to learn."""
    ends: str = ""
    """The frames that the given parts are made from, as in `ENDS`."""
    needed: bool = True
    """Whether the model makes videos only with given parts."""
    seen: bool = False
    """Whether a CLIP vision model also sees the given frames."""
    takes: Takes = NOTHING
    encode: Callable[[Any, Any, str, Tensor, int, Beside], list[Any]] | None = None
    """It takes a text encoder, a VAE, the text, the first and the last frame (2, H, W, 3), the number of
    frames, and what belongs to the clip."""

    @property
    def only_beside(self) -> bool:
        """Whether a clip without anything beside it is given nothing."""
        return not self.needed and self.ends == NONE

    @property
    def unseen(self) -> bool:
        """Whether a CLIP vision model would see the first frame, and none is given."""
        return self.ends == NONE and (self.takes.only_seen or not self.takes.references)


def given_of(model: Any, ends: str, see: See | None = None, references: str = "auto") -> Given | None:
    """How a model is given parts of its target; None if it is given nothing.

    If the model's node takes the output of a CLIP vision model, it also gets what `see` returns for the
    frames. `ends` is one of `ENDS`, and `references` one of `WAYS`.
    """
    family = family_of(model)
    if family.fills(model):
        return Given("InpaintModelConditioning", _around, masked=True)
    node = family.given_to(model, references)
    if node is None:
        return None
    if ends not in node.frames and ends != NONE:
        if FIRST in node.frames:
            raise TrainError(
                "E-frames-not-for-model",
                key="first_frames",
                got=ends,
                expected=phrase("R-first-first-last-or-none")
                if BOTH in node.frames
                else phrase("R-first-or-none"),
            )
        ends = NONE
    name = node.frames.get(ends)
    if name is None:
        return None
    make = None if node.encode else partial(node.make or of_node, name, node.takes, ends, see)
    encode = partial(node.encode, ends) if node.encode else None
    how = Given(name, make, ends=ends, needed=node.needed, takes=node.takes, encode=encode)
    seen = see is not None and not how.unseen and not inputs_of(name).keys().isdisjoint(SEEN)
    return replace(how, seen=seen)


def misses_frames(model: Any, ends: str) -> bool:
    """Whether the model should get frames, but `given_of` has no node for them.

    It should if it is an image-to-video model, or if `ends` asks for more than the first frame.
    """
    how = given_of(model, ends)
    asked = family_of(model).animates(model) or ends != FIRST
    return (how is None or how.only_beside) and ends != NONE and asked


def check_made(model: Any, settings: Mapping[str, Any]) -> None:
    """Raise TrainError for a conditioning without a setting that the model cannot run without."""
    unmade = family_of(model).unmade
    if unmade and unmade.needed and settings.get(unmade.setting) is None:
        raise TrainError(
            "E-captions-alone-not-trainable", key=unmade.setting, name=type(model).__name__, node=unmade.node
        )


def _around(vae: Any, pixels: Tensor, mask: Tensor | None, beside: Beside) -> Made:
    hole = torch.ones(1, *pixels.shape[1:3]) if mask is None else mask
    conditioning = nodes.InpaintModelConditioning().encode([nothing()], [nothing()], pixels, vae, hole, False)
    return Made(conditioning[0][0][1])


def stored(settings: Settings) -> Settings:
    """Settings in which the output of a CLIP vision model is a table of the tensors that models use."""
    return {name: _in_tables(value) for name, value in settings.items()}


def _in_tables(value: Any) -> Any:
    if isinstance(value, list):
        values: list[Any] = value
        return [_in_tables(each) for each in values]
    return {key: vars(value)[key] for key in _TAKEN if key in vars(value)} if type(value) is Output else value


def restored(settings: Mapping[str, Any]) -> Settings:
    """The settings that `stored` was called with, with only those vision tensors that models use."""
    return {
        name: _of_tables(value) if name.startswith(SEEN[0]) else value for name, value in settings.items()
    }


def _of_tables(value: Any) -> Any:
    """Outputs of CLIP vision models from their tables."""
    if value is None:
        return None
    if isinstance(value, list):
        values: list[Any] = value
        return [_of_tables(each) for each in values]
    output = Output()
    vars(output).update(value)
    return output
