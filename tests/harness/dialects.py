"""The names of each architecture's layers in the adapter files that its users make, and what the names mean.

The path in a name comes from the host's model, from lycoris-lora run on it, from diffusers' model or from a
published checkpoint. The prefix and the suffixes are those of the tool that writes the dialect.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from . import in_diffusers
from .architecture_names import Rows, records
from .foreign import Located, Numbered
from .in_diffusers import DIFFUSERS, HUNYUAN, PREFIX, renamed
from .zoo import SPECIES, adaptable, make

Names = dict[str, Located]
"""The name of a layer in a file, without suffix, to the rows of the host's model that it means."""
Shapes = Mapping[str, tuple[int, ...]]

KOHYA = ("{}.lora_down.weight", "{}.lora_up.weight", "{}.alpha")
PEFT = ("{}.lora_A.weight", "{}.lora_B.weight")
PROCESSORS = ("{}_lora.down.weight", "{}_lora.up.weight")


@dataclass(frozen=True)
class Dialect:
    """How a tool writes the names of layers and their tensors."""

    name: Callable[[str], str | None]
    """From a layer's path to its name in a file; None for a layer that the tool does not adapt."""
    tensors: tuple[str, ...]
    """The keys of a layer's tensors, with {} for its name."""
    source: str = "host"
    """Whose paths `name` is given, see `places`.

    "host" (the host's model), "diffusers" (diffusers' model), "fused" (that model with its attention fused),
    "published" (published checkpoints), "lycoris" (lycoris-lora's names) or "anima" (diffusers' names of
    Anima).
    """
    only: Callable[[str], bool] = lambda architecture: True
    """Whether an architecture has files in this dialect."""


def _flat(prefix: str) -> Callable[[str], str]:
    return lambda path: prefix + path.replace(".", "_")


def _dotted(prefix: str) -> Callable[[str], str]:
    return lambda path: prefix + path


def _among(*architectures: str) -> Callable[[str], bool]:
    return lambda architecture: architecture in architectures


def _starting(*words: str) -> Callable[[str], bool]:
    return lambda architecture: architecture.startswith(words)


def _processor(path: str) -> str | None:
    """diffusers' names before it used PEFT: attention alone, with `to_out` for `to_out.0`."""
    attention, dot, projection = path.partition(".to_")
    return f"unet.{attention}.processor.to_{projection.removesuffix('.0')}" if dot else None


def _without(prefix: str, form: Callable[[str], str]) -> Callable[[str], str | None]:
    return lambda path: form(path.removeprefix(prefix)) if path.startswith(prefix) else None


UNETS = _among("SD1.5", "SD2", "SD2.1 unCLIP", "SDXL", "SDXL refiner", "SSD-1B", "KOALA 700M")
CASCADE = _starting("Stable Cascade")


def _transformer(architecture: str) -> bool:
    return not UNETS(architecture) and not CASCADE(architecture)


DIALECTS: dict[str, Dialect] = {
    "ComfyUI": Dialect(_dotted("diffusion_model."), PEFT),
    "kohya": Dialect(_flat("lora_unet_"), KOHYA),
    "LyCORIS": Dialect(lambda name: name, KOHYA, "lycoris"),
    "PEFT": Dialect(_dotted("base_model.model."), PEFT),
    "bare": Dialect(_dotted(""), PEFT),
    "diffusers": Dialect(_dotted("transformer."), PEFT, "diffusers", _transformer),
    "diffusers UNet": Dialect(_dotted("unet."), PEFT, "diffusers", UNETS),
    "diffusers prior": Dialect(_dotted("prior."), PEFT, "diffusers", CASCADE),
    "diffusers attention processors": Dialect(_processor, PROCESSORS, "diffusers", UNETS),
    "PEFT on diffusers": Dialect(_dotted("base_model.model."), PEFT, "diffusers"),
    "SimpleTuner LyCORIS": Dialect(_flat("lycoris_"), KOHYA, "diffusers"),
    "OneTrainer": Dialect(_flat("lora_transformer_"), KOHYA, "diffusers", _transformer),
    "OneTrainer prior": Dialect(_flat("lora_prior_unet_"), KOHYA, "diffusers", CASCADE),
    "kohya on diffusers": Dialect(_flat("lora_unet_"), KOHYA, "diffusers"),
    "ComfyUI on diffusers": Dialect(_dotted("diffusion_model."), PEFT, "diffusers", _transformer),
    "DiffSynth": Dialect(_dotted(""), PEFT, "diffusers", _transformer),
    "diffusers, fused": Dialect(_dotted("transformer."), PEFT, "fused", _transformer),
    "diffusers UNet, fused": Dialect(_dotted("unet."), PEFT, "fused", UNETS),
    "OneTrainer, fused": Dialect(_flat("lora_transformer_"), KOHYA, "fused", _transformer),
    "diffusers, Anima": Dialect(lambda name: name, PEFT, "anima"),
    "musubi-tuner": Dialect(_flat("lora_unet_"), KOHYA, "published"),
    "diffusion-pipe": Dialect(_dotted("diffusion_model."), PEFT, "published"),
    "diffusion-pipe, older": Dialect(_dotted("transformer."), PEFT, "published"),
    "VideoX-Fun": Dialect(_flat("lora_unet__"), KOHYA, only=_starting("Wan")),
    "Cascade prior": Dialect(_flat("lora_prior_unet_"), KOHYA, only=CASCADE),
    "PixArt's script": Dialect(_dotted("unet.base_model.model."), PEFT, "diffusers", _starting("PixArt")),
    "ACE-Step PEFT": Dialect(
        _without("decoder.", _dotted("base_model.model.")), PEFT, only=_among("ACE-Step 1.5")
    ),
    "ACE-Step LyCORIS": Dialect(_without("decoder.", _flat("lycoris_")), KOHYA, only=_among("ACE-Step 1.5")),
}
"""Every dialect by the name of the tool, or of what writes it."""

PUBLISHED = {name: HUNYUAN for name in SPECIES if name.startswith(("HunyuanVideo", "HunyuanImage"))}
"""Architectures whose published checkpoints, and so trainers, have other names than the host's model."""


def cases() -> list[tuple[str, str]]:
    """Every architecture with each dialect that it is found in."""
    return [
        (architecture, name)
        for architecture in SPECIES
        for name, dialect in DIALECTS.items()
        if dialect.only(architecture) and _has(architecture, dialect.source)
    ]


def usual(case: tuple[str, str]) -> bool:
    """Whether a case is in every run: the host's own names, and a third of the others.

    Each dialect comes with a third of its architectures, and each architecture with a third of its dialects.
    """
    architecture, name = case
    return name == "ComfyUI" or (list(SPECIES).index(architecture) + list(DIALECTS).index(name)) % 3 == 0


def _has(architecture: str, source: str) -> bool:
    return {
        "diffusers": architecture in DIFFUSERS,
        "published": architecture in PUBLISHED,
        "fused": architecture in in_diffusers.FUSES,
        "anima": architecture == "Anima",
        "host": True,
        "lycoris": True,
    }[source]


@cache
def model_of(architecture: str) -> Any:
    """The tiny model; all of them together take some 200 MB."""
    return make(architecture)


@cache
def shapes_of(architecture: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model_of(architecture).state_dict().items()}


@cache
def places(architecture: str, source: str) -> dict[str, Located]:
    """The layers of an architecture by a source's paths, each with its rows in the host's state dict."""
    if source == "fused":
        return in_diffusers.fused(architecture, places(architecture, "diffusers"))
    model = model_of(architecture)
    whole = {
        path.removeprefix(PREFIX): Located.whole(f"{path}.weight", layer.weight.shape)
        for path, layer in adaptable(model).items()
        if path.startswith(PREFIX)
    }
    if source == "diffusers":
        named = records()[architecture].diffusers
        # Norms and embeddings have names too, and an older host has fewer layers.
        return {
            name: _below(rows, whole)
            for name, rows in named.items()
            if all(path in whole for path, _ in rows)
        }
    if source == "lycoris":
        return {name: whole[path] for name, path in lycoris_names(model.diffusion_model).items()}
    if source == "anima":
        return {anima_name(path): where for path, where in whole.items()}
    if source == "published":
        return {
            renamed(f"{path}.weight", PUBLISHED[architecture]).removesuffix(".weight"): where
            for path, where in whole.items()
        }
    return whole


def _below(places: Rows, whole: Mapping[str, Located]) -> Located:
    """The layer that is these rows of the host's layers, one below the other."""
    paths = list(dict.fromkeys(path for path, _ in places))
    rows = [
        (paths.index(path), row)
        for path, part in places
        for row in range(*(part or (0, whole[path].shape[0])))
    ]
    key_of, row_of = torch.tensor(rows).unbind(1)
    shape = (len(rows), *whole[paths[0]].shape[1:])
    return Located(shape, tuple(whole[path].keys[0] for path in paths), key_of, row_of)


def names(architecture: str, dialect: str) -> Names:
    """The layers of an architecture by their names in a dialect."""
    writer = DIALECTS[dialect]
    found: Names = {}
    for path, where in places(architecture, writer.source).items():
        name = writer.name(path)
        if name is not None:
            found[name] = where
    return found


def lycoris_names(model: nn.Module) -> dict[str, str]:
    """lycoris-lora's names of the layers of a module, to their paths in it."""
    from lycoris import create_lycoris

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    network = create_lycoris(model, 1.0, linear_dim=1, linear_alpha=1, algo="lora")
    paths = {id(module): path for path, module in model.named_modules()}
    return {lora.lora_name: paths[id(lora.org_module[0])] for lora in network.loras}


def anima_name(path: str) -> str:
    """What diffusers makes of the name of a layer of Anima, whose text conditioner is a model apart."""
    from diffusers.loaders import lora_conversion_utils

    convert = lora_conversion_utils._convert_non_diffusers_anima_lora_to_diffusers
    (key,) = convert({f"{path}.lora_A.weight": torch.zeros(1)})
    return key.removesuffix(".lora_A.weight")


# Alpha differs from the rank, so that a scale that is lost or applied twice shows.
RANK, ALPHA = 2, 0.5


def _small(generator: torch.Generator, *shape: int) -> Tensor:
    """Small whole numbers, so that products and sums of them are exact."""
    return torch.randint(-3, 4, shape, generator=generator).float()


def _lora(shape: tuple[int, ...], tensors: tuple[str, ...], random: torch.Generator) -> _Written:
    """alpha / r times the product of two factors of rank r; the product alone in a dialect without alpha."""
    rows, *columns = shape
    down, up = _small(random, RANK, *columns), _small(random, rows, RANK, *[1] * (len(columns) - 1))
    scale = ALPHA / RANK if len(tensors) == 3 else 1.0
    values = dict(zip(tensors, (down, up, torch.tensor(ALPHA)), strict=False))
    return values, scale * up.double().flatten(1) @ down.double().flatten(1)


_Written = tuple[dict[str, Tensor], Tensor]
"""A layer's tensors by key, with {} for its name, and its change (O, K) at strength 1, in float64."""


def adapter(named: Names, tensors: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An adapter file's tensors for these layers, and each layer's change at strength 1, in float64."""
    random = torch.Generator().manual_seed(0)
    file: dict[str, Tensor] = {}
    changes: dict[str, Tensor] = {}
    for name, where in named.items():
        values, change = _lora(where.shape, tensors, random)
        file |= {key.format(name): value.contiguous() for key, value in values.items()}
        changes[name] = change.view(where.shape)
    return file, changes


def summed(named: Names, changes: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """The change of each weight of the host, summed over the layers that have rows of it."""
    total: dict[str, Tensor] = {}
    for name, where in named.items():
        for key, change in where.scatter(changes[name], shapes).items():
            total[key] = total[key] + change if key in total else change
    return total


_OF_FLUX_2 = r".*(ff(_context)?[._]linear_(in|out)|single_.*[._]attn[._]to_(out|qkv_mlp_proj))$"
_OF_FLUX_1 = (
    r".*(ff(_context)?[._]net[._].*|single_.*[._](attn[._]to_[qkv]|proj_mlp|proj_out)|time_text_embed[._].*)$"
)
_FLUX_1 = "one map serves both, and no tool writes the names of Flux 2 for it"
HOST_FAULTS = {
    "Flux 1": (_OF_FLUX_2, _FLUX_1),
    "LongCat-Image": (_OF_FLUX_2, _FLUX_1),
    "Chroma": (_OF_FLUX_2, _FLUX_1),
    "Chroma Radiance": (_OF_FLUX_2, _FLUX_1),
    "Flux 2": (_OF_FLUX_1, "one map serves both, and no tool writes the names of Flux 1 for it"),
    "Lumina 2": (
        r".*(attention[._]to_[qkv]|attention[._]to_out[._]0|all_(final_layer|x_embedder)[._]2-1.*)$",
        "one map serves it and Z-Image: it has Z-Image's names, and thirds, but queries have the most rows",
    ),
}
"""For each architecture: a pattern of names that the host's map has by mistake, and why they are wrong."""


def host_names(architecture: str) -> Names:
    """The names of layers in the host's own map of an architecture, without those of `HOST_FAULTS`."""
    from comfy.lora import model_lora_keys_unet

    model = model_of(architecture)
    state = model.state_dict()
    numbered = Numbered(state)
    # `$^` fits no name.
    wrong = HOST_FAULTS.get(architecture, ("$^", ""))[0]
    found: Names = {}
    for name, meaning in model_lora_keys_unet(model, {}).items():
        key, *how = (meaning,) if isinstance(meaning, str) else meaning
        # The map also has layers that larger models of the architecture have.
        if key in state and key.endswith(".weight") and state[key].ndim > 1 and not re.match(wrong, name):
            found[name] = numbered.locate(_cut(numbered.state[key], *how))
    return found


def _cut(weight: Tensor, offset: Any = None, function: Any = None) -> Tensor:
    """The rows that an entry of the host's map means: some rows of a weight, then rearranged.

    offset: (axis, first, count), as for `Tensor.narrow`.
    """
    weight = weight.narrow(*offset) if offset is not None else weight
    return function(weight) if function is not None else weight


def proven(architecture: str) -> Names:
    """An architecture's names in all dialects; the tests prove what they mean."""
    return {
        name: where
        for case, dialect in cases()
        if case == architecture
        for name, where in names(architecture, dialect).items()
    }


def apart(named: Names) -> list[Names]:
    """The names in as many groups as needed, so that no two names of a group mean the same row."""
    groups: list[tuple[Names, set[tuple[str, int]]]] = []
    for name, where in named.items():
        rows = {(where.keys[key], row) for key, row in where.rows()}
        for group, taken in groups:
            if taken.isdisjoint(rows):
                group[name] = where
                taken |= rows
                break
        else:
            groups.append(({name: where}, rows))
    return [group for group, _ in groups]
