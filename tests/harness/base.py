"""Random checkpoints in Stable Diffusion 1.5's own layout, small enough to sample on a CPU.

A layout maps each tensor's name to its shape and its fill. The names and widths are those of the
original `v1-inference.yaml` of CompVis/stable-diffusion, so that a host recognises the file by its
keys alone; only the number of levels and of blocks is free.
Weights are normal with variance 1 / fan_in, norms are the identity and biases zero, so that every
layer keeps the scale of its input and a change of any layer shows in the output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Fill = Literal["normal", "one", "zero", "embedding"]


class Init(NamedTuple):
    """Shape and fill of one tensor of a layout."""

    shape: tuple[int, ...]
    fill: Fill


Layout = dict[str, Init]
Chunks = Callable[[str], Iterable[Tensor]]

UNET = "model.diffusion_model."
CLIP = "cond_stage_model.transformer.text_model."
VAE = "first_stage_model."

CHANNELS = 320
CONTEXT = 768
TIME = 4 * CHANNELS
ATTENTION_LEVELS = 3
"""SD1.5 attends at the first three resolutions and in the middle."""

CHUNK = 1 << 22
"""Elements generated at a time: 16 MiB of float32."""

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
}


def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Layout:
    """`name.weight` (outputs, inputs) and `name.bias` (outputs,)."""
    weight = {f"{name}.weight": Init((outputs, inputs), "normal")}
    return weight | {f"{name}.bias": Init((outputs,), "zero")} if bias else weight


def conv(name: str, inputs: int, outputs: int, kernel: int = 3) -> Layout:
    """`name.weight` (outputs, inputs, kernel, kernel) and `name.bias` (outputs,)."""
    return {
        f"{name}.weight": Init((outputs, inputs, kernel, kernel), "normal"),
        f"{name}.bias": Init((outputs,), "zero"),
    }


def norm(name: str, channels: int) -> Layout:
    """An identity group or layer norm."""
    return {f"{name}.weight": Init((channels,), "one"), f"{name}.bias": Init((channels,), "zero")}


def res_block(name: str, inputs: int, outputs: int) -> Layout:
    """A residual block of the UNet, with the time embedding's projection."""
    layout = (
        norm(f"{name}.in_layers.0", inputs)
        | conv(f"{name}.in_layers.2", inputs, outputs)
        | linear(f"{name}.emb_layers.1", TIME, outputs)
        | norm(f"{name}.out_layers.0", outputs)
        | conv(f"{name}.out_layers.3", outputs, outputs)
    )
    if inputs != outputs:
        layout |= conv(f"{name}.skip_connection", inputs, outputs, kernel=1)
    return layout


def attention(name: str, channels: int, context: int) -> Layout:
    """Queries from `channels`, keys and values from `context`."""
    return (
        linear(f"{name}.to_q", channels, channels, bias=False)
        | linear(f"{name}.to_k", context, channels, bias=False)
        | linear(f"{name}.to_v", context, channels, bias=False)
        | linear(f"{name}.to_out.0", channels, channels)
    )


def transformer(name: str, channels: int) -> Layout:
    """A spatial transformer of depth 1 with SD1.5's 1x1 convolutions around it."""
    block = f"{name}.transformer_blocks.0"
    return (
        norm(f"{name}.norm", channels)
        | conv(f"{name}.proj_in", channels, channels, kernel=1)
        | attention(f"{block}.attn1", channels, channels)
        | linear(f"{block}.ff.net.0.proj", channels, 8 * channels)
        | linear(f"{block}.ff.net.2", 4 * channels, channels)
        | attention(f"{block}.attn2", channels, CONTEXT)
        | norm(f"{block}.norm1", channels)
        | norm(f"{block}.norm2", channels)
        | norm(f"{block}.norm3", channels)
        | conv(f"{name}.proj_out", channels, channels, kernel=1)
    )


def unet_layout(channel_mult: Sequence[int] = (1, 1), num_res_blocks: int = 1) -> Layout:
    """The UNet, names without prefix; (1, 2, 4, 4) and 2 give SD1.5 itself (860 M parameters)."""
    layout = linear("time_embed.0", CHANNELS, TIME) | linear("time_embed.2", TIME, TIME)
    layout |= conv("input_blocks.0.0", 4, CHANNELS)
    channels, skips, index = CHANNELS, [CHANNELS], 1
    last = len(channel_mult) - 1
    for level, mult in enumerate(channel_mult):
        for _ in range(num_res_blocks):
            layout |= res_block(f"input_blocks.{index}.0", channels, mult * CHANNELS)
            channels = mult * CHANNELS
            if level < ATTENTION_LEVELS:
                layout |= transformer(f"input_blocks.{index}.1", channels)
            skips.append(channels)
            index += 1
        if level < last:
            layout |= conv(f"input_blocks.{index}.0.op", channels, channels)
            skips.append(channels)
            index += 1

    layout |= res_block("middle_block.0", channels, channels)
    layout |= transformer("middle_block.1", channels)
    layout |= res_block("middle_block.2", channels, channels)

    # Each level has one block more on the way up than on the way down.
    for index in range(len(skips)):
        level = last - index // (num_res_blocks + 1)
        outputs = channel_mult[level] * CHANNELS
        layout |= res_block(f"output_blocks.{index}.0", channels + skips.pop(), outputs)
        channels, part = outputs, 1
        if level < ATTENTION_LEVELS:
            layout |= transformer(f"output_blocks.{index}.{part}", channels)
            part += 1
        if level > 0 and index % (num_res_blocks + 1) == num_res_blocks:
            layout |= conv(f"output_blocks.{index}.{part}.conv", channels, channels)
    return layout | norm("out.0", channels) | conv("out.2", channels, 4)


def clip_layout(layers: int = 12) -> Layout:
    """CLIP-L's text model, names without prefix. Source: openai/clip-vit-large-patch14's config.

    Without the constant `embeddings.position_ids` of older files, which hosts report as unexpected.
    """
    layout: Layout = {
        "embeddings.token_embedding.weight": Init((49408, CONTEXT), "embedding"),
        "embeddings.position_embedding.weight": Init((77, CONTEXT), "embedding"),
    }
    for index in range(layers):
        layer = f"encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layout |= linear(f"{layer}.self_attn.{projection}", CONTEXT, CONTEXT)
        layout |= norm(f"{layer}.layer_norm1", CONTEXT) | norm(f"{layer}.layer_norm2", CONTEXT)
        layout |= linear(f"{layer}.mlp.fc1", CONTEXT, 4 * CONTEXT)
        layout |= linear(f"{layer}.mlp.fc2", 4 * CONTEXT, CONTEXT)
    return layout | norm("final_layer_norm", CONTEXT)


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


def checkpoint_layout(
    channel_mult: Sequence[int] = (1, 1), num_res_blocks: int = 1, *, vae: bool = True
) -> Layout:
    """A whole checkpoint: UNet, text model and, unless `vae` is false, an autoencoder.

    The autoencoder is the small TAESD: the usual one takes longer than a tiny UNet.
    """
    parts = {UNET: unet_layout(channel_mult, num_res_blocks), CLIP: clip_layout()}
    if vae:
        encoder, decoder = tiny_vae_layouts(channels=4)
        # The host divides an encoded latent by the scale and adds the shift. These two change nothing.
        parts[VAE] = {"vae_scale": Init((), "one"), "vae_shift": Init((), "zero")}
        parts |= {f"{VAE}taesd_encoder.": encoder, f"{VAE}taesd_decoder.": decoder}
    return {prefix + name: init for prefix, part in parts.items() for name, init in part.items()}


def generate(init: Init, generator: torch.Generator) -> Iterator[Tensor]:
    """The flat values of one tensor, in chunks of at most `CHUNK` elements."""
    # transformers gives CLIP's embeddings this standard deviation.
    std = 0.02 if init.fill == "embedding" else math.prod(init.shape[1:]) ** -0.5
    total = math.prod(init.shape)
    for start in range(0, total, CHUNK):
        size = min(CHUNK, total - start)
        if init.fill == "one":
            yield torch.ones(size)
        elif init.fill == "zero":
            yield torch.zeros(size)
        else:
            yield torch.randn(size, generator=generator).mul_(std)


def header_bytes(layout: Layout, dtype: torch.dtype, metadata: Mapping[str, str] | None = None) -> bytes:
    """The safetensors header: its length as a little-endian u64, then JSON padded to 8 bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, init in layout.items():
        start, end = end, end + math.prod(init.shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": init.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_layout(
    path: Path, layout: Layout, dtype: torch.dtype, chunks: Chunks, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `layout` as safetensors, asking `chunks` for each tensor's flat values in turn."""
    with open(path, "wb") as file:
        file.write(header_bytes(layout, dtype, metadata))
        for name in layout:
            for values in chunks(name):
                file.write(values.to(dtype).view(torch.uint8).numpy().data)


def write_base(
    path: Path,
    *,
    channel_mult: Sequence[int] = (1, 1),
    num_res_blocks: int = 1,
    dtype: torch.dtype = torch.float16,
    vae: bool = True,
    seed: int = 0,
) -> None:
    """Write a random checkpoint in SD1.5's layout, in constant memory.

    The default has 169 M parameters (44 M UNet, 123 M text model, 2 M small autoencoder);
    `channel_mult=(1, 2, 4, 4), num_res_blocks=2` has every tensor of SD1.5.
    """
    layout = checkpoint_layout(channel_mult, num_res_blocks, vae=vae)
    generator = torch.Generator().manual_seed(seed)
    write_layout(path, layout, dtype, lambda name: generate(layout[name], generator))
