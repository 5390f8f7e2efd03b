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


def flux(width: int) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a small Flux. linear1 has the rows of q, k and v, and then those of the MLP."""
    streams = {f"double_blocks.0.{name}_attn": 3 * width for name in ("img", "txt")}
    weights = {
        "img_in": (width, width // 2),
        "vector_in.in_layer": (width, width // 2),
        **{f"{path}.qkv": (rows, width) for path, rows in streams.items()},
        **{f"{path}.proj": (width, width) for path in streams},
        "double_blocks.0.img_attn.norm.query_norm": (width // 4,),
        "double_blocks.0.img_attn.norm.key_norm": (width // 4,),
        "single_blocks.0.linear1": (7 * width, width),
        "single_blocks.0.linear2": (width, 5 * width),
        "single_blocks.0.modulation.lin": (3 * width, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
        "final_layer.linear": (width // 2, width),
    }
    biased = (
        *("img_in", "double_blocks.0.img_attn.qkv", "single_blocks.0.linear1"),
        "final_layer.adaLN_modulation.1",
    )
    return {
        **{f"diffusion_model.{path}.weight": shape for path, shape in weights.items()},
        **{f"diffusion_model.{path}.bias": weights[path][:1] for path in biased},
    }
