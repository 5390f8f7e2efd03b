"""Map the tokens of a model's layers to places in the picture, for strengths that vary over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ...lycoris_ops import Blend, Crop, Places, Shape, Tokens, phrase, tokens_of
from ..host.families import frames_of
from ..host.training import patch_of

ROOT = "diffusion_model."
WEIGHT = ".weight"
Attention = Callable[..., Tensor]


def tokens_by_path(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tokens]:
    """The kind of tokens in each layer of the host's model, by module path; empty if it is not known."""
    own = {
        key.removeprefix(ROOT).removesuffix(WEIGHT): tuple(shape)
        for key, shape in shapes.items()
        if key.startswith(ROOT) and key.endswith(WEIGHT)
    }
    return {ROOT + path: kind for path, kind in tokens_of(own).items()}


class Unlike(NamedTuple):
    """Tokens that do not fit the picture and the text: what was found and what was expected, in words."""

    got: str
    expected: str


@dataclass(frozen=True)
class Passing:
    """One pass of the host's model: its pictures, their size, and the other tokens beside them."""

    pictures: tuple[int, ...]
    """As in `Places`."""
    size: Shape
    """The latent's size, (height, width) or (frames, height, width)."""
    patch: tuple[int, int, int]
    """The frames, rows and columns of the latent per token."""
    pace: int | Shape
    """As in `Places`."""
    text: int
    """The number of text tokens, plus that of sound tokens."""
    kept: int = 0
    """How many of the first text tokens a pass may skip, because the model caches their keys and values."""
    multiple: int = 1
    """Text tokens and picture tokens may each be padded to a multiple of this number."""
    earlier: int = 0
    """The number of tokens of other pictures before the picture's."""
    later: int = 0
    """The number of tokens of other pictures after the picture's."""
    of: int = 0
    """As in `Places`."""
    crops: tuple[Crop, ...] = ()
    """As in `Places`."""
    _kept: dict[tuple[Tokens, Shape], Places | Unlike] = field(
        default_factory=dict[tuple[Tokens, Shape], Places | Unlike], init=False, repr=False, compare=False
    )

    @classmethod
    def about(
        cls,
        model: Any,
        x: Tensor,
        arguments: Mapping[str, Any],
        pictures: Sequence[int],
        of: int,
        crops: tuple[Crop, ...],
    ) -> Passing:
        """The pass that the host is about to make, from what `apply_model` gets.

        `pictures` and `crops` are as in `Places`, and `of` is how many pictures there are in all.
        """
        shape = picture_shape(x, arguments)
        network = model.diffusion_model
        patch = patch_of(network)
        earlier, later = _other_pictures(network, arguments)
        # HiDream-O1 gets its references as patches.
        patches = arguments.get("ref_patches")
        return cls(
            pictures=tuple(pictures),
            of=of,
            crops=crops,
            size=shape[2:],
            patch=patch,
            pace=_pace(model) if len(shape) == 5 else 1,
            text=_text(network, arguments),
            kept=int(arguments.get("ar_len") or 0),
            multiple=int(getattr(network, "pad_tokens_multiple", None) or 1),
            earlier=sum(math.prod(_grid(latent.shape[2:], patch)) for latent in earlier),
            later=sum(math.prod(_grid(latent.shape[2:], patch)) for latent in later)
            + (0 if patches is None else patches.shape[1]),
        )

    def places(self, kind: Tokens, shape: Shape) -> Places | Unlike:
        """The places in a layer. `shape` is the input's shape without channels: (samples, tokens), or
        (tokens,) where there is one sample."""
        if (kind, shape) not in self._kept:
            samples = len(self.pictures)
            if len(shape) > 1 and shape[0] != samples:
                # For example, the samples may be parts of pictures.
                places: Places | Unlike = Unlike(phrase("R-samples", shape=shape[0]), f"{samples}")
            else:
                places = self._places(kind, math.prod(shape) // samples)
            self._kept[kind, shape] = places
        return self._kept[kind, shape]

    def everywhere(self, shape: Shape) -> Places:
        """As `places`, for a layer in which no token has a place: masks are 1 everywhere."""
        count = math.prod(shape)
        if count % len(self.pictures) == 0:
            return Places(self.pictures, of=self.of, everywhere=True)
        return Places((0,) * count, everywhere=True)

    def _places(self, kind: Tokens, tokens: int) -> Places | Unlike:
        if kind == "text":
            return self._of(())
        if kind in ("level", "level, text"):
            text = self.text if kind == "level, text" else 0
            level = self._level(tokens - text)
            if level is not None:
                return self._of(level, 0, text)
            high, wide = self.size[-2:]
            halved = phrase("R-places-x-halved-several-times", high=high, wide=wide)
            return Unlike(
                phrase("R-tokens", tokens=tokens),
                phrase("R-others-2", halved=halved, text=text) if text else halved,
            )
        grid = _grid(self.size, self.patch)
        count = math.prod(grid)
        before, after = self.earlier, self.later
        text = self.text + -self.text % self.multiple
        if kind == "text, places":
            before += text
        elif kind == "places, text":
            after += text
        total = before + count + after
        if kind == "places" and tokens == count:
            # The first and the last layers of some models see only the tokens of the picture.
            before, after = 0, 0
        elif kind == "text, places" and tokens == total - self.kept:
            before -= self.kept
        elif tokens != total:
            # Only the first layer of a model sees the places without padding.
            after += -count % self.multiple
        if before + count + after != tokens:
            known = phrase(
                "R-others-places-others", before=before, value=" x ".join(map(str, grid)), after=after
            )
            return Unlike(phrase("R-tokens", tokens=tokens), known)
        return self._of(grid, before, after)

    def _of(self, grid: Shape, before: int = 0, after: int = 0) -> Places:
        return Places(self.pictures, grid, before, after, self.pace, self.of, self.crops)

    def _level(self, tokens: int) -> Shape | None:
        """The grid of the UNet level with so many tokens. Each level halves the sides of the one above."""
        *_, high, wide = self.size
        # Half of an odd number is rounded up in some models, and down in others.
        for up in (1, 0):
            height, width = high, wide
            while height * width > max(tokens, 1):
                height, width = max(1, (height + up) // 2), max(1, (width + up) // 2)
            if height * width == tokens:
                return (height, width)
        return None


def picture_shape(x: Tensor, arguments: Mapping[str, Any]) -> Shape:
    """The shape of the pictures' latent in x, which may hold a latent of sound too."""
    shapes = arguments.get("latent_shapes")
    return tuple(shapes[0]) if shapes else tuple(x.shape)


def crop_of(whole: Shape, window: Any, retained: Sequence[int], area: Sequence[range] | None) -> Crop:
    """The part of a latent of the size `whole` that a pass sees.

    `window` is the host's context window or None. An anchor frame may come before the window's frames, and
    guide frames come after them. In the whole latent, guide frames come after all others. The frames
    `retained` keep their own numbers in every window. `area` is the range along each axis of the window, or
    of the whole if there is no window.
    """
    axes: list[range | tuple[int, ...]] = [range(count) for count in whole]
    # A window over the first axis chooses pictures, not places.
    if window is not None and window.dim >= 2:
        earlier = getattr(window, "causal_anchor_index", None)
        frames = [*([] if earlier is None else [earlier]), *window.index_list]
        for number in retained:
            frames[number] = number
        guides = getattr(window, "guide_frames_indices", ())
        axes[window.dim - 2] = (*frames, *(window.total_frames + number for number in guides))
    if area is not None:
        axes = [axis[rows.start : rows.stop] for axis, rows in zip(axes, area, strict=False)]
    return Crop(whole, tuple(axes))


def _grid(size: Shape, patch: tuple[int, int, int]) -> Shape:
    """The tokens of a latent of this size along each axis."""
    return tuple(-(-extent // step) for extent, step in zip(size, patch[3 - len(size) :], strict=True))


def _text(network: Any, arguments: Mapping[str, Any]) -> int:
    """The number of text tokens in a pass, plus that of sound tokens."""
    several = getattr(network, "c_clip_seq", None)
    if several is not None:
        # Stable Cascade makes several tokens from a vector.
        vectors = [arguments.get(name) for name in ("clip_text_pooled", "clip_img", "clip")]
        tokens = sum(
            several * (vector.shape[1] if vector.ndim > 2 else 1) for vector in vectors if vector is not None
        )
        text = arguments.get("clip_text")
        return tokens if text is None else tokens + text.shape[1]
    numbers = arguments.get("input_ids")
    if numbers is not None:
        # HiDream-O1 takes the text as token ids, and no other text.
        return numbers.shape[1]
    texts = [arguments.get(name) for name in ("c_crossattn", "txt_byt5")]
    count = sum(text.shape[1] for text in texts if text is not None)
    # HiDream takes a text twice: from the last layer of its encoder, and from the layer chosen for a block.
    layers = arguments.get("encoder_hidden_states_llama3")
    if layers is not None:
        count += 2 * layers.shape[2]
    # AuraFlow's own tokens count as text.
    registers = getattr(network, "register_tokens", None)
    if registers is not None:
        count += registers.shape[1]
    # MiniMax-H3 has sound tokens too.
    if hasattr(network, "audio_patch_proj"):
        sounds = (arguments.get("minimax_payload") or {}).get("cond_audio_latents", ())
        shapes = [arguments["latent_shapes"][1], *(sound.shape for sound in sounds)]
        count += sum(math.prod(shape[2:]) for shape in shapes)
    return count


def _other_pictures(network: Any, arguments: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The latents whose tokens come before the picture's, and those whose tokens come after."""
    named = [*(arguments.get("ref_latents") or ()), *(arguments.get("context_latents") or ())]
    later = [latent for latent in (*named, arguments.get("time_dim_concat")) if latent is not None]
    # OmniGen2 and Boogu take the other pictures first.
    if hasattr(network, "ref_image_patch_embedder"):
        return later, []
    earlier = list((arguments.get("minimax_payload") or {}).get("cond_video_latents", ()))
    first = arguments.get("reference_latent") if getattr(network, "ref_conv", None) is not None else None
    return earlier if first is None else [first, *earlier], later


def _pace(model: Any) -> int | Shape:
    """The number of video frames per frame of the model's latent, as in `Places`."""
    if hasattr(model.diffusion_model, "audio_patch_proj"):
        # MiniMax-H3 starts a new group with every fifth frame of the latent.
        return (1, 4, 4, 4, 4)
    return frames_of(model.latent_format)


def blended_attention(blend: Blend, before: Attention | None) -> Attention:
    """The host's override of attention: attend with each set of keys and values, and blend over the places.

    If the batch of the keys or values is larger than the queries', it holds the samples once without the
    masked layers, then once for each `Where` of the blend. `before` is the override that another node has
    set.
    """

    def attend(run: Attention, q: Tensor, k: Tensor, v: Tensor, *args: Any, **named: Any) -> Tensor:
        def attended(k: Tensor, v: Tensor) -> Tensor:
            return run(q, k, v, *args, **named) if before is None else before(run, q, k, v, *args, **named)

        # Only our batches of keys are larger than the queries'. HyperTile makes larger batches of queries.
        if len(k) <= len(q) and len(v) <= len(q):
            return attended(k, v)
        count = 1 + len(blend.apart)
        keys, values = (each.chunk(count) if len(each) > len(q) else [each] * count for each in (k, v))
        return blend(attended(keys[0], values[0]), map(attended, keys[1:], values[1:]))

    return attend
