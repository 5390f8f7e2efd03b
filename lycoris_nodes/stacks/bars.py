"""Bars for the block weights of a row on the page, from `lycoris_ops.Bars`.

If the file of the connected model is not known, another file of the same family stands in for it, or else the
row's own layers do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import fsum
from typing import Literal

from torch import Tensor

from ...lycoris_ops import (
    AboutModel,
    Bars,
    BarWeight,
    Fingerprint,
    LycorisError,
    MatchError,
    Weights,
    load_adapter,
    weights_of,
)
from ..files.codec import HostCodec
from ..files.loras import is_lora, lora_path
from ..files.models import ModelQuestion, known_files, model_like, model_path, told_model
from .presets import known_presets, own_presets, parsed

SECONDS = 0.4
"""Seconds of measuring before an answer. The page asks again while a part of the file is unmeasured."""


@dataclass(frozen=True)
class BarsQuestion(ModelQuestion):
    """About the bars of a row."""

    file: str


@dataclass(frozen=True)
class RulesQuestion(BarsQuestion):
    """About what rules do to the bars."""

    rules: str


@dataclass(frozen=True)
class PaintQuestion(RulesQuestion):
    """About rules after some bars have been set."""

    weights: Mapping[str, float]
    """The new weights, by the names of bars."""


@dataclass(frozen=True)
class ShownBar:
    name: str
    layers: int
    """The number of the model's layers."""
    mine: int
    """The number of the file's layers."""
    share: float
    """The bar's part of the file's change, from 0 to 1."""


@dataclass(frozen=True)
class ShownGroup:
    name: str
    sort: Literal["blocks", "beside", "text", "kinds"]
    """`beside` is for layers in no list of blocks, `text` for a text encoder."""
    bars: Sequence[ShownBar]


@dataclass(frozen=True)
class ShownBars:
    """The bars of a row, each with its share of the file's change, as far as it is measured."""

    model: str
    """The file whose blocks they are, as `folder/name`; "" for the blocks that the row's file names."""
    connected: bool
    groups: Sequence[ShownGroup]
    presets: Mapping[str, str]
    done: int
    of: int
    unmeasured: int


@dataclass(frozen=True)
class WeighedBars:
    """What rules do to the bars."""

    line: Sequence[float]
    """The mean weight of each block of the diffusion model that the file changes, then of each further group:
    the layers outside the blocks, and each text encoder. The row's button draws it."""
    weights: Mapping[str, BarWeight]
    """By the names of bars, without the lines that scale kinds."""
    kinds: Mapping[str, float]
    """The factors that these lines give kinds."""
    idle: Sequence[str]


@dataclass(frozen=True)
class PaintedRules:
    rules: str


def shown_bars(question: BarsQuestion) -> ShownBars:
    bars, model, connected = _asked(question)
    # Presets come with the last answer, because it takes time to find those that fit the model.
    measured = bars.measure(SECONDS)
    presets = _fitting(bars, tuple(known_presets(own_presets()).items())) if measured else {}
    groups = [
        ShownGroup(
            group.name,
            group.sort,
            [ShownBar(bar.name, len(bar.members), len(bar.layers), bars.share(bar)) for bar in group.bars],
        )
        for group in bars.groups
    ]
    return ShownBars(model, connected, groups, presets, bars.done, len(bars.matches), bars.unmeasured)


def weighed_bars(question: RulesQuestion) -> WeighedBars:
    """Raises LycorisError for rules that cannot be used."""
    own = own_presets()
    rules = parsed(question.rules, own)
    if not is_lora(question.file):
        # The row itself shows that the file is missing.
        return WeighedBars((), {}, {}, ())
    bars, *_ = _asked(question)
    weighed = bars.weighed(rules)
    line: list[float] = []
    for group in bars.groups:
        means = [weighed.weights[bar.name].mean for bar in group.bars if bar.layers]
        if group.sort == "blocks":
            line += means
        elif group.sort != "kinds" and means:
            line.append(fsum(means) / len(means))
    text, kinds = bars.kinds_of(question.rules)
    blocks = bars.weighed(parsed(text, own)) if kinds else weighed
    return WeighedBars(line, blocks.weights, kinds, weighed.idle)


def painted_rules(question: PaintQuestion) -> PaintedRules:
    bars, *_ = _asked(question)
    return PaintedRules(bars.painted(question.rules, question.weights))


def _asked(question: BarsQuestion) -> tuple[Bars, str, bool]:
    """The bars, the model file that they are for, and whether that is the connected model."""
    path = lora_path(question.file)
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
