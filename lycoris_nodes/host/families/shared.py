"""What several families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..sampling import own_node
from .family import CONCATENATED, References, marked
from .node import Node
from .times import ByTokens

OF_FLUX = ByTokens(0.5, 1.15, 256, 4096)
"""The schedule of FLUX.1."""
CONCATENATED_ALONE = References(CONCATENATED, fitted=True, most=1)


def given_if_marked(node: Node) -> Callable[[Any, str], Node | None]:
    """For models that the host may mark as image-to-video."""
    return lambda model, way: node if marked(model) else None


def channels_of(model: Any) -> tuple[int, int]:
    """The channels of a model's input and output; 0 where the configuration does not say."""
    config = model.model_config.unet_config
    return config.get("in_channels") or 0, config.get("out_channels") or 0


def beside_or_concatenated(model: Any, way: str) -> References:
    """Latents beside the caption. Some Flux models have channels for a picture of edges or of depth."""
    channels, own = channels_of(model)
    return CONCATENATED_ALONE if channels > own > 0 else References()


def numbered(images: Sequence[Tensor], mark: str, first: int) -> dict[str, Tensor]:
    """Inputs of a node, each with a number."""
    return {f"image{mark}{number}": image for number, image in enumerate(images, first)}


def pictures_of_the_text(model: Any, way: str) -> References | None:
    """Z-Image's references. Only the model for several pictures has layers for what SigLIP sees."""
    if not model.model_config.unet_config.get("siglip_feat_dim"):
        return None
    return References(
        node="TextEncodeZImageOmni",
        most=3,
        sees=True,
        # The node would give some of them an odd number of values, which the model cannot take.
        scales=False,
        given=lambda images, size: {"auto_resize_images": False, **numbered(images, "", 1)},
    )


def of_sound(name: str, **inputs: Any) -> Any:
    """What the first output of one of the host's nodes for sound holds."""
    hint = "Update ComfyUI, or unlink `audio_vae`"
    return own_node(name, "encode sound for the model", hint).execute(**inputs).args[0]
