"""Bars for the block weights of a row on the page, from `lycoris_ops.Bars`.

A question of the page is a table: `file` is the row's file, `model` and `clip` are as in `known_files`. If
the file of the connected model is not known, another file of the same family stands in for it, or else the
row's own layers do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from math import fsum
from typing import Any

from torch import Tensor

from ...lycoris_ops import (
    AboutModel,
    Bars,
    Fingerprint,
    LycorisError,
    MatchError,
    Weights,
    load_adapter,
    weights_of,
)
from ..files.codec import HostCodec
from ..files.loras import is_lora, lora_path
from ..files.models import known_files, model_like, model_path, told_model
from .presets import known_presets, own_presets, parsed

SECONDS = 0.4
"""Seconds of measuring before an answer. The page asks again while a part of the file is unmeasured."""


def shown_bars(question: Mapping[str, Any]) -> dict[str, Any]:
    """The bars of a row, each with its share of the file's change, as far as it is measured."""
    bars, model, connected = _asked(question)
    # Presets come with the last answer, because it takes time to find those that fit the model.
    measured = bars.measure(SECONDS)
    presets = _fitting(bars, tuple(known_presets(own_presets()).items())) if measured else {}
    groups = [
        {
            "name": group.name,
            "sort": group.sort,
            "bars": [
                {
                    "name": bar.name,
                    "layers": len(bar.members),
                    "mine": len(bar.layers),
                    "share": bars.share(bar),
                }
                for bar in group.bars
            ],
        }
        for group in bars.groups
    ]
    counts = {"done": bars.done, "of": len(bars.matches), "unmeasured": bars.unmeasured}
    return {"model": model, "connected": connected, "groups": groups, "presets": presets, **counts}


def weighed_bars(question: Mapping[str, Any]) -> dict[str, Any]:
    """What the `rules` of the question do to each bar, and the mean weights that the row's button draws.

    `line` has the mean weight of each block of the diffusion model that the file changes, then of each
    further group: the layers outside the blocks, and each text encoder.

    Raises LycorisError for rules that cannot be used.
    """
    rules = parsed(question["rules"], own_presets())
    if not is_lora(question["file"]):
        # The row itself shows that the file is missing.
        return {"line": [], "weights": {}, "idle": []}
    bars, *_ = _asked(question)
    weighed = bars.weighed(rules)
    line: list[float] = []
    for group in bars.groups:
        means = [weighed.weights[bar.name].mean for bar in group.bars if bar.layers]
        if group.sort == "blocks":
            line += means
        elif group.sort != "kinds" and means:
            line.append(fsum(means) / len(means))
    return {"line": line, "weights": weighed.weights, "idle": weighed.idle}


def _asked(question: Mapping[str, Any]) -> tuple[Bars, str, bool]:
    """The bars, the model file that they are for, and whether that is the connected model."""
    path = lora_path(question["file"])
    files = known_files(question)
    about = told_model(files) if files else None
    connected = about is not None
    if about is None:
        like = model_like(load_adapter(path).families)
        files = [like] if like else []
        about = told_model(files) if files else None
    file = Fingerprint.of(path)
    try:
        model = files[0] if files else ""
        return _bars(file, about, model), model, connected
    except MatchError:
        # The file has names that mean several layers of this model.
        return _bars(file, None, ""), "", False


@lru_cache(maxsize=16)
def _bars(file: Fingerprint, about: AboutModel | None, model: str) -> Bars:
    return Bars(
        load_adapter(file.path),
        about.blocks if about else None,
        read=_reader(model) if about else None,
    )


def _reader(model: str) -> Callable[[str], Tensor | None]:
    """A function that reads a weight of a model's file in float32.

    It takes the key in the file or in the loaded model, and returns None if the weight cannot be read.
    """
    live = "diffusion_model."

    @cache
    def weights() -> Weights:
        return weights_of(model_path(model), HostCodec("" if model.startswith("checkpoints/") else live))

    def read(key: str) -> Tensor | None:
        try:
            held = weights()
            name = key if key in held.shapes else key.removeprefix(live)
            return held.read(name).float() if name in held.shapes else None
        except LycorisError:
            # Nothing here reads its format: the bars say that the weight is not counted.
            return None

    return read


@lru_cache(maxsize=16)
def _fitting(bars: Bars, presets: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return bars.fitting(dict(presets))
