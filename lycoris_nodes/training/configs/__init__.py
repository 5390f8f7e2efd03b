"""Settings of other trainers as those of Train LoRA / LyCORIS: one file for each trainer."""

from .config import translated

__all__ = ["translated"]
