"""Values that readers trip over: numbers, texts, patterns and tables in the place of others."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from ..case import CANARY

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 255, 256, 65535, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63),
    *(1 << 64, 10**30, 10**400, 1.0, 0.5, -0.0, 1e308, float("inf"), float("nan"), True, None, "1", [1], {}),
)
"""Values in the place of a number."""
TEXTS = (
    *("", " ", "\0", "\n", "\t", ".", "..", "_", "/", "\\", "../..", "None", "null", "NaN", "1e400", "-1"),
    *("[]", "{}", '"', "\x1b[2J\x1b[31m", f"x\n{CANARY}", f"x\r  {CANARY}", f"x\u2028{CANARY}", "\u202e"),
    *(f"x\x85{CANARY}", "\ud800", "\udfff\ud800", "\U0001f600", "\ufeff{}", "é", "e\u0301", "%s", "{0}"),
    *("[" * 5000, '{"a":' * 5000, "9" * 5000, "ä" * 3000, "a" * 200_000, '{"r": 1e999}', "{'algo': 'lora'}"),
    *('{"algo": "tlora", "sig_type": "x"}', '{"algo": 7}', '{"split_qkv": "True"}', '{"split_qkv": true}'),
)
"""Values in the place of a text."""
PATTERNS = (
    *("(a+)+$", "(a|a)*b", "(.*a){25}", "(x+x+)+y", r"(\w|\d)*!", "([a-z]+)*$", "(.*)*", "(?:a?){40}a{40}"),
    *("(", ")", "[", "*", "+", "\\", "(?P<", "(?i", "a{99999999}", "(?P<x>a)(?P<x>b)", "\ud800", "x{2,1}"),
    *(r"(.*)\1", "(?=x)", "(?<=.*)x", ".*", "", "^", "|", "blocks", r"blocks\.0\.x", r"^blocks\.\d+\.x"),
    *("x" * 30_000, "(" * 3000 + ")" * 3000, "." * 5000, "[a-z]*" * 300, "a?" * 200),
)
"""Regular expressions: such as hang or break an engine, and plain ones."""
DTYPES: tuple[Any, ...] = (
    *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64", "I64", "I32"),
    *("I16", "I8", "U64", "U16", "U8", "BOOL", "f32", "", "F128", "\x1b[31mF32", None, 32, ["F32"], {}),
)
SHAPES: tuple[Any, ...] = (
    *([0, 1 << 63], [1 << 32, 1 << 32], [1] * 5000, [-1, -1], [], [0], [12, 18, 1, 1], None, 7, "12"),
    *({"0": 1}, [[1]]),
)
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    *(16, 1e30, -3.5, "LORA", "LOHA", "VERA", "pissa", "all", "lora_only", "\x1b[1m", "x" * 9000, False),
    *({"x": 4}, {"x": 0}, {"x": None}, {"": 1}, {"x": [1]}, {"x": 10**400}, ["x"], ["x", 5]),
    *([[0, 1], [1, 2]], [None], {"a": {"b": {"c": 1}}}, {"\ud800": "a"}, {"a": "\ud800"}),
)
"""Values in the place of any other."""
BY_FIELD = {"dtype": DTYPES, "shape": SHAPES, "rank_pattern": PATTERNS, "alpha_pattern": PATTERNS}
"""Values in the place of what stands under one of these names."""


def anything(rng: random.Random, leaves: tuple[Any, ...] = VALUES, depth: int = 3) -> Any:
    """A value of any form, made of such leaves."""
    if not depth or rng.random() < 0.5:
        return rng.choice(leaves)
    made = [anything(rng, leaves, depth - 1) for _ in range(rng.randrange(4))]
    return made if rng.random() < 0.4 else {rng.choice(TEXTS): value for value in made}


def _places(table: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a nest of tables and lists: what holds it, and the key there."""
    keys = table if isinstance(table, dict) else range(len(table)) if isinstance(table, list) else ()
    for key in list(keys):
        yield table, key
        yield from _places(table[key])


def changed(rng: random.Random, table: dict[str, Any]) -> Any:
    """A copy with one place, at any depth, replaced, taken out, named anew, or exchanged with another."""
    table = copy.deepcopy(table)
    places = list(_places(table))
    if not places or rng.random() < 0.02:
        return anything(rng)
    (holder, key), (other, there) = rng.choice(places), rng.choice(places)
    how = rng.randrange(10)
    if how == 0:
        del holder[key]
    elif how == 1:
        holder[key], other[there] = other[there], holder[key]
    elif how == 2 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder.pop(key) if rng.random() < 0.5 else anything(rng)
    elif how == 3 and isinstance(holder, list):
        holder.insert(key, rng.choice(NUMBERS))
    else:
        old = holder[key]
        pool = BY_FIELD.get(key, TEXTS if isinstance(old, str) else NUMBERS)
        holder[key] = rng.choice(pool) if rng.random() < 0.7 else anything(rng)
    return table


def text_of(rng: random.Random, table: Any) -> str | bytes:
    """The text of a table in JSON, damaged."""
    text = json.dumps(table)
    at, old = rng.randrange(len(text)), rng.choice(('"', ":", ", ", "0", "[", "F32", "lora"))
    changes: tuple[Callable[[], str | bytes], ...] = (
        lambda: text[:at] + rng.choice('{}[]",:0nt\\') + text[at + 1 :],
        lambda: text.replace(old, rng.choice(("'", ",", "[1e5, ", "00", "NaN", "9" * 5000, "\\ud800")), 1),
        lambda: text[:at],
        lambda: rng.choice(("\ufeff" + text, text + "\0", text + "}", text + text, "//x\n" + text)),
        lambda: text.encode(rng.choice(("utf-16", "utf-8-sig"))),
        lambda: text.encode().replace(b"a", rng.choice((b"\xff", b"\xed\xa0\x80")), 1),
        lambda: text[:-1] + ', "deep": ' + "[" * (depth := rng.choice((100, 20_000))) + "]" * depth + "}",
        lambda: text[:-1] + f", {text[1:]}",
    )
    return rng.choice(changes)()
