"""The metadata of a written adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..algorithms.base import alpha_of
from ..errors import LycorisError
from ..files.dtypes import dtype_name
from ..files.writing import DATA_HASH, MODELSPEC_HASH, data_hash, metadata_of
from ..names.dialects import write_of
from ..names.network_args import plain_args
from ..peft import METADATA_KEY, WantedRank
from ..reading.adapter import TRANSPOSED, Adapter
from .writer import Made

DIM, NETWORK_ALPHA, DYNAMIC = "ss_network_dim", "ss_network_alpha", "Dynamic"
"""kohya-ss' metadata keys of rank and alpha, and the value of both where layers differ."""


def check_text(entries: Mapping[str, Any], error: type[LycorisError] = LycorisError) -> None:
    """Raise `error` for an entry that is neither text nor None: other readers refuse the whole file."""
    for name, value in entries.items():
        if not (value is None or isinstance(value, str)):
            raise error(
                "E-metadata-not-a-text",
                key=f"metadata[{name!r}]",
                got=repr(value),
                expected=f'"{value}"',
            )


def metadata_for(
    adapter: Adapter,
    dialect: str,
    dtype: torch.dtype | None,
    layers: Sequence[Made],
    added: Mapping[str, str | None],
    configuration: str | None,
) -> dict[str, str]:
    """The metadata to write: the source's entries that are still true, and those that the new file needs.

    The file needs the options of layers, the `configuration` where it is within, the recipe, and the `added`
    metadata, where None removes a key. `add_hashes` adds the hashes.
    """
    # The source's configuration is for the source's names and factors, not for the new ones.
    kept = {key: value for key, value in adapter.metadata.items() if key != METADATA_KEY}
    kept |= plain_args(kept, {key: str(v) for layer in layers for key, v in layer.encoded.options.items()})
    if adapter.transposed:
        kept[TRANSPOSED] = "true"
    ranks = {layer.layer.rank for layer in layers} - {None}
    # A joined layer has a rank of its own.
    if DIM in kept and kept[DIM] != DYNAMIC and ranks - {i.rank for i in adapter.info.values()}:
        kept |= {DIM: DYNAMIC, NETWORK_ALPHA: DYNAMIC}
    if NETWORK_ALPHA in kept and any(alpha_changed(layer) for layer in layers):
        kept[NETWORK_ALPHA] = DYNAMIC
    if configuration:
        kept[METADATA_KEY] = configuration
    recipe = {
        "source": adapter.name,
        "dialect": dialect,
        "dtype": "as in the source" if dtype is None else dtype_name(dtype),
    }
    return metadata_of(kept, added, recipe, "source_recipe")


def alpha_changed(written_layer: Made) -> bool:
    """Whether a layer is written with another alpha than its source has.

    False for a layer made of several, and where alpha is no scale.
    """
    if written_layer.source_alpha is None or not written_layer.layer.table.scaled_by_alpha:
        return False
    _, wanted = written_layer.encoded.configured or (None, None)
    written = wanted.alpha if isinstance(wanted, WantedRank) else alpha_of(written_layer.layer) or 0.0
    return not math.isclose(written, written_layer.source_alpha, rel_tol=1e-3)


def add_hashes(
    text: dict[str, str],
    tensors: Mapping[str, Tensor],
    before: Mapping[str, str],
    dialect: str,
    stated: Mapping[str, str | None],
) -> None:
    """Add hashes of the tensors' data to the metadata in `text`, except those that are `stated`.

    Added are the hashes that the source's metadata `before` had. kohya-ss' dialect also gets those that
    kohya-ss writes: always `sshs_model_hash`, and ModelSpec's where there is other metadata of ModelSpec.
    """
    hashes = write_of(dialect).hashes
    of_modelspec = hashes and any(key.startswith("modelspec.") for key in text)
    wanted = {
        DATA_HASH: DATA_HASH in before or hashes,
        MODELSPEC_HASH: MODELSPEC_HASH in before or of_modelspec,
    }
    if any(wanted[key] and key not in stated for key in wanted):
        digest = data_hash(tensors)
        values = {DATA_HASH: digest, MODELSPEC_HASH: f"0x{digest}"}
        text |= {key: values[key] for key in wanted if wanted[key] and key not in stated}
