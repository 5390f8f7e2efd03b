"""An adapter: its layers are described when it is opened and read when they are used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from ..algorithms import ALGORITHMS, Layer, detect
from ..algorithms.axes import ALPHA, DIFF_B, SET_BIAS, field_of
from ..algorithms.checks import number, of_rank
from ..algorithms.lora import RESHAPE
from ..errors import LayerError, LycorisError, located
from ..files.cache import DEFAULT_CACHE, TensorCache
from ..files.dtypes import ITEM_BITS
from ..files.memory_file import MemoryFile
from ..files.tensor_file import TensorFile
from ..maths.shapes import Extent, Shape
from ..names.dialects import BASE_WEIGHTS, WRITES, Held, is_aside, restated
from ..names.families import Families, families_of_layers, families_said
from ..names.layer_name import LayerName
from ..names.network_args import plain_args
from ..peft import Config
from ..peft.parameters import parameter_of
from .fitted import FitReport

NEAR = 2**-7
"""The largest relative difference of a weight in a file from the model's: both may be rounded to bfloat16."""
BUNDLED = "bundle_emb."
"""The prefix of the keys of embeddings (textual inversions) in a file. The embedding's name follows."""
OUTLINES = 4096
"""How many combinations of suffixes and shapes are remembered. The layers of a model have a few dozen."""


@dataclass(frozen=True, eq=False)
class Outline:
    """What follows from the suffixes and shapes of a layer's tensors. Layers where these are equal share
    one."""

    algorithm: type[Layer]
    shapes: Mapping[str, Shape]
    """The shapes of the tensors by canonical suffix."""
    shape: Extent
    """The shape of the change of the weight, see `Layer.shape`; () where only the bias changes."""
    rank: int | None
    """None where nothing is factored."""

    @lru_cache(maxsize=OUTLINES)  # noqa: B019 - outlines are kept anyway, and are few
    def suits(self, weight: Shape) -> bool:
        """Whether the layer may change a weight of this shape."""
        return self.algorithm.suits(self.shapes, weight)


TRANSPOSED = "lycoris_transposed"
"""The metadata key of a file whose linear layers are for weights that are stored as (I, O)."""


class LayerInfo(NamedTuple):
    """What a file's header says of a layer: enough to match and report it without reading a tensor."""

    named: LayerName
    """The layer's name as in the file: the common prefix of its keys."""
    keys: Mapping[str, str]
    """From the algorithm's suffix of each tensor to the tensor's key in the file."""
    outline: Outline
    options: Mapping[str, Any]
    """Values of the algorithm's options, which no tensor of the file holds; see `options_of`."""
    enlarges: bool
    """Whether the layer enlarges its weight with zeros to `shape` before it changes it."""
    config: Config[Any] | None = None
    """The configuration that the layer follows, which is in its file or beside it; None without one."""
    on_parameter: bool = False
    """Whether the layer is known to be on a single parameter, not on a module, see `peft.parameters`."""
    doubled: bool = False
    """Whether the tool that it is from adds its change twice."""

    @property
    def name(self) -> str:
        return self.named.text

    @property
    def algorithm(self) -> type[Layer]:
        return self.outline.algorithm

    @property
    def words(self) -> str:
        """Kind and rank in words: `lora 64`."""
        return of_rank(self.algorithm.algorithm, self.rank)

    @property
    def shape(self) -> Extent:
        return self.outline.shape

    @property
    def bias(self) -> Extent | None:
        """The shape (O,) of the change of the bias, see `Layer.bias_shape`; None where there is none."""
        return self.algorithm.bias_shape(self.outline.shapes, self.options)

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
            # A weight may grow to the layer's shape, but never shrink.
            pairs = zip(weight, self.shape, strict=False)
            return len(weight) == len(self.shape) and all(new is None or old <= new for old, new in pairs)
        return self.outline.suits(weight)


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in a file or in memory.

    Opening a file reads only its header; a layer's tensors are read when the layer is used. Adapters are
    compared by identity, and `load_adapter` returns the same object for a file that did not change.
    """

    file: TensorFile
    name: str
    """The name in reports: the file's name, with its folder's where a tool names all its files alike."""
    dialect: str
    """The style of the layers' names, such as `kohya`, or several styles joined by `+`."""
    info: Mapping[str, LayerInfo]
    unreadable: Mapping[str, str] = field(default_factory=dict[str, str])
    """Names of the layers that no algorithm reads, with the reasons. They are reported, never dropped."""
    unused_keys: tuple[str, ...] = ()
    """Keys of the file that nothing reads: those of `unreadable` layers, and those outside of layers and
    embeddings."""
    embeddings: tuple[str, ...] = ()
    """Names of the embeddings (textual inversions) in the file; they are not applied."""
    config: str | None = None
    """Path of the configuration that lies beside the file, whether or not a layer follows it."""
    cache: TensorCache = field(default=DEFAULT_CACHE, repr=False)
    """The cache of its tensors."""
    report: FitReport | None = field(default=None, repr=False)
    """How well it keeps the changes that it was made from, if it approximates them (resized, extracted)."""

    @classmethod
    def of(
        cls,
        layers: Mapping[str, Layer],
        *,
        name: str,
        dialect: str | None = None,
        metadata: Mapping[str, str] | None = None,
        on_parameters: Collection[str] = (),
    ) -> Adapter:
        """An adapter of layers in memory, by their names. It can be used like an adapter from a file.

        A layer's name is read as in a file: by its prefix (`lora_unet_`, `diffusion_model.`), else as a path
        in the model itself. In reports and errors `name` is the adapter's name and `dialect` the style of its
        layers' names, by default the dialect of their prefixes. `metadata` is written with the adapter when
        it is saved, and does not affect its layers. `on_parameters` names the layers of experts and routers,
        which some dialects write differently from those of modules.

        Raises LayerError for a layer that its tensors do not define in full (see `Layer.dump`), or that would
        be read back as another kind, and LycorisError where there are no layers.
        """
        if not layers:
            raise LycorisError("E-adapter-without-layers", file=name)
        tensors: dict[str, Tensor] = {}
        info: dict[str, LayerInfo] = {}
        for path, layer in layers.items():
            # Detached, so that the adapter keeps no graph of a layer that is being trained.
            held = {
                suffix: tensor.detach() if tensor.requires_grad else tensor
                for suffix, tensor in layer.dump().items()
            }
            keys = {suffix: f"{path}.{suffix}" for suffix in held}
            tensors |= {keys[suffix]: tensor for suffix, tensor in held.items()}
            options = {option: getattr(layer, option) for option in options_of(type(layer))}
            # Recognised by suffixes and shapes as in a file, so that both ways give the same layer.
            outline = outline_of(tuple((suffix, tuple(tensor.shape)) for suffix, tensor in held.items()))
            if outline is None or outline.algorithm is not type(layer):
                raise LayerError(
                    "E-layer-reads-as-another-kind",
                    file=name,
                    key=path,
                    got=outline.algorithm.algorithm if outline else ", ".join(sorted(held)),
                    expected=layer.algorithm,
                )
            named, on = LayerName.of(path), path in on_parameters
            info[path] = LayerInfo(named, keys, outline, options, RESHAPE in held, on_parameter=on)
        # The alphas are right already: leave out kohya's `split_qkv`, which would make a reader correct them.
        said = {**(metadata or {}), **plain_args(metadata or {}, {})}
        return cls(
            MemoryFile.of(name, tensors, said),
            name,
            dialect or spoken_in((each.named for each in info.values()), said),
            info,
        )

    @property
    def left_out(self) -> tuple[str, ...]:
        """The `unused_keys` that may be missed: neither those of training alone nor `base_weights`."""
        copies = set(self.base_weights.values())
        return tuple(key for key in self.unused_keys if not is_aside(key) and key not in copies)

    @cached_property
    def base_weights(self) -> Mapping[str, str]:
        """The keys of the model's own weights that the file holds beside layers, by layer."""
        ends = [(key, end) for key in self.unused_keys for end in BASE_WEIGHTS if key.endswith(end)]
        return {layer: key for key, end in ends if (layer := key.removesuffix(end)) in self.info}

    def trained_on(self, layer: str, weight: Tensor) -> bool:
        """Whether a weight has the values that `base_weights` holds for the layer, if it holds any.

        The tool would load those values: the vocabulary may have grown.
        """
        if layer not in self.base_weights:
            return True
        key = self.base_weights[layer]
        values = self.file.read((key,), self.cache, keep=False)[key].float()
        own = weight.detach().to("cpu", torch.float32)
        return own.shape == values.shape and torch.allclose(own, values, rtol=NEAR, atol=0.0)

    @property
    def path(self) -> str:
        """The full path of the file, or the name of an adapter in memory, for errors."""
        return self.file.path

    @property
    def size(self) -> int:
        """Bytes of the factors of all layers: without alphas, and without a file's header and metadata."""
        keys = {
            key
            for info in self.info.values()
            for suffix, key in info.keys.items()
            if suffix not in info.algorithm.table.numbers
        }
        held = [self.file.tensors[key] for key in keys]
        return sum(math.prod(factor.shape) * ITEM_BITS[factor.dtype] for factor in held) // 8

    @property
    def transposed(self) -> bool:
        """Whether its linear layers are for weights that are stored as (I, O), as GPT-2's are.

        The layers themselves are (O, I) as always. Only a network knows how a weight is stored.
        """
        configs = (info.config for info in self.info.values() if info.config is not None)
        return TRANSPOSED in self.metadata or any(config.fan_in_fan_out for config in configs)

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.file.metadata

    @property
    def on_parameters(self) -> frozenset[str]:
        """The names of the layers that are known to be on single parameters, not on modules."""
        return frozenset(name for name, info in self.info.items() if info.on_parameter)

    @property
    def names(self) -> list[LayerName]:
        """The names of the layers that can be read."""
        return [info.named for info in self.info.values()]

    @property
    def families(self) -> Families:
        """The families of models that it can be for, by its metadata or its layers; () where none is
        known."""
        named = (
            (info.named.path, tuple(size or 0 for size in info.shape or ()))
            for info in self.info.values()
            if info.named.component != "te" and info.named.path
        )
        return families_said(self.metadata) or families_of_layers(named)

    @property
    def layers(self) -> Mapping[str, Layer]:
        """All readable layers by name. Each access to a layer reads it, see `layer`."""
        return _Layers(self)

    def layer(self, name: str, *, keep: bool = True) -> Layer:
        """Read one layer by its name. With `keep` False its tensors are not kept in the cache.

        Raises LayerError for an unreadable layer, where a factor holds NaN or infinity or is not of a
        floating-point dtype, and where tensors contradict each other.
        """
        if name in self.unreadable:
            raise LayerError("E-layer-unreadable", file=self.path, key=name, got=self.unreadable[name])
        info = self.info[name]
        common, keys = info.algorithm.table.shared, tuple(info.keys.values())
        if common:
            keys = tuple(key for suffix, key in info.keys.items() if suffix not in common)
        tensors = self.file.read(keys, self.cache, keep=keep)
        if common:
            # By themselves, so that the cache holds them once for all layers.
            shared = tuple(key for suffix, key in info.keys.items() if suffix in common)
            tensors = {**tensors, **self.file.read(shared, self.cache)}
        named = {suffix: tensors[key] for suffix, key in info.keys.items()}
        try:
            return info.algorithm.load(self._read(info, named), info.options)
        except LayerError as error:
            # The algorithm names a tensor by its suffix, the file by its key.
            error.key = info.keys.get(error.key or "", name)
            raise error.within(file=self.path) from None

    def dtype_of(self, name: str) -> torch.dtype:
        """The widest dtype of a layer's factors in the file, at most float32; bfloat16 for 8-bit factors."""
        info = self.info[name]
        numbers = info.algorithm.table.numbers
        held = [self.file.tensors[key].dtype for suffix, key in info.keys.items() if suffix not in numbers]
        for kind, dtype in (("F64", torch.float32), ("F32", torch.float32), ("BF16", torch.bfloat16)):
            if kind in held:
                return dtype
        return torch.float16 if "F16" in held else torch.bfloat16

    def alphas(self) -> dict[str, float | None]:
        """The alpha of every layer by name: from its tensor, else from its configuration, else None.

        Only the tensors of alphas are read.
        """
        keys = {name: info.keys[ALPHA] for name, info in self.info.items() if ALPHA in info.keys}
        tensors = self.file.read(tuple(keys.values()), self.cache)
        alphas: dict[str, float | None] = {}
        for name, info in self.info.items():
            if name in keys:
                with located(file=self.path, key=keys[name]):
                    alphas[name] = number(ALPHA, tensors[keys[name]])
            else:
                alphas[name] = _configured_alpha(info)
        return alphas

    @property
    def without_alpha(self) -> tuple[str, ...]:
        """Names of the layers that lack an alpha, or a configuration where the kind needs it.

        A layer without an alpha is applied at scale 1, which may not be its scale in training.
        """
        return tuple(
            name
            for name, info in self.info.items()
            if info.config is None and not info.algorithm.is_told(info.keys)
        )

    @property
    def unscaled(self) -> tuple[str, ...]:
        """Those of `without_alpha` whose tool writes the scale into a configuration, and nowhere else.

        In the other dialects a layer without an alpha is meant to be at scale 1.
        """
        return tuple(
            name
            for name in self.without_alpha
            if (write := WRITES.get(self.info[name].named.dialect or self.dialect)) is not None
            and write.configuration == "beside"
        )

    def _read(self, info: LayerInfo, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The file's tensors by suffix, converted to the algorithm's definition.

        They change where a dialect shapes a tensor in its own way, or keeps its value elsewhere.
        """
        read = restated(Held(info.name, info.keys, tensors, self.metadata))
        if info.enlarges and RESHAPE not in read:
            # The dialect has no tensor for the enlarged shape, but the algorithm reads one.
            read[RESHAPE] = torch.tensor([size for size in info.shape if size is not None])
        if ALPHA in read:
            return read
        alpha = _configured_alpha(info)
        if alpha is not None:
            read[ALPHA] = torch.tensor(alpha, dtype=torch.float64)
        return read if info.config is None else info.config.read_tensors(read, info.named.path)


def _configured_alpha(info: LayerInfo) -> float | None:
    """The alpha that a layer has without a tensor of it; None where nothing tells one.

    It is doubled, or else the doubled rank, where the tool adds the change twice.
    """
    if info.rank is None or not info.algorithm.table.scaled_by_alpha:
        return None
    path = parameter_of(info.named.path) if info.on_parameter else info.named.path
    alpha = None if info.config is None else info.config.alpha_at(path, info.rank)
    return 2 * (info.rank if alpha is None else alpha) if info.doubled else alpha


def spoken_in(names: Iterable[LayerName], metadata: Mapping[str, str]) -> str:
    """The dialects that the prefixes of layers' names belong to, joined by `+`; `bare` for no prefix.

    GPT-2's names are its own, though they begin like those of diffusers (`transformer.h.0`).
    """
    if TRANSPOSED in metadata:
        return "bare"
    return "+".join(sorted({name.dialect or "bare" for name in names}))


class _Layers(Mapping[str, Layer]):
    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def __getitem__(self, name: str) -> Layer:
        return self._adapter.layer(name)

    def __contains__(self, name: object) -> bool:
        return name in self._adapter.info

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapter.info)

    def __len__(self) -> int:
        return len(self._adapter.info)


@lru_cache(maxsize=OUTLINES)
def outline_of(named: tuple[tuple[str, Shape], ...]) -> Outline | None:
    """The outline of a layer, given the suffixes and shapes of its tensors; None where no algorithm reads it.

    Raises LayerError where the shapes contradict each other, see `Layer.check_shapes`.
    """
    shapes = dict(named)
    algorithm = detect(shapes)
    if algorithm is None:
        return None
    algorithm.check_shapes(shapes)
    return Outline(algorithm, shapes, algorithm.shape(shapes), algorithm.rank_of(shapes))


Check = tuple[Callable[[Any], bool], str]
"""A test of an option's value, and the valid values in words."""


@cache
def options_of(algorithm: type[Layer]) -> dict[str, Check]:
    """The checks of an algorithm's options by name. Options are the fields that no tensor of a file fills."""
    tensors = {field_of(suffix) for suffix in algorithm.table.suffixes}
    others = tensors | {ALPHA, DIFF_B, SET_BIAS}
    return {
        field.name: _check(algorithm, field)
        for field in dataclasses.fields(algorithm)
        if field.name not in others
    }


def check_options(options: Mapping[str, Any], path: str) -> None:
    """Raise LycorisError for an option that no algorithm has, or for an invalid value."""
    known = {name: check for kind in ALGORITHMS.values() for name, check in options_of(kind).items()}
    if unknown := sorted(set(options) - set(known)):
        raise LycorisError(
            "E-load-option-unknown", file=path, got=", ".join(unknown), expected=", ".join(sorted(known))
        )
    for name, value in options.items():
        may_be, known_values = known[name]
        if not may_be(value):
            raise LycorisError(
                "E-load-option-value-unknown", file=path, name=name, got=repr(value), expected=known_values
            )


def _check(algorithm: type[Layer], option: dataclasses.Field[Any]) -> Check:
    """The check that an option declares, else one for its type: a `Literal` of words, perhaps with None."""
    if "suits" in option.metadata:
        return option.metadata["suits"], option.metadata["expected"]
    declared = get_type_hints(algorithm)[option.name]
    # `Literal[...]` itself, or `Literal[...] | None`, whose parts are its arguments.
    types = (declared, *get_args(declared))
    words = [word for kind in types if get_origin(kind) is Literal for word in get_args(kind)]
    optional = type(None) in types
    shown = ", ".join([*words, *(["None"] if optional else [])])
    return lambda value: value in words or (optional and value is None), shown
