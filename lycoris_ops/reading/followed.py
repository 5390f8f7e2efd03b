"""Find the PEFT configuration that a layer follows, in its file or beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..algorithms import Layer
from ..algorithms.axes import ALPHA, SET_BIAS
from ..algorithms.full import SET
from ..files.tensor_file import Fingerprint, TensorFile
from ..names.dialects import Groups, peft
from ..names.layer_name import LayerName
from ..peft import METADATA_KEY, Config, read_lora_metadata, read_peft_config

VALUES = {"weight": SET, "bias": SET_BIAS}
"""The endings of the keys of a module's own values, and their suffixes in a layer."""


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

    def take_values(self, grouped: Groups, unused: list[str], file: TensorFile) -> list[str]:
        """Make layers of biases and whole modules that PEFT trained without an adapter.

        Returns the other keys. With `bias` "all" the file holds every bias of the model, as `<layer>.bias`. A
        bias with a weight beside it belongs to a module that is saved whole, such as a new head.
        """
        taken: set[str] = set()
        for key in unused:
            name, _, end = key.rpartition(".")
            if not name or end not in VALUES:
                continue
            layer, alone = LayerName.of(name), end == "bias" and f"{name}.weight" not in file.tensors
            if (alone and self.sets_bias(layer)) or self.saves(layer):
                grouped.setdefault(name, {})[VALUES[end]] = key
                taken.add(key)
        return [key for key in unused if key not in taken]

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
