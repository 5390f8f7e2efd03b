"""Processes that hold a Llama in parts, as transformers divides it: see test_meshes.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import lycoris_ops as lyc

SIZES: Any = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
BATCHES = [torch.randint(0, 32, (2, 8), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def write(folder: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder)
    return folder


def trained(folder: Path, include: str, **division: Any) -> list[Tensor]:
    """What the layers have learned."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, **division)

    def loss(module: nn.Module, ids: Tensor) -> Tensor:
        return module(input_ids=ids, labels=ids).loss

    net = lyc.create_lycoris(model, algorithm="full", include=include)
    lyc.train_network(net, BATCHES, loss, lyc.TrainOptions(steps=3, lr=0.01, bar=False))
    return [parameter.detach() for parameter in net.parameters()]


def divided(rank: int, folder: str, model: str) -> None:
    """Divided layers are refused before the first step. The norms, which are not divided, are trained."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    for include in ("*.q_proj", "*.o_proj"):
        with pytest.raises(lyc.LycorisError, match=r"whose forward others have replaced, and S\("):
            trained(Path(model), include, tp_plan="auto")
    norms = trained(Path(model), "*norm", tp_plan="auto")
    torch.save(norms, f"{folder}/{rank}.pt")
