"""Translate configs of other trainers into inputs of Train LoRA / LyCORIS."""

from .config import Translated as Translated
from .config import translated as translated
