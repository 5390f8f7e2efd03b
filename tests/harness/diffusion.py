"""Small random models of several layouts, in files that a host recognises by their keys.

Only widths and the numbers of blocks are free. All models take the text embeddings of CLIP-L, so that the
encoder of the base checkpoint is enough. Sources: black-forest-labs/flux and flux2, Wan-Video/Wan2.1,
madebyollin/taesd and taehv.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .base import (
    CONTEXT,
    Init,
    Layout,
    clip_layout,
    conv,
    generate,
    linear,
    norm,
    tiny_vae_layouts,
    unet_layout,
    write_layout,
)

HEAD = 128
"""The width of an attention head. The width of a transformer is a multiple of it."""
FLUX2_CHANNELS = 32
"""The channels of FLUX.2's latents, before each 2 x 2 of their values are put together."""


def _scale(name: str, width: int = HEAD) -> Layout:
    return {name: Init((width,), "one")}


def flux_layout(width: int = HEAD, double: int = 1, single: int = 1) -> Layout:
    """FLUX.1 dev. The real one has 12 B parameters: width 3072, 19 double blocks and 38 single ones."""
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


def flux2_layout(width: int = HEAD, double: int = 1, single: int = 1) -> Layout:
    """FLUX.2 klein, whose blocks share their modulations. The real one has 4 B parameters: width 3072,
    5 double blocks and 20 single ones."""
    layout: Layout = {}

    def plain(name: str, inputs: int, outputs: int) -> None:
        layout.update(linear(name, inputs, outputs, bias=False))

    plain("img_in", 4 * FLUX2_CHANNELS, width)
    plain("txt_in", CONTEXT, width)
    plain("time_in.in_layer", 256, width)
    plain("time_in.out_layer", width, width)
    for part in ("img", "txt"):
        plain(f"double_stream_modulation_{part}.lin", width, 6 * width)
    plain("single_stream_modulation.lin", width, 3 * width)
    for index in range(double):
        for part in ("img", "txt"):
            name = f"double_blocks.{index}.{part}"
            plain(f"{name}_attn.qkv", width, 3 * width)
            layout |= _scale(f"{name}_attn.norm.query_norm.scale")
            layout |= _scale(f"{name}_attn.norm.key_norm.scale")
            plain(f"{name}_attn.proj", width, width)
            plain(f"{name}_mlp.0", width, 6 * width)
            plain(f"{name}_mlp.2", 3 * width, width)
    for index in range(single):
        name = f"single_blocks.{index}"
        plain(f"{name}.linear1", width, 9 * width)
        plain(f"{name}.linear2", 4 * width, width)
        layout |= _scale(f"{name}.norm.query_norm.scale") | _scale(f"{name}.norm.key_norm.scale")
    plain("final_layer.linear", width, 4 * FLUX2_CHANNELS)
    plain("final_layer.adaLN_modulation.1", width, 2 * width)
    return layout


def vae_block(name: str, inputs: int, outputs: int) -> Layout:
    """A residual block of the autoencoder, which has no time embedding."""
    layout = (
        norm(f"{name}.norm1", inputs)
        | conv(f"{name}.conv1", inputs, outputs)
        | norm(f"{name}.norm2", outputs)
        | conv(f"{name}.conv2", outputs, outputs)
    )
    if inputs != outputs:
        layout |= conv(f"{name}.nin_shortcut", inputs, outputs, kernel=1)
    return layout


def vae_middle(name: str, channels: int) -> Layout:
    """Block, single-head attention in 1x1 convolutions, block."""
    layout = vae_block(f"{name}.block_1", channels, channels)
    layout |= norm(f"{name}.attn_1.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        layout |= conv(f"{name}.attn_1.{part}", channels, channels, kernel=1)
    return layout | vae_block(f"{name}.block_2", channels, channels)


def vae_layout() -> Layout:
    """The KL-f8 autoencoder, names without prefix: widths 128, 256, 512, 512 and 4 latent channels."""
    widths = (128, 256, 512, 512)
    layout = conv("encoder.conv_in", 3, widths[0])
    channels = widths[0]
    for level, width in enumerate(widths):
        for index in range(2):
            layout |= vae_block(f"encoder.down.{level}.block.{index}", channels, width)
            channels = width
        if level < len(widths) - 1:
            layout |= conv(f"encoder.down.{level}.downsample.conv", channels, channels)
    layout |= vae_middle("encoder.mid", channels)
    # Mean and log-variance of the four latent channels.
    layout |= norm("encoder.norm_out", channels) | conv("encoder.conv_out", channels, 8)
    layout |= conv("quant_conv", 8, 8, kernel=1) | conv("post_quant_conv", 4, 4, kernel=1)

    layout |= conv("decoder.conv_in", 4, channels) | vae_middle("decoder.mid", channels)
    for level, width in reversed(list(enumerate(widths))):
        for index in range(3):
            layout |= vae_block(f"decoder.up.{level}.block.{index}", channels, width)
            channels = width
        if level > 0:
            layout |= conv(f"decoder.up.{level}.upsample.conv", channels, channels)
    return layout | norm("decoder.norm_out", channels) | conv("decoder.conv_out", channels, 3)


def flux2_vae_layout(channels: int = FLUX2_CHANNELS) -> Layout:
    """FLUX.2's autoencoder: KL-f8 with more channels. Its norm takes each 2 x 2 values as channels."""
    layout = vae_layout()
    width = layout["decoder.conv_in.weight"].shape[0]
    layout |= conv("encoder.conv_out", width, 2 * channels) | conv("decoder.conv_in", channels, width)
    layout |= conv("quant_conv", 2 * channels, 2 * channels, kernel=1)
    layout |= conv("post_quant_conv", channels, channels, kernel=1)
    mean, variance = Init((4 * channels,), "zero"), Init((4 * channels,), "one")
    return layout | {"bn.running_mean": mean, "bn.running_var": variance}


def wan_layout(width: int = HEAD, blocks: int = 2) -> Layout:
    """Wan 2.1 for text to video. The real one has 1.3 B parameters: width 1536 and 30 blocks."""
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


def video_vae_layout(channels: int = 16, width: int = 64) -> Layout:
    """The small video autoencoder, for latents with this number of channels. It makes one
    frame of latents from four frames."""

    def block(name: str, width: int) -> Layout:
        layout = conv(f"{name}.conv.0", 2 * width, width)
        return layout | conv(f"{name}.conv.2", width, width) | conv(f"{name}.conv.4", width, width)

    def plain(name: str, inputs: int, outputs: int, kernel: int = 3) -> Layout:
        return {f"{name}.weight": Init((outputs, inputs, kernel, kernel), "normal")}

    layout = conv("encoder.0", 3, width)
    for place, frames in ((2, 2), (7, 2), (12, 1)):
        layout |= plain(f"encoder.{place}.conv", frames * width, width, 1)
        layout |= plain(f"encoder.{place + 1}", width, width)
        for index in range(place + 2, place + 5):
            layout |= block(f"encoder.{index}", width)
    layout |= conv("encoder.17", width, channels) | conv("decoder.1", channels, 4 * width)
    inputs = 4 * width
    for place, frames, outputs in ((3, 1, 2 * width), (9, 2, width), (15, 2, width)):
        for index in range(place, place + 3):
            layout |= block(f"decoder.{index}", inputs)
        layout |= plain(f"decoder.{place + 4}.conv", inputs, frames * inputs, 1)
        layout |= plain(f"decoder.{place + 5}", inputs, outputs)
        inputs = outputs
    return layout | conv("decoder.22", width, 3)


LAYOUTS: dict[str, Callable[..., Layout]] = {
    "SD1.5": unet_layout,
    "Flux": flux_layout,
    "FLUX.2": flux2_layout,
    "FLUX.2's autoencoder": flux2_vae_layout,
    "Wan": wan_layout,
    "autoencoder of videos": video_vae_layout,
    "CLIP-L": lambda: {f"text_model.{name}": init for name, init in clip_layout().items()},
}
_SAID: dict[str, Mapping[str, Any]] = {"Wan": {"text_dim": CONTEXT}}
"""What the host reads from a model's metadata, because its tensors do not show it."""


def write_model(
    path: Path, layout: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **sizes: Any
) -> None:
    """Write a random model of a layout of `LAYOUTS`, with the sizes that its function takes."""
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
