"""Small random diffusion models of several layouts, in files that a host recognises by their keys.

Only widths and the numbers of blocks are free. All of them take the text of CLIP-L, so that the encoder of
the base checkpoint is enough. Sources: black-forest-labs/flux, Wan-Video/Wan2.1 and madebyollin/taesd.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .base import CONTEXT, Init, Layout, conv, generate, linear, norm, unet_layout, write_layout

HEAD = 128
"""The width of an attention head, of which all other widths are multiples."""


def _scale(name: str, width: int = HEAD) -> Layout:
    return {name: Init((width,), "one")}


def flux_layout(width: int = HEAD, double: int = 1, single: int = 1) -> Layout:
    """FLUX.1 dev, 12 B parameters with width 3072 and 19 and 38 blocks."""
    layout = linear("img_in", 64, width) | linear("txt_in", CONTEXT, width)
    for name, inputs in (("time_in", 256), ("vector_in", CONTEXT), ("guidance_in", 256)):
        layout |= linear(f"{name}.in_layer", inputs, width) | linear(f"{name}.out_layer", width, width)
    for index in range(double):
        for part in ("img", "txt"):
            name = f"double_blocks.{index}.{part}"
            layout |= linear(f"{name}_mod.lin", width, 6 * width)
            layout |= linear(f"{name}_attn.qkv", width, 3 * width)
            layout |= _scale(f"{name}_attn.norm.query_norm.scale")
            layout |= _scale(f"{name}_attn.norm.key_norm.scale")
            layout |= linear(f"{name}_attn.proj", width, width)
            layout |= linear(f"{name}_mlp.0", width, 4 * width) | linear(f"{name}_mlp.2", 4 * width, width)
    for index in range(single):
        name = f"single_blocks.{index}"
        layout |= linear(f"{name}.linear1", width, 7 * width) | linear(f"{name}.linear2", 5 * width, width)
        layout |= _scale(f"{name}.norm.query_norm.scale") | _scale(f"{name}.norm.key_norm.scale")
        layout |= linear(f"{name}.modulation.lin", width, 3 * width)
    layout |= linear("final_layer.linear", width, 64)
    return layout | linear("final_layer.adaLN_modulation.1", width, 2 * width)


def wan_layout(width: int = HEAD, blocks: int = 2) -> Layout:
    """Wan 2.1 for text to video, 1.3 B parameters with width 1536 and 30 blocks."""
    layout: Layout = {
        "patch_embedding.weight": Init((width, 16, 1, 2, 2), "normal"),
        "patch_embedding.bias": Init((width,), "zero"),
        "head.modulation": Init((1, 2, width), "normal"),
    }
    layout |= linear("head.head", width, 64)
    layout |= linear("text_embedding.0", CONTEXT, width) | linear("text_embedding.2", width, width)
    layout |= linear("time_embedding.0", 256, width) | linear("time_embedding.2", width, width)
    layout |= linear("time_projection.1", width, 6 * width)
    for index in range(blocks):
        name = f"blocks.{index}"
        layout |= {f"{name}.modulation": Init((1, 6, width), "normal")}
        for part in ("self_attn", "cross_attn"):
            for projection in "qkvo":
                layout |= linear(f"{name}.{part}.{projection}", width, width)
            layout |= _scale(f"{name}.{part}.norm_q.weight", width)
            layout |= _scale(f"{name}.{part}.norm_k.weight", width)
        layout |= norm(f"{name}.norm3", width)
        layout |= linear(f"{name}.ffn.0", width, 4 * width) | linear(f"{name}.ffn.2", 4 * width, width)
    return layout


def tiny_vae_layouts(channels: int = 16, width: int = 64) -> tuple[Layout, Layout]:
    """TAESD's encoder and decoder, for latents of so many channels."""

    def block(name: str) -> Layout:
        parts = [conv(f"{name}.conv.{index}", width, width) for index in (0, 2, 4)]
        return parts[0] | parts[1] | parts[2]

    def plain(name: str) -> Layout:
        return {f"{name}.weight": Init((width, width, 3, 3), "normal")}

    encoder = conv("0", 3, width) | block("1")
    place = 2
    for _ in range(3):
        encoder |= plain(str(place))
        for index in range(place + 1, place + 4):
            encoder |= block(str(index))
        place += 4
    encoder |= conv(str(place), width, channels)
    decoder, place = conv("1", channels, width), 3
    for _ in range(3):
        for index in range(place, place + 3):
            decoder |= block(str(index))
        decoder |= plain(str(place + 4))
        place += 5
    return encoder, decoder | block(str(place)) | conv(str(place + 1), width, 3)


LAYOUTS: dict[str, Callable[..., Layout]] = {
    "SD1.5": unet_layout,
    "Flux": flux_layout,
    "Wan": wan_layout,
}
_SAID: dict[str, Mapping[str, Any]] = {"Wan": {"text_dim": CONTEXT}}
"""What a host cannot see from the tensors of these, and reads from the file's metadata."""


def write_model(
    path: Path, layout: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **sizes: Any
) -> None:
    """Write a random diffusion model of a layout of `LAYOUTS`, with the sizes that its function takes."""
    made, said = LAYOUTS[layout](**sizes), _SAID.get(layout)
    generator = torch.Generator().manual_seed(seed)
    metadata = None if said is None else {"config": json.dumps({"transformer": said})}
    write_layout(path, made, dtype, lambda name: generate(made[name], generator), metadata)


def write_tiny_vae(folder: Path, name: str = "taef1", *, seed: int = 0) -> None:
    """Write a random encoder and decoder where a host finds the small autoencoder of this name."""
    generator = torch.Generator().manual_seed(seed)
    for part, made in zip(("encoder", "decoder"), tiny_vae_layouts(), strict=True):
        write_layout(
            folder / f"{name}_{part}.safetensors",
            made,
            torch.float32,
            lambda key, made=made: generate(made[key], generator),
        )
