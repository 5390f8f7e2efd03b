"""Inputs for the tiny models of the zoo: a latent, and what the model is given beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .zoo import SPECIES

WORDS = 5
"""How many tokens a text has."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Inputs:
    """The shapes of one row: of the latent, the text and further tensors by the model's own names."""

    latent: Shape
    text: Shape | None = None
    more: Mapping[str, Shape] = field(default_factory=dict[str, Shape])
    constant: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What is the same for all rows."""
    whole: Mapping[str, Callable[[int], Tensor]] = field(default_factory=dict[str, Callable[[int], Tensor]])
    """Tensors that are not random floats, each made for a number of rows."""
    changed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings to change in the model of the zoo, where its layers do not fit together."""
    cut: bool = True
    """Whether the model still runs after the zoo has cut its large weights."""
    most: int = 2
    """How many rows the model takes at most."""

    def make(self, rows: int = 2, seed: int = 1) -> tuple[Tensor, dict[str, Any]]:
        """A latent (rows, ...), and the arguments that the host's `apply_model` takes beside it."""
        draw, rows = torch.Generator().manual_seed(seed), min(rows, self.most)
        latent = torch.randn((rows, *self.latent), generator=draw)
        conds: dict[str, Any] = dict(self.constant)
        if self.text is not None:
            conds["c_crossattn"] = torch.randn((rows, *self.text), generator=draw)
        for name, shape in self.more.items():
            conds[name] = torch.randn((rows, *shape), generator=draw)
        for name, tensor in self.whole.items():
            conds[name] = tensor(rows)
        return latent, conds


IMAGE, VIDEO = (4, 8, 8), (4, 2, 8, 8)


def _ids(rows: int) -> Tensor:
    return torch.arange(4).repeat(rows, 1)


INPUTS: dict[str, Inputs] = {
    "SD1.5": Inputs(IMAGE, (WORDS, 24)),
    "SD2": Inputs(IMAGE, (WORDS, 24)),
    "SDXL": Inputs(IMAGE, (WORDS, 24), {"y": (20,)}),
    "SVD": Inputs(IMAGE, (1, 24), {"y": (20,), "c_concat": IMAGE}, {"num_video_frames": 2}),
    "Stable Cascade C": Inputs(
        (16, 8, 8), None, {"clip_text": (WORDS, 12), "clip_text_pooled": (1, 12), "clip_img": (1, 8)}
    ),
    "Stable Cascade B": Inputs((4, 32, 32), None, {"clip": (1, 12), "effnet": (4, 2, 2)}),
    "SD3": Inputs(IMAGE, (WORDS, 20), {"y": (12,)}),
    "SD3.5": Inputs(IMAGE, (WORDS, 20), {"y": (12,)}),
    "AuraFlow": Inputs(IMAGE, (WORDS, 20)),
    "Mochi": Inputs(
        VIDEO, (4, 16), {}, {"num_tokens": 4}, {"attention_mask": lambda rows: torch.ones(rows, 4)}, cut=False
    ),
    "Cosmos": Inputs((16, 2, 8, 8), (WORDS, 20)),
    "Lumina 2": Inputs(IMAGE, (WORDS, 20), {}, {"num_tokens": WORDS}),
    "Z-Image": Inputs(
        IMAGE,
        (WORDS, 20),
        {},
        {"num_tokens": WORDS},
        changed={"dim": 256, "n_heads": 32, "n_kv_heads": 32},
        cut=False,
    ),
    "Wan 2.1 t2v": Inputs(VIDEO, (WORDS, 20)),
    "Wan 2.2 5B": Inputs((48, 2, 8, 8), (WORDS, 20)),
    "HiDream": Inputs(IMAGE, (WORDS, 12), {"y": (12,), "encoder_hidden_states_llama3": (2, WORDS, 20)}),
    "Omnigen2": Inputs(IMAGE, (WORDS, 20), {}, {"num_tokens": WORDS}),
    "Qwen-Image": Inputs((4, 1, 8, 8), (WORDS, 20)),
    "Mage-Flow": Inputs((16, 8, 8), (WORDS, 20)),
    "Krea 2": Inputs((4, 1, 8, 8), (WORDS, 72), changed={"features": 64}),
    "Kandinsky 5": Inputs((4, 1, 8, 8), (WORDS, 20), {"y": (12,), "c_concat": (5, 1, 8, 8)}),
    "CogVideoX": Inputs(VIDEO, (WORDS, 20)),
    "Ideogram 4": Inputs((8, 8, 8), (WORDS, 20)),
    "ACE-Step": Inputs(
        (8, 16, 8),
        (WORDS, 12),
        {"speaker_embeds": (12,)},
        {"lyrics_strength": 1.0},
        {"lyric_token_idx": _ids},
        changed={"lyric_hidden_size": 1024},
        cut=False,
    ),
    "ACE-Step 1.5": Inputs(
        (8, 16), (WORDS, 12), {"lyric_embed": (WORDS, 12), "refer_audio": (8, 16)}, {"is_covers": False}
    ),
    "Flux 1": Inputs(IMAGE, (WORDS, 20), {"y": (12,)}, {}, {"guidance": torch.ones}),
    "Flux 2": Inputs(IMAGE, (WORDS, 20), {}, {}, {"guidance": torch.ones}),
    "LongCat-Image": Inputs(IMAGE, (WORDS, 3584)),
    "Chroma": Inputs(IMAGE, (WORDS, 20), {}, {}, {"guidance": torch.zeros}, {"in_dim": 64}),
    "Chroma Radiance": Inputs((3, 16, 16), (WORDS, 20), {}, {}, {"guidance": torch.zeros}, {"in_dim": 64}),
    "HunyuanVideo": Inputs(VIDEO, (WORDS, 20), {"y": (12,)}, {}, {"guidance": torch.ones}),
    "HunyuanImage 2.1": Inputs(
        IMAGE, (WORDS, 20), {"txt_byt5": (3, 1472)}, {}, {"guidance": torch.ones}, cut=False
    ),
    "Hunyuan3D 2": Inputs((4, 16), (WORDS, 12)),
    "LTX-Video": Inputs((8, 2, 4, 4), (WORDS, 20), {}, {"frame_rate": 25, "attention_mask": None}),
    "Cosmos-Predict2": Inputs((16, 1, 8, 8), (WORDS, 20)),
    "Anima": Inputs((16, 1, 8, 8), (WORDS, 1024)),
    "ERNIE-Image": Inputs((8, 8, 8), (WORDS, 20)),
    "JoyImage": Inputs((4, 1, 8, 8), (WORDS, 20), changed={"hidden_size": 256}, cut=False),
}
"""The architectures whose tiny models run, by the name in `zoo.SPECIES`."""

_SDXL = Inputs(IMAGE, (WORDS, 24), {"y": (20,)})
_WIDE = (16, 2, 8, 8)
_CONTROLLED = Inputs(_WIDE, (WORDS, 20), {"c_concat": (20, 2, 8, 8)}, changed={"out_dim": 16})
_PIXART = {"c_size": (2,), "c_ar": (1,)}
_HUNYUAN_DIT = Inputs(
    IMAGE,
    (4, 12),
    {"encoder_hidden_states_t5": (4, 24)},
    {},
    {
        "text_embedding_mask": lambda rows: torch.ones(rows, 4),
        "text_embedding_mask_t5": lambda rows: torch.ones(rows, 4),
        "image_meta_size": lambda rows: torch.full((rows, 6), 64.0),
    },
    changed={"text_states_dim_t5": 24},
    cut=False,
)
_PATCHES = 4
"""How many patches HiDream-O1 makes of its picture, which come after the text."""
_TEXT = {
    **SPECIES["HiDream-O1"].unet["text_config_overrides"],
    "vocab_size": 151_680,
    "rope_dims": [2, 1, 1],
}


def _numbers(rows: int) -> Tensor:
    """A text whose last token stands for the time."""
    return torch.tensor([[5, 7, 11, 13, 151_673]] * rows)


def _places(rows: int) -> Tensor:
    """The places of text and picture in time, height and width."""
    text = torch.arange(WORDS).expand(3, -1)
    picture = WORDS + torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]])
    return torch.cat([text, picture], 1).expand(rows, -1, -1)


def _pictured(rows: int) -> Tensor:
    return torch.cat([torch.zeros(rows, WORDS), torch.ones(rows, _PATCHES)], 1)


_AUDIO = {"embed_dim": 64, "cond_token_dim": 32}

FURTHER: dict[str, Inputs] = {
    "SDXL refiner": _SDXL,
    "SD2.1 unCLIP": _SDXL,
    "SSD-1B": _SDXL,
    "KOALA 700M": _SDXL,
    "Stable Audio": Inputs((8, 16), (WORDS, 32), {"global_embed": (16,)}, changed=_AUDIO),
    "Stable Audio 3": Inputs(
        (8, 16), (WORDS, 32), {"global_embed": (16,), "local_add_cond": (6, 16)}, changed=_AUDIO
    ),
    "PixArt alpha": Inputs((4, 40, 40), (4, 20), _PIXART),
    "PixArt sigma": Inputs((4, 40, 40), (4, 20)),
    "HunyuanDiT": _HUNYUAN_DIT,
    "HunyuanDiT 1.0": _HUNYUAN_DIT,
    "Lens": Inputs((16, 8, 8), (WORDS, 24)),
    "HunyuanVideo 1.5": Inputs(VIDEO, (WORDS, 20), {"txt_byt5": (3, 1472)}, cut=False),
    "HunyuanImage 2.1 refiner": Inputs(VIDEO, (WORDS, 20), {}, {}, {"guidance": torch.ones}),
    "Z-Image pixel space": Inputs(
        (3, 16, 16),
        (WORDS, 20),
        {},
        {"num_tokens": WORDS},
        changed={"dim": 256, "n_heads": 32, "n_kv_heads": 32},
        cut=False,
    ),
    "PixelDiT": Inputs((3, 16, 16), (8, 12)),
    "PiD": Inputs((3, 16, 16), (8, 12), {"lq_latent": (4, 2, 2), "degrade_sigma": ()}),
    "Wan 2.1 i2v": _CONTROLLED,
    "Wan VACE": Inputs(VIDEO, (WORDS, 20), {"vace_context": (1, 12, 2, 8, 8)}, {"vace_strength": [1.0]}),
    "Wan camera": Inputs(_WIDE, (WORDS, 20), {"c_concat": _WIDE}, changed={"out_dim": 16}),
    "Wan HuMo": _CONTROLLED,
    "Wan S2V": Inputs(VIDEO, (WORDS, 20), {"audio_embed": (25, 16, 8)}),
    "Wan Animate": Inputs(VIDEO, (WORDS, 20), {"c_concat": (8, 2, 8, 8)}),
    "Wan SCAIL": Inputs(VIDEO, (WORDS, 20)),
    "Wan SCAIL 2": Inputs(VIDEO, (WORDS, 20)),
    "Wan causal": Inputs(VIDEO, (WORDS, 20)),
    "Hunyuan3D 2.1": Inputs((4, 16), (WORDS, 12)),
    "Boogu": Inputs(IMAGE, (WORDS, 20), {}, {"num_tokens": WORDS}),
    "SeedVR2": Inputs(
        _WIDE, None, {"condition": (17, 2, 8, 8)}, changed={"txt_in_dim": 5120}, cut=False, most=1
    ),
    "TripoSplat": Inputs((1, 69), (WORDS, 12), {}, {"latent_shapes": [(1, 16, 4), (1, 1, 5)]}),
    "LTX-2": Inputs(
        (1, 640),
        (WORDS, 40),
        {},
        {"frame_rate": 25, "attention_mask": None, "latent_shapes": [(1, 8, 2, 4, 4), (1, 8, 3, 16)]},
        changed={"audio_in_channels": 128},
    ),
    "WanDancer": Inputs(
        _WIDE,
        (WORDS, 20),
        {"c_concat": (20, 2, 8, 8), "audio_embed": (6, 8)},
        changed={"out_dim": 16},
    ),
    "HiDream-O1": Inputs(
        (3, 64, 64),
        None,
        {},
        {"ar_len": WORDS - 1},
        {"input_ids": _numbers, "position_ids": _places, "vinput_mask": _pictured},
        changed={"text_config_overrides": _TEXT},
        cut=False,
    ),
    "MiniMax-H3": Inputs(
        (1, 176), (WORDS, 20), {}, {"latent_shapes": [(1, 4, 2, 4, 4), (1, 4, 2, 6)]}, most=1
    ),
}
"""More of them: variants, and architectures that few train."""
