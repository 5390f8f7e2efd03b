"""A file of PEFT's trained tokens, with the row numbers from its configuration."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ..algorithms.full import ROWS_AT
from ..errors import FileFormatError
from ..files.tensor_file import DerivedFile, TensorFile, TensorInfo
from ..messages import phrase
from .config import PREFIX, TOKENS, Config
from .kinds.trainable_tokens import BESIDE, DELTA

VALUES = re.compile(rf"^(.+?)\.(?:{re.escape(BESIDE[DELTA])}|{DELTA})(?:\.default)?\Z", re.DOTALL)
"""A key of the values of trained tokens. The group is the layer's name."""


def has_rows(key: str) -> bool:
    """Whether a tensor of this name holds the values of trained tokens."""
    return DELTA in key


def with_rows(file: TensorFile, config: Config[Any]) -> TensorFile:
    """The file with one more tensor for each layer: the row numbers that the configuration gives.

    Raises FileFormatError where the configuration gives no numbers for a layer, or too many or too few.
    """
    added: dict[str, Tensor] = {}
    for key in filter(has_rows, file.tensors):
        if (match := VALUES.match(key)) is None:
            continue
        name, held = match[1], file.tensors[key].shape
        rows = config.rows_at(name.rpartition(PREFIX)[2]) or ()
        if len(rows) != held[0]:
            raise FileFormatError(
                "E-peft-tokens-miscount",
                file=config.path,
                key=phrase("R-of-3", tokens=TOKENS, name=name),
                numbers=len(rows),
                held=held[0],
                tensor=key,
            )
        added[f"{name}.{ROWS_AT}"] = torch.tensor(rows)
    if not added:
        return file
    infos = {key: TensorInfo.of(numbers) for key, numbers in added.items()}
    return DerivedFile(file, {**file.tensors, **infos}, {}, added)
