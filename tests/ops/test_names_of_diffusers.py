"""Layers that only diffusers names differently: Wan, LTX, Lumina, Mochi, Cosmos, Krea and others.

Each model is tiny, in ComfyUI's layout, and no two of its numbers are equal. diffusers' own conversion of
checkpoints or of adapters is run on it. Each tensor of the result must be the rows that the library's table
has for its name.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from architectures import (
    Others,
    Shapes,
    Tensors,
    check_one_meaning,
    check_others,
    check_without_shapes,
    every,
    knowing,
    numbered,
    read,
    times,
)
from diffusers.loaders import lora_conversion_utils, single_file_utils
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from torch import Tensor

from lycoris_ops.names.architectures import (
    ace_step,
    cogvideox,
    cosmos,
    fused_attention,
    hidream_o1,
    ideogram4,
    krea2,
    ltx,
    lumina2,
    minimax_h3,
    mochi,
    wan,
    z_image,
)
from lycoris_ops.names.architectures.base import Place
from lycoris_ops.names.targets import Targets

# Each layout below is read by `layout`: a path and a shape a line.
WAN = """
patch_embedding 8 3 1 2 2
text_embedding.0 8 6
text_embedding.2 8 8
time_embedding.0 8 4
time_embedding.2 8 8
time_projection.1 48 8
[blocks vace_blocks].#.modulation = 1 6 8
[blocks vace_blocks].#.[self_attn cross_attn].[q k v o] 8 8
[blocks vace_blocks].#.[self_attn cross_attn].[norm_q norm_k] 8
blocks.#.cross_attn.[k_img v_img] 8 8
blocks.#.cross_attn.norm_k_img 8
[blocks vace_blocks].#.norm3 8
[blocks vace_blocks].#.ffn.0 12 8
[blocks vace_blocks].#.ffn.2 8 12
vace_blocks.0.before_proj 8 8
vace_blocks.#.after_proj 8 8
vace_patch_embedding 8 5 1 2 2
img_emb.proj.[0 4] 8
img_emb.proj.[1 3] 8 8
head.modulation = 1 2 8
head.head 12 8
pose_patch_embedding 8 3 1 2 2
motion_encoder.enc.net_app.convs.0.0 2 3 1 1
motion_encoder.enc.net_app.convs.[1 2 3 4 5 6 7].[conv1.0 conv2.1] 2 2 3 3
motion_encoder.enc.net_app.convs.[1 2 3 4 5 6 7].skip.1 2 2 1 1
motion_encoder.enc.net_app.convs.8 2 2 4 4
motion_encoder.enc.fc.[0 1 2 3 4] 2 2
motion_encoder.dec.direction 2 2
face_adapter.fuser_blocks.#.[linear1_q linear2] 8 8
face_adapter.fuser_blocks.#.linear1_kv 16 8
face_adapter.fuser_blocks.#.[q_norm k_norm] 4
face_encoder.[conv1_local conv2 conv3].conv 4 4 3
face_encoder.out_proj 8 4
"""
"""One model with the layers of image to video, of VACE and of Animate, which are different layers."""

LTX = """
scale_shift_table = 2 8
patchify_proj 8 5
adaln_single.emb.timestep_embedder.linear_1 8 4
adaln_single.emb.timestep_embedder.linear_2 8 8
adaln_single.linear 48 8
caption_projection.linear_1 8 6
caption_projection.linear_2 8 8
transformer_blocks.#.scale_shift_table = 6 8
transformer_blocks.#.[attn1 attn2].[q_norm k_norm] 8
transformer_blocks.#.[attn1 attn2].[to_q to_k to_v to_out.0] 8 8
transformer_blocks.#.ff.net.0.proj 12 8
transformer_blocks.#.ff.net.2 8 12
proj_out 5 8
"""
LTX_2 = f"""
{LTX}
audio_scale_shift_table = 2 4
audio_patchify_proj 4 5
[audio_adaln_single prompt_adaln_single audio_prompt_adaln_single].emb.timestep_embedder.linear_[1 2] 4 4
[audio_adaln_single prompt_adaln_single audio_prompt_adaln_single].linear 8 4
[av_ca_video_scale_shift av_ca_audio_scale_shift]_adaln_single.emb.timestep_embedder.linear_[1 2] 4 4
[av_ca_video_scale_shift av_ca_audio_scale_shift]_adaln_single.linear 16 4
[av_ca_a2v_gate av_ca_v2a_gate]_adaln_single.emb.timestep_embedder.linear_[1 2] 4 4
[av_ca_a2v_gate av_ca_v2a_gate]_adaln_single.linear 4 4
audio_caption_projection.linear_[1 2] 4 4
transformer_blocks.#.audio_scale_shift_table = 6 4
transformer_blocks.#.scale_shift_table_a2v_ca_audio = 5 4
transformer_blocks.#.scale_shift_table_a2v_ca_video = 5 8
transformer_blocks.#.[audio_attn1 audio_attn2].[q_norm k_norm] 4
transformer_blocks.#.[audio_attn1 audio_attn2].[to_q to_k to_v to_out.0] 4 4
transformer_blocks.#.[audio_to_video_attn video_to_audio_attn].[q_norm k_norm] 4
transformer_blocks.#.audio_to_video_attn.to_q 4 8
transformer_blocks.#.audio_to_video_attn.[to_k to_v] 4 4
transformer_blocks.#.audio_to_video_attn.to_out.0 8 4
transformer_blocks.#.video_to_audio_attn.to_q 4 4
transformer_blocks.#.video_to_audio_attn.[to_k to_v] 4 8
transformer_blocks.#.video_to_audio_attn.to_out.0 4 4
transformer_blocks.#.audio_ff.net.0.proj 16 4
transformer_blocks.#.audio_ff.net.2 4 16
audio_proj_out 5 4
"""
CONNECTORS = """
[video audio]_embeddings_connector.learnable_registers = 3 6
[video audio]_embeddings_connector.transformer_1d_blocks.#.attn1.[q_norm k_norm] 6
[video audio]_embeddings_connector.transformer_1d_blocks.#.attn1.[to_q to_k to_v to_out.0] 6 6
[video audio]_embeddings_connector.transformer_1d_blocks.#.ff.net.0.proj 12 6
[video audio]_embeddings_connector.transformer_1d_blocks.#.ff.net.2 6 12
"""

NEXT_DIT = """
x_embedder 8 5
t_embedder.mlp.0 8 4
t_embedder.mlp.2 8 8
cap_embedder.0 6
cap_embedder.1 8 6
[layers noise_refiner context_refiner].#.attention.qkv {qkv} 2
[layers noise_refiner context_refiner].#.attention.out 2 {query}
[layers noise_refiner context_refiner].#.attention.[q_norm k_norm] 4
[layers noise_refiner context_refiner].#.feed_forward.[w1 w3] 12 8
[layers noise_refiner context_refiner].#.feed_forward.w2 8 12
[layers noise_refiner context_refiner].#.[attention_norm1 attention_norm2 ffn_norm1 ffn_norm2] 8
[layers noise_refiner].#.adaLN_modulation.{modulation} 32 8
final_layer.linear 5 8
final_layer.adaLN_modulation.1 8 8
"""
# diffusers converts the one size of Lumina 2 that was published: 2304 query rows, 768 of key and value.
LUMINA_2 = NEXT_DIT.format(qkv=2304 + 2 * 768, query=2304, modulation=1)
Z_IMAGE = NEXT_DIT.format(qkv=24, query=8, modulation=0)

MOCHI = """
x_embedder.proj 8 3 2 2
t_embedder.mlp.0 8 4
t_embedder.mlp.2 8 8
t5_y_embedder.to_kv 12 6
t5_y_embedder.to_q 6 6
t5_y_embedder.to_out 8 6
t5_yproj 4 6
blocks.#.mod_x 32 8
blocks.#.mod_y 16 8
blocks.#.attn.qkv_x 24 8
blocks.#.attn.qkv_y 24 4
blocks.#.attn.[q_norm_x k_norm_x q_norm_y k_norm_y] 4
blocks.#.attn.proj_x 8 8
blocks.#.attn.proj_y 4 8
blocks.#.mlp_x.w1 24 8
blocks.#.mlp_x.w2 8 12
blocks.#.mlp_y.w1 12 4
blocks.#.mlp_y.w2 4 6
final_layer.mod 16 8
final_layer.linear 5 8
pos_frequencies = 3 2 4
"""
MOCHI_BLOCKS = 48
"""The number of blocks that diffusers' conversion expects. The last one has no text stream after its
attention."""

COSMOS_1 = """
x_embedder.proj.1 8 5
extra_pos_embedder.[pos_emb_h pos_emb_w pos_emb_t] = 3 8
t_embedder.1.linear_1 8 8
t_embedder.1.linear_2 24 8
affline_norm 8
blocks.block#.blocks.[0 1].block.attn.[to_q.0 to_k.0 to_v.0 to_out.0] 8 8
blocks.block#.blocks.[0 1].block.attn.[to_q.1 to_k.1] 4
blocks.block#.blocks.2.block.layer1 12 8
blocks.block#.blocks.2.block.layer2 8 12
blocks.block#.blocks.[0 1 2].adaLN_modulation.1 3 8
blocks.block#.blocks.[0 1 2].adaLN_modulation.2 24 3
final_layer.linear 5 8
final_layer.adaLN_modulation.1 3 8
final_layer.adaLN_modulation.2 16 3
"""
COSMOS_2 = """
x_embedder.proj.1 8 5
t_embedder.1.linear_1 8 8
t_embedder.1.linear_2 24 8
t_embedding_norm 8
blocks.#.self_attn.[q_proj k_proj v_proj output_proj] 8 8
blocks.#.cross_attn.[q_proj output_proj] 8 8
blocks.#.cross_attn.[k_proj v_proj] 8 6
blocks.#.[self_attn cross_attn].[q_norm k_norm] 4
blocks.#.mlp.layer1 12 8
blocks.#.mlp.layer2 8 12
blocks.#.adaln_modulation_[self_attn cross_attn mlp].1 3 8
blocks.#.adaln_modulation_[self_attn cross_attn mlp].2 24 3
final_layer.linear 5 8
final_layer.adaln_modulation.1 3 8
final_layer.adaln_modulation.2 16 3
"""
LLM_ADAPTER = """
llm_adapter.embed 9 6
llm_adapter.blocks.#.[norm_self_attn norm_cross_attn norm_mlp] 6
llm_adapter.blocks.#.[self_attn cross_attn].[q_proj k_proj v_proj o_proj] 6 6
llm_adapter.blocks.#.[self_attn cross_attn].[q_norm k_norm] 3
llm_adapter.blocks.#.mlp.0 12 6
llm_adapter.blocks.#.mlp.2 6 12
llm_adapter.out_proj 6 6
llm_adapter.norm 6
"""

ACE_STEP = """
null_condition_emb = 1 1 8
decoder.scale_shift_table = 1 2 8
decoder.proj_in.1 8 5 2
decoder.[time_embed time_embed_r].linear_1 8 4
decoder.[time_embed time_embed_r].linear_2 8 8
decoder.[time_embed time_embed_r].time_proj 48 8
decoder.condition_embedder 8 6
decoder.layers.#.scale_shift_table = 1 6 8
decoder.layers.#.[self_attn_norm cross_attn_norm mlp_norm] 8
decoder.layers.#.[self_attn cross_attn].[q_proj o_proj] 8 8
decoder.layers.#.[self_attn cross_attn].[k_proj v_proj] 4 8
decoder.layers.#.[self_attn cross_attn].[q_norm k_norm] 2
decoder.layers.#.mlp.[gate_proj up_proj] 12 8
decoder.layers.#.mlp.down_proj 8 12
decoder.norm_out 8
decoder.proj_out.1 8 3 2
encoder.text_projector 8 6
encoder.lyric_encoder.layers.#.self_attn.[q_proj k_proj v_proj o_proj] 8 8
detokenizer.layers.#.self_attn.[q_proj k_proj v_proj o_proj] 8 8
"""

KREA_2 = """
first 8 5
blocks.#.mod.lin = 48
blocks.#.[prenorm postnorm].scale = 8
blocks.#.attn.[wq gate wo] 8 8
blocks.#.attn.[wk wv] 4 8
blocks.#.attn.qknorm.[qnorm knorm].scale = 2
blocks.#.mlp.[gate up] 12 8
blocks.#.mlp.down 8 12
tmlp.0 8 4
tmlp.2 8 8
tproj.1 48 8
txtfusion.[layerwise_blocks refiner_blocks].#.[prenorm postnorm].scale = 6
txtfusion.[layerwise_blocks refiner_blocks].#.attn.[wq wk wv gate wo] 6 6
txtfusion.[layerwise_blocks refiner_blocks].#.attn.qknorm.[qnorm knorm].scale = 2
txtfusion.[layerwise_blocks refiner_blocks].#.mlp.[gate up] 12 6
txtfusion.[layerwise_blocks refiner_blocks].#.mlp.down 6 12
txtfusion.projector 1 3
txtmlp.0.scale = 6
txtmlp.1 8 6
txtmlp.3 8 8
last.norm.scale = 8
last.linear 5 8
last.modulation.lin = 2 8
"""

COGVIDEOX = """
patch_embed.proj 8 3 2 2
patch_embed.text_proj 8 6
time_embedding_linear_1 4 8
time_embedding_linear_2 4 4
ofs_embedding_linear_[1 2] 8 8
blocks.#.[norm1 norm2].linear 48 4
blocks.#.[norm1 norm2].norm 8
blocks.#.[q k v attn_out] 8 8
blocks.#.[norm_q norm_k] 2
blocks.#.ff_proj 32 8
blocks.#.ff_out 8 32
norm_final 8
norm_out.linear 16 4
norm_out.norm 8
proj_out 12 8
"""

IDEOGRAM_4 = """
input_proj 8 5
llm_cond_norm 6
llm_cond_proj 8 6
t_embedding.[mlp_in mlp_out] 8 8
adaln_proj 4 8
embed_image_indicator 2 8
layers.#.attention.qkv 24 8
layers.#.attention.[norm_q norm_k] 2
layers.#.attention.o 8 8
layers.#.feed_forward.[w1 w3] 12 8
layers.#.feed_forward.w2 8 12
layers.#.[attention_norm1 attention_norm2 ffn_norm1 ffn_norm2] 8
layers.#.adaln_modulation 32 4
final_layer.linear 5 8
final_layer.adaln_modulation 8 4
"""

MINIMAX_H3 = """
video_patch_proj 8 5
audio_patch_proj 8 3
condition_proj 8 6
time_embedder.proj_in 8 4
time_embedder.proj_out 4 8
[blocks token_refiner.blocks].#.[norm1 norm2] 8
[blocks token_refiner.blocks].#.attn.qkv_proj 12 8
[blocks token_refiner.blocks].#.attn.[q_norm k_norm] 2
[blocks token_refiner.blocks].#.attn.out_proj 8 4
[blocks token_refiner.blocks].#.mlp.fc1 12 8
[blocks token_refiner.blocks].#.mlp.fc2 8 6
blocks.#.adaln_proj.linear 48 4
token_refiner.final_norm 8
final_layer.norm 8
final_layer.adaln_proj.linear 16 4
final_layer.video_out 5 8
final_layer.audio_out 3 8
"""

HIDREAM_O1 = """
visual.patch_embed.proj 6 3 2 2 2
visual.blocks.#.attn.qkv 18 6
visual.blocks.#.attn.proj 6 6
visual.blocks.#.mlp.[linear_fc1 linear_fc2] 6 6
language_model.embed_tokens 9 8
language_model.layers.#.self_attn.[q_proj o_proj] 8 8
language_model.layers.#.self_attn.[k_proj v_proj] 4 8
language_model.layers.#.mlp.[gate_proj up_proj] 12 8
language_model.layers.#.mlp.down_proj 8 12
t_embedder1.mlp.[0 2] 8 8
x_embedder.proj1 3 5
x_embedder.proj2 8 3
final_layer2.linear 5 8
"""


@dataclass(frozen=True)
class Layout:
    """A model: the shapes of its layers, and which layers are parameters not called `weight`."""

    shapes: Shapes
    parameters: frozenset[str]

    def weights(self) -> Tensors:
        """The numbered tensors under the keys of a checkpoint."""
        return {self.key(path): value for path, value in numbered(self.shapes).items()}

    def key(self, path: str) -> str:
        """The key of a layer's weight in a checkpoint."""
        return path if path in self.parameters else f"{path}.weight"


def layout(text: str, count: int = 2) -> Layout:
    """Read a model from lines that each have a path and a shape.

    [a b] in a path stands for a and for b, and # for the number of each block. An = before the shape marks
    a parameter that is not called weight.
    """
    shapes: Shapes = {}
    parameters: set[str] = set()
    for line in filter(None, text.splitlines()):
        match = re.fullmatch(r"(.+?)( =)?((?: \d+)+)", line)
        assert match, line
        for path in _expanded(match[1], count):
            shapes[path] = tuple(int(size) for size in match[3].split())
            if match[2]:
                parameters.add(path)
    return Layout(shapes, frozenset(parameters))


def _expanded(pattern: str, count: int) -> Iterator[str]:
    if match := re.search(r"\[(.+?)\]|#", pattern):
        for part in match[1].split() if match[1] else range(count):
            yield from _expanded(f"{pattern[: match.start()]}{part}{pattern[match.end() :]}", count)
    else:
        yield pattern


def renames(*replacements: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    """A published conversion that consists of replacements, applied one after the other."""

    def convert(weights: Tensors) -> Tensors:
        converted: Tensors = {}
        for key, tensor in weights.items():
            for old, new in replacements:
                key = re.sub(old, new, key)
            converted[key] = tensor
        return converted

    return convert


def as_adapter(function: str, prefix: str = "diffusion_model.") -> Callable[[Tensors], Tensors]:
    """diffusers' conversion of adapters, used to convert weights.

    Each weight is passed as the lora_B of its layer.
    """

    def convert(weights: Tensors) -> Tensors:
        adapter: Tensors = {}
        for key, tensor in weights.items():
            layer = key.removesuffix(".weight")
            adapter[f"{prefix}{layer}.lora_A.weight"] = torch.zeros(1)
            adapter[f"{prefix}{layer}.lora_B.weight"] = tensor
        converted = getattr(lora_conversion_utils, function)(adapter)
        return {
            re.sub(r"^transformer\.", "", key).removesuffix(".lora_B.weight"): tensor
            for key, tensor in converted.items()
            if ".lora_B." in key
        }

    return convert


def from_file(function: str, **options: Any) -> Callable[[Tensors], Tensors]:
    """diffusers' conversion of checkpoints."""
    return lambda weights: getattr(single_file_utils, function)(dict(weights), **options)


class Kept(Tensors):
    """A checkpoint that keeps the tensors that are popped from it."""

    def pop(self, key: str, *_: object) -> Tensor:
        return self[key]


def under_net(weights: Tensors) -> Tensors:
    """diffusers' conversion of Cosmos. Cosmos' files have all layers below `net`.

    diffusers tells the versions of Cosmos apart by a key, for which it looks after it has popped every
    tensor. It finds the key in a `Kept` checkpoint.
    """
    checkpoint = Kept({f"net.{key}": tensor for key, tensor in weights.items()})
    return single_file_utils.convert_cosmos_transformer_checkpoint_to_diffusers(checkpoint)


def with_biases(weights: Tensors) -> Tensors:
    """diffusers' conversion of Mochi, which needs every bias. The biases are removed from the result."""
    biases = {
        f"{key.removesuffix('weight')}bias": tensor.flatten(1)[:, 0]
        for key, tensor in weights.items()
        if tensor.dim() > 1
    }
    converted = single_file_utils.convert_mochi_transformer_checkpoint_to_diffusers({**weights, **biases})
    return {key: tensor for key, tensor in converted.items() if not key.endswith("bias")}


def without(pattern: str, convert: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
    """A conversion that is not given the layers whose keys match the pattern."""
    return lambda weights: convert({key: t for key, t in weights.items() if not re.search(pattern, key)})


def chained(*conversions: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
    def convert(weights: Tensors) -> Tensors:
        for conversion in conversions:
            weights = conversion(weights)
        return weights

    return convert


def _mochi() -> Layout:
    """Mochi, whose last block has no text stream after its attention."""
    model = layout(MOCHI, MOCHI_BLOCKS)
    gone = [f"blocks.{MOCHI_BLOCKS - 1}.{name}" for name in ("attn.proj_y", "mlp_y.w1", "mlp_y.w2")]
    return Layout({path: s for path, s in model.shapes.items() if path not in gone}, model.parameters)


ACE_STEP_RENAMES = renames(
    (r"^decoder\.", ""),
    (r"^proj_(in|out)\.1\.", r"proj_\1_conv."),
    (r"\.([qkv])_proj\.", r".to_\1."),
    (r"\.o_proj\.", ".to_out.0."),
    (r"\.([qk])_norm\.", r".norm_\1."),
)
"""The conversion of diffusers' `scripts/convert_ace_step_to_diffusers.py`."""
ACE_STEP_OFFICIAL = {
    "proj_in.1": "proj_in_conv",
    "proj_out.1": "proj_out_conv",
    **{
        f"layers.*.{attention}.{official}": f"layers.*.{attention}.{name}"
        for attention in ("self_attn", "cross_attn")
        for official, name in (
            ("q_proj", "to_q"),
            ("k_proj", "to_k"),
            ("v_proj", "to_v"),
            ("o_proj", "to_out.0"),
            ("q_norm", "norm_q"),
            ("k_norm", "norm_k"),
        )
    },
}
"""What the official adapters call the layers that diffusers renames."""
CONNECTOR_RENAMES = renames(
    (r"^(video|audio)_embeddings_connector", r"connectors.\1_connector"),
    ("transformer_1d_blocks", "transformer_blocks"),
    (r"([qk])_norm", r"norm_\1"),
)
"""The conversion of diffusers' `scripts/convert_ltx2_to_diffusers.py`."""


@dataclass(frozen=True)
class Case:
    """A model, diffusers' conversion of it, and the class whose names the result must have."""

    tables: ModuleType
    model: Layout
    convert: Callable[[Tensors], Tensors]
    cls: str | None = None
    """The module and the class in diffusers.models.transformers, or None to compare only with the
    conversion."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that make the class as small as the model."""
    absent: str = "$^"
    """Names that ComfyUI's model has no layer for, or that the tiny model leaves out."""
    others: Others = field(default_factory=dict)
    """Names that other tools use, each with diffusers' layers that it stands for."""

    @property
    def converted(self) -> Tensors:
        """The result of the conversion of the numbered model, by names of layers."""
        return {
            key.removesuffix(".weight"): value for key, value in self.convert(self.model.weights()).items()
        }


BLOCKS = {"num_layers": 2}
CASES = {
    "wan": Case(
        wan,
        layout(WAN),
        from_file("convert_wan_transformer_to_diffusers"),
        "transformer_wan_animate.WanAnimateTransformer3DModel",
        {**BLOCKS, "added_kv_proj_dim": 8, "inject_face_latents_blocks": 1},
    ),
    "wan vace": Case(
        wan,
        layout(WAN),
        from_file("convert_wan_transformer_to_diffusers"),
        "transformer_wan_vace.WanVACETransformer3DModel",
        {**BLOCKS, "vace_layers": [0, 1]},
    ),
    "ltx": Case(
        ltx,
        layout(LTX),
        from_file("convert_ltx_transformer_checkpoint_to_diffusers"),
        "transformer_ltx.LTXVideoTransformer3DModel",
        BLOCKS,
    ),
    "ltx 2": Case(
        ltx,
        layout(LTX_2),
        as_adapter("_convert_non_diffusers_ltx2_lora_to_diffusers"),
        "transformer_ltx2.LTX2VideoTransformer3DModel",
        {**BLOCKS, "cross_attn_mod": True, "audio_cross_attn_mod": True},
    ),
    "ltx 2 connectors": Case(
        ltx,
        layout(LTX + CONNECTORS),
        chained(from_file("convert_ltx_transformer_checkpoint_to_diffusers"), CONNECTOR_RENAMES),
    ),
    "lumina 2": Case(
        lumina2,
        layout(LUMINA_2),
        from_file("convert_lumina2_to_diffusers"),
        "transformer_lumina2.Lumina2Transformer2DModel",
        {**BLOCKS, "num_refiner_layers": 2},
    ),
    "z-image": Case(
        z_image,
        layout(Z_IMAGE),
        from_file("convert_z_image_transformer_checkpoint_to_diffusers"),
        "transformer_z_image.ZImageTransformer2DModel",
        {"n_layers": 2, "n_refiner_layers": 2},
    ),
    "mochi": Case(
        mochi,
        _mochi(),
        with_biases,
        "transformer_mochi.MochiTransformer3DModel",
    ),
    "cosmos 1": Case(
        cosmos, layout(COSMOS_1), under_net, "transformer_cosmos.CosmosTransformer3DModel", BLOCKS
    ),
    "cosmos predict 2": Case(
        cosmos,
        layout(COSMOS_2),
        under_net,
        "transformer_cosmos.CosmosTransformer3DModel",
        {**BLOCKS, "extra_pos_embed_type": None},
    ),
    "anima": Case(
        cosmos,
        layout(COSMOS_2 + LLM_ADAPTER),
        without(r"^blocks\..*_norm", as_adapter("_convert_non_diffusers_anima_lora_to_diffusers")),
        "transformer_cosmos.CosmosTransformer3DModel",
        {**BLOCKS, "extra_pos_embed_type": None},
    ),
    "ace-step 1.5": Case(
        ace_step,
        layout(ACE_STEP),
        without("^(?!decoder)", ACE_STEP_RENAMES),
        "ace_step_transformer.AceStepTransformer1DModel",
        {"num_hidden_layers": 2},
        others=ACE_STEP_OFFICIAL,
    ),
    "krea 2": Case(
        krea2,
        layout(KREA_2),
        from_file("convert_krea2_transformer_checkpoint_to_diffusers"),
        "transformer_krea2.Krea2Transformer2DModel",
        BLOCKS,
        absent=r"transformer_blocks\.\d+\.scale_shift_table",
    ),
    "ideogram 4": Case(
        ideogram4,
        layout(IDEOGRAM_4),
        without(r"^(?!layers)|norm", as_adapter("_convert_non_diffusers_ideogram4_lora_to_diffusers")),
        "transformer_ideogram4.Ideogram4Transformer2DModel",
        BLOCKS,
    ),
    "minimax h3": Case(
        minimax_h3,
        layout(MINIMAX_H3),
        from_file("convert_minimax_h3_transformer_checkpoint_to_diffusers", config={}),
        "transformer_minimax_h3.MiniMaxH3Transformer3DModel",
        {**BLOCKS, "num_refiner_layers": 2},
    ),
}
cases = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def class_names() -> Mapping[str, set[str]]:
    """The layers of diffusers' classes, by case.

    They are made once, before the fixture `poisoned` of the first test replaces torch.empty.
    """
    return {name: set(_class_names(case)) for name, case in CASES.items()}


def _class_names(case: Case) -> Iterator[str]:
    if case.cls is None:
        return
    module, cls = case.cls.split(".")
    with torch.device("meta"):
        model = getattr(importlib.import_module(f"diffusers.models.transformers.{module}"), cls)(
            **case.options
        )
    for key in model.state_dict():
        if key.endswith(".weight"):
            yield key.removesuffix(".weight")


@cases
def test_every_weight_that_diffusers_makes_is_where_the_table_says(case: str) -> None:
    """The rows that the table has for a name equal the tensor that the conversion has for it."""
    model, names = CASES[case].model, every(CASES[case].tables, CASES[case].model.shapes)
    weights = numbered(model.shapes)
    assert names and CASES[case].converted
    for name, tensor in CASES[case].converted.items():
        if re.fullmatch(CASES[case].absent, name):
            assert name not in names
        else:
            torch.testing.assert_close(read(weights, names[name]), tensor, rtol=0, atol=0)


@cases
def test_the_names_are_those_of_the_class(case: str, class_names: Mapping[str, set[str]]) -> None:
    names = CASES[case].tables.diffusers(CASES[case].model.shapes).keys()
    # Some of the tiny models have the layers of two classes. A conversion of adapters leaves norms out.
    assert names <= CASES[case].converted.keys() | class_names[case]
    missing = class_names[case] - names
    assert {name for name in missing if not re.fullmatch(CASES[case].absent, name)} == set()


@cases
def test_no_row_has_two_names_in_diffusers(case: str) -> None:
    shapes = CASES[case].model.shapes
    assert (times(CASES[case].tables.diffusers(shapes), shapes) <= 1).all()


@cases
def test_other_names_are_explained(case: str) -> None:
    shapes = CASES[case].model.shapes
    aliases = CASES[case].tables.aliases(shapes)
    check_others(aliases, shapes, CASES[case].converted, CASES[case].others)


@cases
def test_a_name_has_one_meaning_and_a_model_one_architecture(case: str) -> None:
    assert knowing(CASES[case].model.shapes) == [CASES[case].tables]
    check_one_meaning(CASES[case].model.shapes)


@cases
def test_without_shapes_only_whole_layers_have_names(case: str) -> None:
    check_without_shapes(CASES[case].tables, CASES[case].model.shapes)


def test_nothing_is_of_no_architecture() -> None:
    assert knowing({}) == []


def test_cogvideox_has_the_layers_of_the_class() -> None:
    """diffusers publishes no conversion for CogVideoX. ComfyUI has the layout of its class under other names.

    The names and the shapes are compared with the class.
    """
    model = layout(COGVIDEOX)
    names = cogvideox.diffusers(model.shapes)
    theirs = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=2,
        in_channels=3,
        out_channels=3,
        time_embed_dim=4,
        ofs_embed_dim=8,
        text_embed_dim=6,
        num_layers=2,
        use_rotary_positional_embeddings=True,
    )
    layers = {
        key.removesuffix(".weight"): t.shape for key, t in theirs.state_dict().items() if "bias" not in key
    }
    assert {name: model.shapes[places[0].path] for name, places in names.items()} == layers
    assert (times(names, model.shapes) == 1).all()
    assert cogvideox.aliases(model.shapes).keys() == {
        f"transformer_blocks.{block}.attn1.{name}" for block in "01" for name in ("to_qkv", "to_kv", "to_out")
    }


def test_hidream_o1_is_below_model_in_training() -> None:
    """Paths begin with `model` in the files of musubi-tuner.

    An example is `lora_unet_model_language_model_layers_0_self_attn_q_proj`.
    """
    model = layout(HIDREAM_O1)
    names = hidream_o1.aliases(model.shapes)
    assert names["model.language_model.layers.0.self_attn.q_proj"] == (
        Place("language_model.layers.0.self_attn.q_proj"),
    )
    assert names == {f"model.{path}": (Place(path),) for path in model.shapes}


def test_grouped_query_attention_is_read_from_the_shapes() -> None:
    """The output projection has a column for every row of the query."""
    model = layout(NEXT_DIT.format(qkv=12, query=6, modulation=1))
    names = {**lumina2.diffusers(model.shapes), **lumina2.aliases(model.shapes)}
    fused = "layers.1.attention.qkv"
    assert names["layers.1.attn.to_q"] == (Place(fused, (0, 6)),)
    assert names["layers.1.attn.to_k"] == (Place(fused, (6, 9)),)
    assert names["layers.1.attn.to_v"] == (Place(fused, (9, 12)),)
    assert names["layers.1.attn.to_kv"] == (Place(fused, (6, 12)),)
    assert names["layers.1.attn.to_qkv"] == (Place(fused),)


def test_the_last_text_stream_of_mochi_has_its_own_name() -> None:
    """diffusers calls the linear layer of its norm `linear_1` instead of `linear`."""
    names = mochi.diffusers(_mochi().shapes)
    last = MOCHI_BLOCKS - 1
    assert names[f"transformer_blocks.{last}.norm1_context.linear_1"] == (Place(f"blocks.{last}.mod_y"),)
    assert f"transformer_blocks.{last}.norm1_context.linear" not in names
    assert names["transformer_blocks.0.norm1_context.linear"] == (Place("blocks.0.mod_y"),)


def test_ideogram_4_has_a_name_of_its_own_for_the_model() -> None:
    """diffusers accepts the prefix `conditional_transformer.` beside `transformer.` and the host's own."""
    targets = Targets({f"diffusion_model.{path}.weight": s for path, s in layout(IDEOGRAM_4).shapes.items()})
    for prefix in ("conditional_transformer.", "diffusion_model.", "transformer."):
        ((target,),) = targets.find(f"{prefix}layers.1.attention.to_k")
        assert (target.path, target.rows) == ("layers.1.attention.qkv", (8, 16))


@cases
def test_no_fallback_is_a_real_path(case: str) -> None:
    shapes = CASES[case].model.shapes
    names = fused_attention.fallback(shapes)
    assert not names.keys() & shapes.keys()
    for places in names.values():
        for place in places:
            first, end = place.rows or (0, shapes[place.path][0])
            assert 0 <= first < end <= shapes[place.path][0]
