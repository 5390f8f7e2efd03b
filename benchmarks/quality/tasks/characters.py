"""A small GPT on characters, trained on English and adapted to German.

The texts are Mercurial's messages and help texts from the catalogues in its wheel: the English ones that its
Brazilian catalogue translates, and the German ones of its German catalogue.
"""

from __future__ import annotations

import functools
import gettext
import random
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.harness.packages import Package

from ..bases import OwnBase
from ..networks import Block, positions
from ..task import Split

ENGLISH = "mercurial/locale/pt_BR/LC_MESSAGES/hg.mo"
GERMAN = "mercurial/locale/de/LC_MESSAGES/hg.mo"
DATA = Package(
    "mercurial",
    "7.2.4",
    {
        ENGLISH: "a0079dbbd32f38f90651c6827918c712e623b6f57ebeafba5b820f467929743d",
        GERMAN: "941d085a959919f3fc2b3a2e7ecf26facc3dfeac3498cf58d3a8448f2e9671f7",
    },
)
CHARACTERS = "\n " + string.digits + string.ascii_letters + string.punctuation + "äöüÄÖÜß–"
"""All that are read. Others are left out. A line feed ends each text."""
SHARES = {"tune": 0.1, "test": 0.2}
"""Of the texts, how many are held out."""


class Gpt(nn.Module):
    """The logits (B, N, characters) of the next character at each of N places."""

    def __init__(self, width: int, depth: int, heads: int, length: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(CHARACTERS), width)
        self.places = positions(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(CHARACTERS))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.letters(ids) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class Characters(OwnBase):
    name: str = "characters"
    held_out_batches: Mapping[str, int] = field(default_factory=lambda: {"tune": 4, "test": 6}, hash=False)
    batch: int = 8
    length: int = 64
    width: int = 64
    depth: int = 4
    heads: int = 4
    base_steps: int = 1500
    base_batch: int = 16
    base_lr: float = 3e-3
    language: str = "German"
    untuned: ClassVar[bool] = True

    def recipe(self) -> tuple[object, Callable[[], nn.Module]]:
        shape = (self.width, self.depth, self.heads, self.length)
        recipe = (shape, self.base_steps, self.base_batch, self.base_lr, DATA.version, CHARACTERS)
        return recipe, lambda: Gpt(*shape)

    def batches(self, seed: int, split: Split) -> Iterator[Tensor]:
        # What is held out is measured on four times as many characters at once.
        count = self.batch if split == "train" else 4 * self.batch
        return _pieces(_german()[split], self.length, count, seed)

    def base_batches(self) -> Iterator[Tensor]:
        return _pieces(_english(), self.length, self.base_batch, 0)

    def loss(self, module: nn.Module, batch: Tensor) -> Tensor:
        return functional.cross_entropy(module(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def _pieces(text: Tensor, length: int, count: int, seed: int) -> Iterator[Tensor]:
    """Ids (count, length + 1) of pieces from anywhere in a text."""
    draw = random.Random(seed)
    while True:
        starts = [draw.randrange(len(text) - length) for _ in range(count)]
        yield torch.stack([text[start : start + length + 1] for start in starts])


def _ids(texts: list[str]) -> Tensor:
    known = {character: number for number, character in enumerate(CHARACTERS)}
    lines = (" ".join(text.split()) + "\n" for text in texts)
    return torch.tensor([known[character] for line in lines for character in line if character in known])


def _messages(path: str) -> list[tuple[str, str]]:
    """The pairs of an English text and its translation, in an order that is the same every time."""
    with DATA.file(path).open("rb") as file:
        catalogue = gettext.GNUTranslations(file)
    # All of a catalogue, which gettext itself only looks up one by one. Texts with plurals are left out.
    pairs: dict[object, str] = catalogue._catalog  # type: ignore[attr-defined]
    found = sorted((key, value) for key, value in pairs.items() if isinstance(key, str) and key)
    random.Random("order").shuffle(found)
    return found


@functools.cache
def _english() -> Tensor:
    return _ids([english for english, _ in _messages(ENGLISH)])


@functools.cache
def _german() -> dict[Split, Tensor]:
    # Some English texts have one German text in common, which is to be in one split alone.
    texts = list(dict.fromkeys(german for english, german in _messages(GERMAN) if german != english))
    tune, test = (round(share * len(texts)) for share in SHARES.values())
    return {
        "tune": _ids(texts[:tune]),
        "test": _ids(texts[tune : tune + test]),
        "train": _ids(texts[tune + test :]),
    }
