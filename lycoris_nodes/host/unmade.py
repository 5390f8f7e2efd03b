"""What models are given that is in no folder, such as the small picture of an upscaler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...lycoris_ops import TrainError

UNMADE: Mapping[str, tuple[str, str, bool]] = {
    "SeedVR2": ("condition", "SeedVR2Conditioning", True),
    "PiD": ("lq_latent", "PiDConditioning", True),
    "WAN21_Camera": ("camera_conditions", "WanCameraImageToVideo", False),
    "SVD_img2vid": ("concat_latent_image", "SVD_img2vid_Conditioning", False),
    "SD_X4Upscaler": ("concat_image", "SD_4XUpscale_Conditioning", False),
    "SD21UNCLIP": ("unclip_conditioning", "unCLIPConditioning", False),
    "StableCascade_B": ("stable_cascade_prior", "StableCascade_StageB_Conditioning", False),
    "HunyuanImage21Refiner": ("concat_latent_image", "HunyuanRefinerLatent", False),
    "HunyuanVideo15_SR_Distilled": ("concat_latent_image", "HunyuanVideo15SuperResolution", False),
}
"""Settings of a conditioning that are not made from a folder, by the host's class: the setting, the node that
makes it, and whether the model cannot run without it. Else the host itself takes zeros for it."""


def unmade(model: Any) -> tuple[str, str, bool] | None:
    """The entry of `UNMADE` for a model."""
    return next((UNMADE[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in UNMADE), None)


def check_made(model: Any, settings: Mapping[str, Any]) -> None:
    """Raise TrainError for a conditioning without a setting that the model cannot run without."""
    name, node, needed = unmade(model) or ("", "", False)
    if needed and settings.get(name) is None:
        raise TrainError(
            f"{type(model).__name__} cannot be trained with captions alone: it also takes `{name}`",
            key=name,
            hint=f"It is not made from a folder. ComfyUI's node {node} makes it: link the conditioning from "
            "there, with latents of VAE Encode, to `positive` and `latents` of the training",
        )
