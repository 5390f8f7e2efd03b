"""Named choices of modules, by the classes and names that models have in common."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cached_property

from torch import nn

from ..names.architectures import ASIDE
from ..names.blocks import ATTENTION
from .named import named_modules

BLOCK = re.compile(r"Block|Layer$")
"""Matches the names of block classes. A class such as `AttentionBlock` is not an attention: it has other
parts too."""
MODULATION = re.compile(r"mod(ulation)?\b|_mod_|ada_?ln|norm|time_?emb|timestep", re.IGNORECASE)
"""Matches the names of linear layers in a block that compute scales and shifts from time or a vector.

Most trainers leave these out by default, because small changes of them act on every value of a block."""
EMBEDDER = re.compile(r"Embed(der|dings?)?$")
"""Matches the names of classes in a block that embed times, positions or numbers."""
TRANSFORMER = re.compile(
    r"Transformer2DModel|TransformerTemporalModel|SpatialTransformer|SpatialVideoTransformer"
)
CONVOLUTIONAL = re.compile(r"Res(net)?Block|Downsample|Upsample")
"""Classes of the parts of UNets in diffusers and in the original layout."""
IA3 = re.compile(r"(^|\.)(to_k|to_v|k_proj|v_proj|key|value)$|(^|\.)(ff\.net\.2|mlp\.fc2|down_proj)$")
"""Keys, values and the last layer of the feed-forward part, as in Liu et al. (2205.05638), section 3.3."""


class ModuleClasses:
    """The classes and the blocks of a model, for presets."""

    def __init__(self, module: nn.Module) -> None:
        named = dict(named_modules(module))
        self.classes = {path: type(inner).__name__ for path, inner in named.items()}
        lists = nn.ModuleList | nn.ModuleDict | nn.Sequential
        self.lists = frozenset(path for path, inner in named.items() if isinstance(inner, lists))

    def around(self, path: str) -> list[str]:
        """The classes of the modules that hold this one, from the outermost."""
        return [self.classes.get(start, "") for start in ("", *_holders(path))]

    def in_attention(self, path: str) -> bool:
        """Whether a module is a part of an attention, and does not compute its modulation."""
        starts = [*_holders(path), path]
        attends = next((index for index, start in enumerate(starts) if self._attends(start)), None)
        return attends is not None and not any(map(MODULATION.search, path.split(".")[attends:]))

    def block_of(self, path: str) -> str | None:
        """The outermost block that a module is inside of; None where it is in none."""
        return next((start for start in _holders(path) if start in self.blocks), None)

    def aside(self, path: str) -> str | None:
        """Why a layer in a block is not trained by default; None for one that is."""
        reason = next((why for expression, why in ASIDE.items() if expression.search(path)), None)
        if reason or any(map(MODULATION.search, path.split("."))):
            return reason or "modulation"
        block = self.block_of(path) or ""
        inside = [self.classes.get(start, "") for start in _holders(path) if start.startswith(block)]
        return "embedders" if any(map(EMBEDDER.search, inside)) else None

    @cached_property
    def blocks(self) -> set[str]:
        """The units that the model repeats, by path. They are these members of its lists:

        - members of each class that occurs several times in one list, if they have modules inside. Nested
          lists count as one list, and are not blocks themselves.
        - the innermost members that hold an attention: a list may have only one member of each class.
        - members with modules inside whose class is called a block or a layer: a model may have only one
          block.
        """
        members = [path for path in self.classes if path and path.rpartition(".")[0] in self.lists]
        members_with_parts = [path for path in members if path not in self.lists and path in self._children]
        times = Counter((self._outermost_list(path), self.classes[path]) for path in members_with_parts)
        repeated = {kind for (_, kind), count in times.items() if count > 1}
        holding = {path for path in members if any(map(self._attends, self._children.get(path, ())))}
        attending = {path for path in holding if holding.isdisjoint(self._children[path])}
        called = {path for path in members_with_parts if BLOCK.search(self.classes[path])}
        return attending | called | {path for path in members_with_parts if self.classes[path] in repeated}

    def _outermost_list(self, path: str) -> str:
        """The outermost of the nested lists around a member of a list."""
        while path and (holder := path.rpartition(".")[0]) in self.lists:
            path = holder
        return path

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        """All modules inside each module that has some."""
        children: dict[str, list[str]] = {}
        for path in self.classes:
            for start in _holders(path):
                children.setdefault(start, []).append(path)
        return children

    def _attends(self, path: str) -> bool:
        # The input projection of torch's attention is a weight, not a module with a class.
        kind = self.classes.get(path, "")
        return bool(
            ATTENTION.search(path.rpartition(".")[2]) or (ATTENTION.search(kind) and not BLOCK.search(kind))
        )


def _holders(path: str) -> list[str]:
    """The paths of the modules that hold a module, from the outermost, without the model itself."""
    segments = path.split(".")
    return [".".join(segments[:count]) for count in range(1, len(segments))]


def _full(model: ModuleClasses, path: str, kind: str) -> bool:
    return kind in ("linear", "conv")


def _attn_mlp(model: ModuleClasses, path: str, kind: str) -> bool:
    if kind != "linear":
        return False
    return model.in_attention(path) or (model.block_of(path) is not None and model.aside(path) is None)


def _transformers(model: ModuleClasses, path: str, kind: str) -> bool:
    return _full(model, path, kind) and any(map(TRANSFORMER.search, model.around(path)))


def _convolutions(model: ModuleClasses, path: str, kind: str) -> bool:
    around = model.around(path)
    return (
        _full(model, path, kind)
        and any(map(CONVOLUTIONAL.search, around))
        and not any(map(TRANSFORMER.search, around))
    )


PRESETS: dict[str, Callable[[ModuleClasses, str, str], bool]] = {
    "full": _full,
    "full-lin": lambda model, path, kind: kind == "linear",
    "attn-mlp": _attn_mlp,
    "attn-only": lambda model, path, kind: kind == "linear" and model.in_attention(path),
    "unet-transformer-only": _transformers,
    "unet-convblock-only": _convolutions,
    "ia3": lambda model, path, kind: kind == "linear" and IA3.search(path) is not None,
}
"""For each preset, whether it chooses a module, given its path and kind (see `sites.Kind`).

full: linear layers and convolutions. full-lin: linear layers. attn-mlp: the linear layers of attentions and
of blocks; in blocks, layers that compute modulation, that embed, or that an architecture's record sets aside
are left out. attn-only: the linear layers of attentions, without layers that are feed-forward too, such as
`linear1` and `linear2` of Flux' single blocks. unet-transformer-only: the linear layers and convolutions in
the transformers of a UNet. unet-convblock-only: the same in its convolutional blocks. ia3: keys, values and
the last layer of feed-forward parts. LyCORIS uses the same names.
"""
