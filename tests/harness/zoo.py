"""Tiny random models of the host's own classes, one of every architecture.

Each has the layers of the real model, by name and by kind, with few and narrow blocks. The host must be
loaded (`launch.boot_in_process`) before a model is made.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers that trainers adapt."""
LARGE, CUT = 200_000, 60
"""A weight of more than LARGE values is cut to at most CUT values along each axis."""


@dataclass(frozen=True)
class Species:
    """A class of comfy.supported_models, and a small configuration for the network it makes."""

    config: str
    unet: Mapping[str, Any] = field(default_factory=dict[str, Any])
    device: str = "meta"
    """Where the model is made; "cpu" where the class computes with its weights while it is made."""
    newer: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """The dotted path of a class of the host, to settings that the class does not have in older hosts."""

    def settings(self) -> dict[str, Any]:
        """The configuration, without the settings that the loaded host does not know."""
        unknown: set[str] = set()
        for path, names in self.newer.items():
            module, _, kind = path.rpartition(".")
            known = inspect.signature(getattr(importlib.import_module(module), kind)).parameters
            unknown |= set(names) - set(known)
        return {name: value for name, value in self.unet.items() if name not in unknown}


def _unet(**changed: Any) -> dict[str, Any]:
    """A UNet with three levels of two blocks; all levels but the last have transformers, as in SD1.5."""
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "use_spatial_transformer": True,
        "legacy": False,
        "context_dim": 24,
        "num_heads": -1,
        "num_head_channels": 16,
        **changed,
    }


def _sdxl(depth: list[int], middle: int) -> dict[str, Any]:
    """A UNet of the SDXL family.

    depth: the number of transformer blocks on each of the three levels. middle: their number in the middle;
    -1 for a middle without a transformer, -2 for no middle at all.
    """
    return _unet(
        num_classes="sequential",
        adm_in_channels=20,
        transformer_depth=[blocks for blocks in depth for _ in range(2)],
        transformer_depth_output=[blocks for blocks in depth for _ in range(3)],
        transformer_depth_middle=middle,
    )


def _flux(**changed: Any) -> dict[str, Any]:
    return {
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 2,
        "vec_in_dim": 12,
        "context_in_dim": 20,
        "hidden_size": 32,
        "mlp_ratio": 4.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [4, 6, 6],
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": True,
        "txt_ids_dims": [],
        **changed,
    }


def _chroma(**changed: Any) -> dict[str, Any]:
    config = _flux(in_channels=16, out_channels=16, in_dim=8, hidden_dim=40, out_dim=32, n_layers=2)
    del config["guidance_embed"]
    return {**config, "vec_in_dim": None, **changed}


def _hunyuan(**changed: Any) -> dict[str, Any]:
    config = _flux(patch_size=[1, 2, 2], theta=256, byt5=False, meanflow=False, meanflow_sum=False)
    del config["txt_ids_dims"]
    return {**config, "use_cond_type_embedding": False, "vision_in_dim": None, **changed}


def _wan(**changed: Any) -> dict[str, Any]:
    return {
        "dim": 32,
        "in_dim": 4,
        "out_dim": 4,
        "ffn_dim": 48,
        "freq_dim": 16,
        "text_dim": 20,
        "num_heads": 2,
        "num_layers": 2,
        **changed,
    }


def _cosmos2(**changed: Any) -> dict[str, Any]:
    return {
        "max_img_h": 16,
        "max_img_w": 16,
        "max_frames": 4,
        "in_channels": 16,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "model_channels": 32,
        "num_blocks": 2,
        "num_heads": 2,
        "crossattn_emb_channels": 20,
        "pos_emb_cls": "rope3d",
        "pos_emb_learnable": True,
        "use_adaln_lora": True,
        "adaln_lora_dim": 8,
        "rope_enable_fps_modulation": False,
        **changed,
    }


def _cosmos1() -> dict[str, Any]:
    config = _cosmos2(block_x_format="THWBD", affline_emb_norm=True, extra_per_block_abs_pos_emb=True)
    for name in ("pos_emb_learnable", "rope_enable_fps_modulation"):
        del config[name]
    return {**config, "extra_per_block_abs_pos_emb_type": "learnable"}


def _lumina(**changed: Any) -> dict[str, Any]:
    return {
        "in_channels": 4,
        "dim": 48,
        "n_layers": 2,
        "n_heads": 6,
        "n_kv_heads": 2,
        "multiple_of": 8,
        "qk_norm": True,
        "cap_feat_dim": 20,
        "axes_dims": [4, 2, 2],
        "axes_lens": [30, 32, 32],
        **changed,
    }


def _z_image(**changed: Any) -> dict[str, Any]:
    return _lumina(
        n_kv_heads=6, ffn_dim_multiplier=8.0 / 3.0, z_image_modulation=True, pad_tokens_multiple=32, **changed
    )


def _sd3(**changed: Any) -> dict[str, Any]:
    """The width is 64 times the depth in every SD3, and the host's own map of names relies on it."""
    return {
        "input_size": None,
        "in_channels": 4,
        "out_channels": 4,
        "depth": 2,
        "adm_in_channels": 12,
        "context_size": 20,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": 20, "out_features": 128},
        },
        "num_patches": 16,
        "pos_embed_max_size": 4,
        **changed,
    }


_LTX = {
    "in_channels": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "caption_channels": 20,
    "num_layers": 2,
}
_OMNIGEN = {
    "hidden_size": 48,
    "in_channels": 4,
    "num_layers": 2,
    "num_refiner_layers": 2,
    "num_attention_heads": 6,
    "num_kv_heads": 2,
    "multiple_of": 8,
    "axes_dim_rope": (4, 2, 2),
    "axes_lens": (16, 16, 16),
}
_CASCADE = {"c_cond": 16, "c_r": 8}

_AUDIO = {
    "io_channels": 8,
    "embed_dim": 32,
    "cond_token_dim": 12,
    "global_cond_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "project_cond_tokens": False,
}
_PIXART = {
    "hidden_size": 36,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 20,
    "model_max_length": 4,
    "input_size": 8,
    "micro_condition": False,
}
_HUNYUAN_DIT = {
    "hidden_size": 32,
    "depth": 4,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "text_states_dim": 12,
    "text_states_dim_t5": 20,
    "text_len": 4,
    "text_len_t5": 4,
    "input_size": 8,
}
_HEADS = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
_ROPE = {**_HEADS, "joint_attention_dim": 20, "axes_dims_rope": (4, 6, 6), "in_channels": 16}

_PIXEL = {
    "num_groups": 2,
    "hidden_size": 32,
    "pixel_hidden_size": 4,
    "pixel_attn_hidden_size": 16,
    "pixel_num_groups": 2,
    "patch_depth": 2,
    "patch_size": 4,
    "txt_embed_dim": 12,
    "txt_max_length": 8,
}

SPECIES: dict[str, Species] = {
    "SD1.5": Species("SD15", _unet()),
    "SD2": Species("SD20", _unet()),
    "SDXL": Species("SDXL", _sdxl([0, 1, 2], middle=2)),
    "SDXL refiner": Species("SDXLRefiner", _sdxl([0, 2, 0], middle=1)),
    "SD2.1 unCLIP": Species("SD21UnclipL", _unet(num_classes="sequential", adm_in_channels=20)),
    # Distilled: no transformer in the middle, or no middle at all, and fewer blocks.
    "SSD-1B": Species("SSD1B", _sdxl([0, 2, 1], middle=-1)),
    "KOALA 700M": Species(
        "KOALA_700M",
        {
            **_sdxl([0, 2, 1], middle=-2),
            "num_res_blocks": [1, 1, 1],
            "transformer_depth": [0, 2, 1],
            "transformer_depth_output": [0, 0, 2, 2, 1, 1],
        },
    ),
    "SVD": Species(
        "SVD_img2vid",
        _unet(
            in_channels=8,
            num_classes="sequential",
            adm_in_channels=20,
            extra_ff_mix_layer=True,
            use_spatial_context=True,
            merge_strategy="learned_with_images",
            merge_factor=0.0,
            video_kernel_size=[3, 1, 1],
            disable_temporal_crossattention=False,
        ),
    ),
    "Stable Cascade C": Species(
        "Stable_Cascade_C",
        {
            **_CASCADE,
            "c_hidden": [16, 16],
            "nhead": [2, 2],
            "blocks": [[1, 2], [2, 1]],
            "c_clip_text": 12,
            "c_clip_text_pooled": 12,
            "c_clip_img": 8,
            "c_clip_seq": 2,
        },
    ),
    "Stable Cascade B": Species(
        "Stable_Cascade_B",
        {
            **_CASCADE,
            "c_hidden": [8, 16, 16, 16],
            "nhead": [-1, -1, 2, 2],
            "blocks": [[1, 1, 1, 1], [1, 1, 1, 1]],
            "block_repeat": [[1, 1, 1, 1], [2, 2, 2, 2]],
            "c_clip": 12,
            "c_clip_seq": 2,
            "c_effnet": 4,
        },
    ),
    "SD3": Species("SD3", _sd3()),
    "SD3.5": Species("SD3", _sd3(qk_norm="rms", x_block_self_attn_layers=[0])),
    "Stable Audio": Species("StableAudio", _AUDIO),
    "Stable Audio 3": Species(
        "StableAudio3",
        {
            **_AUDIO,
            "global_cond_type": "adaLN",
            "timestep_features_type": "expo",
            "attn_kwargs": {"qk_norm": "rms", "differential": True},
            "norm_type": "rms_norm",
            "num_memory_tokens": 2,
            "local_add_cond_dim": 6,
        },
    ),
    "AuraFlow": Species(
        "AuraFlow",
        {
            "dim": 32,
            "n_layers": 4,
            "n_double_layers": 2,
            "n_heads": 2,
            "global_conddim": 32,
            "cond_seq_dim": 20,
            "max_seq": 16,
        },
    ),
    "PixArt alpha": Species("PixArtAlpha", {**_PIXART, "micro_condition": True}),
    "PixArt sigma": Species("PixArtSigma", _PIXART),
    "HunyuanDiT": Species("HunyuanDiT", _HUNYUAN_DIT),
    "HunyuanDiT 1.0": Species("HunyuanDiT1", {**_HUNYUAN_DIT, "size_cond": True, "use_style_cond": True}),
    "Flux 1": Species("Flux", _flux()),
    "Flux 2": Species(
        "Flux2",
        _flux(
            patch_size=1,
            vec_in_dim=None,
            axes_dim=[4, 4, 4, 4],
            mlp_ratio=3.0,
            theta=2000,
            global_modulation=True,
            mlp_silu_act=True,
            qkv_bias=False,
            ops_bias=False,
            txt_ids_dims=[3],
        ),
    ),
    "LongCat-Image": Species(
        "LongCatImage", _flux(vec_in_dim=None, context_in_dim=3584, guidance_embed=False, txt_ids_dims=[1, 2])
    ),
    "Chroma": Species("Chroma", _chroma()),
    "Chroma Radiance": Species(
        "ChromaRadiance",
        _chroma(
            in_channels=3,
            out_channels=3,
            patch_size=4,
            nerf_hidden_size=8,
            nerf_mlp_ratio=2,
            nerf_depth=2,
            nerf_max_freqs=2,
            nerf_tile_size=64,
            nerf_final_head_type="conv",
            nerf_embedder_dtype=torch.float32,
            use_x0=False,
            use_sequential_txt_ids=False,
        ),
        newer={"comfy.ldm.chroma_radiance.model.ChromaRadianceParams": ("use_sequential_txt_ids",)},
    ),
    "Lens": Species(
        "Lens",
        {
            **_HEADS,
            "in_channels": 16,
            "out_channels": 4,
            "enc_hidden_dim": 12,
            "axes_dims_rope": (4, 6, 6),
            "selected_layer_index": (0, 1),
        },
    ),
    "Mochi": Species(
        "GenmoMochi",
        {
            "hidden_size_x": 32,
            "hidden_size_y": 24,
            "depth": 2,
            "num_heads": 2,
            # The class asserts that width times ratio is 12288.
            "mlp_ratio_x": 384.0,
            "learn_sigma": False,
            "qk_norm": True,
            "qkv_bias": False,
            "out_bias": True,
            "use_t5": True,
            "t5_feat_dim": 16,
            "t5_token_length": 4,
            "timestep_scale": 1000.0,
        },
    ),
    "LTX-Video": Species("LTXV", _LTX),
    "LTX-2": Species(
        "LTXAV",
        {
            **_LTX,
            "audio_in_channels": 8,
            "audio_cross_attention_dim": 16,
            "audio_attention_head_dim": 4,
            "audio_num_attention_heads": 4,
        },
    ),
    "MiniMax-H3": Species(
        "MiniMaxH3",
        {
            **_HEADS,
            "hidden_size": 32,
            "token_refiner_num_layers": 1,
            "ffn_hidden_size": 48,
            "latents_dim": 4,
            "audio_latents_dim": 4,
            "text_dim": 20,
            "timestep_input_dim": 16,
            "time_embed_hidden_size": 32,
            "time_embed_dim": 24,
            "rope_inv_freq_len": 2,
        },
    ),
    "HunyuanVideo": Species("HunyuanVideo", _hunyuan()),
    "HunyuanVideo 1.5": Species(
        "HunyuanVideo15",
        _hunyuan(
            patch_size=[1, 1, 1],
            vec_in_dim=None,
            guidance_embed=False,
            depth_single_blocks=0,
            byt5=True,
            use_cond_type_embedding=True,
            vision_in_dim=1152,
            meanflow_sum=True,
        ),
    ),
    "HunyuanImage 2.1": Species(
        "HunyuanImage21",
        _hunyuan(patch_size=[1, 1], vec_in_dim=None, axes_dim=[8, 8], byt5=True, meanflow=True),
    ),
    "HunyuanImage 2.1 refiner": Species(
        "HunyuanImage21Refiner", _hunyuan(patch_size=[1, 1, 1], vec_in_dim=None)
    ),
    "Cosmos": Species("CosmosT2V", _cosmos1()),
    "Cosmos-Predict2": Species("CosmosT2IPredict2", _cosmos2()),
    "Anima": Species("Anima", _cosmos2(crossattn_emb_channels=1024)),
    "Lumina 2": Species("Lumina2", _lumina()),
    "Z-Image": Species("ZImage", _z_image()),
    "Z-Image pixel space": Species(
        "ZImagePixelSpace",
        {
            **_z_image(),
            "in_channels": 3,
            "patch_size": 4,
            "decoder_in_channels": 48,
            "decoder_hidden_size": 16,
            "decoder_num_res_blocks": 2,
            "decoder_max_freqs": 2,
        },
    ),
    "PixelDiT": Species("PixelDiTT2I", _PIXEL),
    "PiD": Species("PiD", {**_PIXEL, "lq_latent_channels": 4, "lq_hidden_dim": 8, "lq_num_res_blocks": 1}),
    "Wan 2.1 t2v": Species("WAN21_T2V", _wan()),
    "Wan 2.1 i2v": Species("WAN21_I2V", _wan(in_dim=36)),
    "Wan 2.2 5B": Species("WAN22_T2V", _wan(out_dim=48, in_dim=48)),
    "Wan VACE": Species("WAN21_Vace", _wan(vace_layers=1, vace_in_dim=12)),
    "Wan camera": Species("WAN21_Camera", _wan(in_dim=32, in_dim_control_adapter=4)),
    "Wan HuMo": Species("WAN21_HuMo", _wan(in_dim=36, audio_token_num=2)),
    "Wan S2V": Species("WAN22_S2V", _wan(audio_dim=16, num_audio_token=2, audio_inject_layers=[0])),
    "Wan Animate": Species("WAN22_Animate", _wan(in_dim=12, motion_encoder_dim=16)),
    "Wan SCAIL": Species("WAN21_SCAIL", _wan()),
    "Wan SCAIL 2": Species("WAN21_SCAIL2", _wan()),
    "Wan causal": Species("WAN21_CausalAR_T2V", _wan()),
    "WanDancer": Species(
        "WAN22_WanDancer",
        _wan(
            in_dim=36,
            audio_inject_layers=[0],
            music_dim=16,
            music_heads=2,
            music_feature_dim=8,
            music_latent_dim=16,
        ),
    ),
    "Hunyuan3D 2": Species(
        "Hunyuan3Dv2",
        {
            "in_channels": 4,
            "context_in_dim": 12,
            "hidden_size": 32,
            "num_heads": 2,
            "depth": 2,
            "depth_single_blocks": 2,
        },
    ),
    "Hunyuan3D 2.1": Species(
        "Hunyuan3Dv2_1",
        {
            "in_channels": 4,
            "context_dim": 12,
            "hidden_size": 32,
            "num_heads": 2,
            "depth": 3,
            "num_moe_layers": 1,
            "num_experts": 2,
            "guidance_cond_proj_dim": None,
        },
    ),
    "HiDream": Species(
        "HiDream",
        {
            **_HEADS,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_single_layers": 2,
            "caption_channels": [12, 20],
            "text_emb_dim": 12,
            "num_routed_experts": 2,
            "axes_dims_rope": (8, 4, 4),
            "max_resolution": (8, 8),
            "llama_layers": [0, 1, 1, 1],
        },
    ),
    "ACE-Step": Species(
        "ACEStep",
        {
            "num_layers": 2,
            "inner_dim": 32,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "mlp_ratio": 2.5,
            "speaker_embedding_dim": 12,
            "text_embedding_dim": 12,
            "ssl_encoder_depths": [2, 2],
            "ssl_latent_dims": [8, 12],
            "lyric_encoder_vocab_size": 16,
            "lyric_hidden_size": 16,
            "max_position": 64,
        },
    ),
    "ACE-Step 1.5": Species(
        "ACEStep15",
        {
            "in_channels": 24,
            "hidden_size": 32,
            "text_hidden_dim": 12,
            "timbre_hidden_dim": 8,
            "audio_acoustic_hidden_dim": 8,
            "num_dit_layers": 2,
            "num_lyric_layers": 2,
            "num_timbre_layers": 1,
            "num_tokenizer_layers": 1,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 8,
            "intermediate_size": 48,
            "fsq_dim": 32,
            "encoder_hidden_size": 32,
            "encoder_intermediate_size": 48,
            "encoder_num_heads": 4,
        },
        device="cpu",
        newer={
            "comfy.ldm.ace.ace_step15.AceStepConditionGenerationModel": (
                *("encoder_hidden_size", "encoder_intermediate_size", "encoder_num_heads"),
            )
        },
    ),
    "Omnigen2": Species("Omnigen2", {**_OMNIGEN, "text_feat_dim": 20}),
    "Boogu": Species("Boogu", {**_OMNIGEN, "num_double_stream_layers": 1, "instruction_feat_dim": 20}),
    "Qwen-Image": Species("QwenImage", {**_ROPE, "out_channels": 4}),
    "Mage-Flow": Species("MageFlow", {**_ROPE, "out_channels": 16}),
    "JoyImage": Species(
        "JoyImage",
        {
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "text_dim": 20,
            "num_layers": 2,
        },
    ),
    "Ideogram 4": Species(
        "Ideogram4",
        {
            **_HEADS,
            "in_channels": 8,
            "intermediate_size": 48,
            "adaln_dim": 8,
            "llm_features_dim": 20,
            "mrope_section": (4, 2, 2),
        },
    ),
    "Krea 2": Species(
        "Krea2",
        {
            "features": 32,
            "tdim": 16,
            "txtdim": 24,
            "heads": 4,
            "kvheads": 2,
            "layers": 2,
            "channels": 4,
            "txtlayers": 3,
            "txtheads": 2,
            "txtkvheads": 2,
        },
    ),
    "Kandinsky 5": Species(
        "Kandinsky5",
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 20,
            "in_text_dim2": 12,
            "time_dim": 24,
            "model_dim": 32,
            "ff_dim": 48,
            "visual_embed_dim": 36,
            "num_visual_blocks": 2,
            "axes_dims": (4, 6, 6),
        },
    ),
    "ERNIE-Image": Species(
        "ErnieImage",
        {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_layers": 2,
            "ffn_hidden_size": 48,
            "in_channels": 8,
            "out_channels": 8,
            "text_in_dim": 20,
            "rope_axes_dim": (4, 6, 6),
        },
    ),
    "CogVideoX": Species(
        "CogVideoX_T2V",
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 24,
            "text_embed_dim": 20,
            "sample_width": 8,
            "sample_height": 8,
            "use_rotary_positional_embeddings": True,
        },
    ),
    "HiDream-O1": Species(
        "HiDreamO1",
        {
            "text_config_overrides": {
                "vocab_size": 16,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
            },
            "vision_config_overrides": {"depth": 2, "hidden_size": 32, "num_heads": 2},
        },
    ),
    "SeedVR2": Species(
        "SeedVR2",
        {
            "norm_eps": 1e-5,
            "num_layers": 2,
            "mlp_type": "swiglu",
            "vid_dim": 32,
            "txt_in_dim": 20,
            "heads": 2,
            "head_dim": 16,
            "mm_layers": 1,
            "expand_ratio": 2,
            "rope_dim": 16,
        },
    ),
    "TripoSplat": Species(
        "TripoSplat",
        {
            "q_token_length": 16,
            "in_channels": 4,
            "model_channels": 32,
            "cond_channels": 12,
            "out_channels": 4,
            "num_blocks": 2,
            "num_refiner_blocks": 1,
            "num_head_channels": 16,
            "cond2_channels": 8,
        },
    ),
}
"""Every architecture, by the name that users know."""

SAME_LAYERS = {
    "LotusD": "SD2.1 unCLIP",
    "Stable_Zero123": "SD1.5",
    "SD15_instructpix2pix": "SD1.5",
    "SD21UnclipH": "SD2.1 unCLIP",
    "SD_X4Upscaler": "SD2",
    "SDXL_instructpix2pix": "SDXL",
    "KOALA_1B": "SDXL",
    "Segmind_Vega": "SSD-1B",
    "SV3D_u": "SVD",
    "SV3D_p": "SVD",
    "FluxInpaint": "Flux 1",
    "FluxSchnell": "Flux 1",
    "HunyuanVideoI2V": "HunyuanVideo",
    "HunyuanVideoSkyreelsI2V": "HunyuanVideo",
    "HunyuanVideo15_SR_Distilled": "HunyuanVideo 1.5",
    "CosmosI2V": "Cosmos",
    "CosmosI2VPredict2": "Cosmos-Predict2",
    "WAN21_FunControl2V": "Wan 2.1 i2v",
    "WAN22_Camera": "Wan camera",
    "WAN21_FlowRVS": "Wan 2.1 t2v",
    "Hunyuan3Dv2mini": "Hunyuan3D 2",
    "Kandinsky5Image": "Kandinsky 5",
    "CogVideoX_I2V": "CogVideoX",
    "CogVideoX_Inpaint": "CogVideoX",
}
"""Classes of comfy.supported_models, to the species above that differs from them in size or number only."""
NOT_GENERATORS = ("RT_DETR_v4", "SAM3", "SAM31", "DepthAnything3")
"""Classes of comfy.supported_models that detect, segment or measure: nobody makes adapters for them."""


CLIP = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
T5 = {"num_layers": 2, "d_model": 32, "d_ff": 48, "d_kv": 16, "num_heads": 2}
LLAMA = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BERT = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}


@dataclass(frozen=True)
class Encoders:
    """A class of the host that holds text encoders, and a small configuration for each of them by name."""

    module: str
    kind: str
    configs: Mapping[str, Mapping[str, Any]]


ENCODERS: dict[str, Encoders] = {
    "SD1.5": Encoders("comfy.sd1_clip", "SD1ClipModel", {"clip_l": CLIP}),
    "SD2": Encoders("comfy.text_encoders.sd2_clip", "SD2ClipModel", {"clip_h": CLIP}),
    "SDXL": Encoders("comfy.sdxl_clip", "SDXLClipModel", {"clip_l": CLIP, "clip_g": CLIP}),
    "SDXL refiner": Encoders("comfy.sdxl_clip", "SDXLRefinerClipModel", {"clip_g": CLIP}),
    "Stable Cascade": Encoders("comfy.sdxl_clip", "StableCascadeClipModel", {"clip_g": CLIP}),
    "SD3": Encoders(
        "comfy.text_encoders.sd3_clip", "SD3ClipModel", {"clip_l": CLIP, "clip_g": CLIP, "t5xxl": T5}
    ),
    "Flux 1": Encoders("comfy.text_encoders.flux", "FluxClipModel", {"clip_l": CLIP, "t5xxl": T5}),
    "HunyuanDiT": Encoders("comfy.text_encoders.hydit", "HyditModel", {"hydit_clip": BERT, "mt5xl": T5}),
    "HunyuanVideo": Encoders(
        "comfy.text_encoders.hunyuan_video", "HunyuanVideoClipModel", {"clip_l": CLIP, "llama": LLAMA}
    ),
    "Wan": Encoders("comfy.text_encoders.wan", "WanT5Model", {"umt5xxl": T5}),
    "PixArt": Encoders("comfy.text_encoders.pixart_t5", "PixArtT5XXL", {"t5xxl": T5}),
    "AuraFlow": Encoders("comfy.text_encoders.aura_t5", "AuraT5Model", {"pile_t5xl": T5}),
    "Qwen-Image": Encoders("comfy.text_encoders.qwen_image", "QwenImageTEModel", {"qwen25_7b": LLAMA}),
    "Lumina 2": Encoders("comfy.text_encoders.lumina2", "LuminaModel", {"gemma2_2b": LLAMA}),
    "Z-Image": Encoders("comfy.text_encoders.z_image", "ZImageTEModel", {"qwen3_4b": LLAMA}),
    "Anima": Encoders("comfy.text_encoders.anima", "AnimaTEModel", {"qwen3_06b": LLAMA}),
    "HiDream": Encoders(
        "comfy.text_encoders.hidream",
        "HiDreamTEModel",
        {"clip_l": CLIP, "clip_g": CLIP, "t5xxl": T5, "llama": LLAMA},
    ),
}
"""Text encoders, by the architecture that has them."""


def make_encoders(name: str, seed: int = 0) -> Any:
    """The host's text encoders of an architecture in one module, as a CLIP's patcher holds them."""
    species = ENCODERS[name]
    kind = getattr(importlib.import_module(species.module), species.kind)
    options = {
        # The host gives its ByT5 no name for this.
        f"{'' if encoder == 'byt5_small' else encoder}_model_config": dict(config)
        for encoder, config in species.configs.items()
    }
    model = kind(device=torch.device("meta"), dtype=torch.float32, model_options=options)
    _cut(model)
    model.to_empty(device="cpu")
    randomise(model, seed)
    return model


def supported(name: str) -> bool:
    """Whether the host that is loaded has this architecture at all."""
    return hasattr(importlib.import_module("comfy.supported_models"), SPECIES[name].config)


def make(name: str, seed: int = 0, *, changed: Mapping[str, Any] | None = None, cut: bool = True) -> Any:
    """The host's model of an architecture, in float32, with random weights from the seed.

    It is first made without storage, so that parts whose size no setting changes can be cut down before they
    take memory. A model that is cut cannot always run. `changed` are further settings.
    """
    model = bare(name, changed=changed)
    if cut:
        _cut(model)
    model.to_empty(device="cpu")
    randomise(model, seed)
    return model


def bare(name: str, *, changed: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The host's model of an architecture, without values."""
    species = SPECIES[name]
    kind = getattr(importlib.import_module("comfy.supported_models"), species.config)
    settings = {**species.settings(), **(changed or {})}
    config = kind({**kind.unet_config, **settings})
    # The class has replaced some settings by those of the real model.
    config.unet_config.update(settings)
    config.set_inference_dtype(dtype, None)
    return config.get_model(_conditioners(species), "", device=torch.device(species.device))


def _conditioners(species: Species) -> dict[str, torch.Tensor]:
    """Weights outside the network that the host's class takes from a checkpoint."""
    if species.config == "Stable_Zero123":
        width = species.unet["context_dim"]
        return {"cc_projection.weight": torch.empty(width, width), "cc_projection.bias": torch.empty(width)}
    if not species.config.startswith("StableAudio"):
        return {}
    kind = importlib.import_module("comfy.ldm.audio.embedders").NumberConditioner
    features = species.unet.get("timestep_features_type")
    number = (kind(768, fourier_features_type=features) if features else kind(768)).state_dict()
    return {
        f"conditioner.conditioners.seconds_{which}.{name}": weight
        for which in ("start", "total")
        for name, weight in number.items()
    }


def _cut(model: nn.Module) -> None:
    """Cut large weights down, see `LARGE`."""
    for layer in model.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if parameter.numel() > LARGE:
                kept = [min(size, CUT) for size in parameter.shape]
                smaller = torch.empty(kept, device=parameter.device, dtype=parameter.dtype)
                setattr(layer, name, nn.Parameter(smaller, requires_grad=False))


def randomise(model: nn.Module, seed: int) -> None:
    """Give all weights values: the host leaves those uninitialised that a file is to fill."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=generator)
        for buffer in model.buffers():
            buffer.zero_()


def adaptable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that trainers adapt, by their path."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, ADAPTABLE)}
