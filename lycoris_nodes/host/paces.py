"""The number of video frames per frame of a latent."""

from __future__ import annotations

from typing import Any

OF_OLDER = {
    "Mochi": 6,
    "LTXV": 8,
    "HunyuanVideo": 4,
    "HunyuanVideo15": 4,
    "Cosmos1CV8x8x8": 8,
    "Wan21": 4,
}
"""Video frames per latent frame, by the host's class of latents. Hosts before 0.24 do not say it themselves.

Source: `temporal_downscale_ratio` of ComfyUI 0.30.
"""

OF_CLIPS = {"MiniMaxH3": (17, 5)}
"""Models whose clips have a multiple of the first number of frames, plus the second, by the host's class."""


def frames_of(latents: Any) -> int:
    """Video frames per latent frame, for a latent format of the host; 1 if the format has no frames."""
    names = [kind.__name__ for kind in type(latents).__mro__]
    older = next((OF_OLDER[name] for name in names if name in OF_OLDER), 1)
    return int(getattr(latents, "temporal_downscale_ratio", older))
