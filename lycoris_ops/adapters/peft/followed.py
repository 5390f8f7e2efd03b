"""Which of PEFT's configurations, in a file and beside it, a layer of the file follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...algorithms import Layer
from ...algorithms.base import ALPHA
from ...files.tensor_file import Fingerprint, TensorFile
from ...names.dialects import peft, split_prefix
from . import METADATA_KEY, read_lora_metadata, read_peft_config
from .config import Config


@dataclass
class Configs:
    """The PEFT configurations that a file's layers may follow.

    Those in a file are for its parts of a model. The one beside it is for every layer with PEFT's
    prefix; in a folder of many files it may be that of another, so a layer that only has PEFT's suffixes
    must have the rank that it says, and one with an alpha of its own never follows it.
    """

    own: Mapping[str, Config[Any]]
    """By the part of the model they are for; "" is for all."""
    beside: str | None
    all_peft: bool

    @classmethod
    def of(cls, file: TensorFile, config: Fingerprint | None, *, all_peft: bool) -> Configs:
        if METADATA_KEY in file.metadata:
            own = read_lora_metadata(file.metadata[METADATA_KEY], file.path)
            return cls(own, None, all_peft)
        return cls({}, config.path if config else None, all_peft)

    def of_layer(
        self, name: str, algorithm: type[Layer], keys: Mapping[str, str], rank: int | None
    ) -> Config[Any] | None:
        """The configuration that a layer follows."""
        if ALPHA in keys and algorithm.scaled_by_alpha:
            return None
        if self.beside is None:
            return self.own.get(name.partition(".")[0]) or self.own.get("")
        if self.all_peft or split_prefix(name)[0] == peft.DIALECT.name:
            return self._read
        if (
            any(key.endswith(peft.OWN) for key in keys.values())
            and self._read.rank_at(split_prefix(name)[2]) == rank
        ):
            return self._read
        return None

    @cached_property
    def _read(self) -> Config[Any]:
        """Read only where a layer may follow it: a damaged one is no concern of other files."""
        assert self.beside is not None
        return read_peft_config(self.beside)
