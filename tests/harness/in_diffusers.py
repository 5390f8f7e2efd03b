"""The layers of diffusers' models, and the rows of the host's models that each of them holds.

The correspondence comes from diffusers' own conversion of published checkpoints. A test checks that its
result has exactly the layers of diffusers' class. Where diffusers has no conversion, renames are listed here,
and the same test checks them.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .architecture_names import Record, Rows
from .foreign import Located, Numbered, State, with_constants
from .zoo import ADAPTABLE, SPECIES, make, supported

PREFIX = "diffusion_model."
Renames = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Diffusers:
    """How an architecture's layers are found in diffusers."""

    model: str
    """diffusers' class."""
    own: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its arguments for a model as small as the zoo's, beside those in `SMALL`."""
    constants: Mapping[Any, Any] = field(default_factory=dict[Any, Any])
    """Maps numbers in the conversion's code to the values that fit the zoo's model (see `with_constants`)."""
    published: Callable[[State], State] = dict
    """Turns the host's state dict into that of a published checkpoint, which the conversion takes."""
    converts_as: str = ""
    """The class whose conversion of checkpoints fits, if it is not `model`."""
    insists_on: tuple[str, ...] = ()
    """Keys that the conversion wants although this architecture has no such weights."""
    renames: Renames = ()
    """Patterns of names, and what replaces them: after the conversion, or alone where there is none."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Without a conversion: the end of a fused weight's renamed path, and the names of its equal parts."""
    swapped: tuple[str, ...] = ()
    """Without a conversion: renamed layers whose halves are exchanged in diffusers (scale before shift)."""
    # The pattern `$^` fits no name.
    reshaped: str = "$^"
    """Matches diffusers' parameters that are no rows of the host's, because their values are rearranged."""

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of diffusers' class."""
        known = inspect.signature(self._kind).parameters
        return {**{name: size for name, size in SMALL.items() if name in known}, **self.own}

    def make(self) -> nn.Module:
        """diffusers' model."""
        return self._kind(**self.config)

    @property
    def convert(self) -> Callable[..., State] | None:
        """diffusers' conversion of checkpoints; None where there is none."""
        known = importlib.import_module("diffusers.loaders.single_file_model").SINGLE_FILE_LOADABLE_CLASSES
        found = known.get(self.converts_as or self.model)
        return found and found["checkpoint_mapping_fn"]

    @property
    def _kind(self) -> Any:
        return getattr(importlib.import_module("diffusers"), self.model)


def recorded() -> dict[str, Record]:
    """The names of every layer and other parameter, for each architecture that the loaded host knows.

    Raises:
        ValueError: the names found are not those of diffusers' class.
    """
    found: dict[str, Record] = {}
    for name, species in DIFFUSERS.items():
        if not supported(name):
            continue
        state = {
            key.removeprefix(PREFIX): value
            for key, value in make(name).state_dict().items()
            if key.startswith(PREFIX)
        }
        found[name] = _record(name, species, state)
        # The names in files differ from the host's by more than a prefix.
        if species.published in (_scale, _hunyuan, _cascade):
            files = replace(species, published=dict)
            found[f"{name}, in files"] = _record(name, files, species.published(state))
    return found


def _record(name: str, species: Diffusers, state: State) -> Record:
    numbered = Numbered(state)
    wanted = set(_parameters(species))
    names: dict[str, Rows] = {}
    for key, weight in _converted(species, dict(numbered.state)).items():
        path = key.removesuffix(".weight")
        if path in wanted and key not in species.insists_on:
            try:
                names[path] = _rows(numbered.locate(weight), state)
            except ValueError:
                if not re.fullmatch(species.reshaped, path):
                    raise
    if missing := sorted(path for path in wanted - names.keys() if not re.fullmatch(species.reshaped, path)):
        raise ValueError(f"{name}: no layer of the host was found for {missing} of {species.model}")
    layers = {
        key.removesuffix(".weight"): tuple(value.shape)
        for key, value in state.items()
        if value.ndim and not key.endswith("bias")
    }
    return Record(layers, names)


def _rows(where: Located, state: State) -> Rows:
    """The rows as runs of rows that follow each other in one layer."""
    runs: list[tuple[str, int, int]] = []
    for key, row in map(where.row, range(where.shape[0])):
        if runs and runs[-1][::2] == (key, row):
            runs[-1] = (key, runs[-1][1], row + 1)
        else:
            runs.append((key, row, row + 1))
    return tuple(
        (key.removesuffix(".weight"), None if (first, end) == (0, len(state[key])) else (first, end))
        for key, first, end in runs
    )


def _parameters(species: Diffusers) -> Iterator[str]:
    """The layers and other parameters of diffusers' class, without biases."""
    with torch.device("meta"):
        model = species.make()
    for key in model.state_dict():
        if not key.endswith(".bias"):
            yield key.removesuffix(".weight")


def _converted(species: Diffusers, state: State) -> State:
    """The host's state dict under diffusers' names: by the conversion, or else by renames alone."""
    state = species.published(state)
    if conversion := species.convert:
        convert = with_constants(conversion, species.constants)
        state |= {key: torch.zeros(1) for key in species.insists_on}
        return _renamed(convert(state, config=species.config), species.renames)
    result: State = {}
    for key, weight in _renamed(state, species.renames).items():
        path, _, kind = key.rpartition(".")
        if path in species.swapped:
            weight = torch.cat(weight.chunk(2)[::-1])
        ends = [end for end in species.fused if path.endswith(end)]
        for end in ends:
            parts = species.fused[end]
            for part, rows in zip(parts, weight.chunk(len(parts)), strict=True):
                result[f"{path.removesuffix(end)}{part}.{kind}"] = rows
        if not ends:
            result[key] = weight
    return result


def _scale(state: State) -> State:
    """Black Forest Labs' files call the weight of a norm `scale`."""
    return {re.sub(r"(_norm|norms\.\d+)\.weight$", r"\1.scale", key): value for key, value in state.items()}


HUNYUAN = (
    (r"txt_in\.t_embedder\.in_layer\.", "txt_in.t_embedder.mlp.0."),
    (r"txt_in\.t_embedder\.out_layer\.", "txt_in.t_embedder.mlp.2."),
    (r"txt_in\.c_embedder\.in_layer\.", "txt_in.c_embedder.linear_1."),
    (r"txt_in\.c_embedder\.out_layer\.", "txt_in.c_embedder.linear_2."),
    (r"(time|guidance|time_r)_in\.in_layer\.", r"\1_in.mlp.0."),
    (r"(time|guidance|time_r)_in\.out_layer\.", r"\1_in.mlp.2."),
    (r"_mod\.lin\.", "_mod.linear."),
    (r"modulation\.lin\.", "modulation.linear."),
    (r"(img|txt|self)_attn\.norm\.query_norm\.weight", r"\1_attn_q_norm.weight"),
    (r"(img|txt|self)_attn\.norm\.key_norm\.weight", r"\1_attn_k_norm.weight"),
    (r"\.norm\.query_norm\.weight", ".q_norm.weight"),
    (r"\.norm\.key_norm\.weight", ".k_norm.weight"),
    (r"(img|txt|self)_attn\.(qkv|proj)\.", r"\1_attn_\2."),
    (r"((?:double_blocks|refiner\.blocks)\.\d+\.(?:\w+_)?mlp)\.0\.", r"\1.fc1."),
    (r"((?:double_blocks|refiner\.blocks)\.\d+\.(?:\w+_)?mlp)\.2\.", r"\1.fc2."),
)
"""From the host's names to those of Tencent's files. The host's own loader does the reverse."""


def _hunyuan(state: State) -> State:
    return _renamed(state, HUNYUAN)


def _renamed(state: State, renames: Renames) -> State:
    return {renamed(key, renames): value for key, value in state.items()}


def renamed(key: str, renames: Renames) -> str:
    for pattern, name in renames:
        key = re.sub(pattern, name, key)
    return key


class _Kept(dict[str, Tensor]):
    """A state dict whose `pop` removes nothing: Cosmos' conversion looks for a key that it has popped."""

    def pop(self, key: str, *default: Any) -> Tensor:
        return self[key]


def _cosmos(state: State) -> State:
    return _Kept(_prefixed("net.")(state))


def _prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def _cascade(state: State) -> State:
    """Published files have query, key and value as one weight, which the host's loader splits."""
    result = dict(state)
    for key in state:
        if match := re.match(r"(.+\.attn)\.to_q\.(weight|bias)$", key):
            attention, kind = match.groups()
            result[f"{attention}.in_proj_{kind}"] = torch.cat(
                [result.pop(f"{attention}.to_{part}.{kind}") for part in "qkv"]
            )
    return result


def _unet(*depth: int, **changed: Any) -> Diffusers:
    """A UNet. depth: the number of transformer blocks on each level, 0 for none."""
    down = ["CrossAttnDownBlock2D" if blocks else "DownBlock2D" for blocks in depth]
    up = ["CrossAttnUpBlock2D" if blocks else "UpBlock2D" for blocks in depth]
    arguments = {
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 2,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up[::-1]),
        "transformer_layers_per_block": tuple(blocks or 1 for blocks in depth),
        "cross_attention_dim": 24,
        "num_attention_heads": None,
        "attention_head_dim": 2,
        **changed,
    }
    return Diffusers("UNet2DConditionModel", arguments, published=_prefixed("model.diffusion_model."))


_SDXL = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 2,
    "projection_class_embeddings_input_dim": 20,
}
_COSMOS = {"in_channels": 16, "extra_pos_embed_type": None}
_SD3 = {
    "out_channels": 4,
    "attention_head_dim": 64,
    "caption_projection_dim": 128,
    "pos_embed_max_size": 4,
}
PIXART = (
    (r"^x_embedder", "pos_embed"),
    (r"^t_embedder\.mlp\.0", "adaln_single.emb.timestep_embedder.linear_1"),
    (r"^t_embedder\.mlp\.2", "adaln_single.emb.timestep_embedder.linear_2"),
    (r"^csize_embedder\.mlp\.0", "adaln_single.emb.resolution_embedder.linear_1"),
    (r"^csize_embedder\.mlp\.2", "adaln_single.emb.resolution_embedder.linear_2"),
    (r"^ar_embedder\.mlp\.0", "adaln_single.emb.aspect_ratio_embedder.linear_1"),
    (r"^ar_embedder\.mlp\.2", "adaln_single.emb.aspect_ratio_embedder.linear_2"),
    (r"^t_block\.1", "adaln_single.linear"),
    (r"^y_embedder\.y_proj\.fc1", "caption_projection.linear_1"),
    (r"^y_embedder\.y_proj\.fc2", "caption_projection.linear_2"),
    (r"^blocks\.", "transformer_blocks."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.attn\.", ".attn1."),
    (r"\.(attn\d)\.proj\.", r".\1.to_out.0."),
    (r"\.q_linear\.", ".to_q."),
    (r"\.mlp\.fc1\.", ".ff.net.0.proj."),
    (r"\.mlp\.fc2\.", ".ff.net.2."),
    (r"^final_layer\.linear", "proj_out"),
    (r"^final_layer\.scale_shift_table", "scale_shift_table"),
)
HUNYUAN_DIT = (
    (r"^mlp_t5\.0", "text_embedder.linear_1"),
    (r"^mlp_t5\.2", "text_embedder.linear_2"),
    (r"^pooler", "time_extra_emb.pooler"),
    (r"^x_embedder", "pos_embed"),
    (r"^t_embedder\.mlp\.0", "time_extra_emb.timestep_embedder.linear_1"),
    (r"^t_embedder\.mlp\.2", "time_extra_emb.timestep_embedder.linear_2"),
    (r"^style_embedder", "time_extra_emb.style_embedder"),
    (r"^extra_embedder\.0", "time_extra_emb.extra_embedder.linear_1"),
    (r"^extra_embedder\.2", "time_extra_emb.extra_embedder.linear_2"),
    (r"\.out_proj\.", ".to_out.0."),
    (r"\.attn2\.q_proj\.", ".attn2.to_q."),
    (r"\.mlp\.fc1", ".ff.net.0.proj"),
    (r"\.mlp\.fc2", ".ff.net.2"),
    (r"\.default_modulation\.1", ".norm1.linear"),
    (r"\.([qk])_norm\.", r".norm_\1."),
    (r"\.norm1\.weight", ".norm1.norm.weight"),
    # In diffusers the second and the third norm have each other's names.
    (r"\.norm2\.weight", ".norm#.weight"),
    (r"\.norm3\.weight", ".norm2.weight"),
    (r"\.norm#\.weight", ".norm3.weight"),
    (r"^final_layer\.linear", "proj_out"),
    (r"^final_layer\.adaLN_modulation\.1", "norm_out.linear"),
)
_HUNYUAN_IMAGE = {"out_channels": 4, "guidance_embeds": True}
HUNYUAN_IMAGE = (
    (r"^time_text_embed\.", "time_guidance_embed."),
    (r"^time_r_in\.mlp\.0", "time_guidance_embed.timestep_embedder_r.linear_1"),
    (r"^time_r_in\.mlp\.2", "time_guidance_embed.timestep_embedder_r.linear_2"),
)
BYT5 = (
    (r"^byt5_in\.layernorm", "context_embedder_2.norm"),
    (r"^byt5_in\.net\.0\.proj", "context_embedder_2.linear_1"),
    (r"^byt5_in\.net\.2", "context_embedder_2.linear_2"),
    (r"^byt5_in\.fc3", "context_embedder_2.linear_3"),
)


def _pixart(**option: bool) -> Diffusers:
    return Diffusers(
        "PixArtTransformer2DModel",
        {"attention_head_dim": 18, "cross_attention_dim": 36, **option},
        renames=PIXART,
        fused={"qkv": ("to_q", "to_k", "to_v"), "kv_linear": ("to_k", "to_v")},
    )


def _hunyuan_dit(**option: bool) -> Diffusers:
    return Diffusers(
        "HunyuanDiT2DModel",
        {
            "patch_size": 2,
            "num_layers": 4,
            "mlp_ratio": 2.0,
            "pooled_projection_dim": 1024,
            "cross_attention_dim": 12,
            "cross_attention_dim_t5": 20,
            "text_len": 4,
            "text_len_t5": 4,
            **option,
        },
        renames=HUNYUAN_DIT,
        fused={"Wqkv": ("to_q", "to_k", "to_v"), "kv_proj": ("to_k", "to_v")},
        swapped=("norm_out.linear",),
    )


SMALL: Mapping[str, Any] = {
    "num_layers": 2,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "freq_dim": 16,
    "sample_size": 8,
    "max_size": (4, 16, 16),
    "adaln_lora_dim": 8,
    "pooled_projection_dim": 12,
    **dict.fromkeys(("joint_attention_dim", "text_embed_dim", "text_dim", "caption_channels"), 20),
    "cap_feat_dim": 20,
    **dict.fromkeys(("axes_dims_rope", "rope_axes_dim"), (4, 6, 6)),
    "axes_lens": (30, 32, 32),
}
"""Arguments that every class of diffusers gets, if it has them."""

KANDINSKY = SPECIES["Kandinsky 5"].unet
DIFFUSERS: dict[str, Diffusers] = {
    "SD1.5": _unet(1, 1, 0),
    "SD2": _unet(1, 1, 0, use_linear_projection=True),
    "SDXL": _unet(0, 1, 2, **_SDXL),
    "SDXL refiner": _unet(0, 2, 0, **_SDXL),
    "SD2.1 unCLIP": _unet(
        *(1, 1, 0),
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=20,
    ),
    "SSD-1B": _unet(0, 2, 1, **_SDXL, mid_block_type="UNetMidBlock2D"),
    "KOALA 700M": _unet(0, 2, 1, **_SDXL, mid_block_type=None, layers_per_block=1),
    "Stable Cascade C": Diffusers(
        "StableCascadeUNet",
        {
            "timestep_ratio_embedding_dim": 8,
            "conditioning_dim": 16,
            "block_out_channels": (16, 16),
            "in_channels": 16,
            "num_attention_heads": (2, 2),
            "down_num_layers_per_block": (1, 2),
            "up_num_layers_per_block": (2, 1),
            "clip_text_in_channels": 12,
            "clip_text_pooled_in_channels": 12,
            "clip_image_in_channels": 8,
            "clip_seq": 2,
            "switch_level": (False,),
        },
        published=_cascade,
    ),
    "Stable Cascade B": Diffusers(
        "StableCascadeUNet",
        {
            "out_channels": 4,
            "timestep_ratio_embedding_dim": 8,
            "patch_size": 2,
            "conditioning_dim": 16,
            "block_out_channels": (8, 16, 16, 16),
            "num_attention_heads": (-1, -1, 2, 2),
            "down_num_layers_per_block": (1, 1, 1, 1),
            "up_num_layers_per_block": (1, 1, 1, 1),
            "down_blocks_repeat_mappers": (1, 1, 1, 1),
            "up_blocks_repeat_mappers": (2, 2, 2, 2),
            "block_types_per_layer": (
                *(("SDCascadeResBlock", "SDCascadeTimestepBlock"),) * 2,
                *(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
            ),
            "clip_text_pooled_in_channels": 12,
            "clip_seq": 2,
            "effnet_in_channels": 4,
            "pixel_mapper_in_channels": 3,
            "dropout": (0, 0, 0.1, 0.1),
            "timestep_conditioning_type": ("sca",),
        },
        published=_cascade,
    ),
    "SD3": Diffusers("SD3Transformer2DModel", _SD3),
    "SD3.5": Diffusers(
        "SD3Transformer2DModel", {**_SD3, "dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    ),
    "AuraFlow": Diffusers(
        "AuraFlowTransformer2DModel",
        {
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 2,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 16,
        },
    ),
    "Flux 1": Diffusers(
        "FluxTransformer2DModel", {"in_channels": 16, "guidance_embeds": True}, {3072: 32}, _scale
    ),
    "Flux 2": Diffusers("Flux2Transformer2DModel", {"axes_dims_rope": (4, 4, 4, 4)}, published=_scale),
    "Chroma": Diffusers(
        "ChromaTransformer2DModel",
        {
            "in_channels": 16,
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 40,
            "approximator_layers": 2,
        },
        {3072: 32},
        _scale,
    ),
    "Mochi": Diffusers(
        "MochiTransformer3DModel",
        {"pooled_projection_dim": 24, "text_embed_dim": 16, "max_sequence_length": 4},
        {48: 2},
    ),
    "LTX-Video": Diffusers("LTXVideoTransformer3DModel", {**SPECIES["LTX-Video"].unet, "out_channels": 8}),
    "LTX-2": Diffusers(
        "LTX2VideoTransformer3DModel", {**SPECIES["LTX-2"].unet, "out_channels": 8, "audio_out_channels": 8}
    ),
    "MiniMax-H3": Diffusers(
        "MiniMaxH3Transformer3DModel",
        {
            "num_refiner_layers": 1,
            "audio_in_channels": 4,
            "time_embed_hidden_dim": 32,
            "time_embed_dim": 24,
            "rope_freq_dim": 2,
        },
    ),
    "HunyuanVideo": Diffusers("HunyuanVideoTransformer3DModel", {"out_channels": 4}, {3072: 32}, _hunyuan),
    "Cosmos": Diffusers("CosmosTransformer3DModel", {"in_channels": 16}, published=_cosmos),
    "Cosmos-Predict2": Diffusers("CosmosTransformer3DModel", _COSMOS, published=_prefixed("net.")),
    "Anima": Diffusers(
        "CosmosTransformer3DModel", {**_COSMOS, "text_embed_dim": 1024}, published=_prefixed("net.")
    ),
    "Lumina 2": Diffusers(
        "Lumina2Transformer2DModel",
        {
            "hidden_size": 48,
            "num_attention_heads": 6,
            "num_kv_heads": 2,
            "multiple_of": 8,
            "ffn_dim_multiplier": 1.0,
            "axes_dim_rope": (4, 2, 2),
        },
        {2304: 48, 768: 16},
    ),
    "Z-Image": Diffusers(
        "ZImageTransformer2DModel",
        {"dim": 48, "n_layers": 2, "n_heads": 6, "n_kv_heads": 6, "axes_dims": [4, 2, 2]},
    ),
    "Wan 2.1 t2v": Diffusers("WanTransformer3DModel", {"out_channels": 4}),
    "Wan 2.1 i2v": Diffusers(
        "WanTransformer3DModel",
        {"in_channels": 36, "out_channels": 4, "image_dim": 1280, "added_kv_proj_dim": 32},
    ),
    "Wan 2.2 5B": Diffusers("WanTransformer3DModel", {"in_channels": 48, "out_channels": 48}),
    "Wan VACE": Diffusers(
        "WanVACETransformer3DModel", {"out_channels": 4, "vace_layers": [0], "vace_in_channels": 12}
    ),
    "Wan Animate": Diffusers(
        "WanAnimateTransformer3DModel",
        {
            "in_channels": 12,
            "out_channels": 4,
            "latent_channels": 4,
            "added_kv_proj_dim": 32,
            "motion_encoder_dim": 16,
        },
        # The host has the causal padding in a module of its own.
        renames=((r"^(face_encoder\.conv\w+)\.conv\.", r"\1."),),
    ),
    "HiDream": Diffusers("HiDreamImageTransformer2DModel", dict(SPECIES["HiDream"].unet)),
    "Qwen-Image": Diffusers("QwenImageTransformer2DModel", dict(SPECIES["Qwen-Image"].unet)),
    "Krea 2": Diffusers(
        "Krea2Transformer2DModel",
        {
            "in_channels": 16,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
            "timestep_embed_dim": 16,
            "text_hidden_dim": 24,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 128,
            "axes_dims_rope": (4, 2, 2),
        },
        reshaped=r"transformer_blocks\.\d+\.scale_shift_table",
    ),
    "ERNIE-Image": Diffusers("ErnieImageTransformer2DModel", dict(SPECIES["ERNIE-Image"].unet)),
    "PixArt alpha": _pixart(use_additional_conditions=True),
    "PixArt sigma": _pixart(use_additional_conditions=False),
    "HunyuanDiT": _hunyuan_dit(use_style_cond_and_image_meta_size=False),
    "HunyuanDiT 1.0": _hunyuan_dit(use_style_cond_and_image_meta_size=True),
    "HunyuanVideo 1.5": Diffusers(
        "HunyuanVideo15Transformer3DModel",
        {"out_channels": 4},
        {3072: 32},
        _hunyuan,
        "HunyuanVideoTransformer3DModel",
        renames=(
            (r"^time_text_embed\.", "time_embed."),
            *BYT5,
            (r"^cond_type_embedding", "cond_type_embed"),
            (r"^vision_in\.proj\.0", "image_embedder.norm_in"),
            (r"^vision_in\.proj\.4", "image_embedder.norm_out"),
            (r"^vision_in\.proj\.1", "image_embedder.linear_1"),
            (r"^vision_in\.proj\.3", "image_embedder.linear_2"),
        ),
    ),
    "HunyuanImage 2.1": Diffusers(
        "HunyuanImageTransformer2DModel",
        {**_HUNYUAN_IMAGE, "rope_axes_dim": (8, 8), "text_embed_2_dim": 1472, "use_meanflow": True},
        {3072: 32},
        _hunyuan,
        "HunyuanVideoTransformer3DModel",
        renames=(*HUNYUAN_IMAGE, *BYT5),
    ),
    "HunyuanImage 2.1 refiner": Diffusers(
        "HunyuanImageTransformer2DModel",
        {**_HUNYUAN_IMAGE, "patch_size": (1, 1, 1)},
        {3072: 32},
        _hunyuan,
        "HunyuanVideoTransformer3DModel",
        renames=HUNYUAN_IMAGE,
    ),
    "LongCat-Image": Diffusers(
        "LongCatImageTransformer2DModel",
        {"in_channels": 16, "joint_attention_dim": 3584},
        {3072: 32},
        _scale,
        "FluxTransformer2DModel",
        insists_on=tuple(
            f"vector_in.{side}_layer.{kind}" for side in ("in", "out") for kind in ("weight", "bias")
        ),
        renames=((r"^time_text_embed\.", "time_embed."),),
    ),
    "Kandinsky 5": Diffusers(
        "Kandinsky5Transformer3DModel",
        {
            **{name: size for name, size in KANDINSKY.items() if name != "visual_embed_dim"},
            "visual_cond": True,
        },
    ),
    "CogVideoX": Diffusers(
        "CogVideoXTransformer3DModel",
        dict(SPECIES["CogVideoX"].unet),
        renames=(
            (r"^time_embedding_", "time_embedding."),
            (r"^blocks\.", "transformer_blocks."),
            (r"\.norm_([qk])\.", r".attn1.norm_\1."),
            (r"\.([qkv])\.(weight|bias)$", r".attn1.to_\1.\2"),
            (r"\.attn_out\.", ".attn1.to_out.0."),
            (r"\.ff_proj\.", ".ff.net.0.proj."),
            (r"\.ff_out\.", ".ff.net.2."),
        ),
    ),
    "Ideogram 4": Diffusers(
        "Ideogram4Transformer2DModel",
        dict(SPECIES["Ideogram 4"].unet),
        renames=((r"\.attention\.o\.", ".attention.to_out.0."),),
        fused={"qkv": ("to_q", "to_k", "to_v")},
    ),
    "JoyImage": Diffusers("JoyImageEditTransformer3DModel", dict(SPECIES["JoyImage"].unet)),
    "ACE-Step 1.5": Diffusers(
        "AceStepTransformer1DModel",
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "in_channels": 24,
            "audio_acoustic_hidden_dim": 8,
        },
        renames=(
            (r"^decoder\.", ""),
            (r"_attn\.([qkv])_proj\.", r"_attn.to_\1."),
            (r"_attn\.o_proj\.", "_attn.to_out.0."),
            (r"_attn\.([qk])_norm\.", r"_attn.norm_\1."),
            (r"^proj_(in|out)\.1\.", r"proj_\1_conv."),
        ),
    ),
}
"""Every architecture for which diffusers has a model."""


WRAPPED = ("model.diffusion_model.", "net.")
"""Prefixes that `Diffusers.published` gives to names."""


def published(name: str, state: State, wrapper: str = "") -> State:
    """The weights of the host's model under the names of a published file.

    state: with the host's prefix. wrapper: a prefix for names that have none of `WRAPPED`.
    """
    bare = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    return {
        key if key.startswith(WRAPPED) else wrapper + key: value.contiguous()
        for key, value in DIFFUSERS[name].published(bare).items()
    }


FUSES = (
    *(
        "SD1.5",
        "SD2",
        "SDXL",
        "SDXL refiner",
        "SD3",
        "SD3.5",
        "AuraFlow",
        "Flux 1",
        "Flux 2",
        "LongCat-Image",
    ),
    *("Chroma", "LTX-Video", "MiniMax-H3", "Wan 2.1 t2v", "Wan 2.1 i2v", "Wan 2.2 5B", "Wan VACE"),
    *(
        "Wan Animate",
        "Krea 2",
        "PixArt alpha",
        "PixArt sigma",
        "HunyuanDiT",
        "HunyuanDiT 1.0",
        "CogVideoX",
        "Ideogram 4",
    ),
)
"""Architectures in which diffusers can fuse the attention (`fuse_qkv_projections`)."""


def fused(name: str, parts: Mapping[str, Located]) -> dict[str, Located]:
    """The layers that diffusers makes when it fuses queries, keys and values, with the host's rows.

    parts: diffusers' layers before that.
    """
    # float64 holds the numbers of `Numbered` exactly.
    theirs: Any = DIFFUSERS[name].make().double()
    state = theirs.state_dict()
    numbered = Numbered({key: value for key, value in state.items() if value.ndim > 1})
    theirs.load_state_dict({**state, **numbered.state})
    theirs.fuse_qkv_projections()
    return {
        path: numbered.locate(layer.weight.detach().long()).through(parts)
        for path, layer in theirs.named_modules()
        if isinstance(layer, ADAPTABLE) and f"{path}.weight" not in state
    }
