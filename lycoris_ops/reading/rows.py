"""A file of PEFT's trained tokens, with the row numbers from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..algorithms.full import ROWS_AT, SET_ROWS
from ..errors import FileFormatError
from ..files.tensor_file import DerivedFile, TensorFile, TensorInfo
from ..names.dialects import split_key
from ..names.layer_name import LayerName
from ..peft import TOKENS, Config
from ..peft.kinds.trainable_tokens import DELTA


def has_rows(key: str) -> bool:
    """Whether a tensor of this name holds the values of trained tokens."""
    return DELTA in key


def with_rows(file: TensorFile, config: Config[Any]) -> TensorFile:
    """The file with one more tensor for each layer: the row numbers that the configuration gives.

    Raises FileFormatError where the configuration gives no numbers for a layer, or too many or too few.
    """
    tensors = dict(file.tensors)
    made: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {}
    for key in filter(has_rows, file.tensors):
        name, suffix = split_key(key) or ("", "")
        if suffix != SET_ROWS:
            continue
        rows, held = config.rows_at(LayerName.of(name).path) or (), file.tensors[key].shape
        if len(rows) != held[0]:
            raise FileFormatError(
                "the configuration names more or fewer trained tokens than the file holds",
                file=config.path,
                key=f"{TOKENS} of {name}",
                got=f"{len(rows)} numbers",
                expected=f"{held[0]}, for {key}",
            )
        numbers = torch.tensor(rows)
        tensors[f"{name}.{ROWS_AT}"] = TensorInfo.of(numbers)
        made[f"{name}.{ROWS_AT}"] = (key, lambda _, numbers=numbers: numbers)
    return DerivedFile(file, tensors, made) if made else file
