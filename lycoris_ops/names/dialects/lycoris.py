"""The standalone format of the lycoris-lora package, used by SimpleTuner too."""

from __future__ import annotations

from ..layouts import Layers
from .base import Dialect, Prefix, Write
from .plain import encode

PREFIX = "lycoris_"


def _renamed(spoken: str | None, prefix: Prefix, path: str) -> str | None:
    # LyCORIS writes the paths of the module that it wraps: for image models, of diffusers' model.
    return PREFIX + path.replace(".", "_") if spoken in ("diffusers", "onetrainer", "peft") else None


DIALECT = Dialect(
    name="lycoris",
    prefixes=(Prefix(PREFIX),),
    write=Write(
        PREFIX,
        order=5,
        tensors=encode,
        layout=Layers.diffusers_or_own,
        flat=True,
        renamed=_renamed,
        embeddings=True,
    ),
)
