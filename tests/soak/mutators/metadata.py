"""Changes of what a file says of itself: metadata, and the PEFT configuration in it or beside it."""

from __future__ import annotations

import json
import math
import random
from typing import Any

from .. import case
from ..case import CANARY, Case
from ..containers import packed
from ..seeds import Seed
from .header import NUMBERS

OF = "safetensors"
TEXTS = (
    *("", " ", "\0", "\n", "\x1b[2J\x1b[31m", f"x\n{CANARY}", f"x\r  {CANARY}", f"x\u2028{CANARY}", "\u202e"),
    *(
        "\ud800",
        "\udfff\ud800",
        "ä" * 3000,
        "a" * 200_000,
        "None",
        "null",
        "[]",
        "{}",
        '"',
        "NaN",
        "1e400",
        "-1",
    ),
    *(
        "[" * 5000,
        '{"a":' * 5000,
        '{"algo": "tlora", "sig_type": "x"}',
        '{"algo": 7}',
        '{"split_qkv": "True"}',
    ),
    *('{"split_qkv": true, "algo": null}', "{'algo': 'lora'}", '{"r": 1e999}', "\ufeff{}", "9" * 5000),
)
"""Values in the place of a text."""
KNOWN = (
    *(
        "ss_network_args",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_network_module",
        "format",
        "lycoris_recipe",
    ),
    *(
        "sshs_model_hash",
        "modelspec.title",
        "modelspec.hash_sha256",
        "lora_adapter_metadata",
        "ss_tag_frequency",
    ),
    *("_quantization_metadata", "__metadata__", ""),
)
"""Keys of metadata that some reader knows."""
PATTERNS = (
    *("(a+)+$", "(a|a)*b", "(.*a){25}", "(x+x+)+y", r"(\w|\d)*!", "([a-z]+)*$", "(.*)*", "(?:a?){40}a{40}"),
    *(
        "(",
        ")",
        "[",
        "*",
        "+",
        "\\",
        "(?P<",
        "(?i",
        "a{99999999}",
        "(?P<x>a)(?P<x>b)",
        "\ud800",
        "\0",
        "x{2,1}",
    ),
    *(
        r"(.*)\1",
        "(?=x)",
        "(?<=.*)x",
        ".*",
        "",
        "^",
        "$",
        "x|",
        "|",
        "blocks",
        r"blocks\.0\.x",
        r"^blocks\.\d+\.x",
    ),
    *("x" * 30_000, "(" * 3000 + ")" * 3000, "." * 5000, "[a-z]*" * 300, "a?" * 200),
)
"""Regular expressions: such as hang or break an engine, and plain ones."""
FIELDS = (
    *("peft_type", "r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    *("lora_bias", "bias", "fan_in_fan_out", "target_modules", "feedforward_modules", "init_lora_weights"),
    *("coft", "eps", "oft_block_size", "use_cayley_neumann", "num_cayley_neumann_terms", "peft_version"),
    *("block_share", "layer_replication", "alora_invocation_tokens", "modules_to_save", "decompose_factor"),
    *("layers_to_transform", "layers_pattern", "exclude_modules", "use_effective_conv2d", "decompose_both"),
)
"""Fields of PEFT's configurations."""
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    *(16, 1e30, -3.5, "LORA", "LOHA", "VERA", "pissa", "all", "lora_only", "\x1b[1m", "x" * 9000, False),
    *(
        {"x": 4},
        {"x": 0},
        {"x": None},
        {"": 1},
        {"x": [1]},
        {"x": 10**400},
        ["x"],
        ["x", 5],
        [[0, 1], [1, 2]],
    ),
    *([None], {"a": {"b": {"c": 1}}}),
)
"""Values in the place of a field."""
PLAIN = {"r": 3, "lora_alpha": 2, "alpha": 2, "rank_pattern": {}, "alpha_pattern": {}}


def _write(name: str, seed: Seed, metadata: dict[str, Any], *, same: float | None = None) -> Case:
    blob = packed(seed.tensors, metadata)
    return case.of(f"metadata{name}", seed, blob, same=same, closed=same is not None)


def _known(rng: random.Random, seed: Seed) -> Case:
    return _write("_known", seed, {**seed.metadata, rng.choice(KNOWN): rng.choice(TEXTS)})


def _value(rng: random.Random, seed: Seed) -> Case:
    return _write("_value", seed, {**seed.metadata, rng.choice(KNOWN): rng.choice(VALUES)})


def _unknown(rng: random.Random, seed: Seed) -> Case:
    """Further metadata that nobody knows change nothing."""
    texts = [text for text in TEXTS if not any(0xD800 <= ord(letter) < 0xE000 for letter in text)]
    named = {f"note {rng.choice(texts)[:50]}": rng.choice(texts) for _ in range(rng.randrange(1, 20))}
    return _write("_unknown", seed, {**seed.metadata, **named}, same=1.0)


def _many(rng: random.Random, seed: Seed) -> Case:
    named = {f"note {number}": "x" * rng.choice((0, 10, 100)) for number in range(rng.choice((100, 5000)))}
    return _write("_many", seed, {**seed.metadata, **named}, same=1.0)


def _config(name: str, seed: Seed, table: Any, *, same: float | None = None) -> Case:
    """A configuration beside the file, or in its metadata if it is diffusers'."""
    text = table if isinstance(table, str) else json.dumps(table)
    if seed.config is None and "lora_adapter_metadata" in seed.metadata:
        metadata = {**seed.metadata, "lora_adapter_metadata": text}
        blob = packed(seed.tensors, metadata)
        return case.of(f"metadata{name}", seed, blob, same=same, closed=same is not None)
    return case.of(
        f"metadata{name}",
        seed,
        seed.blob,
        same=same,
        closed=same is not None,
        config=text.encode("utf-8", "surrogatepass"),
    )


def _table_of(seed: Seed) -> tuple[dict[str, Any], str]:
    """The configuration of a seed, or one that it might have, and what is in front of its keys."""
    if seed.config is not None:
        return dict(seed.config), ""
    if "lora_adapter_metadata" in seed.metadata:
        table = json.loads(seed.metadata["lora_adapter_metadata"])
        return table, next((key.rpartition(".")[0] + "." for key in table if key.endswith(".r")), "")
    return {"peft_type": "LORA", **PLAIN}, ""


def _field(rng: random.Random, seed: Seed) -> Case:
    table, root = _table_of(seed)
    for _ in range(rng.choice((1, 1, 3))):
        table[root + rng.choice(FIELDS)] = rng.choice(VALUES)
    return _config("_field", seed, table)


def _no_field(rng: random.Random, seed: Seed) -> Case:
    table, _ = _table_of(seed)
    del table[rng.choice(list(table))]
    return _config("_no_field", seed, table)


def _pattern(rng: random.Random, seed: Seed) -> Case:
    table, root = _table_of(seed)
    name = rng.choice(("rank_pattern", "alpha_pattern", "feedforward_modules", "target_modules"))
    count = rng.choice((1, 1, 1, 3, 800))
    patterns = [rng.choice(PATTERNS) for _ in range(min(count, 3))]
    patterns += [f"{rng.choice(PATTERNS[:6])}{number}" for number in range(count - 3)]
    table[root + name] = (
        {pattern: rng.choice((1, 3, 8)) for pattern in patterns}
        if name.endswith("_pattern")
        else rng.choice((patterns, patterns[0]))
    )
    return _config("_pattern", seed, table)


def _json(rng: random.Random, seed: Seed) -> Case:
    table, _ = _table_of(seed)
    text = json.dumps(table)
    at = rng.randrange(len(text))
    changed = rng.choice(
        (
            text[:at],
            text[:at] + rng.choice('{}[]",:0nt\\') + text[at + 1 :],
            text + text,
            f"[{text}]",
            "null",
            "",
            "[" * 50_000,
            '{"r": ' + "9" * 5000 + ', "lora_alpha": 1}',
            text[:-1] + ', "r": 5}',
        )
    )
    return _config("_json", seed, changed)


def _without_effect(rng: random.Random, seed: Seed) -> Case | None:
    """Fields that say nothing of the change: PEFT's book-keeping, and the order of the fields."""
    if seed.config is None and "lora_adapter_metadata" not in seed.metadata:
        return None
    table, root = _table_of(seed)
    table |= {
        f"{root}{name}": value
        for name, value in {
            "base_model_name_or_path": rng.choice(("", None, "x/y", "\x1b[1m")),
            "inference_mode": rng.choice((True, False)),
            "revision": None,
            "auto_mapping": None,
            "task_type": rng.choice((None, "FEATURE_EXTRACTION")),
            "lora_dropout": rng.choice((0.0, 0.3)),
            "module_dropout": 0.1,
        }.items()
        if rng.random() < 0.5
    }
    items = list(table.items())
    rng.shuffle(items)
    return _config("_without_effect", seed, dict(items), same=1.0)


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
        return _config("_stronger", seed, {**table, "use_rslora": True}, same=math.sqrt(table["r"]))
    return _config("_stronger", seed, {**table, name: factor * table[name]}, same=factor)


MUTATIONS = [
    _known,
    _value,
    _unknown,
    _many,
    _field,
    _no_field,
    _pattern,
    _json,
    _without_effect,
    _stronger,
]
