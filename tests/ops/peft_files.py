"""Files that PEFT itself writes: LoRA, DoRA, LoHa, LoKr, OFT and IA3, on layers of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from oracle import EPS32, EPS64, SHAPES, affine, fill, layer
from torch import Tensor, nn

import lycoris_ops as lyc

FILES = (torch.float32, torch.bfloat16, torch.float16)
# alpha / rank is not 1, so that a scale that is lost or applied twice shows.
RANK, ALPHA = 4, 6.0
# The shape of the square one does not tell its rows from its columns.
EMBEDDINGS = {"embedding": (18, 12), "embedding_square": (12, 12)}


class Model(nn.Module):
    """One layer of each kind; a file adapts those that its configuration targets."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            self.add_module(name.replace("-", "_"), layer(shape, bias=bias))
        for name, shape in EMBEDDINGS.items():
            self.add_module(name, nn.Embedding(*shape, dtype=torch.float64))
        self.requires_grad_(False)


LINEAR = ("linear", "linear_square")
CONV2D = ("conv2d", "conv2d_1x1", "conv2d_square", "conv2d_wide")
FLAT = (*LINEAR, "conv1d", *CONV2D)
DENSE = (*FLAT, "conv3d")
ALL = (*DENSE, *EMBEDDINGS)
# PEFT's rotations of convolutions assume a square kernel.
SQUARE = (*LINEAR, "conv2d", "conv2d_1x1", "conv2d_square")
SCALED = (*LINEAR, *CONV2D, "conv3d")


@dataclass(frozen=True)
class Kind:
    """A PEFT configuration and the layers that it can adapt."""

    algorithm: str
    config: str
    """The name of PEFT's configuration class."""
    options: dict[str, Any]
    """The arguments of the configuration, except the layers."""
    layers: tuple[str, ...]
    """The names of the layers of `Model` that are adapted."""
    eps: float = EPS64
    """A delta may be wrong by 16 times this, relative to the largest changed value."""
    bias: bool = False
    """Whether the adapted layers have a bias."""


def lora(layers: tuple[str, ...] = ALL, *, bias: bool = False, **options: Any) -> Kind:
    return Kind("lora", "LoraConfig", {"r": RANK, "lora_alpha": ALPHA, **options}, layers, bias=bias)


def loha(**options: Any) -> Kind:
    # A Tucker core is folded in float32 unless the file holds float64.
    eps = EPS32 if "use_effective_conv2d" in options else EPS64
    return Kind("loha", "LoHaConfig", {"r": RANK, "alpha": ALPHA, **options}, FLAT, eps)


def lokr(layers: tuple[str, ...] = FLAT, *, eps: float = EPS64, **options: Any) -> Kind:
    eps = EPS32 if "use_effective_conv2d" in options else eps
    return Kind("lokr", "LoKrConfig", {"r": 2, "alpha": 3.0, **options}, layers, eps)


def oft(**options: Any) -> Kind:
    # The bound of a constrained rotation is a float32 number.
    eps = EPS32 if "coft" in options else EPS64
    return Kind("oftv2", "OFTConfig", {"r": 0, "oft_block_size": 4, **options}, SQUARE, eps)


def ia3(*feedforward: str, bias: bool = False) -> Kind:
    return Kind("ia3", "IA3Config", {"feedforward_modules": list(feedforward)}, SCALED, bias=bias)


PATTERNS = {
    "rank_pattern": {"conv2d": 2, "^linear": 8},
    "alpha_pattern": {"conv2d": 5.0, "conv1d": 1.0},
}
IA3_PATTERN = {
    "target_modules": f"({'|'.join(SCALED)})$",
    "feedforward_modules": "(linear|conv2d|conv2d_sq.*)$",
}
KINDS: dict[str, Kind] = {
    "lora": lora(),
    "lora-rs": lora(use_rslora=True),
    "lora-patterns": lora(**PATTERNS),
    "lora-patterns-rs": lora(**PATTERNS, use_rslora=True),
    "lora-bias": lora(DENSE, bias=True, lora_bias=True),
    "dora": lora(use_dora=True),
    "dora-rs": lora(use_dora=True, use_rslora=True),
    "dora-beside-bias": lora(DENSE, bias=True, use_dora=True),
    "loha": loha(),
    "loha-patterns": loha(**PATTERNS),
    "loha-tucker": loha(use_effective_conv2d=True),
    "lokr": lokr(),
    "lokr-patterns": lokr(alpha_pattern={"conv2d": 5.0}),
    "lokr-both": lokr(decompose_both=True),
    "lokr-factor": lokr(decompose_factor=2),
    "lokr-tucker": lokr(use_effective_conv2d=True),
    # PEFT makes a factor full where the rank is at least half of its larger size.
    "lokr-full": lokr((*LINEAR, *CONV2D), r=16, alpha=16.0),
    # Without a low-rank factor the scale goes into a full one, in float32.
    "lokr-full-scaled": lokr((*LINEAR, *CONV2D), r=16, alpha=24.0, eps=EPS32),
    "oft": oft(use_cayley_neumann=False),
    "oft-shared": oft(use_cayley_neumann=False, block_share=True),
    "oft-neumann": oft(),
    "oft-neumann-shared": oft(block_share=True),
    **{f"oft-neumann-{n}": oft(num_cayley_neumann_terms=n) for n in (2, 3, 4, 8)},
    "coft": oft(coft=True, eps=0.5, use_cayley_neumann=False),
    "coft-shared": oft(coft=True, eps=0.5, block_share=True),
    # A bound that no rotation reaches.
    "coft-slack": oft(coft=True, eps=1000.0),
    "ia3": ia3(),
    "ia3-feedforward": ia3(*LINEAR, *CONV2D),
    "ia3-pattern": Kind("ia3", "IA3Config", IA3_PATTERN, SCALED),
    "ia3-beside-bias": ia3("linear", "conv2d_1x1", "conv2d_square", bias=True),
}


def saved(kind: Kind, file: torch.dtype, folder: Path) -> tuple[Any, dict[str, nn.Module]]:
    """An adapter from a file that PEFT wrote with random values, and PEFT's layers in float64, by name."""
    import peft

    model = Model(kind.bias)
    config = getattr(peft, kind.config)(**{"target_modules": list(kind.layers), **kind.options})
    adapted = peft.get_peft_model(model, config).eval().requires_grad_(False)
    for name, parameter in adapted.named_parameters():
        if "default" in name:
            fill([parameter], file)
            # PEFT saves parameters in their own dtype.
            parameter.data = parameter.data.to(file)
    adapted.save_pretrained(str(folder))
    adapted.double()
    layers = {name: adapted.base_model.model.get_submodule(name) for name in kind.layers}
    return lyc.load_adapter(folder / "adapter_model.safetensors"), layers


def computed(layer: Any) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias with which an adapted layer of PEFT computes."""
    base = layer.base_layer
    if isinstance(base, nn.Embedding):
        with torch.no_grad():
            return layer.forward(torch.arange(base.num_embeddings)), None
    return affine(layer.forward, tuple(base.weight.shape))


NARROW = {kind: FILES[1 + number % 2] for number, kind in enumerate(KINDS)}
"""For each kind, a dtype of files other than float32."""
