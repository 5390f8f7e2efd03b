"""Files made by hand. Each shows a way in which a file once did what it must not do.

Those that must be refused as soon as they are opened are in `tests/harness/hostile.py`. The others are read
at least in part, and go through all stages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

import lycoris_ops as lyc
from tests.harness.hostile import REFUSED
from tests.ops.layers import WEIGHTS, factors, rand

from .case import CANARY, Case
from .containers import packed
from .seeds import CONFIG, PATHS, base_of

NAME = "lora_unet_blocks_0_x"
"""A linear layer of the model. `LINEAR` is the shape (O, I) of its weight."""
LINEAR = WEIGHTS["linear"]
PEFT = f"base_model.model.{PATHS['linear']}"
CRAFTED: dict[str, Callable[[], Case]] = {}
Make = Callable[[], bytes]
Tensors = Mapping[str, Tensor]


def lora(name: str = NAME, rank: int = 3) -> dict[str, Tensor]:
    """The factors of a plain LoRA of the linear layer."""
    torch.manual_seed(11)
    rows, columns = LINEAR
    return {
        f"{name}.lora_up.weight": rand(rows, rank),
        f"{name}.lora_down.weight": rand(rank, columns),
        f"{name}.alpha": torch.tensor(2.0),
    }


def case_of(
    name: str,
    blob: bytes,
    ending: str = ".safetensors",
    *,
    refused: bool = False,
    config: bytes | None = None,
) -> Case:
    adapter = f"adapter_model{ending}"
    files = {adapter: blob} | ({CONFIG: config} if config is not None else {})
    return Case(name, files, adapter, refused=refused)


def texts(cases: Mapping[str, Make]) -> None:
    """Files by what is odd about their texts."""
    for what, make in cases.items():
        CRAFTED[f"text: {what}"] = lambda name=f"text: {what}", make=make: case_of(name, make())


for _name, (_make, _says) in REFUSED.items():
    CRAFTED[_name] = lambda name=_name, make=_make, says=_says: replace(
        case_of(name, make(), name[name.rindex(".") :], refused=True), says=says
    )

# Texts and names.


def _plus(key: str) -> Make:
    """A LoRA and a tensor under another key."""
    return lambda: packed({**lora(), key: torch.ones(2)})


FILLS = ("." + 15 * "a", "_", "a_", "a")
texts(
    {
        "metadata with escape sequences and lines": lambda: packed(
            lora(), {"ss_title": f"\x1b[31m\n  {CANARY}\r\x85{CANARY}"}
        ),
        **{
            f"2,000 layers of names that are {fill} and a number": lambda fill=fill: packed(
                {f"lora_unet_{(fill * 900)[:900]}{n}.diff": torch.ones(1) for n in range(2000)}
            )
            for fill in FILLS
        },
        "an escape sequence in a key": _plus("\x1b[2Jx"),
        "a line of the report in a key": _plus(f"x\n  {CANARY}"),
        "a line of the report in a layer": lambda: packed({**lora(), **lora(f"lora_unet_y\n  {CANARY}\n")}),
        "a line of the report after U+2028": _plus(f"x\u2028{CANARY}"),
        "an empty key": _plus(""),
        "a suffix alone": lambda: packed({**lora(), "lora_up.weight": rand(2, 2), ".alpha": torch.ones(())}),
    },
)

# Models.


def _under(cases: Mapping[str, Make]) -> None:
    """A LoRA, with checkpoints by what is odd about them."""
    for what, make in cases.items():
        CRAFTED[f"model: {what}"] = lambda name=f"model: {what}", make=make: Case(
            name,
            {"adapter_model.safetensors": packed(lora()), "base.safetensors": make()},
            "adapter_model.safetensors",
            base="base.safetensors",
        )


def _base(change: Callable[[Tensor], Tensor]) -> Make:
    """The checkpoint with its tensors changed."""
    return lambda: packed({key: change(tensor) for key, tensor in base_of("plain").items()})


def _marked(mark: bytes) -> Make:
    layer = f"diffusion_model.{PATHS['linear']}"
    tensors = {
        f"{layer}.comfy_quant": torch.tensor(list(mark), dtype=torch.uint8),
        f"{layer}.weight": torch.ones(LINEAR).to(torch.float8_e4m3fn),
    }
    said = {"_quantization_metadata": mark.decode("latin-1")}
    return lambda: packed({**base_of("plain"), **tensors}, said)


ODD: dict[str, tuple[int, ...]] = {
    "": (),
    ".weight": (8, 8),
    ".": (8,),
    "..weight": (),
    "weight": (3,),
    "a.qkv.weight": (7,),
    "b.qkv.weight": (),
    "c.qkv.weight": (0, 0),
    "c.out.weight": (),
    "d.to_q.weight": (),
    "d.to_k.weight": (4,),
    "d.to_v.weight": (4, 0),
    "text_model.encoder.layers.0.mlp.fc1.weight": (),
    "conditioner.embedders.0.model.transformer.resblocks.0.attn.in_proj_weight": (2,),
    "conditioner.embedders.0.model.transformer.resblocks.0.attn.out_proj.weight": (0,),
    "double_blocks.0.img_attn.qkv.weight": (),
    "single_blocks.0.linear1.weight": (1, 0),
    "single_blocks.0.linear2.weight": (2,),
    "img_in.weight": (0,),
    "vector_in.in_layer.weight": (1,) * 9,
}
"""Keys that begin like those of known models, with shapes that none of these has."""
_under(
    {
        "1,000 names that begin like each other": lambda: packed(
            {**base_of("plain"), **{"_" * n: torch.ones(0, dtype=torch.int8) for n in range(1, 1000)}}
        ),
        **{
            f"2,000 layers of names that are {fill} and a number": lambda fill=fill: packed(
                {
                    **base_of("plain"),
                    **{f"{(fill * 900)[:900]}{n}.weight": torch.ones(1) for n in range(2000)},
                }
            )
            for fill in FILLS
        },
        "weights without dimensions": _base(lambda t: torch.ones(())),
        "empty weights": _base(lambda t: torch.ones(0, 18)),
        "odd keys and shapes": lambda: packed(
            {**base_of("plain"), **{k: torch.ones(s) for k, s in ODD.items()}}
        ),
        "NaN in a weight": _base(lambda t: t * math.nan if t.is_floating_point() else t),
        "large weights in half precision": _base(lambda t: torch.full(t.shape, 65504.0).half()),
        **{
            f"mark of quantisation, {what}": _marked(mark)
            for what, mark in {
                "a list": b"[1, 2]",
                "null": b"null",
                "deep": b"[" * 100_000,
                "no format": b"{}",
                "a format that is a list": b'{"format": ["nvfp4"]}',
                "no UTF-8": b"\xff\xfe\xfd",
                "empty": b"",
            }.items()
        },
    }
)

# Regular expressions of a PEFT configuration, as the library itself writes them.


def _honest_patterns() -> Case:
    """600 layers, each with a rank and an alpha of its own, as the library itself writes them."""
    torch.manual_seed(11)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for number in range(600):
        path, rank = f"down.{number}.attentions.0.to_q", number % 7 + 1
        tensors[f"base_model.model.{path}.lora_A.weight"] = rand(rank, 4)
        tensors[f"base_model.model.{path}.lora_B.weight"] = rand(4, rank)
        pattern = "^" + path.replace(".", r"\.")
        ranks[pattern], alphas[pattern] = rank, number / 10 + 1
    table = {"peft_type": "LORA", "r": 3, "lora_alpha": 2, "rank_pattern": ranks, "alpha_pattern": alphas}
    return case_of("pattern: 600 layers of their own", packed(tensors), config=json.dumps(table).encode())


CRAFTED["pattern: 600 layers of their own"] = _honest_patterns

# Values that say how others are read, and shapes.


def layers(group: str, cases: Mapping[str, Tensors], *, refused: bool = False) -> None:
    """Files of tensors by key."""
    for what, tensors in cases.items():
        CRAFTED[f"{group}: {what}"] = lambda name=f"{group}: {what}", tensors=tensors: case_of(
            name, packed(tensors), refused=refused
        )


def ones(shapes: Mapping[str, tuple[int, ...]], name: str = NAME) -> dict[str, Tensor]:
    """A layer of tensors of ones, of these shapes by suffix."""
    return {f"{name}.{suffix}": torch.ones(shape) for suffix, shape in shapes.items()}


def also(suffix: str, tensor: Tensor, name: str = NAME) -> Tensors:
    """A LoRA, and a tensor of this or of another layer."""
    return {**lora(), f"{name}.{suffix}": tensor}


OTHER = "lora_unet_blocks_1_x"
layers(
    "value",
    {
        "alpha 3e38": also("alpha", torch.tensor(3e38)),
        "PEFT's BOFT with factors near the largest number": {
            f"{NAME}.boft_R": torch.zeros(1, 9, 2, 2),
            f"{NAME}.boft_s": torch.full((12, 1), 3e38),
        },
    },
)
layers(
    "value",
    {
        "reshape_weight of 2^62": also("reshape_weight", torch.tensor([1 << 62, 18])),
        "bias_indices of a float": {
            **{f"{NAME}.{suffix}": tensor for suffix, tensor in factors("lora-sparse", "linear").items()},
            f"{NAME}.bias_indices": torch.full((2, 5), 1e30),
        },
    },
    refused=True,
)
layers(
    "shape",
    {
        "oft_blocks under a number that is no number": also("oft_blocks.x", torch.ones(5, 7, 7), OTHER),
        "oft_blocks under a number and without": ones(
            {"oft_blocks": (5, 7, 7), "oft_blocks.0": (5, 7, 7)}, OTHER
        ),
        "a LoKr core's factor of three dimensions": ones(
            {"lokr_t2": (3, 3, 1), "lokr_w1": (3, 3), "lokr_w2_a": (3, 3, 4), "lokr_w2_b": (3, 6)}
        ),
        "AdaLoRA with a factor of three dimensions": ones(
            {"lora_A": (3, 1, 18), "lora_B": (12, 3), "lora_E": (3, 1)}, PEFT
        ),
        "a layer that is there under two names": {**lora(), **lora("lora_unet__blocks_0_x")},
    },
)
layers(
    "shape",
    {
        "LoKr factors of three dimensions": ones(
            {"lokr_w1": (3, 2, 1), "lokr_w2_a": (4, 2, 3), "lokr_w2_b": (2, 9)}
        ),
        "AdaLoRA without singular values beside factors": ones(
            {"lora_A": (3, 18), "lora_B": (12, 3), "lora_E": (0, 1)}, PEFT
        ),
        "PEFT's magnitude of the size of the inputs": ones(
            {"lora_A.weight": (3, 18), "lora_B.weight": (12, 3), "lora_magnitude_vector": (18,)}, PEFT
        ),
    },
    refused=True,
)
for _dialect in lyc.WRITTEN_DIALECTS:
    CRAFTED[f"shape: nothing that can be read, saved as {_dialect}"] = lambda dialect=_dialect: replace(
        case_of("shape: nothing that can be read", packed(ones({"hada_w2_b": (2, 2)}))), dialect=dialect
    )
