"""Models that detect, segment or measure, though the host calls them flow models."""

from .family import Family

FAMILY = Family(
    hosts=("RT_DETR_v4", "SAM3", "DepthAnything3"),
    denoises=False,
)
