"""The name of a layer in an adapter file, split into prefix and path."""

from __future__ import annotations

import re
from typing import NamedTuple

from .dialects import PREFIXES, Component, Prefix

EXPERT = re.compile(r"[._]expert(\d{1,6})$")
"""The end of a layer's name if the layer is for one expert of a parameter."""


BEGINS = re.compile("|".join(map(re.escape, sorted(PREFIXES, key=len, reverse=True))))
"""Any prefix, the longest that fits: `unet.base_model.model.` of PEFT begins like `unet.`."""


class LayerName(NamedTuple):
    """A layer's name: a tool's prefix, and the path."""

    text: str
    """The whole name."""
    dialect: str | None
    """The dialect that the prefix belongs to; None if the prefix is unknown."""
    prefix: Prefix
    """The prefix; empty if it is unknown."""
    path: str
    """The name without the prefix."""

    @classmethod
    def of(cls, text: str) -> LayerName:
        prefix = BEGINS.match(text)
        return cls(text, *PREFIXES[prefix[0]], text[prefix.end() :]) if prefix else cls.bare(text)

    @classmethod
    def bare(cls, text: str) -> LayerName:
        """A name without a prefix, even if it begins like one."""
        return cls(text, None, Prefix(""), text)

    @property
    def component(self) -> Component | None:
        """The component of a model that the layer is in; None where the name does not say it."""
        return self.prefix.component

    @property
    def encoder(self) -> int | None:
        """The number of the text encoder, see `Prefix.encoder`."""
        return self.prefix.encoder

    @property
    def expert(self) -> int | None:
        """The number of the expert that the layer is for, within a parameter; None without experts."""
        number = EXPERT.search(self.path)
        return int(number[1]) if number else None
