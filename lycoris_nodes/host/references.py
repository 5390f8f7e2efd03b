"""References: pictures that a model sees beside its prompt, given to it as the host's own nodes give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .families.family import CONCATENATED, References
from .sampling import literal, own_node

Conditioning = list[Any]


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
    node = own_node(kind.node, "encode references for the model", hint)
    seen = {"image_encoder": vision} if kind.sees else {}
    return node.execute(clip=clip, prompt=literal(text), vae=vae, **seen, **kind.given(images, size)).args[0]
