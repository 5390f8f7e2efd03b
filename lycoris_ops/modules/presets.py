"""Named choices of modules, told from the classes and names that models have in common."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

from torch import nn

ATTENTION = re.compile(r"attn|attention(?!s)", re.IGNORECASE)
"""In the name of a module or of its class: attention. `attentions` of a UNet lists whole transformers."""
BLOCK = re.compile(r"Block|Layer$")
"""In the name of a class: it holds an attention among other parts, as WanAttentionBlock does."""
ASIDE = re.compile(r"mod(ulation)?\b|_mod_|ada_?ln|norm|time_?emb|timestep", re.IGNORECASE)
"""In the name of a linear layer inside a block: it computes scales and shifts from time or a vector.

Trainers leave these out by default, because small changes of them act on every value of a block."""
TRANSFORMER = re.compile(
    r"Transformer2DModel|TransformerTemporalModel|SpatialTransformer|SpatialVideoTransformer"
)
CONVOLUTIONAL = re.compile(r"Res(net)?Block|Downsample|Upsample")
"""Classes of the parts of UNets in diffusers and in the original layout."""
IA3 = re.compile(r"(^|\.)(to_k|to_v|k_proj|v_proj|key|value)$|(^|\.)(ff\.net\.2|mlp\.fc2|down_proj)$")
"""Keys, values and the last layer of the feed-forward part, as in Liu et al. (2205.05638), section 3.3."""


class Model:
    """What presets ask about a model: the classes of its modules, and its transformer blocks."""

    def __init__(self, module: nn.Module) -> None:
        # torch types no `named_modules`.
        named: dict[str, nn.Module] = dict(cast("Any", module).named_modules())
        self.classes = {path: type(inner).__name__ for path, inner in named.items()}
        self.lists = frozenset(path for path in named if _is_list(named[path]))

    def around(self, path: str) -> list[str]:
        """The classes of the modules that hold this one, from the outermost."""
        parts = path.split(".")
        return [self.classes.get(".".join(parts[:count]), "") for count in range(len(parts))]

    def in_attention(self, path: str) -> bool:
        """Whether a module is a part of an attention."""
        parts = path.split(".")
        return any(self._attends(".".join(parts[:count])) for count in range(1, len(parts) + 1))

    def in_transformer_block(self, path: str) -> bool:
        """Whether a module is inside one of the model's transformer blocks."""
        parts = path.split(".")
        return any(".".join(parts[:count]) in self.blocks for count in range(1, len(parts)))

    @cached_property
    def blocks(self) -> set[str]:
        """The transformer blocks: parts of a list that hold an attention, and no such part inside."""
        parts = [path for path in self.classes if path.rpartition(".")[0] in self.lists]
        holding = {path for path in parts if any(self._attends(inner) for inner in self._inside(path))}
        return {path for path in holding if not any(o != path and o.startswith(f"{path}.") for o in holding)}

    def _inside(self, path: str) -> list[str]:
        return self._children.get(path, [])

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        """All modules inside each module."""
        found: dict[str, list[str]] = {}
        for path in self.classes:
            parts = path.split(".")
            for count in range(1, len(parts)):
                found.setdefault(".".join(parts[:count]), []).append(path)
        return found

    def _attends(self, path: str) -> bool:
        # A projection of torch's attention is a weight, and no module of its own.
        kind = self.classes.get(path, "")
        return bool(
            ATTENTION.search(path.rpartition(".")[2]) or (ATTENTION.search(kind) and not BLOCK.search(kind))
        )


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _full(model: Model, path: str, kind: str) -> bool:
    return kind in ("linear", "conv")


def _full_lin(model: Model, path: str, kind: str) -> bool:
    return kind == "linear"


def _attn_only(model: Model, path: str, kind: str) -> bool:
    return kind == "linear" and model.in_attention(path) and not ASIDE.search(path.rpartition(".")[2])


def _attn_mlp(model: Model, path: str, kind: str) -> bool:
    if kind != "linear":
        return False
    block = model.in_transformer_block(path) and not any(map(ASIDE.search, path.split(".")))
    return block or _attn_only(model, path, kind)


def _transformers(model: Model, path: str, kind: str) -> bool:
    return _full(model, path, kind) and any(map(TRANSFORMER.search, model.around(path)))


def _convolutions(model: Model, path: str, kind: str) -> bool:
    around = model.around(path)
    return (
        _full(model, path, kind)
        and any(map(CONVOLUTIONAL.search, around))
        and not any(map(TRANSFORMER.search, around))
    )


def _ia3(model: Model, path: str, kind: str) -> bool:
    return kind == "linear" and IA3.search(path) is not None


PRESETS: dict[str, Callable[[Model, str, str], bool]] = {
    "full": _full,
    "full-lin": _full_lin,
    "attn-mlp": _attn_mlp,
    "attn-only": _attn_only,
    "unet-transformer-only": _transformers,
    "unet-convblock-only": _convolutions,
    "ia3": _ia3,
}
"""For each preset, whether it chooses a module, given its path and kind (see `sites.Kind`).

full: linear layers and convolutions. full-lin: linear layers. attn-mlp: the linear layers of transformer
blocks, without those that compute modulation. attn-only: the linear layers of attentions.
unet-transformer-only and unet-convblock-only: the transformers, and the convolutional blocks, of a UNet. ia3:
keys, values and the last layer of feed-forward parts. The names are those of LyCORIS.
"""
