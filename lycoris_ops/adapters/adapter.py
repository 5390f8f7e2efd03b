"""An adapter: its layers, described at once and read when they are used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..algorithms import Layer, detect
from ..algorithms.base import ALPHA
from ..algorithms.factored import DORA, SPARSE
from ..algorithms.ia3 import ON_INPUT, Ia3
from ..algorithms.lokr import W1, W2
from ..algorithms.lora import EMBEDDING_UP, RESHAPE, UP
from ..algorithms.oftv2 import SCALED, OftV2
from ..errors import LayerError, LycorisError
from ..files.cache import DEFAULT_CACHE, TensorCache
from ..files.memory_file import MemoryFile
from ..files.tensor_file import TensorFile
from ..maths.shapes import Extent, Shape
from ..maths.tensors import is_finite
from ..names.dialects import split_prefix
from .network_args import is_block_diagonal, plain_args, split_parts
from .options import options_of
from .peft import Config

BUNDLED = "bundle_emb."
"""What the keys of embeddings that a file brings along begin with; the embedding's name follows."""
NOT_FACTORS = (ALPHA, RESHAPE, ON_INPUT, SCALED, SPARSE[0], SPARSE[2])
"""Suffixes of tensors that are numbers about the others."""
CONFIGURED = (OftV2, Ia3)
"""Kinds without an alpha of which PEFT's configuration says more than their tensors."""
OUTLINES = 4096
"""How many combinations of shapes are remembered: a model's layers have a few dozen."""


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
    peft: Config[Any] | None = None
    """The PEFT configuration that the layer follows: that of its file, or the one beside it."""

    @classmethod
    def of(
        cls,
        name: str,
        keys: Mapping[str, str],
        outline: Outline,
        options: Mapping[str, Any],
        *,
        enlarges: bool,
        peft: Config[Any] | None = None,
    ) -> LayerInfo:
        bias = outline.algorithm.bias_shape(outline.shapes, options)
        return cls(name, keys, outline, bias, options, enlarges, peft)

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
    """An adapter in a file, whose header is known and whose tensors are read when a layer is used; or in
    memory.

    Two are equal where they are one: `load_adapter` gives the same for a file that did not change.
    """

    file: TensorFile
    name: str
    """What reports call it: the file's name, with its folder where the tool that wrote it names all alike."""
    dialect: str
    info: Mapping[str, LayerInfo]
    unreadable: Mapping[str, str] = field(default_factory=dict[str, str])
    """Layers that no algorithm reads, with the reason: they are reported, never dropped."""
    unused_keys: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    """Names of the embeddings (textual inversions) that the file brings along; they are not applied."""
    config: str | None = None
    """The PEFT configuration that lies beside the file, whether or not a layer follows it."""
    cache: TensorCache = field(default=DEFAULT_CACHE, repr=False)

    @classmethod
    def of(
        cls,
        layers: Mapping[str, Layer],
        *,
        name: str,
        dialect: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Adapter:
        """An adapter of layers in memory, by their names; it can be all that one from a file can be.

        A layer's name is read as in a file: by its prefix (`lora_unet_`, `diffusion_model.`), else as a
        path in the model itself. `name` is what reports and errors call the adapter, `dialect` what they
        call the style of its names, which is told from their prefixes unless given. `metadata` goes with it
        where it is saved, and is no part of how its layers are read.

        Raises LayerError for a layer that its tensors do not state (see `Layer.dump`), LycorisError where
        there are no layers.
        """
        if not layers:
            raise LycorisError("an adapter has no layers", file=name, expected="one layer or more")
        tensors: dict[str, Tensor] = {}
        info: dict[str, LayerInfo] = {}
        for path, layer in layers.items():
            held = {suffix: tensor.detach() for suffix, tensor in layer.dump().items()}
            keys = {suffix: f"{path}.{suffix}" for suffix in held}
            tensors |= {keys[suffix]: tensor for suffix, tensor in held.items()}
            options = {option: getattr(layer, option) for option in options_of(type(layer))}
            outline = outline_of(tuple((suffix, tuple(tensor.shape)) for suffix, tensor in held.items()))
            if outline is None or outline.algorithm is not type(layer):
                raise LayerError(
                    "the tensors of a layer are read as another kind",
                    file=name,
                    key=path,
                    got=outline.algorithm.algorithm if outline else ", ".join(sorted(held)),
                    expected=layer.algorithm,
                )
            info[path] = LayerInfo.of(path, keys, outline, options, enlarges=RESHAPE in held)
        # What kohya's split_qkv says of alphas is no longer true: they are what they say.
        said = {**(metadata or {}), **plain_args(metadata or {}, {})}
        return cls(MemoryFile.of(name, tensors, said), name, dialect or spoken_in(info), info)

    @property
    def path(self) -> str:
        """Where errors say that it is: the full path of a file."""
        return self.file.path

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
        return info.peft.alpha_at(module_path(info.name), info.rank)

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
            read[W1] = read[W1].float() * info.peft.scale_at(module_path(info.name))
        return read


def module_path(layer: str) -> str:
    """A layer's path in its module, as PEFT's patterns are written for it."""
    return split_prefix(layer)[2]


def spoken_in(layers: Iterable[str]) -> str:
    """The dialects that the prefixes of names belong to, in words."""
    return "+".join(sorted({split_prefix(name)[0] or "bare" for name in layers}))


class _Layers(Mapping[str, Layer]):
    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def __getitem__(self, name: str) -> Layer:
        return self._adapter.layer(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapter.info)

    def __len__(self) -> int:
        return len(self._adapter.info)


@lru_cache(maxsize=OUTLINES)
def outline_of(named: tuple[tuple[str, Shape], ...]) -> Outline | None:
    """What tensors of these suffixes and shapes are; None where no algorithm reads them."""
    shapes = dict(named)
    algorithm = detect(shapes)
    if algorithm is None:
        return None
    if math.prod(shapes.get(ALPHA, ())) != 1:
        raise LayerError("alpha is not a single number", got=str(list(shapes[ALPHA])), expected="[]")
    return Outline(algorithm, shapes, algorithm.shape(shapes), algorithm.rank_of(shapes))


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
