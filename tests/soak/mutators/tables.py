"""Changes of the tables in a file: header, metadata, and the PEFT configuration in it or beside it."""

from __future__ import annotations

import json
import math
import random
from typing import Any

from .. import case
from ..case import Case
from ..containers import METADATA, joined, packed
from ..seeds import Seed
from .oddities import PATTERNS, TEXTS, VALUES, anything, changed, text_of

KNOWN = (
    *(
        "ss_network_args",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_network_module",
        "format",
        "modelspec.title",
    ),
    *(
        "sshs_model_hash",
        "modelspec.hash_sha256",
        "lora_adapter_metadata",
        "ss_tag_frequency",
        "lycoris_recipe",
    ),
    *("_quantization_metadata", METADATA, ""),
)
"""Keys of metadata that some reader knows."""
FIELDS = (
    *("peft_type", "r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    *("lora_bias", "bias", "fan_in_fan_out", "target_modules", "feedforward_modules", "init_lora_weights"),
    *("coft", "eps", "oft_block_size", "use_cayley_neumann", "num_cayley_neumann_terms", "peft_version"),
    *("block_share", "layer_replication", "alora_invocation_tokens", "modules_to_save", "decompose_factor"),
    *("layers_to_transform", "layers_pattern", "exclude_modules", "use_effective_conv2d", "decompose_both"),
)
"""Fields of PEFT's configurations."""
PLAIN = {"peft_type": "LORA", "r": 3, "lora_alpha": 2, "alpha": 2, "rank_pattern": {}, "alpha_pattern": {}}


def _header(name: str, seed: Seed, header: Any, *, same: float | None = None) -> Case:
    return case.of(f"header_{name}", seed, joined(header, seed.parts[1]), same=same)


def _header_table(rng: random.Random, seed: Seed) -> Case | None:
    return _header("table", seed, changed(rng, seed.parts[0])) if seed.is_safetensors else None


def _header_text(rng: random.Random, seed: Seed) -> Case | None:
    return _header("text", seed, text_of(rng, seed.parts[0])) if seed.is_safetensors else None


def _header_alike(rng: random.Random, seed: Seed) -> Case | None:
    """The same table in another order, with other spaces, or with letters as escapes of JSON."""
    if not seed.is_safetensors:
        return None
    items = list(seed.parts[0].items())
    rng.shuffle(items)
    text = json.dumps(dict(items), indent=rng.choice((None, 0, 3)), separators=(" , ", " : "))
    if rng.random() < 0.5:
        text = text.replace("lora", "\\u006cor\\u0061").replace("blocks", "\\u0062locks")
    return _header("alike", seed, text + " " * rng.choice((0, 1, 64, 5000)), same=1.0)


def _empty_tensor(rng: random.Random, seed: Seed) -> Case | None:
    """A further tensor without data, under a name that may make a layer of it."""
    if not seed.is_safetensors:
        return None
    names = (
        "x",
        "blocks.0.x.alpha",
        "lora_unet_blocks_0_x.alpha",
        "lora_unet_blocks_9_x.diff",
        "",
        ".",
        "a..b",
    )
    entry = {
        "dtype": rng.choice(("F32", "I64", "BOOL", "F4")),
        "shape": rng.choice(([0], [0, 5], [3, 0, 1 << 40], [0] * 30, [1 << 62, 0])),
        "data_offsets": [0, 0],
    }
    return _header("empty_tensor", seed, {**seed.parts[0], rng.choice(names): entry})


def _metadata(rng: random.Random, seed: Seed) -> Case | None:
    if not seed.is_safetensors:
        return None
    named = {
        rng.choice((*KNOWN, *TEXTS)): rng.choice((*TEXTS, *VALUES)) for _ in range(rng.choice((1, 1, 4)))
    }
    return case.of("metadata", seed, packed(seed.tensors, {**seed.metadata, **named}))


def _more_metadata(rng: random.Random, seed: Seed) -> Case | None:
    """Further metadata, which no reader knows and which changes nothing."""
    if not seed.is_safetensors:
        return None
    texts = [text for text in TEXTS if text.isascii()]
    named = {f"note {n}": rng.choice(texts) for n in range(rng.choice((1, 20)))}
    named |= {f"more {n}": "x" * rng.choice((0, 10, 100)) for n in range(rng.choice((0, 5000)))}
    return case.of("metadata_more", seed, packed(seed.tensors, {**seed.metadata, **named}), same=1.0)


def _table_of(seed: Seed) -> tuple[dict[str, Any], str]:
    """The configuration of a seed, or one that it might have, and the prefix of its keys."""
    if seed.config is None and "lora_adapter_metadata" in seed.metadata:
        table = json.loads(seed.metadata["lora_adapter_metadata"])
        return table, next((key.rpartition(".")[0] + "." for key in table if key.endswith(".r")), "")
    return dict(seed.config or PLAIN), ""


def _configured(name: str, seed: Seed, table: Any, *, same: float | None = None) -> Case:
    """A configuration beside the file, or in its metadata if it is diffusers'."""
    text = table if isinstance(table, str | bytes) else json.dumps(table)
    blob, beside = seed.blob, text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if seed.config is None and "lora_adapter_metadata" in seed.metadata and isinstance(text, str):
        blob, beside = packed(seed.tensors, {**seed.metadata, "lora_adapter_metadata": text}), None
    return case.of(f"config_{name}", seed, blob, same=same, config=beside)


def _config_table(rng: random.Random, seed: Seed) -> Case | None:
    table, root = _table_of(seed)
    if rng.random() < 0.4:
        return _configured("table", seed, changed(rng, table))
    for _ in range(rng.choice((1, 1, 3))):
        table[root + rng.choice(FIELDS)] = rng.choice(VALUES) if rng.random() < 0.7 else anything(rng)
    return _configured("fields", seed, table)


def _config_pattern(rng: random.Random, seed: Seed) -> Case | None:
    table, root = _table_of(seed)
    name = rng.choice(("rank_pattern", "alpha_pattern", "feedforward_modules", "target_modules"))
    patterns = [rng.choice(PATTERNS) for _ in range(rng.choice((1, 1, 3)))]
    patterns += [f"{rng.choice(PATTERNS[:6])}{number}" for number in range(rng.choice((0, 0, 0, 800)))]
    ranks = {pattern: rng.choice((1, 3, 8)) for pattern in patterns}
    table[root + name] = ranks if name.endswith("_pattern") else rng.choice((patterns, patterns[0]))
    return _configured("pattern", seed, table)


def _config_text(rng: random.Random, seed: Seed) -> Case | None:
    odd = ("null", "", "[" * 50_000, '{"r": ' + "9" * 5000 + ', "lora_alpha": 1}', rng.randbytes(60))
    return _configured("text", seed, rng.choice((*odd, *(text_of(rng, _table_of(seed)[0]) for _ in odd))))


def _config_alike(rng: random.Random, seed: Seed) -> Case | None:
    """What has no effect on the change: PEFT's book-keeping, and the order of the fields."""
    if seed.config is None and "lora_adapter_metadata" not in seed.metadata:
        return None
    table, root = _table_of(seed)
    kept = {
        "base_model_name_or_path": rng.choice(("", None, "x/y", "\x1b[1m")),
        "inference_mode": rng.choice((True, False)),
        "task_type": rng.choice((None, "FEATURE_EXTRACTION")),
        "lora_dropout": rng.choice((0.0, 0.3)),
        "revision": None,
        "auto_mapping": None,
        "module_dropout": 0.1,
    }
    items = [*table.items(), *((root + name, value) for name, value in kept.items() if rng.random() < 0.5)]
    rng.shuffle(items)
    return _configured("alike", seed, dict(items), same=1.0)


def _stronger(rng: random.Random, seed: Seed) -> Case | None:
    """alpha times a factor, or rank-stabilised scaling, in the configuration of kinds that these scale."""
    kind = seed.name.partition("/")[0]
    table, root = _table_of(seed)
    name = next((key for key in ("lora_alpha", "alpha") if f"{root}{key}" in table), None)
    if seed.config is None or name is None or kind not in ("lora", "loha", "embedding", "lora-tucker"):
        return None
    if table.get("alpha_pattern") or table.get("rank_pattern"):
        return None
    factor = rng.choice((0.5, 2.0, 3.0))
    if kind == "lora" and rng.random() < 0.5:
        return _configured("stronger", seed, {**table, "use_rslora": True}, same=math.sqrt(table["r"]))
    return _configured("stronger", seed, {**table, name: factor * table[name]}, same=factor)


MUTATIONS = [
    *(_header_table, _header_table, _header_table, _header_text, _header_alike, _empty_tensor),
    *(_metadata, _more_metadata, _config_table, _config_table, _config_pattern, _config_text),
    *(_config_alike, _stronger),
]
