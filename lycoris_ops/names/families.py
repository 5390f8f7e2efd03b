"""Which family of models some layers belong to: of a model by its keys, of an adapter by its file.

It is for messages alone: nothing is matched by it. Where two families have the same layers, both are named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..maths.shapes import Shape

_MOST = 400
"""Characters of the longest name or text that is looked at. Real ones have about 100."""


Families = tuple[str, ...]
"""The families that something can be of, as far as it tells; () where it tells nothing."""


@dataclass(frozen=True)
class _Layers:
    """Layers of a diffusion model by name, with underscores for dots and without a prefix."""

    shapes: Mapping[str, Shape]

    def has(self, pattern: str) -> bool:
        found = re.compile(pattern)
        return any(map(found.match, self.shapes))

    def last(self, pattern: str) -> int:
        """The highest number that the pattern's group has; -1 where nothing matches."""
        found = re.compile(pattern)
        return max((int(m[1]) for m in map(found.match, self.shapes) if m), default=-1)

    def width(self, pattern: str) -> int:
        """The inputs of the first layer that matches and whose shape is known; 0 for none."""
        found = re.compile(pattern)
        return next((s[1] for name, s in self.shapes.items() if len(s) > 1 and found.match(name)), 0)


def _unet(layers: _Layers) -> Families:
    if not layers.has(r"(input|output|middle|down|up|mid)_blocks?_.*(attn|resnets|in_layers|proj_in)"):
        return ()
    width = layers.width(r"(?!.*motion).*attn2_to_[kv]$")
    found = {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL", 1280: "the SDXL refiner"}.get(width)
    return (found,) if found else ("SD 1.5", "SD 2", "SDXL", "the SDXL refiner")


def _flux(layers: _Layers) -> Families:
    if layers.has(r"distilled_guidance_layer"):
        return ("Chroma",)
    if layers.has(r"(double|single)_stream_modulation|single_transformer_blocks_\d+_attn_to_qkv_mlp"):
        return ("Flux 2",)
    if layers.has(r"txt_in_individual|context_embedder_token_refiner"):
        return ("HunyuanVideo",)
    if not layers.has(r"double_blocks_\d+_(img|txt)_|single_(transformer_)?blocks_\d"):
        return ()
    double = layers.last(r"(?:double_blocks|transformer_blocks)_(\d+)_")
    single = layers.last(r"single_(?:transformer_)?blocks_(\d+)_")
    if double == 19 or single in (38, 39):
        return ("HunyuanVideo",)
    if single > 39:
        return ("Flux 2",)
    if (double, single) == (18, 37):
        return "Flux 1", "Chroma"
    several = "Flux 1", "Flux 2", "Chroma", "HunyuanVideo"
    return several if layers.has(r"double_blocks") else (*several, "AuraFlow")


def _named(pattern: str, *families: str) -> Callable[[_Layers], Families]:
    return lambda layers: families if layers.has(pattern) else ()


def _by_width(layers: _Layers) -> Families:
    found = {3840: "Z-Image", 2304: "Lumina 2"}.get(layers.width(r"layers_\d+_attention_(qkv|to_q|to_k)$"))
    return (found,) if found else ()


RULES: tuple[Callable[[_Layers], Families], ...] = (
    _unet,
    _named(r"(double|single)_stream_blocks_\d", "HiDream"),
    _named(r"((double|single)_layers|joint_transformer_blocks)_\d", "AuraFlow"),
    _flux,
    _named(r"joint_blocks_\d", "SD3"),
    _named(r"transformer_blocks_\d+_(img_mlp|txt_mlp|img_mod)", "Qwen-Image"),
    _named(r"transformer_blocks_\d+_(ff_context|norm1_context)", "SD3", "Flux 1", "Chroma", "HunyuanVideo"),
    _named(r"transformer_blocks_\d+_attn1_to_[qkv]$", "LTX-Video", "PixArt"),
    _named(r"llm_adapter_", "Anima"),
    _named(r"blocks_\d+_(self|cross)_attn_[qkv]_proj", "Cosmos", "Anima"),
    _named(r"blocks_\d+_(self|cross)_attn_[qkvo]$", "Wan"),
    _named(r"blocks_\d+_cross_attn_kv_linear", "PixArt"),
    _named(r"blocks_\d+_attn_qkv_[xy]", "Mochi"),
    _by_width,
)
"""What tells families by their layers, under the names of the host, of diffusers and of kohya. The first that
knows the layers decides."""

METADATA = ("modelspec.architecture", "ss_base_model_version")
"""The metadata in which trainers write the family (kohya, OneTrainer, ai-toolkit, SimpleTuner)."""
SAID: tuple[tuple[str, str], ...] = (
    (r"stable-diffusion-xl.*refiner", "the SDXL refiner"),
    (r"stable-diffusion-xl|sdxl", "SDXL"),
    (r"stable-diffusion-v1|^sd_?v?1", "SD 1.5"),
    (r"stable-diffusion-v2|^sd_?v?2", "SD 2"),
    (r"stable-diffusion-3|^sd3", "SD3"),
    (r"flux-?\.?2", "Flux 2"),
    (r"chroma", "Chroma"),
    (r"flux", "Flux 1"),
    (r"hunyuan-?_?video", "HunyuanVideo"),
    (r"qwen", "Qwen-Image"),
    (r"z-?_?image", "Z-Image"),
    (r"lumina", "Lumina 2"),
    (r"wan", "Wan"),
    (r"ltx", "LTX-Video"),
    (r"aura_?-?flow", "AuraFlow"),
    (r"pixart", "PixArt"),
    (r"hidream", "HiDream"),
    (r"anima", "Anima"),
    (r"mochi", "Mochi"),
)
"""What the metadata says, as a pattern in small letters, to the family."""


def families_of_layers(layers: Iterable[tuple[str, Shape]]) -> Families:
    """The families that a diffusion model can be of, by its layers, each with its path and shape."""
    known = {path.replace(".", "_"): shape for path, shape in layers if len(path) < _MOST}
    found = _Layers(known)
    return next(filter(None, (rule(found) for rule in RULES)), ())


def families_said(metadata: Mapping[str, str]) -> Families:
    """The family that an adapter's metadata names; () where it names none that is known."""
    for key in METADATA:
        said = metadata.get(key, "").lower()[:_MOST]
        for pattern, family in SAID:
            if re.search(pattern, said):
                return (family,)
    return ()
