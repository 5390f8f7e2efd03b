"""The weights of models that the host has loaded, as the library reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...lycoris_ops import LycorisError
from ..host.patching import merge_obstacle
from ..host.weights import key_patches, patched_weight, patcher_of, plain, weight_shapes


def connected_weights(model: Any, clip: Any) -> LoadedWeights | None:
    """The weights of what is connected to a node; None where neither a model nor a text encoder is."""
    return None if model is None and clip is None else LoadedWeights("the connected model", model, clip)


class LoadedWeights:
    """The weights of a MODEL, of a CLIP or of both, with the patches that are on them; see `Weights`.

    They are read one at a time: no weight is changed and no model is loaded.
    """

    def __init__(self, name: str, model: Any = None, clip: Any = None) -> None:
        self.name = name
        self._patchers: dict[str, Any] = {}
        self._patches: dict[str, list[Any]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for patchable in (model, clip):
            if patchable is None:
                continue
            patcher = patcher_of(patchable)
            found = key_patches(patcher)
            self._patches |= found
            self._patchers |= dict.fromkeys(found, patcher)
            shapes |= weight_shapes(patcher)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            key: shapes[key] for key in self._patches if key in shapes
        }

    def read(self, key: str) -> torch.Tensor:
        obstacle = merge_obstacle(self._patchers[key], key)
        if obstacle is not None:
            raise LycorisError(
                "a weight of a loaded model cannot be read",
                key=key,
                got=obstacle,
                hint="Choose the model's file instead, or load it in another format",
            )
        return patched_weight(self._patches[key], key)

    def reads(self, key: str) -> bool:
        weight = self._patches[key][0][0]
        return key.endswith(".weight") or bool(weight.is_floating_point())

    def grain(self, key: str) -> torch.dtype | None:
        if len(self._patches[key]) > 1:
            # The sum with its patches is formed in float32.
            return torch.float32
        weight = self._patches[key][0][0]
        return weight.dtype if plain(weight) is weight and weight.is_floating_point() else None
