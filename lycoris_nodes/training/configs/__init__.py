"""Translate configs of other trainers into inputs of Train LoRA / LyCORIS."""

from .config import translated

__all__ = ["translated"]
