"""The names of text encoders' layers in adapter files: paths of transformers, after a prefix.

The prefix often has a number. Which encoder a number means differs between tools and architectures, so it is
written down for each.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .dialects import KOHYA, PEFT, Names
from .foreign import Located, Numbered
from .zoo import ADAPTABLE, BERT, CLIP, ENCODERS, LLAMA, T5, adaptable, make_encoders

GATED = {**T5, "feed_forward_proj": "gated-gelu"}
TRANSFORMERS: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "clip_l": ("CLIPTextModel", "CLIPTextConfig", CLIP),
    "clip_g": ("CLIPTextModelWithProjection", "CLIPTextConfig", CLIP),
    "clip_h": ("CLIPTextModel", "CLIPTextConfig", CLIP),
    "t5xxl": ("T5EncoderModel", "T5Config", GATED),
    "mt5xl": ("T5EncoderModel", "T5Config", GATED),
    "hydit_clip": ("BertModel", "BertConfig", BERT),
    "llama": ("LlamaModel", "LlamaConfig", LLAMA),
    "qwen25_7b": ("Qwen2Model", "Qwen2Config", LLAMA),
    "qwen3_4b": ("Qwen3Model", "Qwen3Config", LLAMA),
    "qwen3_06b": ("Qwen3Model", "Qwen3Config", LLAMA),
    "gemma2_2b": ("Gemma2Model", "Gemma2Config", LLAMA),
}
"""For each encoder: its class and configuration class in transformers, and settings of a small model."""
ROOTS = ("", "text_model.", "model.", "bert.")
"""Beginnings that the host may have before a path in transformers' class."""
NOT_OURS = ("pooler.dense",)
"""Layers of transformers' classes that the host does not have: BERT's pooler."""


@dataclass(frozen=True)
class Numbering:
    """Which prefix stands for which of the host's encoders."""

    prefixes: Mapping[str, str]
    """The prefix of each encoder's layers, by the host's name of the encoder."""
    text_model: bool = True
    """Whether CLIP's paths begin with `text_model`, as in every version of transformers before 5."""


def _kohya(**prefixes: str) -> Numbering:
    """kohya-ss and OneTrainer: for each encoder, the part of the name between `lora_` and the path."""
    return Numbering({encoder: f"lora_{prefix}_" for encoder, prefix in prefixes.items()})


def _diffusers(*encoders: str, text_model: bool = True) -> Numbering:
    """diffusers: the encoders in the order of the pipeline. The first has no number."""
    numbers = ("", *(f"_{number}" for number in range(2, 6)))
    prefixes = {encoder: f"text_encoder{number}." for encoder, number in zip(encoders, numbers, strict=False)}
    return Numbering(prefixes, text_model)


NUMBERINGS: dict[tuple[str, str], Numbering] = {
    ("SD1.5", "kohya"): _kohya(clip_l="te"),
    ("SD1.5", "kohya, counted"): _kohya(clip_l="te1"),
    ("SD1.5", "diffusers"): _diffusers("clip_l"),
    ("SD1.5", "diffusers, transformers 5"): _diffusers("clip_l", text_model=False),
    ("SD2", "kohya"): _kohya(clip_h="te"),
    ("SD2", "diffusers"): _diffusers("clip_h"),
    ("SDXL", "kohya"): _kohya(clip_l="te1", clip_g="te2"),
    ("SDXL", "diffusers"): _diffusers("clip_l", "clip_g"),
    ("SDXL", "diffusers, transformers 5"): _diffusers("clip_l", "clip_g", text_model=False),
    ("SDXL refiner", "kohya"): _kohya(clip_g="te"),
    ("SDXL refiner", "kohya, counted"): _kohya(clip_g="te2"),
    # The refiner's pipeline has no first encoder.
    ("SDXL refiner", "diffusers"): Numbering({"clip_g": "text_encoder_2."}),
    ("Stable Cascade", "OneTrainer"): _kohya(clip_g="prior_te"),
    ("SD3", "kohya"): _kohya(clip_l="te1", clip_g="te2", t5xxl="te3"),
    ("SD3", "diffusers"): _diffusers("clip_l", "clip_g", "t5xxl"),
    ("Flux 1", "kohya"): _kohya(clip_l="te1", t5xxl="te3"),
    ("Flux 1", "OneTrainer"): _kohya(clip_l="te1", t5xxl="te2"),
    ("Flux 1", "diffusers"): _diffusers("clip_l", "t5xxl"),
    ("HunyuanDiT", "kohya"): _kohya(hydit_clip="te1", mt5xl="te2"),
    ("HunyuanDiT", "diffusers"): _diffusers("hydit_clip", "mt5xl"),
    ("HunyuanVideo", "OneTrainer"): _kohya(llama="te1", clip_l="te2"),
    ("HunyuanVideo", "diffusers"): _diffusers("llama", "clip_l"),
    ("PixArt", "OneTrainer"): _kohya(t5xxl="te"),
    ("PixArt", "OneTrainer, counted"): _kohya(t5xxl="te1"),
    ("PixArt", "diffusers"): _diffusers("t5xxl"),
    ("Qwen-Image", "OneTrainer"): _kohya(qwen25_7b="te"),
    ("Lumina 2", "OneTrainer"): _kohya(gemma2_2b="te"),
    ("Z-Image", "OneTrainer"): _kohya(qwen3_4b="te"),
    ("Anima", "kohya"): _kohya(qwen3_06b="te"),
    ("HiDream", "OneTrainer"): _kohya(clip_l="te1", clip_g="te2", t5xxl="te3", llama="te4"),
    ("HiDream", "diffusers"): _diffusers("clip_l", "clip_g", "t5xxl", "llama"),
}
"""The numbering that a tool uses for an architecture, by both."""


CLIP_G_ALONE = ("SDXL refiner", "Stable Cascade")
HOST_FAULTS = {
    True: (r"text_encoder\.", "in adapters it is CLIP-L, also for a model that has CLIP-G alone"),
    False: ("lora_prior_te_text_projection$", "it is Stable Cascade's, and the map gives it to every CLIP-G"),
}
"""Names that the host's map has by mistake: pattern and reason, by whether CLIP-G is the only encoder."""


def encoder_cases() -> list[tuple[str, str]]:
    """Pairs of an architecture and a tool whose names for its text encoders are known."""
    return [*NUMBERINGS, *((architecture, "ComfyUI") for architecture in ENCODERS)]


@cache
def encoders_of(architecture: str) -> Any:
    return make_encoders(architecture)


@cache
def transformers_paths(encoder: str) -> tuple[str, ...]:
    """The paths of the layers in transformers' class of an encoder."""
    library = importlib.import_module("transformers")
    kind, config, values = TRANSFORMERS[encoder]
    # Only the paths are needed, no values.
    with torch.device("meta"):
        model = getattr(library, kind)(getattr(library, config)(**values))
    layers = (path for path, layer in model.named_modules() if isinstance(layer, ADAPTABLE))
    return tuple(path for path in layers if path not in NOT_OURS)


def encoder_layers(architecture: str, encoder: str) -> dict[str, str]:
    """The host's whole path of each layer of an encoder, by its path in transformers."""
    root = f"{encoder}.transformer."
    known = {
        path.removeprefix(root) for path in adaptable(encoders_of(architecture)) if path.startswith(root)
    }
    found: dict[str, str] = {}
    for path in transformers_paths(encoder):
        (ours,) = (prefix + path for prefix in ROOTS if prefix + path in known)
        found[path] = root + ours
    return found


def encoder_names(architecture: str, tool: str) -> tuple[Names, tuple[str, ...]]:
    """The layers of an architecture's text encoders by name, and the tensors that the tool writes."""
    state = encoders_of(architecture).state_dict()
    if tool == "ComfyUI":
        layers = {f"text_encoders.{path}": path for path in adaptable(encoders_of(architecture))}
    else:
        layers = _numbered(architecture, NUMBERINGS[architecture, tool])
    named = {
        name: Located.whole(f"{path}.weight", state[f"{path}.weight"].shape) for name, path in layers.items()
    }
    return named, KOHYA if next(iter(named)).startswith("lora_") else PEFT


def _numbered(architecture: str, numbering: Numbering) -> dict[str, str]:
    """The host's paths of the layers of an architecture's text encoders, by their names in files."""
    found: dict[str, str] = {}
    for encoder, prefix in numbering.prefixes.items():
        for path, ours in encoder_layers(architecture, encoder).items():
            if numbering.text_model and ".text_model." in ours and not path.startswith("text_model."):
                path = f"text_model.{path}"
            # In transformers 5 only CLIP's class without a projection has lost `text_model`.
            elif not numbering.text_model and TRANSFORMERS[encoder][0] == "CLIPTextModel":
                path = path.removeprefix("text_model.")
            found[prefix + (path if prefix.endswith(".") else path.replace(".", "_"))] = ours
    return found


def host_encoder_names(architecture: str) -> Names:
    """The host's own map of an architecture's text encoders, without what it should not have."""
    from comfy.lora import model_lora_keys_clip

    model = encoders_of(architecture)
    state = model.state_dict()
    numbered = Numbered(state)
    wrong = HOST_FAULTS[architecture in CLIP_G_ALONE][0]
    return {
        name: numbered.locate(numbered.state[key])
        for name, key in model_lora_keys_clip(model, {}).items()
        if state[key].ndim > 1 and not re.match(wrong, name)
    }
