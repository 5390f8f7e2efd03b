"""A dialect: how one tool's layer names and tensors are read and written."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ...algorithms import Layer
from ...files.tensor_file import TensorFile
from ...maths.shapes import Shape
from ...peft import Config, ConfigFile, Wanted
from ..layouts import Layers, Names
from .pipelines import Components

if TYPE_CHECKING:
    from ..layer_name import LayerName

MEMBERS = ("weight", "bias")
"""Names of tensors in a module that PEFT adds to a layer, such as `lora_A.weight`.

In the state dict of a live model the adapter's name comes before these names, and after the name of a tensor
that is in no such module.
"""

Component = Literal["unet", "te"]
"""The diffusion model ("unet", also where it is a transformer) or a text encoder."""


@dataclass(frozen=True)
class Prefix:
    """A prefix of layer names, and the component of a model that it means."""

    text: str
    component: Component | None = None
    """None where the prefix does not say the component."""
    encoder: int | None = None
    """The number of the text encoder, counted from 1; 0 where the tool does not number it.

    None where the rest of the name says which it is, and for a diffusion model.
    """


Groups = dict[str, dict[str, str]]
"""The keys of each layer, by the layer's name: for each suffix of the algorithms, the key in the file."""


@dataclass(frozen=True)
class Opened:
    """A file before its keys are sorted into layers."""

    file: TensorFile
    config: ConfigFile | None
    """The configuration beside it; None where there is none, or the file has its `own`."""
    dialect: Dialect | None
    """The dialect that its keys together show, see `Dialect.recognises`."""
    on_parameters: frozenset[str] = frozenset()
    """The names of layers that are known to be on parameters, see `peft.parameters`."""
    doubled: frozenset[str] = frozenset()
    """The keys of layers whose change the tool adds twice, in training too."""
    own: Mapping[str, Config[Any]] = field(default_factory=dict[str, Config[Any]])
    """The configurations in the file, by the component of a model that each is for; "" is for all of them."""


@dataclass(frozen=True)
class Held:
    """A layer as a file holds it."""

    name: str
    keys: Mapping[str, str]
    """The keys of its tensors by the algorithm's suffixes."""
    tensors: Mapping[str, Tensor]
    """The tensors by the same suffixes."""
    metadata: Mapping[str, str]
    """The file's metadata."""


@dataclass(frozen=True)
class Asked:
    """How a layer is to be written."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values of the algorithm's options, see `LayerInfo.options`."""
    weight: Shape = ()
    """The shape of the weight that the layer is for; () where it is not known."""
    biased: bool = True
    """Whether a bias may be beside the weight; False where the model is known to have none."""
    takes_lokr: bool = False
    """Whether diffusers is known to read LoKr under this name."""
    dtype: torch.dtype | None = None
    """The dtype that the user wants for the factors; None for the dtypes that they have.

    The layer's factors have it already. New factors must get it too."""
    on_parameter: bool = False
    """Whether the layer is on a parameter, not on a module, see `peft.parameters`."""


@dataclass(frozen=True)
class Encoded:
    """A layer as a dialect writes it."""

    name: str
    """The start of the layer's keys. It is the layer's name, but in kohya's dialect the parts of a fused OFT
    layer share the name of the fused one."""
    tensors: Mapping[str, Tensor]
    """The tensors by the suffixes that the dialect writes."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Options of the layer that the file's metadata must state."""
    configured: tuple[type[Config[Any]], Wanted] | None = None
    """The kind of PEFT configuration that the layer needs, and what that configuration must say for it."""
    remarks: tuple[str, ...] = ()
    """Differences from the layer's own tensors, in words for a report. Layers with the same remark share a
    line: `{count}` is their number, `{layers}` is `1 layer` or `2 layers`, `{s}` the s of the plural."""
    on_parameter: bool = False
    """As in `Asked`, in a dialect that writes layers on parameters differently from layers on modules."""


@dataclass(frozen=True)
class Write:
    """How a dialect is written. The defaults are those of the host's own dialect."""

    prefix: str | Callable[[str, Components], str]
    """The prefix of the paths in a component (`unet` or a text encoder) of a model, as it is after `rename`.

    One text for all components means that a file is for a single one and does not say which.
    """
    order: int
    """Its position in lists of the dialects, the most usual first."""
    tensors: Callable[[Layer, Asked], Encoded]
    """Encodes a layer.

    Raises LayerError where the dialect cannot hold it. The message follows the dialect's name:
    `holds no loha`.
    """
    layout: Callable[[Layers], Names] = Layers.own
    """The dialect's paths in a diffusion model. In text encoders all tools write transformers' paths."""
    lokr: Callable[[Layers], Names] | None = None
    """The paths to use instead in a file that holds LoKr; empty for a model for which the tool reads no LoKr.
    None where LoKr layers are named like all others."""
    flat: bool = False
    """Whether underscores replace the dots of a path."""
    renamed: Callable[[str | None, Prefix, str], str | None] = lambda spoken, prefix, path: None
    """This dialect's name for a layer of another dialect, given that dialect and the layer's prefix and path
    there; None if the name depends on the model."""
    holds: Callable[[type[Layer], bool], bool] = lambda kind, takes_lokr: True
    """Whether it can hold layers of a kind. The second argument is `Asked.takes_lokr`."""
    spelled: Callable[[str, str], str] = "{}.{}".format
    """The key of a tensor in the file, given the layer's name and the suffix: what `rename` undoes."""
    shares: bool = False
    """Whether its files hold tensors that all layers share, once. In other files each layer is complete, see
    `Sharing.alone`."""
    configuration: Literal["beside", "within"] | None = None
    """Where the configuration of the layers is written: to a file beside the layers' file, or into its
    metadata."""
    held: Callable[[Sequence[Encoded]], Iterable[tuple[str, Mapping[str, Tensor]]]] = lambda layers: (
        (layer.name, layer.tensors) for layer in layers
    )
    """The names and tensors that a file with these layers holds. Raises LayerError where it cannot."""
    card: Callable[[Sequence[Layer], str], str] | None = None
    """The text of the model card in its folder, given the layers and the configuration; None for no card.

    With a card, the configuration says what the adapter was made for.
    """
    embeddings: bool = False
    """Whether its readers know embeddings (textual inversions) inside an adapter file."""
    hashes: bool = False
    """Whether the metadata of a file holds hashes of its tensors, even if the source's metadata has none."""
    in_comfy: str | None = None
    """Why ComfyUI's own loader cannot read such a file fully, in words for a report."""


def by_any(pattern: re.Pattern[str]) -> Callable[[Mapping[str, object]], bool]:
    """Whether the pattern is in any of the keys: a `Dialect.recognises`."""
    return lambda keys: any(map(pattern.search, keys))


@dataclass(frozen=True)
class Dialect:
    """The format of one tool's adapters: how it spells names, and which tensors they have."""

    name: str
    prefixes: tuple[Prefix, ...]
    suffixes: Mapping[str, str] = field(default_factory=dict[str, str])
    """Maps the tool's suffixes to the algorithms' own, where the two differ."""
    opened: Callable[[Opened], Opened] | None = None
    """The file with the tensors that the algorithms define, where the tool's are others or of other shapes.

    It is called for every file, before anything is judged by shapes. A tensor that stands for one of the file
    keeps its key. Raises FileFormatError for a file or a configuration that cannot be followed.
    """
    recognises: Callable[[Mapping[str, object]], bool] | None = None
    """Whether a file with these keys is of this dialect; None where the prefix of each key shows it."""
    rename: Callable[[str], str] | None = None
    """From a key of a recognised file to one that consists of a prefix, a path and a known suffix."""
    regrouped: Callable[[Groups], Groups] | None = None
    """The layers that are meant, where keys have suffixes that are none of the algorithms', or name tensors
    that layers share."""
    aside: Callable[[str], bool] | None = None
    """Whether a key is of training alone, and of no layer, though it begins with the name of one."""
    base_weight: str | None = None
    """The end of the key of a model's own weight, which the tool writes beside a layer."""
    config_of: (
        Callable[[Opened, LayerName, type[Layer], Mapping[str, str], int | None], Config[Any] | None] | None
    ) = None
    """The configuration that a layer follows; None for none.

    The arguments are the file, the layer's name, its kind, the keys of its tensors by suffix, and its rank.
    Raises FileFormatError for a configuration that cannot be followed.
    """
    value_of: Callable[[Opened, LayerName, str], str | None] | None = None
    """The suffix of a tensor that holds a module's own values, though its key has no suffix; None for others.

    The arguments are the file, and the module's name and the last word in the key. Raises as `config_of`.
    """
    unread: Callable[[Collection[str], ConfigFile | None], str | None] | None = None
    """What tensors are that the tool writes and nothing reads, in words for a message; None for others.

    The arguments are the suffixes of one layer, or all keys of a file without a layer, and the configuration
    that is asked too.
    """
    enlarged: tuple[str, ...] = ()
    """Layers that enlarge their weight with zeros to their own shape, though no tensor says so.

    For recognised files only.
    """
    restated: Callable[[Held], Mapping[str, Tensor]] | None = None
    """The tensors of a layer that the tool defines differently, converted to the algorithm's definition.

    It is called for every layer of every file, since one file can have layers of several tools. Raises
    LayerError for tensors that the tool does not define so.
    """
    file: str | None = None
    """The name, without its ending, that the tool gives to every file; None if users name the files."""
    write: Write | None = None
    """How files of the dialect are written; None where they are only read."""
