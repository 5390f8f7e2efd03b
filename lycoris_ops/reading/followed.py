"""Find the PEFT configuration that a layer follows, in its file or beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..algorithms import Layer
from ..algorithms.axes import ALPHA
from ..files.tensor_file import Fingerprint, TensorFile
from ..names.dialects import peft
from ..names.layer_name import LayerName
from ..peft import METADATA_KEY, Config, read_lora_metadata, read_peft_config


@dataclass
class Configs:
    """The PEFT configurations that a file's layers may follow.

    Each configuration in the file is for one part of a model. The one beside the file counts only if the file
    holds none. Then every layer with PEFT's prefix follows it. But in a folder of many files it may belong to
    another file, so a layer that only has PEFT's suffixes must also have the configuration's rank. A layer
    that has a tensor of the alpha that scales it follows no configuration.
    """

    own: Mapping[str, Config[Any]]
    """The configurations in the file, by the part of the model that each is for; "" is for all parts."""
    beside: str | None
    """The path of the configuration beside the file."""
    all_peft: bool
    """Whether the file as a whole was recognised as PEFT's, so that layers need no prefix."""

    @classmethod
    def of(cls, file: TensorFile, config: Fingerprint | None, *, all_peft: bool) -> Configs:
        # A configuration in the file certainly belongs to it; one beside it may not.
        if METADATA_KEY in file.metadata:
            own = read_lora_metadata(file.metadata[METADATA_KEY], file.path)
            return cls(own, None, all_peft)
        return cls({}, config.path if config else None, all_peft)

    def of_layer(
        self, name: LayerName, algorithm: type[Layer], keys: Mapping[str, str], rank: int | None
    ) -> Config[Any] | None:
        """The configuration that a layer follows, or None.

        `keys` are the keys of the layer's tensors by suffix.
        Raises FileFormatError for a configuration beside the file that cannot be followed.
        """
        if ALPHA in keys and algorithm.table.scaled_by_alpha:
            return None
        if self.beside is None:
            return self.own.get(name.text.partition(".")[0]) or self.own.get("")
        if self._is_peft(name):
            return self._read
        if any(key.endswith(peft.OWN) for key in keys.values()) and self._read.rank_at(name.path) == rank:
            return self._read
        return None

    def sets_bias(self, name: LayerName) -> bool:
        """Whether the key `<name>.bias` holds a trained bias, as the layer's configuration says.

        Raises FileFormatError as `of_layer` does.
        """
        return self.beside is not None and self._is_peft(name) and self._read.sets_biases

    def saves(self, name: LayerName) -> bool:
        """Whether the file holds a module's values, not changes of them, as the configuration beside it says.

        Raises FileFormatError as `of_layer` does.
        """
        return self.beside is not None and self._is_peft(name) and self._read.saves(name.path)

    def _is_peft(self, name: LayerName) -> bool:
        """Whether a layer of this name is certainly PEFT's."""
        return self.all_peft or name.dialect == peft.DIALECT.name

    @cached_property
    def _read(self) -> Config[Any]:
        """The configuration beside the file.

        It is read only where a layer may follow it, so a damaged one does not matter to other files.
        """
        assert self.beside is not None
        return read_peft_config(self.beside)
