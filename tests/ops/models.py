"""Models by the keys and shapes of their weights."""

from __future__ import annotations

MARKS = (
    "input_blocks.0.0",
    "input_blocks.1.0.in_layers.2",
    "input_blocks.2.0.op",
    "middle_block.0.in_layers.2",
)
"""Layers by which the UNet of SD1.5 is known, and the end of its first level."""


def unet(shape: tuple[int, ...] = (12, 18)) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a checkpoint with SD1.5's UNet, of which adapters change one layer."""
    shapes = {**dict.fromkeys(MARKS, (4, 4, 3, 3)), "input_blocks.1.1.proj_in": shape}
    return {f"model.diffusion_model.{path}.weight": found for path, found in shapes.items()}
