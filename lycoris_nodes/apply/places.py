"""Where the tokens of a model's layers are in its passes, for strengths that differ over places."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...lycoris_ops import LycorisError, Places, Shape, Tokens, Where, tokens_of

ROOT = "diffusion_model."
WEIGHT = ".weight"
Attention = Callable[..., Tensor]


def tokens_by_path(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tokens]:
    """What the tokens of each layer of the host's model are, by module path; empty where it is not known."""
    own = {
        key.removeprefix(ROOT).removesuffix(WEIGHT): tuple(shape)
        for key, shape in shapes.items()
        if key.startswith(ROOT) and key.endswith(WEIGHT)
    }
    return {ROOT + path: kind for path, kind in tokens_of(own).items()}


@dataclass(frozen=True)
class Passing:
    """What one pass of the host's model is about: pictures, their size, and other tokens beside theirs."""

    pictures: tuple[int, ...]
    """As in `Places`."""
    size: Shape
    """The latent's size, (height, width) or (frames, height, width)."""
    patch: tuple[int, int, int]
    """How many frames, rows and columns of the latent a token stands for."""
    pace: int
    """How many frames of a video a frame of the latent stands for, the first one aside."""
    text: int
    """The tokens of the text."""
    multiple: int = 1
    """The tokens of the text, and those of the picture, may be filled up to a multiple of this number."""
    references: tuple[Shape, ...] = ()
    """The sizes of latents whose tokens stand behind those of the picture."""
    first: Shape | None = None
    """The size of a latent whose tokens stand before them."""
    of: int = 0
    """As in `Places`."""
    _kept: dict[tuple[Tokens, int], Places] = field(
        default_factory=dict[tuple[Tokens, int], Places], init=False, repr=False, compare=False
    )

    @classmethod
    def about(
        cls, model: Any, x: Tensor, given: Mapping[str, Any], pictures: Sequence[int], of: int
    ) -> Passing:
        """The pass that the host is about to make, from what `apply_model` gets.

        `pictures` are as in `Places`, and `of` is how many there are in all.
        """
        shapes = given.get("latent_shapes")
        shape = tuple(shapes[0]) if shapes else tuple(x.shape)
        network = model.diffusion_model
        texts = [given.get(name) for name in ("c_crossattn", "txt_byt5")]
        # HiDream takes a text twice: what the last layer of its encoder gives, and what the layer of a block.
        layers = given.get("encoder_hidden_states_llama3")
        # AuraFlow's own tokens stand with the text.
        registers = getattr(network, "register_tokens", None)
        first = given.get("reference_latent") if getattr(network, "ref_conv", None) is not None else None
        references = [*(given.get("ref_latents") or ()), *(given.get("context_latents") or ())]
        longer = given.get("time_dim_concat")
        return cls(
            pictures=tuple(pictures),
            of=of,
            size=shape[2:],
            patch=_patch(network),
            pace=int(getattr(model.latent_format, "temporal_downscale_ratio", 1)) if len(shape) == 5 else 1,
            text=sum(text.shape[1] for text in texts if text is not None)
            + (0 if layers is None else 2 * layers.shape[2])
            + (0 if registers is None else registers.shape[1]),
            multiple=int(getattr(network, "pad_tokens_multiple", None) or 1),
            references=tuple(tuple(one.shape[2:]) for one in (*references, longer) if one is not None),
            first=None if first is None else tuple(first.shape[2:]),
        )

    def places(self, kind: Tokens, tokens: int) -> Places:
        """Where the places of a layer are that has so many tokens for each sample.

        Raises LycorisError where the counts do not agree.
        """
        if (kind, tokens) not in self._kept:
            self._kept[kind, tokens] = self._places(kind, tokens)
        return self._kept[kind, tokens]

    def _places(self, kind: Tokens, tokens: int) -> Places:
        if kind == "text":
            return self._of(())
        if kind == "level":
            return self._of(self._level(tokens))
        grid = self._grid(self.size)
        count = math.prod(grid)
        before = math.prod(self._grid(self.first)) if self.first else 0
        after = sum(math.prod(self._grid(one)) for one in self.references)
        text = self.text + -self.text % self.multiple
        if kind == "text, places":
            before += text
        elif kind == "places, text":
            after += text
        # The first layer of a model sees its places before these are filled up.
        if before + count + after != tokens:
            after += -count % self.multiple
        if before + count + after != tokens:
            known = f"{before} others, {' x '.join(map(str, grid))} places and {after} others"
            raise _not_agreeing(tokens, known)
        return self._of(grid, before, after)

    def _of(self, grid: Shape, before: int = 0, after: int = 0) -> Places:
        return Places(self.pictures, grid, before, after, self.pace, self.of)

    def _grid(self, size: Shape) -> Shape:
        """The tokens of a latent of this size along each axis."""
        return tuple(-(-one // step) for one, step in zip(size, self.patch[3 - len(size) :], strict=True))

    def _level(self, tokens: int) -> Shape:
        """The grid of a UNet's level with so many tokens: each level has half of the one above."""
        *_, height, width = self.size
        while height * width > tokens and height * width > 1:
            height, width = -(-height // 2), -(-width // 2)
        if height * width != tokens:
            *_, high, wide = self.size
            raise _not_agreeing(tokens, f"the places of {high} x {wide} halved several times")
        return (height, width)


def _patch(network: Any) -> tuple[int, int, int]:
    """How many frames, rows and columns of a latent a token of the host's network stands for."""
    # Ideogram's latents are cut into patches already.
    size = 1 if hasattr(network, "ae_channels") else getattr(network, "patch_size", None)
    if size is None:
        # Krea's.
        size = getattr(network, "patch", None)
    if size is None:
        # Cosmos.
        side = getattr(network, "patch_spatial", 1)
        size = (getattr(network, "patch_temporal", 1), side, side)
    frames, height, width = (1, size, size) if isinstance(size, int) else (1, *size)[-3:]
    return int(frames), int(height), int(width)


def _not_agreeing(tokens: int, known: str) -> LycorisError:
    return LycorisError(
        "a mask cannot be laid on a layer, because it has other tokens than the picture and the text",
        got=f"{tokens} tokens",
        expected=known,
        hint="Another node may have changed the passes of the model. Take the mask away, or leave the layer "
        "out by a rule of weight 0 in Weight LyCORIS Blocks",
    )


def blended_attention(
    passing: Passing, kind: Tokens, apart: Sequence[Where], before: Attention | None
) -> Attention:
    """The host's override of attention: one for each set of keys and values, blended over the places.

    Keys and values whose batch is larger than that of the queries hold the samples once for the layers
    without a mask, and once for each of `apart`. `before` is the override that another node has set.
    """

    def attend(run: Attention, q: Tensor, k: Tensor, v: Tensor, *args: Any, **named: Any) -> Tensor:
        def one(k: Tensor, v: Tensor) -> Tensor:
            return run(q, k, v, *args, **named) if before is None else before(run, q, k, v, *args, **named)

        if len(k) == len(v) == len(q):
            return one(k, v)
        count = 1 + len(apart)
        keys, values = (each.chunk(count) if len(each) > len(q) else [each] * count for each in (k, v))
        total = base = one(keys[0], values[0])
        places = passing.places(kind, q.shape[-2])
        for where, key, value in zip(apart, keys[1:], values[1:], strict=True):
            factors = where.over(places, places.grid, base.dtype, base.device)[..., None]
            # With the heads as a dimension of their own.
            factors = factors[:, None] if base.ndim == 4 else factors
            found = one(key, value)
            total = torch.lerp(total, found if total is base else found + (total - base), factors)
        return total

    return attend
