"""An adapter file: its layers, lazily read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..algorithms import Layer, detect, explain
from ..algorithms.base import ALPHA
from ..algorithms.factored import DORA, SPARSE
from ..algorithms.ia3 import ON_INPUT, Ia3
from ..algorithms.lokr import W1, W2
from ..algorithms.lora import EMBEDDING_UP, RESHAPE, UP
from ..algorithms.oftv2 import SCALED, OftV2
from ..errors import FileFormatError, LayerError
from ..files.cache import DEFAULT_CACHE, TensorCache
from ..files.pickle_file import PickleFile
from ..files.safetensors_file import SafetensorsFile
from ..files.tensor_file import PICKLES, SAFETENSORS, Fingerprint, TensorFile
from ..maths.shapes import Extent, Shape
from ..maths.tensors import is_finite
from ..names.dialects import peft, recognise, split_prefix
from .grouping import group
from .network_args import is_block_diagonal, network_options, split_parts
from .options import check_options, options_of
from .peft import CONFIG_NAME, METADATA_KEY, PeftConfig, read_lora_metadata, read_peft_config

GENERIC_NAMES = ("adapter_model", "pytorch_lora_weights")
BUNDLED = "bundle_emb."
NOT_FACTORS = (ALPHA, RESHAPE, ON_INPUT, SCALED, SPARSE[0], SPARSE[2])
"""Suffixes of tensors that are numbers about the others."""
CONFIGURED = (OftV2, Ia3)
"""Kinds without an alpha of which PEFT's configuration says more than their tensors."""
OUTLINES = 4096
"""How many combinations of shapes are remembered: a model's layers have a few dozen."""
HEADERS = 64
"""How many files' headers are remembered, about 1 MB each for a large adapter."""


@dataclass(frozen=True, eq=False)
class Outline:
    """What the shapes of a layer's tensors tell: one for all the layers that have the same."""

    algorithm: type[Layer]
    shapes: Mapping[str, Shape]
    """The shapes of the tensors by canonical suffix."""
    shape: Extent
    """The shape of the change of the weight, see `Layer.shape`; () where only the bias changes."""
    rank: int | None

    @lru_cache(maxsize=OUTLINES)  # noqa: B019 - outlines are kept anyway, and are few
    def suits(self, weight: Shape) -> bool:
        """Whether the layer may change a weight of this shape."""
        return self.algorithm.suits(self.shapes, weight)


class LayerInfo(NamedTuple):
    """What the header tells of a layer: enough to match and report it without reading a tensor."""

    name: str
    keys: Mapping[str, str]
    """Canonical suffix to the key in the file."""
    outline: Outline
    bias: Shape | None
    """The shape of the change of the bias."""
    options: Mapping[str, Any]
    """What the layer needs to know and no tensor of the file says."""
    enlarges: bool
    """Whether the weight is enlarged to `shape` first."""
    peft: PeftConfig | None = None
    """The PEFT configuration that the layer follows: that of its file, or the one beside it."""

    @property
    def algorithm(self) -> type[Layer]:
        return self.outline.algorithm

    @property
    def shape(self) -> Extent:
        return self.outline.shape

    @property
    def rank(self) -> int | None:
        return self.outline.rank

    @property
    def made_for(self) -> str:
        """The weights that the layer can be applied to, in words for messages."""
        return self.algorithm.made_for(self.outline.shapes)

    def fits(self, weight: Shape) -> bool:
        """Whether the layer can be applied to a weight of this shape."""
        if self.enlarges:
            pairs = zip(weight, self.shape, strict=False)
            return len(weight) == len(self.shape) and all(new is None or old <= new for old, new in pairs)
        return self.outline.suits(weight)


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter file whose header is known and whose tensors are read when a layer is used.

    Two are equal where they are one: `load_adapter` gives the same for a file that did not change.
    """

    file: TensorFile
    dialect: str
    info: Mapping[str, LayerInfo]
    unreadable: Mapping[str, str]
    """Layers that no algorithm reads, with the reason: they are reported, never dropped."""
    unused_keys: tuple[str, ...]
    embeddings: tuple[str, ...] = ()
    """Names of the embeddings (textual inversions) that the file brings along; they are not applied."""
    config: str | None = None
    """The PEFT configuration that lies beside the file, whether or not a layer follows it."""
    cache: TensorCache = field(default=DEFAULT_CACHE, repr=False)

    @property
    def path(self) -> str:
        return self.file.fingerprint.path

    @property
    def name(self) -> str:
        """The file's name, with its folder where the tool that wrote it names all files alike."""
        path = Path(self.path)
        return f"{path.parent.name}/{path.name}" if path.stem in GENERIC_NAMES else path.name

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.file.metadata

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Name as on disk, without suffix, to the layer, whose tensors are read on access."""
        return _Layers(self)

    def layer(self, name: str, *, keep: bool = True) -> Layer:
        """Read one layer; with `keep` False it passes by the cache and leaves no trace in memory.

        Raises LayerError for NaN, infinity, or tensors that contradict each other.
        """
        info = self.info[name]
        tensors = self.file.read(tuple(info.keys.values()), self.cache, keep=keep)
        for key, tensor in tensors.items():
            if key not in (info.keys.get(suffix) for suffix in NOT_FACTORS):
                _check_finite(key, tensor, self.path)
        named = {suffix: tensors[key] for suffix, key in info.keys.items()}
        try:
            return info.algorithm.load(self._read(info, named), info.options)
        except LayerError as error:
            raise error.within(file=self.path, key=name) from None

    def alphas(self) -> dict[str, float | None]:
        """Every layer's alpha, None where there is none; no other tensor is read for it."""
        keys = {name: info.keys[ALPHA] for name, info in self.info.items() if ALPHA in info.keys}
        tensors = self.file.read(tuple(keys.values()), self.cache)
        alphas: dict[str, float | None] = {}
        for name, info in self.info.items():
            if name in keys:
                alphas[name] = float(tensors[keys[name]].flatten()[0])
            else:
                alphas[name] = self._peft_alpha(info)
        return alphas

    @property
    def without_alpha(self) -> tuple[str, ...]:
        """Layers whose scale, or series, nothing says: neither a tensor nor a configuration."""
        return tuple(
            name
            for name, info in self.info.items()
            if info.peft is None
            and ALPHA not in info.keys
            and (info.algorithm.scaled_by_alpha or info.algorithm in CONFIGURED)
        )

    def _peft_alpha(self, info: LayerInfo) -> float | None:
        if info.peft is None or info.rank is None or not info.algorithm.scaled_by_alpha:
            return None
        return info.peft.alpha_of(_path(info.name), info.rank)

    def _read(self, info: LayerInfo, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as the algorithm defines them, from what the dialect wrote."""
        read = dict(tensors)
        if DORA in read and not info.keys[DORA].endswith(DORA):
            # PEFT's magnitude has a shape of its own, (1, O, 1, 1), and is always for outputs.
            # That of an embedding is for its features, which a layer of words has as inputs.
            read[DORA] = read[DORA].reshape((1, -1) if EMBEDDING_UP in read else (-1,))
        if info.enlarges and RESHAPE not in read:
            read[RESHAPE] = torch.tensor([size for size in info.shape if size is not None])
        if ALPHA in read:
            shares = split_parts(self.metadata, info.name, info.rank)
            if shares and UP in read and is_block_diagonal(read[UP], shares):
                read[ALPHA] = read[ALPHA].double() * len(shares)
            return read
        alpha = self._peft_alpha(info)
        if alpha is not None:
            read[ALPHA] = torch.tensor(alpha, dtype=torch.float64)
        if info.peft is not None and W1 in read and W2 in read:
            # PEFT scales even a LoKr layer without a low-rank factor.
            read[W1] = read[W1].float() * info.peft.scale_of(_path(info.name))
        return read


def _path(layer: str) -> str:
    """A layer's path in its module, as PEFT's patterns are written for it."""
    return split_prefix(layer)[2]


class _Layers(Mapping[str, Layer]):
    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def __getitem__(self, name: str) -> Layer:
        return self._adapter.layer(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapter.info)

    def __len__(self) -> int:
        return len(self._adapter.info)


def load_adapter(
    path: str | os.PathLike[str], *, cache: TensorCache = DEFAULT_CACHE, **options: Any
) -> Adapter:
    """Open an adapter: .safetensors, or a pickle of plain tensors (.pt, .pth, .ckpt, .bin).

    Only the header of a safetensors file is read, and that only once for as long as path, size and
    time of change stay the same. `options` are what a file does not say: `dora` ("paper" or "host", see
    `algorithms.factored`), `sig_type` of T-LoRA, `terms` and `constraint` of OFTv2.

    Raises FileFormatError for a file that is damaged or holds no adapter, LayerError where the shapes of
    a layer contradict each other, LycorisError for an unknown option or value.
    """
    check_options(options, str(path))
    return _load(*_fingerprints(path), cache, tuple(sorted(options.items())))


def adapter_stamp(path: str | os.PathLike[str]) -> str:
    """A short text that changes when an adapter would load differently: its file or its PEFT config."""
    return "+".join(found.stamp for found in _fingerprints(path) if found)


def _fingerprints(path: str | os.PathLike[str]) -> tuple[Fingerprint, Fingerprint | None]:
    config = Path(path).with_name(CONFIG_NAME)
    return Fingerprint.of(path), Fingerprint.of(config) if config.is_file() else None


@lru_cache(maxsize=HEADERS)
def _load(
    fingerprint: Fingerprint,
    config: Fingerprint | None,
    cache: TensorCache,
    options: tuple[tuple[str, Any], ...],
) -> Adapter:
    file = _open(fingerprint.path, cache)
    dialect = recognise(file.tensors)
    grouped, unused = group(file, dialect)
    names = {split_prefix(name)[0] for name in grouped}
    spoken = dialect.name if dialect else "+".join(sorted(name or "bare" for name in names))
    configs = _Configs.of(file, config, all_peft=dialect is peft.DIALECT)
    given = {**network_options(file.metadata), **dict(options)}
    info: dict[str, LayerInfo] = {}
    unreadable: dict[str, str] = {}
    for name, keys in grouped.items():
        shapes = tuple([(suffix, file.tensors[key].shape) for suffix, key in keys.items()])
        enlarges = RESHAPE in keys or (dialect is not None and name in dialect.enlarged)
        try:
            outline = _outline(shapes)
            if outline is not None:
                info[name] = _describe(name, outline, keys, configs, given, enlarges)
                continue
        except LayerError as error:
            raise error.within(file=fingerprint.path, key=name) from None
        unreadable[name] = explain(keys)
        unused.extend(keys.values())
    if not grouped:
        raise FileFormatError(
            "the file holds no adapter layer",
            file=fingerprint.path,
            got=_sample(unused),
            expected="keys such as <layer>.lora_up.weight, <layer>.hada_w1_a or <layer>.lokr_w1",
            hint=f"It holds several adapters, {', '.join(names)}: write one of them into a file of its own"
            if len(names := sorted(peft.adapter_names(unused))) > 1
            else "A checkpoint or an embedding is not an adapter: load it with its own node",
        )
    embeddings = sorted({key.split(".")[1] for key in unused if key.startswith(BUNDLED)})
    rest = tuple(key for key in unused if not key.startswith(BUNDLED))
    beside = config.path if config else None
    return Adapter(file, spoken, info, unreadable, rest, tuple(embeddings), beside, cache)


@dataclass
class _Configs:
    """The PEFT configurations that a file's layers may follow.

    Those in a file are for its parts of a model. The one beside it is for every layer with PEFT's
    prefix; in a folder of many files it may be that of another, so a layer that only has PEFT's suffixes
    must have the rank that it says, and one with an alpha of its own never follows it.
    """

    own: Mapping[str, PeftConfig]
    """By the part of the model they are for; "" is for all."""
    beside: str | None
    all_peft: bool

    @classmethod
    def of(cls, file: TensorFile, config: Fingerprint | None, *, all_peft: bool) -> _Configs:
        if METADATA_KEY in file.metadata:
            own = read_lora_metadata(file.metadata[METADATA_KEY], file.fingerprint.path)
            return cls(own, None, all_peft)
        return cls({}, config.path if config else None, all_peft)

    def of_layer(
        self, name: str, algorithm: type[Layer], keys: Mapping[str, str], rank: int | None
    ) -> PeftConfig | None:
        """The configuration that a layer follows."""
        if ALPHA in keys and algorithm.scaled_by_alpha:
            return None
        if self.beside is None:
            return self.own.get(name.partition(".")[0]) or self.own.get("")
        if self.all_peft or split_prefix(name)[0] == peft.DIALECT.name:
            return self._read
        if any(key.endswith(peft.OWN) for key in keys.values()) and self._read.rank_at(_path(name)) == rank:
            return self._read
        return None

    @cached_property
    def _read(self) -> PeftConfig:
        """Read only where a layer may follow it: a damaged one is no concern of other files."""
        assert self.beside is not None
        return read_peft_config(self.beside)


def _options(
    algorithm: type[Layer], name: str, config: PeftConfig | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What a layer needs to know and no tensor says: as given, else as the configuration says."""
    wanted = options_of(algorithm)
    if not wanted:
        return {}
    found = {**(config.options(algorithm.algorithm, _path(name)) if config else {}), **given}
    return {option: value for option, value in found.items() if option in wanted}


def _open(path: str, cache: TensorCache) -> TensorFile:
    suffix = Path(path).suffix.lower()
    if suffix in SAFETENSORS:
        return SafetensorsFile.open(path)
    if suffix in PICKLES:
        return PickleFile.open(path, cache)
    raise FileFormatError(
        "an unknown kind of file",
        file=path,
        got=suffix or "no ending",
        expected=", ".join(SAFETENSORS + PICKLES),
    )


@lru_cache(maxsize=OUTLINES)
def _outline(named: tuple[tuple[str, Shape], ...]) -> Outline | None:
    """What tensors of these suffixes and shapes are; None where no algorithm reads them."""
    shapes = dict(named)
    algorithm = detect(shapes)
    if algorithm is None:
        return None
    if math.prod(shapes.get(ALPHA, ())) != 1:
        raise LayerError("alpha is not a single number", got=str(list(shapes[ALPHA])), expected="[]")
    return Outline(algorithm, shapes, algorithm.shape(shapes), algorithm.rank_of(shapes))


def _describe(
    name: str,
    outline: Outline,
    keys: dict[str, str],
    configs: _Configs,
    given: Mapping[str, Any],
    enlarges: bool,
) -> LayerInfo:
    algorithm = outline.algorithm
    config = configs.of_layer(name, algorithm, keys, outline.rank)
    options = _options(algorithm, name, config, given)
    bias = algorithm.bias_shape(outline.shapes, options)
    return LayerInfo(name, keys, outline, bias, options, enlarges, config)


def _check_finite(key: str, tensor: Tensor, path: str) -> None:
    if not tensor.is_floating_point():
        raise LayerError(
            "a factor is not of a floating-point dtype",
            file=path,
            key=key,
            got=str(tensor.dtype),
            expected="float16, bfloat16 or float32",
        )
    if not is_finite(tensor):
        bad = int((~torch.isfinite(tensor.float())).sum())
        raise LayerError(
            "a factor holds NaN or infinity",
            file=path,
            key=key,
            got=f"{bad} of {tensor.numel()} values",
            expected="finite numbers",
            hint="The training that wrote it diverged, or it was saved in a dtype too narrow for it",
        )


def _sample(keys: list[str], count: int = 3) -> str:
    shown = ", ".join(sorted(keys)[:count])
    return f"{len(keys)} other keys, such as {shown}" if keys else "no key at all"
