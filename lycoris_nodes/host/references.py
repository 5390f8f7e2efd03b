"""References: pictures that a model sees beside its prompt, given to it as the host's own nodes give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .given import BERNINI
from .sampling import literal, own_node

Conditioning = list[Any]
LATENTS, CONCATENATED = "reference_latents", "concat_latent_image"
"""The keys of reference latents in a conditioning."""


@dataclass(frozen=True)
class References:
    """How a model takes references: as latents under `key`, or encoded with the caption by a host's `node`.

    `fitted` says whether each is cropped and resized like its target; else it keeps its own shape. `given`
    makes the inputs of `node`, except the encoder, the VAE and the text, from references (1, H, W, 3) and the
    width and height of the target.
    """

    key: str = LATENTS
    fitted: bool = False
    most: int = 16
    """How many a model takes at most."""
    encoded: bool = True
    """Whether they become latents; else the model takes their pixels (1, H, W, 3)."""
    node: str = ""
    sees: bool = False
    """Whether the node also takes a CLIP vision model."""
    scales: bool = True
    """Whether the node scales them itself."""
    given: Callable[[Sequence[Tensor], tuple[int, int]], dict[str, Any]] = lambda images, size: {}

    @property
    def in_words(self) -> str:
        if self.node:
            return f"encoded with the captions, as by {self.node}"
        if not self.encoded:
            return "pixels beside the captions"
        return "concatenated to the latents" if self.key == CONCATENATED else "latents beside the captions"


def _numbered(images: Sequence[Tensor], mark: str, first: int) -> dict[str, Tensor]:
    return {f"image{mark}{number}": image for number, image in enumerate(images, first)}


_BESIDE, _TAKEN_IN = References(), References(CONCATENATED, fitted=True, most=1)
_QWEN = References(
    node="TextEncodeQwenImageEditPlus", most=3, given=lambda images, size: _numbered(images, "", 1)
)
_FIRST_QWEN = References(
    node="TextEncodeQwenImageEdit", most=1, given=lambda images, size: {"image": images[0]}
)
_BY_CLASS: Mapping[str, References | None] = {
    "Flux": _BESIDE,
    "Flux2": _BESIDE,
    # Its class passes references on, but its network ignores them.
    "Chroma": None,
    "Omnigen2": _BESIDE,
    "Krea2": _BESIDE,
    "QwenImage": _QWEN,
    "MageFlow": References(
        node="TextEncodeMageFlowEdit",
        given=lambda images, size: {
            "images": _numbered(images, "_", 1),
            "width": size[0],
            "height": size[1],
        },
    ),
    "JoyImage": References(
        node="TextEncodeJoyImageEdit", most=6, given=lambda images, size: {"images": _numbered(images, "", 0)}
    ),
    "Boogu": References(
        node="TextEncodeBooguEdit",
        given=lambda images, size: {"negative_prompt": "", "images": _numbered(images, "_", 1)},
    ),
    "Lumina2": References(
        node="TextEncodeZImageOmni",
        most=3,
        sees=True,
        # The node would give some of them an odd number of values, which the model cannot take.
        scales=False,
        given=lambda images, size: {"auto_resize_images": False, **_numbered(images, "", 1)},
    ),
    "SD15_instructpix2pix": _TAKEN_IN,
    "SDXL_instructpix2pix": _TAKEN_IN,
    "HiDream": _TAKEN_IN,
    "HiDreamO1": References(most=10, encoded=False),
}
"""How models take references, by the host's class."""
WAYS: Mapping[str, References | None] = {"auto": None, "first Qwen-Image-Edit": _FIRST_QWEN, BERNINI: None}
"""The user's choices: Qwen-Image-Edit of August 2025 has the same layers as later versions, and Bernini those
of Wan, see `given_of`."""


def references_of(model: Any, way: str) -> References | None:
    """How a model takes references; None where it takes none."""
    kinds = [kind.__name__ for kind in type(model).__mro__]
    way_found = next((_BY_CLASS[kind] for kind in kinds if kind in _BY_CLASS), None)
    if way_found is _QWEN:
        return WAYS[way] or way_found
    config = model.model_config.unet_config
    if way_found and way_found.sees and not config.get("siglip_feat_dim"):
        # Only the model for several pictures has layers for what SigLIP sees.
        return None
    # Some Flux models have channels for a picture of edges or of depth.
    channels, own = config.get("in_channels") or 0, config.get("out_channels") or 0
    return _TAKEN_IN if way_found is _BESIDE and channels > own > 0 else way_found


def with_references(conditioning: Conditioning, key: str, latents: Sequence[Tensor]) -> Conditioning:
    """A conditioning with the latents of references, as Reference Latent or InstructPix2Pix gives it."""
    if key == CONCATENATED:
        return [[text, {**more, key: latents[0]}] for text, more in conditioning]
    return [[text, {**more, key: [*more.get(key, ()), *latents]}] for text, more in conditioning]


def encoded_with(
    kind: References,
    clip: Any,
    vae: Any,
    text: str,
    images: Sequence[Tensor],
    size: tuple[int, int],
    vision: Any = None,
) -> Conditioning:
    """A text encoded together with references (1, H, W, 3), for a target of this width and height.

    `vision` is a CLIP vision model of the host.

    Raises TrainError where this host does not have the node for it.
    """
    hint = "Update ComfyUI, or take the references out of the folder"
    node = own_node(kind.node, "this ComfyUI cannot encode references for the model", hint)
    seen = {"image_encoder": vision} if kind.sees else {}
    return node.execute(clip=clip, prompt=literal(text), vae=vae, **seen, **kind.given(images, size)).args[0]
