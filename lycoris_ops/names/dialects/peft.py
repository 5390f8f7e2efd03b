"""Hugging Face PEFT: `save_pretrained`, with or without the adapter's name in the key."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...algorithms import Layer
from ...algorithms.axes import ALPHA, SET_BIAS
from ...algorithms.factored import DORA
from ...algorithms.full import SET, SET_ROWS, Full
from ...algorithms.lora import EMBEDDING_UP
from ...algorithms.vera import LAMBDA_B, LAMBDA_D, A, B, Vera
from ...errors import LayerError
from ...files.tensor_file import DerivedFile, TensorFile
from ...peft import CONFIG_NAME, Config, ConfigFile, kind_of
from ...peft.card import card_of
from ...peft.config import BASE_BIAS, PREFIX
from ...peft.experts import joined, parameters_of
from ...peft.kinds import ln_tuning
from ...peft.kinds import trainable_tokens as tokens
from ...peft.parameters import DOWN, UP
from ...peft.rows import has_rows, with_rows
from ...peft.unread import UNREAD, not_read, told_by
from ..layouts import Layers
from .base import MEMBERS, Asked, Dialect, Encoded, Groups, Held, Opened, Prefix, Write

if TYPE_CHECKING:
    from ..layer_name import LayerName

PAIR = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_down.weight",
    "lora_B.default.weight": "lora_up.weight",
    # Mochi's trainer writes bare parameters.
    "lora_A": "lora_down.weight",
    "lora_B": "lora_up.weight",
}
"""The names of LoRA's two factors."""
MAGNITUDE = (
    "lora_magnitude_vector",
    "lora_magnitude_vector.weight",
    # ai-toolkit's name for the same.
    "magnitude",
)
NAMED = (
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("lora_embedding_A", "lora_embedding_B", "lora_E", "ia3_l", "boft_R", "boft_s"),
    *("vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B"),
)
"""Parameters of PEFT's layers that have no `.weight` after them.

In a file made from the state dict of a live model, the adapter's name follows them (`hada_w1_a.default`);
`save_pretrained` leaves it out.
"""

TRAINING_ONLY = re.compile(r"\.lora_(?:velora_embed|monteclora_sampler)(?:\.|$)")
"""Keys of tensors that VeLoRA and MonteCLoRA use in training alone."""
DOWN_BIAS = re.compile(r"lora[._](?:linear_layer\.)?(?:A|a|down)(?:\.[^.]+)?\.bias")
"""The suffix of a bias between the two factors. PEFT trains none, but LoRA modules of other tools may."""
PRUNED = re.compile(r"\.lora_E(?:\.[^.]+)?$")
"""The end of the key of AdaLoRA's singular values."""
FACTOR = re.compile(r"\.lora_[ABE](?:\.[^.]+)*$")
"""The end of the key of one of AdaLoRA's three factors."""
SHARED = "base_model"
"""The name before tensors that all layers share."""
WRAPPED = re.compile(r"\.base_layer\.(?=(?!lora_|base_layer\.)[^.]+\.(?:lora_|base_layer\.))")
"""The name of PEFT's own module around torch's attention. The output layer is adapted inside it."""

VALUES = {"weight": SET, "bias": SET_BIAS}
"""The endings of the keys of a module's own values, and their suffixes in a layer."""
BY_VALUES = frozenset({ln_tuning.LnTuningConfig, tokens.TrainableTokensConfig})
"""The kinds that hold values, not changes. In a file with other kinds their tensors have other names."""
BESIDE = {**ln_tuning.BESIDE, **tokens.BESIDE}
"""The suffixes in a file with other kinds, by the suffixes of the same tensors in a file of these alone."""
OWN = tuple(f".{suffix}" for suffix in (*PAIR, "lora_embedding_A", "lora_embedding_B", "ia3_l"))
"""Ends of keys that show a layer in PEFT's format, whatever its prefix."""

MODULES = ("lora_A", "lora_B", "lora_magnitude_vector", "oft_R", "ln_tuning_layers")
"""Modules of PEFT's layers. In keys, their tensors' names come after the adapter's name."""
NAMEABLE = frozenset({*MODULES, *NAMED})
"""Every word that an adapter's name can follow in a key."""

WITH_NAME = re.compile(
    rf"(\.(?:{'|'.join((*MODULES, *NAMED))}))"
    rf"\.(?!weight$|bias$)([^.]+)(\.(?:{'|'.join(MEMBERS)}))?$"
)
"""A key of a live model's state dict. Groups: the tensor, the adapter's name, and what follows it."""


def _with_name(key: str) -> re.Match[str] | None:
    """The tensor, the adapter's name and the ending in a key, as in `WITH_NAME`."""
    # These are the last three words. Search only them: a key may have hundreds.
    return WITH_NAME.search(key, len(key.rsplit(".", 3)[0]))


def adapter_names(keys: Iterable[str]) -> set[str]:
    """The adapters' names in the keys of a live model's state dict; none in a file of `save_pretrained`."""
    # Most files have none of these words, and a look-up takes less time than a search.
    likely = [key for key in keys if not NAMEABLE.isdisjoint(key.rsplit(".", 3))]
    return {match[2] for match in map(_with_name, likely) if match}


def _rename(key: str) -> str:
    match = _with_name(key)
    bare = f"{key[: match.start()]}{match[1]}{match[3] or ''}" if match else key
    return WRAPPED.sub(".", bare)


def _recognises(keys: Mapping[str, object]) -> bool:
    """Whether keys hold one adapter's name, not PEFT's own `default`, or pass through a PEFT wrapper."""
    names = adapter_names(keys)
    wrapped = any(map(WRAPPED.search, keys))
    # `suffixes` reads keys with `default`; with several adapters nothing says which is meant.
    if len(names) > 1 or (not wrapped and (not names or "default" in names)):
        return False
    # If the key without the word exists too, the word is no adapter's name: it names one more tensor.
    return not any(_rename(key) in keys for key in keys if _with_name(key))


def _restated(held: Held) -> Mapping[str, Tensor]:
    """PEFT's DoRA magnitude, which is always for the outputs.

    On a convolution it is (1, O, 1, 1), which the algorithm would read as one for the inputs where O = I. On
    an embedding (V, D) it is for the D features, which are the inputs here. Raises LayerError for one of
    another size.
    """
    if DORA not in held.tensors or held.keys[DORA].endswith(DORA):
        return {}
    magnitude, up = held.tensors[DORA], held.tensors.get(EMBEDDING_UP, held.tensors.get(PAIR[UP]))
    # Other tools have magnitudes for inputs too, under names of their own.
    if MAGNITUDE[0] in held.keys[DORA] and up is not None and magnitude.numel() != len(up):
        raise LayerError("E-dora-magnitude-miscount", key=DORA, count=len(up), got=str(list(magnitude.shape)))
    return {DORA: magnitude.reshape((1, -1) if EMBEDDING_UP in held.tensors else -1)}


def _opened(read: Opened) -> Opened:
    """The file with a layer for each expert of a parameter, with the numbers of trained rows, and without the
    layers that AdaLoRA pruned.
    """
    file, on_parameters = _without_pruned(read.file), frozenset[str]()
    # Without PEFT's keys the configuration belongs to another file, and may be damaged.
    if read.config is not None and any(key.startswith(PREFIX) for key in file.tensors):
        if read.config.table.get("target_parameters"):
            file, on_parameters = parameters_of(file, read.config.read)
        if any(map(has_rows, file.tensors)):
            file = with_rows(file, read.config.read)
    # PEFT adds the change of the output layer of torch's attention twice.
    doubled = frozenset(filter(WRAPPED.search, file.tensors))
    return replace(read, file=file, on_parameters=on_parameters, doubled=doubled)


def _without_pruned(file: TensorFile) -> TensorFile:
    """The file without layers of which AdaLoRA pruned all singular values: they change nothing."""
    pruned = {PRUNED.sub("", key) for key in filter(PRUNED.search, file.tensors)}
    if not pruned:
        return file
    factors: dict[str, list[str]] = {}
    for key in file.tensors:
        if (match := FACTOR.search(key)) and (name := key[: match.start()]) in pruned:
            factors.setdefault(name, []).append(key)
    gone = {
        key for keys in factors.values() if all(0 in file.tensors[key].shape for key in keys) for key in keys
    }
    if not gone:
        return file
    return DerivedFile(file, {key: info for key, info in file.tensors.items() if key not in gone}, {})


def _config_of(
    read: Opened, name: LayerName, algorithm: type[Layer], keys: Mapping[str, str], rank: int | None
) -> Config[Any] | None:
    """The configuration in the file for the layer's component, else the one beside the file.

    Every layer with PEFT's prefix follows that one. But in a folder of many files it may belong to another
    file, so a layer that only has PEFT's suffixes must also have its rank. A layer that has a tensor of the
    alpha that scales it follows none.
    """
    if ALPHA in keys and algorithm.table.scaled_by_alpha:
        return None
    if read.config is None:
        return read.own.get(name.text.partition(".")[0]) or read.own.get("")
    if _is_own(read, name):
        return read.config.read
    alike = any(key.endswith(OWN) for key in keys.values())
    return read.config.read if alike and read.config.read.rank_at(name.path) == rank else None


def _value_of(read: Opened, name: LayerName, end: str) -> str | None:
    """The suffix of a bias or whole module that PEFT trained without an adapter.

    With `bias` "all" the file holds every bias of the model, as `<layer>.bias`. A bias with a weight beside
    it belongs to a module that is saved whole, such as a new head.
    """
    if end not in VALUES or read.config is None or not _is_own(read, name):
        return None
    alone = end == "bias" and f"{name.text}.weight" not in read.file.tensors
    config = read.config.read
    return VALUES[end] if (alone and config.sets_biases) or config.saves(name.path) else None


def _is_own(read: Opened, name: LayerName) -> bool:
    """Whether a layer of this name is certainly PEFT's."""
    return read.dialect is DIALECT or name.dialect == DIALECT.name


def _regrouped(grouped: Groups) -> Groups:
    """Each layer of VeRA with the tensors that all of them share."""
    named = grouped.get(SHARED, {})
    # With vectors of its own it is one of the layers.
    if LAMBDA_B in named or not any(LAMBDA_B in keys for keys in grouped.values()):
        return grouped
    shared = {suffix: key for suffix, key in named.items() if suffix in Vera.table.shared}
    others = {suffix: key for suffix, key in named.items() if suffix not in shared}
    return {
        name: {**shared, **keys} if LAMBDA_B in keys else keys
        for name, keys in {**grouped, SHARED: others}.items()
        if keys
    }


def _unread(keys: Collection[str], config: ConfigFile | None) -> str | None:
    """The name of a kind that is not read; what a layer lacks; or the names of several adapters."""
    if keys == {SET_ROWS}:
        return f"it sets rows, and PEFT's {CONFIG_NAME} with their numbers is not beside the file"
    if keys == {LAMBDA_B, LAMBDA_D}:
        return (
            f"a vera layer in a file without {A} and {B}, which only the model that it was trained on tells: "
            "load it there in PEFT, and save it with save_projection"
        )
    if bias := next(filter(DOWN_BIAS.fullmatch, keys), None):
        return f"a lora with {bias}, which is not read: take it out, and add up @ {bias} to the bias of up"
    kind = told_by(keys)
    if kind is None and config is not None:
        kind = UNREAD.get(str(config.table.get("peft_type")))
    if kind is not None:
        return not_read(kind)
    several = sorted(adapter_names(keys))
    if len(several) < 2:
        return None
    return f"several adapters, {', '.join(several)}: write one of them into a file of its own"


def _renamed(spoken: str | None, prefix: Prefix, path: str) -> str | None:
    return PREFIX + path if spoken in ("diffusers", "peft") else None


def _holds(kind: type[Layer], takes_lokr: bool) -> bool:
    # It holds new values of norms and of rows, but no `full` changes.
    return kind is not Full and kind_of(kind) is not None


def _tensors(layer: Layer, asked: Asked) -> Encoded:
    """A layer in PEFT's format, with the configuration that its classes need and that holds the scale."""
    rows = isinstance(layer, Full) and layer.set_rows is not None
    kind = tokens.TrainableTokensConfig if rows else kind_of(type(layer))
    if kind is None:
        raise LayerError("E-dialect-without-kind", algorithm=layer.algorithm, got=layer.algorithm)
    kind.check_weight(asked.weight)
    if asked.biased:
        kind.check_bias(layer)
    tensors, wanted = kind.encoded(layer)
    set_bias = wanted.set_bias or BASE_BIAS in tensors
    wanted = replace(wanted, weight=asked.weight, set_bias=set_bias)
    if asked.on_parameter and tensors.keys() != {DOWN, UP}:
        raise LayerError("E-dialect-lora-for-experts-only", got=", ".join(sorted(tensors)))
    return Encoded(
        asked.name,
        tensors,
        configured=(kind, wanted),
        remarks=wanted.remarks,
        on_parameter=asked.on_parameter,
    )


def _held(layers: Sequence[Encoded]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """The names and tensors in the file: experts are joined, and what all layers share is there once.

    In a file with other kinds, whole values are named as in `modules_to_save`, and the values of rows as in a
    `token_adapter`.
    """
    alone = {layer.configured[0] for layer in layers if layer.configured} <= BY_VALUES
    names, shared = {} if alone else BESIDE, dict[str, Tensor]()
    for layer in layers:
        own: dict[str, Tensor] = {}
        for suffix, tensor in layer.tensors.items():
            (shared if suffix in Vera.table.shared else own)[names.get(suffix, suffix)] = tensor
        if not layer.on_parameter:
            yield layer.name, own
    yield SHARED, shared
    yield from joined({layer.name: layer.tensors for layer in layers if layer.on_parameter})


DIALECT = Dialect(
    name="peft",
    prefixes=(
        Prefix(PREFIX),
        # Some scripts, such as PixArt's, put the component of the pipeline first.
        Prefix("unet.base_model.model.", "unet"),
        Prefix("transformer.base_model.model.", "unet"),
        Prefix("text_encoder.base_model.model.", "te", 1),
    ),
    suffixes={
        **PAIR,
        **dict.fromkeys(MAGNITUDE, "dora_scale"),
        "base_layer.bias": "set_bias",
        # New values of norms.
        "ln_tuning_layers.weight": "set_weight",
        "ln_tuning_layers.bias": "set_bias",
        # New values of rows. The configuration has the rows' numbers.
        **dict.fromkeys((tokens.DELTA, *tokens.BESIDE.values()), "set_rows"),
    },
    opened=_opened,
    recognises=_recognises,
    rename=_rename,
    aside=lambda key: bool(TRAINING_ONLY.search(key)),
    base_weight=".base_layer.weight",
    config_of=_config_of,
    value_of=_value_of,
    regrouped=_regrouped,
    unread=_unread,
    restated=_restated,
    file="adapter_model",
    write=Write(
        PREFIX,
        order=3,
        tensors=_tensors,
        layout=Layers.diffusers_or_own,
        renamed=_renamed,
        holds=_holds,
        shares=True,
        configuration="beside",
        held=_held,
        card=card_of,
        in_comfy="ComfyUI's own loader knows PEFT's names of a few models only, and reads no configuration",
    ),
)
