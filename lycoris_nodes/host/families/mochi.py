"""Mochi."""

from .family import Family, Network

FAMILY = Family(
    hosts=("GenmoMochi",), frame_rate=24, latents={"Mochi": 6}, networks={"AsymmDiTJoint": Network()}
)
