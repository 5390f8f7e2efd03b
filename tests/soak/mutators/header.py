"""Changes of the header of a safetensors file: its table, and the text in which it is written."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from .. import case
from ..case import Case
from ..containers import METADATA, joined
from ..seeds import Seed

OF = "safetensors"
NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 255, 256, 65535, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63),
    *(1 << 64, 10**30, 10**400, 1.0, 0.5, -0.0, 1e308, float("inf"), float("nan"), True, None, "1", [1], {}),
)
"""Values in the place of a number."""
DTYPES: tuple[Any, ...] = (
    *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64"),
    *("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "f32", "", "F128", "\x1b[31mF32"),
    *(None, 32, ["F32"], {}),
)
"""Values in the place of a dtype."""


def _entries(header: dict[str, Any]) -> list[str]:
    return [name for name in header if name != METADATA]


def _write(name: str, seed: Seed, header: Any, data: bytes, *, same: float | None = None) -> Case:
    return case.of(f"header{name}", seed, joined(header, data), same=same, closed=same is not None)


def _table(
    change: Callable[[random.Random, dict[str, Any]], Any], *, same: bool = False
) -> Callable[[random.Random, Seed], Case | None]:
    """A mutation that changes the table; the result of `change`, if any, replaces it."""

    def mutate(rng: random.Random, seed: Seed) -> Case | None:
        header, data = seed.parts
        header = copy.deepcopy(header)
        changed = change(rng, header)
        return _write(
            change.__name__, seed, header if changed is None else changed, data, same=1.0 if same else None
        )

    return mutate


def _dtype(rng: random.Random, header: dict[str, Any]) -> None:
    header[rng.choice(_entries(header))]["dtype"] = rng.choice(DTYPES)


def _size(rng: random.Random, header: dict[str, Any]) -> None:
    shape = header[rng.choice(_entries(header))]["shape"]
    if shape:
        shape[rng.randrange(len(shape))] = rng.choice(NUMBERS)
    else:
        shape.append(rng.choice(NUMBERS))


def _shape(rng: random.Random, header: dict[str, Any]) -> None:
    entry = header[rng.choice(_entries(header))]
    shape = entry["shape"]
    entry["shape"] = rng.choice(
        (
            [1, *shape],
            [*shape, 1],
            shape[::-1],
            [*shape, 0],
            [0, 1 << 63],
            [1 << 32, 1 << 32],
            [1] * 20 + shape,
            [1] * 5000,
            [-1, -1],
            shape * 3,
            None,
            7,
            "12",
            {"0": 1},
            [shape],
        )
    )


def _offset(rng: random.Random, header: dict[str, Any]) -> None:
    header[rng.choice(_entries(header))]["data_offsets"][rng.randrange(2)] = rng.choice(NUMBERS)


def _offsets(rng: random.Random, header: dict[str, Any]) -> None:
    entry, other = (header[rng.choice(_entries(header))] for _ in range(2))
    start, stop = entry["data_offsets"]
    entry["data_offsets"] = rng.choice(
        (
            [stop, start],
            [start],
            [],
            [start, stop, stop],
            None,
            5,
            [start + 1, stop + 1],
            {},
            "01",
            other["data_offsets"],
        )
    )


def _exchange(rng: random.Random, header: dict[str, Any]) -> None:
    """Two tensors exchange their places in the data."""
    one, other = (rng.choice(_entries(header)) for _ in range(2))
    header[one], header[other] = header[other], header[one]


def _drop_field(rng: random.Random, header: dict[str, Any]) -> None:
    entry = header[rng.choice(_entries(header))]
    del entry[rng.choice(list(entry))]


def _extra_field(rng: random.Random, header: dict[str, Any]) -> None:
    entry = header[rng.choice(_entries(header))]
    entry[rng.choice(("x", "", "Dtype", "data_offset", "\ud800"))] = rng.choice(NUMBERS)


def _entry(rng: random.Random, header: dict[str, Any]) -> None:
    header[rng.choice(_entries(header))] = rng.choice((None, [], {}, 0, "F32", True, [["dtype", "F32"]]))


def _drop_entry(rng: random.Random, header: dict[str, Any]) -> None:
    del header[rng.choice(_entries(header))]


def _empty_tensor(rng: random.Random, header: dict[str, Any]) -> None:
    """A further tensor without data, under a name that may make a layer of it."""
    names = (
        "x",
        "blocks.0.x.alpha",
        "lora_unet_blocks_0_x.alpha",
        "lora_unet_blocks_9_x.diff",
        "",
        ".",
        "a..b",
    )
    header[rng.choice(names)] = {
        "dtype": rng.choice(("F32", "I64", "BOOL", "F4")),
        "shape": rng.choice(([0], [0, 5], [3, 0, 1 << 40], [0] * 30, [1 << 62, 0])),
        "data_offsets": [0, 0],
    }


def _no_table(rng: random.Random, header: dict[str, Any]) -> Any:
    return rng.choice(([], "", 0, None, [header], {}, {"": header}, {METADATA: {}}, True))


def _metadata(rng: random.Random, header: dict[str, Any]) -> None:
    header[METADATA] = rng.choice(
        (
            [],
            "text",
            1,
            None,
            {"a": 1},
            {"a": None},
            {"a": {"b": []}},
            {"": ""},
            {"a": "\ud800"},
            {"a": 10**400},
            {"a": "\x1b[2J\n"},
            {"a": 1e309},
            {"\ud800": "a"},
            {"a": True},
            [["a", "b"]],
        )
    )


def _deep(rng: random.Random, header: dict[str, Any]) -> str:
    depth = rng.choice((100, 1000, 20000))
    return json.dumps(header)[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"


def _twice(rng: random.Random, header: dict[str, Any]) -> str:
    name = rng.choice(list(header))
    return json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}" + "}"


def _text(rng: random.Random, header: dict[str, Any]) -> str | bytes:
    text = json.dumps(header)
    changes: tuple[Callable[[], str | bytes], ...] = (
        lambda: "\ufeff" + text,
        lambda: text.encode("utf-16"),
        lambda: text.encode("utf-8-sig"),
        lambda: text + "\0",
        lambda: text + "}",
        lambda: text + text,
        lambda: "//x\n" + text,
        lambda: text.replace(":", ",", 1),
        lambda: text.replace('"', "'"),
        lambda: text.replace("F32", "\\ud800", 1),
        lambda: text.replace("lora", "\\u006cora\\u0000", 1),
        lambda: text.replace("[", "[1e5, ", 1),
        lambda: text.replace(", ", ",,", 1),
        lambda: text.replace("0", "00", 1),
        lambda: text.replace("0", "NaN", 1),
        lambda: text.replace("0", "9" * 5000, 1),
        lambda: text.encode().replace(b"a", b"\xff", 1),
        lambda: text.encode().replace(b"a", b"\xed\xa0\x80", 1),
    )
    return rng.choice(changes)()


def _reordered(rng: random.Random, header: dict[str, Any]) -> Any:
    items = list(header.items())
    rng.shuffle(items)
    return dict(items)


def _spaced(rng: random.Random, header: dict[str, Any]) -> Any:
    return json.dumps(header, indent=rng.choice((None, 0, 3)), separators=(" , ", " : ")) + " " * rng.choice(
        (0, 1, 64, 5000)
    )


def _escaped(rng: random.Random, header: dict[str, Any]) -> Any:
    """The same text, with letters as escapes of JSON."""
    return json.dumps(header).replace("lora", "\\u006cor\\u0061").replace("blocks", "\\u0062locks")


MUTATIONS = [
    *(
        _table(change)
        for change in (
            _dtype,
            _size,
            _shape,
            _offset,
            _offsets,
            _exchange,
            _drop_field,
            _extra_field,
            _entry,
            _drop_entry,
            _empty_tensor,
            _no_table,
            _metadata,
            _deep,
            _twice,
            _text,
        )
    ),
    *(_table(change, same=True) for change in (_reordered, _spaced, _escaped)),
]
