"""PEFT's configuration, in a file beside the weights or in diffusers' metadata. Alpha is stored only
there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from ..algorithms import Layer
from ..messages import phrase
from .config import (
    PURPOSE,
    SELECTING,
    TOKENS,
    Config,
    ConfiguredLayer,
    ConflictError,
    Module,
    Wanted,
    WantedRank,
)
from .fields import MOST_COMPONENTS, Fields, parsed, table_of, unreadable
from .kinds import KINDS
from .kinds.ln_tuning import LnTuningConfig
from .kinds.lora import LoraConfig
from .kinds.trainable_tokens import TrainableTokensConfig
from .unread import UNREAD, not_read

__all__ = [
    "CONFIG_NAME",
    "METADATA_KEY",
    "PURPOSE",
    "TOKENS",
    "Config",
    "ConfigFile",
    "ConfiguredLayer",
    "ConflictError",
    "Module",
    "Wanted",
    "WantedRank",
    "config_for",
    "kind_of",
    "lora_metadata",
    "read_lora_metadata",
]

CONFIG_NAME = "adapter_config.json"
"""The name of the configuration beside PEFT's weights."""
HEADS = ("classifier", "score")
"""The names of modules that PEFT's classes for sequences and tokens save whole, unless told otherwise."""
METADATA_KEY = "lora_adapter_metadata"
"""The metadata key under which diffusers writes its configurations."""


def kind_of(layer: type[Layer]) -> type[Config[Any]] | None:
    """The kind of configuration that describes layers of an algorithm; None where PEFT has none."""
    return next((kind for kind in KINDS.values() if kind.algorithm is layer and not kind.read_only), None)


def config_for(members: Sequence[ConfiguredLayer[Any]], module: Module) -> Config[Any]:
    """The configuration from which PEFT builds these layers of a module.

    Raises ConflictError where no configuration gives exactly these layers.
    """
    # The configuration of another kind has fields for whole modules, for trained rows, and for whether its
    # file has biases of other modules.
    replaced = [member for member in members if member.kind is LnTuningConfig]
    biases = [member for member in replaced if member.wanted.set_bias]
    saved = [member for member in replaced if not member.wanted.set_bias]
    rows = [member for member in members if member.kind is TrainableTokensConfig]
    others = [member for member in members if member not in replaced and member not in rows]
    if others and (replaced or rows):
        config = config_for(others, module)
        if biases:
            config = config.with_biases(biases)
        config = replace(
            config,
            modules_to_save=_saved([member.path for member in saved], module),
            trainable_token_indices={member.path: member.wanted.rows for member in rows},
        )
        for own, named in ((saved, config.saves), (rows, config.rows_at)):
            paths = {member.path for member in own}
            beside = next((path for path in sorted(module.paths) if path not in paths and named(path)), None)
            if beside is not None:
                raise ConflictError("E-peft-keeps-another-module", own[0], beside)
        return config
    # The most common kind, so that the error names an exception.
    kind = Counter(member.kind for member in members).most_common(1)[0][0]
    for member in members:
        if member.kind is not kind:
            beside = f"{member.kind.peft_type} beside {kind.peft_type}"
            raise ConflictError("E-peft-kinds-mixed", member, beside)
    return kind.of(members, module)


def _saved(paths: Sequence[str], module: Module) -> list[str]:
    """The value of `modules_to_save` for whole modules.

    PEFT's classes for tasks add their heads by `HEADS`, and wrap each of these as one module. A layer inside
    is then named by the head, unless the file lacks another layer of the head.
    """
    heads_to_save: set[str] = set()
    for path in paths:
        words = path.split(".")
        heads = [".".join(words[: at + 1]) for at, word in enumerate(words) if word in HEADS]
        others = {other for head in heads[:1] for other in module.paths if other.startswith(f"{head}.")}
        heads_to_save.add(heads[0] if heads and others <= set(paths) else path)
    return sorted(heads_to_save)


@dataclass(frozen=True)
class ConfigFile:
    """An adapter_config.json. It is read once, and not before something asks: it may be of another file."""

    path: str

    @cached_property
    def table(self) -> dict[str, Any]:
        """Its fields, whichever tool wrote it. Raises FileFormatError where it cannot be read."""
        return table_of(self.path)

    @cached_property
    def read(self) -> Config[Any]:
        """PEFT's configuration in it. Raises FileFormatError where that cannot be followed."""
        return _config(self.table, self.path)


def read_lora_metadata(text: str, path: str) -> dict[str, Config[Any]]:
    """The configurations in diffusers' metadata, by the component of the pipeline: `unet`, `text_encoder`.

    `text` is the value of `METADATA_KEY`, and `path` the file for errors. It is one flat JSON table, in which
    each key begins with its component: `unet.lora_alpha`. Keys without one are under "" in the result. Raises
    FileFormatError where the table cannot be followed.
    """
    file = f"{path} ({METADATA_KEY})"
    components: dict[str, dict[str, Any]] = {}
    for key, value in parsed(text, file).items():
        component, _, name = key.rpartition(".")
        components.setdefault(component, {})[name] = value
    # A component is recognised by its rank, which every configuration of diffusers has.
    tables = {component: table for component, table in components.items() if "r" in table}
    if not tables or len(tables) > MOST_COMPONENTS:
        raise unreadable(
            phrase("R-does-not-say-parts-model"),
            file,
            got=phrase("R-parts-rank", count=len(tables)),
            expected=phrase("R-r-lora-alpha-1-parts", most_components=MOST_COMPONENTS),
        )
    return {
        component: _config(table, file, f"{component}." if component else "")
        for component, table in tables.items()
    }


def lora_metadata(configs: Mapping[str, Config[Any]]) -> dict[str, Any]:
    """The table from which `read_lora_metadata` reads these configurations."""
    tables = {component: config.table() for component, config in configs.items()}
    # In diffusers the caller that loads the file decides whether its layers are trained further. It gives
    # every field to PEFT, and releases before 0.18 refuse one that names a version.
    return {
        f"{component}.{key}" if component else key: value
        for component, table in tables.items()
        for key, value in table.items()
        if key not in ("inference_mode", "peft_version")
    }


def _config(table: Mapping[str, Any], path: str, prefix: str = "") -> Config[Any]:
    fields = Fields(table, path, prefix)
    name = fields.text("peft_type", "")
    if name in UNREAD:
        raise fields.error(
            "peft_type", phrase("R-it-is", unread=not_read(UNREAD[name])), name, ", ".join(KINDS)
        )
    # Without a kind it is read as LoRA, the most usual.
    kind = KINDS.get(name) if name else LoraConfig
    if kind is None:
        raise fields.error("peft_type", phrase("R-kind-unknown"), name, ", ".join(KINDS))
    kind.check(fields)
    named = fields.texts("modules_to_save")
    named = (named,) if isinstance(named, str) else named
    if named and fields.flag("ensure_weight_tying", False):
        # PEFT saves the modules that are tied to these too, and no field names them: "" ends every path.
        named = (*named, "")
    # Other fields may exclude some of the layers that this one names.
    listed: Any = None if any(map(fields.stated.get, SELECTING)) else fields.stated.get("target_modules")
    purpose = {key: value for key in PURPOSE if isinstance(value := fields.stated.get(key), str)}
    config = kind.read(fields)
    return replace(
        config,
        target_modules=tuple(map(str, cast("list[Any]", listed))) if isinstance(listed, list) else (),
        modules_to_save=named,
        trainable_token_indices=fields.rows(TOKENS) or config.trainable_token_indices,
        purpose=purpose,
    )
