"""A small model and networks beside it, for the tests of networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import lycoris_ops as lyc
from lycoris_ops.train.settings import trainable

RANK = 4


CONVOLUTIONS = {"conv1d": (nn.Conv1d, 12), "conv2d": (nn.Conv2d, 6), "conv3d": (nn.Conv3d, 5)}


class Model(nn.Module):
    """An embedding, a convolution, a norm and linear layers. The first linear layer runs twice in a pass."""

    def __init__(self, convolution: str = "conv1d") -> None:
        super().__init__()
        kind, self.places = CONVOLUTIONS[convolution]
        self.dimensions = int(convolution[4])
        self.words = nn.Embedding(16, 16)
        self.conv = kind(16, 24, 3, padding=1, stride=2)
        self.norm = nn.LayerNorm(24)
        self.blocks = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.head = nn.Linear(24, 8, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids).movedim(-1, 1)
        x = self.norm(self.conv(x).flatten(2).transpose(1, 2))
        for block in (*self.blocks, self.blocks[0]):
            x = x + functional.gelu(block(x))
        return self.head(x)

    def ids(self) -> Tensor:
        drawn = torch.Generator().manual_seed(5)
        return torch.randint(0, 16, (2, *(self.places,) * self.dimensions), generator=drawn)


ALL = ("words", "conv", "norm", "blocks", "head")


CASES: dict[str, dict[str, Any]] = {
    **{name: {"algorithm": name} for name in trainable() if name not in ("norm", "boft_peft", "vera")},
    "dora-output": {"dora": "output"},
    "dora-input": {"algorithm": "loha", "dora": "input"},
    "tucker": {"tucker": True},
    "loha-tucker": {"algorithm": "loha", "tucker": True, "form": "rebuilt"},
    "lokr-tucker": {"algorithm": "lokr", "tucker": True, "rank": 1, "factor": 2},
    "lokr-both": {"algorithm": "lokr", "decompose_both": True, "rank": 1},
    "rslora-bias": {"rslora": True, "bias": True, "alpha": 3.0},
}


def made(model: nn.Module, *, moved: bool = True, **options: Any) -> lyc.LycorisNetwork:
    """A network of rank 4 that acts on its model, moved away from its start where wanted."""
    return unattached(model, moved=moved, **options).apply_to()


def unattached(model: nn.Module, *, moved: bool = True, **options: Any) -> lyc.LycorisNetwork:
    """As `made`, but not yet applied to its model."""
    options = {"rank": RANK, "seed": 1, **options}
    network = lyc.create_lycoris(model, **options)
    if moved:
        move(network, draw=torch.Generator().manual_seed(2))
    return network


@torch.no_grad()
def move(module: nn.Module, by: float = 0.1, draw: torch.Generator | None = None) -> None:
    """Add random values of this size to all that is trained in a module."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(by * torch.randn(parameter.shape, generator=draw))


def loss(output: Tensor) -> Tensor:
    return (output - 1).square().mean()


def state(model: nn.Module) -> tuple[dict[str, Tensor], list[Any]]:
    """Everything in a model that a network could leave changed."""
    hooks = [
        (len(inner._forward_hooks), len(inner._forward_pre_hooks), sorted(vars(inner)))
        for inner in model.modules()
    ]
    return {k: v.clone() for k, v in model.state_dict().items()}, [
        hooks,
        [parameter.requires_grad for parameter in model.parameters()],
    ]


def small_unet() -> nn.Module:
    import diffusers

    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
    ).eval()
