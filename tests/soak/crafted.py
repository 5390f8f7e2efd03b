"""Files made by hand, one for every way in which a file was seen to do what it may not.

Each is small in the repository: large ones are made when they are asked for.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import lycoris_ops as lyc
from tests.harness.payloads import Call
from tests.ops.layers import KINDS, WEIGHTS, factors, rand

from .case import CANARY, Case
from .containers import described, joined, packed, pickled
from .mutators.pickles import EXOTIC, program, rewritten, strided
from .seeds import CONFIG, PATHS, Seed, base_of

NAME = "lora_unet_blocks_0_x"
"""A layer of the model, of `LINEAR` outputs and inputs."""
LINEAR = WEIGHTS["linear"]
PEFT = f"base_model.model.{PATHS['linear']}"
CRAFTED: dict[str, Callable[[], Case]] = {}
Make = Callable[[], bytes]
Tensors = Mapping[str, Tensor]


def lora(name: str = NAME, rank: int = 3) -> dict[str, Tensor]:
    """The factors of a plain LoRA of the linear layer."""
    torch.manual_seed(11)
    rows, columns = LINEAR
    return {
        f"{name}.lora_up.weight": rand(rows, rank),
        f"{name}.lora_down.weight": rand(rank, columns),
        f"{name}.alpha": torch.tensor(2.0),
    }


def of_kind(kind: str, weight: str = "linear", by: float = 1.0) -> dict[str, Tensor]:
    """A layer of a kind, with its factors times a number."""
    torch.manual_seed(11)
    root = f"lora_unet_{PATHS[weight].replace('.', '_')}"
    made = {f"{root}.{suffix}": tensor for suffix, tensor in factors(kind, weight).items()}
    return {key: tensor * by if tensor.ndim and by != 1.0 else tensor for key, tensor in made.items()}


def case_of(
    name: str,
    blob: bytes,
    ending: str = ".safetensors",
    *,
    refused: bool = False,
    config: bytes | None = None,
    tensors: Tensors | None = None,
    same: float | None = None,
) -> Case:
    """The case of a file. `tensors` are those that it holds, where its change is known."""
    adapter = f"adapter_model{ending}"
    files = {adapter: blob} | ({CONFIG: config} if config is not None else {})
    seed = Seed(f"crafted/{name}/safetensors", tensors) if tensors is not None else None
    return Case(name, files, adapter, seed=seed, same=same, closed=tensors is not None, refused=refused)


def add(group: str, cases: Mapping[str, Make], ending: str = ".safetensors", **options: Any) -> None:
    """Files by what is odd about them."""
    for what, make in cases.items():
        name = f"{group}: {what}"
        CRAFTED[name] = lambda name=name, make=make: case_of(name, make(), ending, **options)


# Pickles.

READ = ("imaginary part", "float8", "parameter", "negated", "empty")
"""Tensors of other sorts that may be read."""


def _with(value: Any, key: str = "x") -> Make:
    """A pickle with something more in it."""
    return lambda: pickled({**lora(), key: value})


def _exotic(make: Callable[[Tensor], Any]) -> bytes:
    up = f"{NAME}.lora_up.weight"
    return pickled({**lora(), up: make(lora()[up])})


for _sort, _make in EXOTIC.items():
    add("pickle", {f"{_sort} tensor": partial(_exotic, _make)}, ".pt", refused=_sort not in READ)


def _alike(name: str, tensors: Tensors, change: Callable[[Tensor], Tensor]) -> Case:
    """A pickle of the same values in another storage."""
    blob = pickled({key: change(tensor) for key, tensor in tensors.items()})
    return case_of(name, blob, ".pt", tensors=tensors, same=1.0)


def _turned(tensor: Tensor) -> Tensor:
    return strided(tensor.T.contiguous().T if tensor.ndim else tensor)


CRAFTED["pickle: transposed tensors"] = lambda: _alike("pickle: transposed tensors", lora(), _turned)
for _kind in ("loha", "lokr-full-low", "lokr-low-low", "oft", "glora"):
    _name = f"pickle: strided tensors of {_kind}"
    CRAFTED[_name] = lambda name=_name, kind=_kind: _alike(name, of_kind(kind), strided)


def _expanded(*size: int) -> Tensor:
    return torch.ones(1).as_strided(size, (0,) * len(size))


def _storages(change: Callable[[bytes], bytes | None]) -> Make:
    """The first storage of an archive, changed, or taken out."""

    def member(name: str, content: bytes) -> tuple[str, bytes] | None:
        new = change(content) if name.endswith("data/0") else content
        return None if new is None else (name, new)

    return lambda: rewritten(pickled(lora()), member)


def _sizes(new: int) -> bytes:
    """A number of a pickle's program replaced wherever it stands."""
    old, number = b"K" + bytes([LINEAR[0]]), pickle.dumps(new, protocol=2)[2:-1]
    return program(pickled(lora()), lambda content: content.replace(old, number))


def _inflating(blob: bytes, member: str, start: bytes, piece: bytes, times: int, end: bytes) -> bytes:
    """An archive in which a member is `start`, `piece` many times over and `end`, well compressed.

    `member` is the end of its name.
    """
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    # After a full flush the compressed piece stands for itself, and can be repeated as it is.
    first = deflate.compress(start) + deflate.flush(zlib.Z_FULL_FLUSH)
    middle = deflate.compress(piece) + deflate.flush(zlib.Z_FULL_FLUSH)
    last = deflate.compress(end) + deflate.flush()
    checksum = zlib.crc32(start)
    for _ in range(times):
        checksum = zlib.crc32(piece, checksum)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            if not info.filename.endswith(member):
                new.writestr(info.filename, old.read(info))
                continue
            new.writestr(info.filename, first + middle * times + last)
            # The directory, which readers go by, is written at the end, with what is set here.
            listed = new.filelist[-1]
            listed.compress_type = zipfile.ZIP_DEFLATED
            listed.file_size = len(start) + times * len(piece) + len(end)
            listed.CRC = zlib.crc32(end, checksum)
    return out.getvalue()


def _bomb(size: int) -> bytes:
    """An archive whose first storage expands to `size` bytes, as its program says."""
    count = pickle.dumps(size >> 2, protocol=2)[2:-1]

    def change(content: bytes) -> bytes:
        # Count and shape of the first tensor.
        return content.replace(b"K\x01", count, 1).replace(b"K\x01\x85", count + b"\x85", 1)

    tensors = {f"{NAME}.lora_{side}.weight": torch.zeros(1) for side in ("up", "down")}
    return _inflating(program(pickled(tensors), change), "data/0", b"", bytes(1 << 24), size >> 24, b"")


def _long_program() -> bytes:
    """A pickle's program of half a gigabyte: it puts a value on the stack and takes it off, over and over."""
    blob = pickled(lora())
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        content = archive.read("archive/data.pkl")
    return _inflating(blob, "data.pkl", content[:2], b"N0" * (1 << 23), 32, content[2:])


def _loop() -> dict[str, Any]:
    table: dict[str, Any] = dict(lora())
    table["state_dict"] = table["x"] = table
    return table


def _doubled(count: int) -> Any:
    """A dictionary that names another over and over, so that its text doubles when it is walked."""
    table: Any = {"x": 1}
    for _ in range(count):
        table = {"a": table, "b": table}
    return table


add(
    "pickle",
    {
        "expanded tensor of a terabyte": _with(_expanded(1 << 20, 1 << 18)),
        "expanded factors of gigabytes": lambda: pickled(
            {f"{NAME}.lora_{side}.weight": _expanded(20_000, 20_000) for side in ("up", "down")}
        ),
        **{
            f"archive cut at {length}": lambda n=length: pickled(of_kind("loha"))[:n]
            for length in (1, 500, 1200, -1, -22, -98, -300)
        },
        "storage cut in half": _storages(lambda content: content[: len(content) // 2]),
        "storage empty": _storages(lambda content: b""),
        "storage missing": _storages(lambda content: None),
        **{
            f"sizes of {size}": partial(_sizes, size)
            for size in (1 << 31, 1 << 40, (1 << 63) - 1, -1, -(1 << 63), 1 << 70)
        },
        "zip bomb of 1.6 GB": lambda: _bomb(1600 << 20),
        "program of half a gigabyte": _long_program,
        "archive of nothing": lambda: b"PK\5\6" + bytes(18),
        "empty file": lambda: b"",
        "an old archive that is a tar": lambda: b"x" * 257 + b"ustar" + bytes(2000),
        "nested in itself": lambda: pickled(_loop()),
        "keys that are the same text": lambda: pickled({1: torch.ones(2), "1": torch.ones(3), **lora()}),
        "tables that hold each other forty times": _with(_doubled(40)),
        "a call of exec": _with(Call(exec, "raise SystemExit(3)")),
        "a call of zeros": _with(Call(torch.zeros, 1 << 34)),
        "a call of bytearray": _with(Call(bytearray, 1 << 34)),
        "a number of a gigabyte": lambda: b"\x80\x02\x8b\xff\xff\xff\x3f" + bytes(1000),
        "an alpha that is complex": _with(torch.tensor(1 + 2j), f"{NAME}.alpha"),
    },
    ".pt",
    refused=True,
)
add("pickle", {"a frame of exabytes": lambda: b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f."}, ".bin", refused=True)
add(
    "pickle",
    {
        "one value with strides of 0": lambda: pickled(
            {
                key: tensor if tensor.ndim else torch.ones(()).expand(1, 1)
                for key, tensor in lora(rank=1).items()
            }
            | {"lora_unet_blocks_3_x.oft_R.weight": torch.ones(()).expand(1, 1)}
        ),
        "a core in float8": lambda: pickled(
            {
                key: tensor.to(torch.float8_e4m3fn) if key.endswith("lora_mid.weight") else tensor
                for key, tensor in of_kind("lora-tucker", "conv2d").items()
            }
        ),
        "storage of 100 MB for a few values": lambda: _inflating(
            pickled(lora()), "data/0", b"", bytes(1 << 20), 100, b""
        ),
        "keys that are no text": lambda: pickled({0: torch.ones(2), None: torch.ones(2), **lora()}),
    },
    ".pt",
)

# Headers and keys.


def _header(change: Callable[[dict[str, Any]], Any]) -> Make:
    """A file whose header is what the change returns, or makes of the table."""

    def make() -> bytes:
        header, data = described(lora())
        changed = change(header)
        return joined(header if changed is None else changed, data)

    return make


def _set(field: str, value: Any, key: str = f"{NAME}.lora_up.weight") -> Make:
    return _header(lambda header: header[key].update({field: value}))


def _replaced(old: str, new: str) -> Make:
    return _header(lambda header: json.dumps(header).replace(old, new, 1))


def _entries(count: int, name: str) -> Make:
    """A file with many more entries of no values."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return _header(lambda header: header | {name.format(n): entry for n in range(count)})


def _twice(header: dict[str, Any]) -> str:
    return json.dumps(header)[:-1] + f', "{NAME}.alpha": {json.dumps(header[f"{NAME}.alpha"])}}}'


add(
    "header",
    {
        "a number of 5,000 digits": _replaced("[12, 3]", f"[{'9' * 5000}, 3]"),
        "an offset of 5,000 digits": _replaced("[0, ", f"[{'9' * 5000}, "),
        "a number of a million digits": _replaced("[12, 3]", f"[{'9' * 1_000_000}, 3]"),
        "a shape whose product overflows": _set("shape", [1 << 32, 1 << 32, 9]),
        "a shape of 100,000 large sizes": _set("shape", [(1 << 62) - 1] * 100_000),
        "no values in a size of 2^63": _set("shape", [0, 1 << 63]),
        "a size of 1e400": _replaced("[12, 3]", "[1e400, 3]"),
        "a size that is true": _replaced("[12, 3]", "[12, 3, true]"),
        "a negative size": _set("shape", [-12, -3]),
        "an unknown dtype with escapes": _set("dtype", f"\x1b[2J\n{CANARY}"),
        "a dtype of 100,000 letters": _set("dtype", "F" * 100_000),
        "an alpha in a dtype that torch lacks": _header(
            lambda header: header[f"{NAME}.alpha"].update({"dtype": "F6_E2M3", "shape": [5]})
        ),
        "the same key twice": _header(_twice),
        "brackets 100,000 deep": _header(lambda header: "[" * 100_000 + "]" * 100_000),
        "metadata that are a list": _header(lambda header: {**header, "__metadata__": [1, 2]}),
        "100 MB of empty lists": lambda: joined("[" + "[]," * 33_000_000 + "[]]", b""),
        "90 MB of empty lists in a field": _header(
            lambda header: json.dumps(header)[:-1] + ',"x":[' + "[]," * 30_000_000 + "[]]}"
        ),
    },
    refused=True,
)
# Whatever is read of these is right.
add(
    "header",
    {
        "a shape of 200,000 sizes of one": _set("shape", [12, 3] + [1] * 200_000),
        "a byte order mark": _header(lambda header: "\ufeff" + json.dumps(header)),
        "text in UTF-16": _header(lambda header: json.dumps(header).encode("utf-16")),
    },
    tensors=lora(),
)
LONG = {
    "60,000 dots": "." * 60_000,
    "60,000 underscores": "_" * 60_000,
    "60,000 short words": "a." * 30_000,
    "60,000 numbers": "0_" * 30_000,
    "60,000 letters": "x" * 60_000,
}


def _plus(key: str) -> Make:
    """A LoRA and a tensor under another key."""
    return lambda: packed({**lora(), key: torch.ones(2)})


add(
    "header",
    {
        "a tensor of 0 x 2^63": _header(
            lambda header: header | {"x": {"dtype": "F32", "shape": [0, 1 << 63], "data_offsets": [0, 0]}}
        ),
        "200,000 empty tensors": _entries(200_000, "x{}"),
        "200,000 layers of no values": _entries(200_000, "lora_unet_blocks_{}_y.diff"),
        "40 MB of metadata": lambda: packed(lora(), {f"ss_{n}": "x" * 1000 for n in range(40_000)}),
        "one metadata text of 40 MB": lambda: packed(lora(), {"ss_tag_frequency": "x\n" * 20_000_000}),
        "network arguments of 40 MB": lambda: packed(
            lora(), {"ss_network_args": "[" + "[]," * 13_000_000 + "1]"}
        ),
        "metadata with a lone surrogate": lambda: packed(lora(), {"ss_title": "\ud800", "\udfff": "x"}),
        "metadata with escape sequences and lines": lambda: packed(
            lora(), {"ss_title": f"\x1b[31m\n  {CANARY}\r\x85{CANARY}"}
        ),
    },
)
add(
    "key",
    {
        **{
            what: lambda key=key: packed({**lora(), f"{key}.lora_up.weight": rand(2, 2)})
            for what, key in LONG.items()
        },
        **{
            f"{what} after a known prefix": lambda key=key: packed(lora(f"lora_unet_{key}"))
            for what, key in LONG.items()
        },
        "2,000 of 5,000 dots": lambda: packed({f"{'.' * 5000}{n}": torch.ones(1) for n in range(2000)}),
        "a lone surrogate": _plus("x\ud800y"),
        "a lone surrogate in a layer": lambda: packed(lora("lora_unet_\udcff_x")),
        "an escape sequence": _plus("\x1b[2Jx"),
        "a line of the report": _plus(f"x\n  {CANARY}"),
        "a line of the report in a layer": lambda: packed({**lora(), **lora(f"lora_unet_y\n  {CANARY}\n")}),
        "a line of the report after U+2028": _plus(f"x\u2028{CANARY}"),
        "empty": _plus(""),
        "a suffix alone": lambda: packed({**lora(), "lora_up.weight": rand(2, 2), ".alpha": torch.ones(())}),
    },
)

# Models.


def _under(cases: Mapping[str, Make]) -> None:
    """A LoRA under checkpoints by what is odd about them."""
    for what, make in cases.items():
        CRAFTED[f"model: {what}"] = lambda name=f"model: {what}", make=make: Case(
            name,
            {"adapter_model.safetensors": packed(lora()), "base.safetensors": make()},
            "adapter_model.safetensors",
            base="base.safetensors",
            closed=False,
        )


def _base(change: Callable[[str, Tensor], Tensor], **more: Any) -> Make:
    """The checkpoint with its tensors changed, and with metadata."""
    return lambda: packed({key: change(key, t) for key, t in base_of("plain").items()}, more or None)


def _beside(key: str) -> Make:
    return lambda: packed({**base_of("plain"), key: torch.ones(2, 2)})


def _marked(mark: bytes) -> Make:
    layer = f"diffusion_model.{PATHS['linear']}"
    tensors = {
        f"{layer}.comfy_quant": torch.tensor(list(mark), dtype=torch.uint8),
        f"{layer}.weight": torch.ones(LINEAR).to(torch.float8_e4m3fn),
    }
    said = {"_quantization_metadata": mark.decode("latin-1")}
    return lambda: packed({**base_of("plain"), **tensors}, said)


_under(
    {
        **{what: _beside(f"{key}.weight") for what, key in LONG.items()},
        "a lone surrogate": _beside("x\ud800.weight"),
        "metadata with a lone surrogate": _base(lambda key, t: t, x="\ud800"),
        "weights without dimensions": _base(lambda key, t: torch.ones(())),
        "empty weights": _base(lambda key, t: torch.ones(0, 18)),
        "20 dimensions": _base(lambda key, t: torch.ones([1] * 20)),
        "200,000 empty tensors": _entries(200_000, "diffusion_model.blocks.{}.y.weight"),
        "NaN in a weight": _base(lambda key, t: t * math.nan if t.is_floating_point() else t),
        "large weights in half precision": _base(lambda key, t: torch.full(t.shape, 65504.0).half()),
        **{
            f"mark of quantisation, {what}": _marked(mark)
            for what, mark in {
                "a list": b"[1, 2]",
                "null": b"null",
                "deep": b"[" * 100_000,
                "no format": b"{}",
                "a format that is a list": b'{"format": ["nvfp4"]}',
                "no UTF-8": b"\xff\xfe\xfd",
                "empty": b"",
            }.items()
        },
    }
)

# Regular expressions and numbers of a PEFT configuration.

SETTINGS = {"peft_type": "LORA", "r": 3, "lora_alpha": 2}
HANGING = {
    "nested repeats": "(([a-z0-9.])+)+!",
    "nested repeats of words": r"(\w+\.?)+!",
    "alternating repeats": r"(\w|\d|.)*!",
    "overlapping repeats": "(.*.*)*.*.*.*.*!",
    "many repeats": "(.*){30}!",
    "optional repeats": "(.?){30}.{30}!",
    "a look-ahead": "(?=(.*)*!)(.*)*!",
    "a back-reference": r"(.*)(.*)(.*)\1\2\3!",
}
DEEP = PEFT.replace("blocks.0.x", "blocks.0." + "aaaaaaaa." * 6 + "x")
"""A path that is long enough for an expression to hang on."""


def peft_lora(path: str = PEFT) -> dict[str, Tensor]:
    torch.manual_seed(11)
    return {f"{path}.lora_A.weight": rand(3, LINEAR[1]), f"{path}.lora_B.weight": rand(LINEAR[0], 3)}


def configured(group: str, tables: Mapping[str, Any], tensors: Tensors | None = None) -> None:
    """PEFT files of `tensors` (a LoRA unless given) with configurations, given as tables or as texts."""
    for what, table in tables.items():
        text = table if isinstance(table, str) else json.dumps(table)

        def make(name: str = f"{group}: {what}", text: str = text) -> Case:
            return case_of(name, packed(tensors or peft_lora()), config=text.encode("utf-8", "surrogatepass"))

        CRAFTED[f"{group}: {what}"] = make


configured(
    "pattern",
    {
        f"{what} in {field}": {**SETTINGS, field: {pattern: 3}}
        for what, pattern in HANGING.items()
        for field in ("rank_pattern", "alpha_pattern")
    }
    | {"800 of nested repeats": {**SETTINGS, "alpha_pattern": {f"(a+)+{n}!": 3 for n in range(800)}}},
    peft_lora(DEEP),
)
configured(
    "pattern",
    {
        f"{what} in feedforward_modules": {"peft_type": "IA3", "feedforward_modules": pattern}
        for what, pattern in (HANGING | {"one that does not compile": "("}).items()
    },
    {f"{DEEP}.ia3_l": torch.ones(1, LINEAR[1], 1)},
)
configured(
    "pattern",
    {
        what: {**SETTINGS, "alpha_pattern": {pattern: 3}}
        for what, pattern in {
            "one that does not compile": "(",
            "a megabyte": "a?" * 500_000,
            "5,000 groups": "(" * 5000 + ")" * 5000,
            "a repeat of 10^9": "(a{1000}){1000}{1000}",
            "a lone surrogate": "\ud800",
        }.items()
    },
)
add(
    "pattern",
    {
        "nested repeats in metadata": lambda: packed(
            peft_lora(DEEP.replace("base_model.model.", "transformer.")),
            {
                "lora_adapter_metadata": json.dumps(
                    {
                        "transformer.r": 3,
                        "transformer.lora_alpha": 2,
                        "transformer.alpha_pattern": {HANGING["nested repeats"]: 3},
                    }
                )
            },
        )
    },
)


def _honest_patterns() -> Case:
    """600 layers, each with a rank and an alpha of its own, as the library itself writes them."""
    torch.manual_seed(11)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for number in range(600):
        path, rank = f"down.{number}.attentions.0.to_q", number % 7 + 1
        tensors[f"base_model.model.{path}.lora_A.weight"] = rand(rank, 4)
        tensors[f"base_model.model.{path}.lora_B.weight"] = rand(4, rank)
        pattern = "^" + path.replace(".", r"\.")
        ranks[pattern], alphas[pattern] = rank, number / 10 + 1
    table = {**SETTINGS, "rank_pattern": ranks, "alpha_pattern": alphas}
    return case_of("pattern: 600 layers of their own", packed(tensors), config=json.dumps(table).encode())


CRAFTED["pattern: 600 layers of their own"] = _honest_patterns
configured(
    "configuration",
    {
        "r of 1e400": '{"r": 1e400, "lora_alpha": 1}',
        "alpha of 1e400": '{"r": 3, "lora_alpha": 1e400}',
        "alpha that is NaN": '{"r": 3, "lora_alpha": NaN}',
        "alpha of 5,000 digits": '{"r": 3, "lora_alpha": ' + "9" * 5000 + "}",
        "alpha of 10^400": {**SETTINGS, "lora_alpha": 10**400},
        "r that is a fraction": {**SETTINGS, "r": 3.5},
        "r that is a text": {**SETTINGS, "r": "three"},
        "a pattern table that is a list": {**SETTINGS, "rank_pattern": ["x"]},
        "an alpha of a pattern that is a table": {**SETTINGS, "alpha_pattern": {"x": {}}},
        "a kind that is a list": {**SETTINGS, "peft_type": ["LORA"]},
        "no table": "[1]",
        "nested without end": '{"r": ' + "[" * 100_000,
        "not UTF-8": "\ud800",
    },
)
OFT = {"peft_type": "OFT", "r": 0, "oft_block_size": 2}
configured(
    "configuration",
    {
        "a series of 3,000,000 terms": {**OFT, "num_cayley_neumann_terms": 3_000_000},
        "a series of 10^30 terms": '{"peft_type": "OFT", "r": 0, "num_cayley_neumann_terms": 1e30}',
        "a bound of 1e400": '{"peft_type": "OFT", "r": 0, "coft": true, "eps": 1e400}',
    },
    {f"{PEFT}.oft_R.weight": torch.ones(9, 1) / 8},
)

# Values that say how others are read, and shapes.


def layers(group: str, cases: Mapping[str, Tensors], *, refused: bool = False) -> None:
    """Files of tensors by key, whose change closed forms know if they are read."""
    for what, tensors in cases.items():
        CRAFTED[f"{group}: {what}"] = lambda name=f"{group}: {what}", tensors=tensors: case_of(
            name, packed(tensors), tensors=tensors, refused=refused
        )


def ones(shapes: Mapping[str, tuple[int, ...]], name: str = NAME) -> dict[str, Tensor]:
    """A layer of tensors of ones, of these shapes by suffix."""
    return {f"{name}.{suffix}": torch.ones(shape) for suffix, shape in shapes.items()}


def also(suffix: str, tensor: Tensor, name: str = NAME, kind: str = "lora") -> Tensors:
    """A layer, and a tensor of this or of another layer."""
    return {**(lora() if kind == "lora" else of_kind(kind)), f"{name}.{suffix}": tensor}


OTHER = "lora_unet_blocks_1_x"
BOFT = (1, 9, 2, 2)
layers(
    "value",
    {
        **{
            f"alpha {what}": also("alpha", value)
            for what, value in {
                "NaN": torch.tensor(math.nan),
                "infinity": torch.tensor(math.inf),
                "1e300": torch.tensor(1e300, dtype=torch.float64),
                "3e38": torch.tensor(3e38),
                "of two values": torch.ones(2),
                "empty": torch.ones(0),
                "a truth value": torch.tensor(True),
                "2^62": torch.tensor(1 << 62),
            }.items()
        },
        "a Tucker core of gigabytes of work": {
            f"{NAME}.lora_up.weight": torch.ones(1, 1500, 1, 1),
            f"{NAME}.lora_mid.weight": torch.ones(1500, 1, 1, 1).half(),
            f"{NAME}.lora_down.weight": torch.ones(1, 200_000, 1, 1).half(),
        },
        "a LoHa core that enlarges a small file": ones(
            {f"hada_t{n}": (1, 1, 1000, 1) for n in "12"}
            | {f"hada_w{n}_{side}": (1, 1000) for n in "12" for side in "ab"}
        ),
        "PEFT's BOFT with factors near the largest number": {
            f"{NAME}.boft_R": torch.zeros(BOFT),
            f"{NAME}.boft_s": torch.full((12, 1), 3e38),
        },
    },
)
layers(
    "value",
    {
        "factors that are integers": {key: t.mul(9).to(torch.int64) for key, t in lora().items()},
        **{
            f"a product of {kind} that overflows": of_kind(kind, by=by)
            for kind, by in (("lora", 1e30), ("loha", 1e15), ("lokr-full-low", 1e25), ("glora", 1e20))
        },
        "on_input of 7": also("on_input", torch.tensor(7), kind="ia3"),
        "on_input NaN": also("on_input", torch.tensor(math.nan), kind="ia3"),
        "BOFT of 15,000 stages": {f"{NAME}.oft_blocks": torch.zeros(15_000, 6, 2, 2)},
        "PEFT's BOFT of 15,000 stages": {
            f"{NAME}.boft_R": torch.zeros(15_000, 9, 2, 2),
            f"{NAME}.boft_s": torch.ones(12, 1),
        },
        "reshape_weight of 2^62": also("reshape_weight", torch.tensor([1 << 62, 18])),
        "reshape_weight NaN": also("reshape_weight", torch.tensor([math.nan, 18.0])),
        "bias_size NaN": also("bias_size", torch.tensor([math.nan, 18.0]), kind="lora-sparse"),
        "bias_indices of a float": also("bias_indices", torch.full((2, 5), 1e30), kind="lora-sparse"),
    },
    refused=True,
)
layers(
    "shape",
    {
        "OFT blocks without dimensions": also("oft_blocks", torch.ones(()), OTHER),
        "OFT blocks of one dimension": also("oft_blocks", torch.ones(4), OTHER),
        "oft_blocks under a number that is no number": also("oft_blocks.x", torch.ones(5, 7, 7), OTHER),
        "oft_blocks under a number and without": ones(
            {"oft_blocks": (5, 7, 7), "oft_blocks.0": (5, 7, 7)}, OTHER
        ),
        "a LoHa whose factors agree in count alone": ones(
            {"hada_w1_a": (12, 2), "hada_w1_b": (2, 18), "hada_w2_a": (12, 2, 1), "hada_w2_b": (2, 2, 9)}
        ),
        "T-LoRA's factors without dimensions": ones(
            {"q_layer.weight": (1, 18), "p_layer.weight": (12, 1), "lambda_layer": ()}
        ),
        "a LoKr core's factor of three dimensions": ones(
            {"lokr_t2": (3, 3, 1), "lokr_w1": (3, 3), "lokr_w2_a": (3, 3, 4), "lokr_w2_b": (3, 6)}
        ),
        "GLoRA's inner factor with a kernel": ones(
            {"a1.weight": (18, 3), "a2.weight": (3, 18, 3, 3), "b1.weight": (12, 3), "b2.weight": (3, 18)}
        ),
        "AdaLoRA with a factor of three dimensions": ones(
            {"lora_A": (3, 1, 18), "lora_B": (12, 3), "lora_E": (3, 1)}, PEFT
        ),
        "PEFT's BOFT blocks of five dimensions": ones({"boft_R": (*BOFT, 3), "boft_s": (12, 1)}),
        "a layer that is there under two names": {**lora(), **lora("lora_unet__blocks_0_x")},
    },
)
layers(
    "shape",
    {
        "a norm without dimensions": also("w_norm", torch.ones(()), "lora_unet_blocks_7_x"),
        "a norm's bias without dimensions": also("b_norm", torch.ones(()), "lora_unet_blocks_7_x"),
        "OFTv2 weight without dimensions": ones({"oft_R.weight": ()}),
        "OFTv2 weight of one dimension": ones({"oft_R.weight": (9,)}),
        "OFTv2 weight of three dimensions": ones({"oft_R.weight": (9, 1, 1)}),
        "a magnitude without dimensions": also("dora_scale", torch.ones(())),
        "PEFT's factors without dimensions": ones({"ia3_l": ()}),
        "PEFT's BOFT scale without dimensions": ones({"boft_R": BOFT, "boft_s": ()}),
        "a difference of 20 dimensions": ones({"diff": (*[1] * 18, 12, 18)}),
        "a difference of 70 dimensions": ones({"diff": (*[1] * 62, 12, 18)}),
        "a flattened difference": ones({"diff": (12 * 18,)}),
        "a transposed difference": ones({"diff": (18, 12)}),
        "a flattened down factor": ones({"lora_up.weight": (12, 3), "lora_down.weight": (3 * 18,)}),
        "LoKr factors of three dimensions": ones(
            {"lokr_w1": (3, 2, 1), "lokr_w2_a": (4, 2, 3), "lokr_w2_b": (2, 9)}
        ),
        "AdaLoRA without singular values beside factors": ones(
            {"lora_A": (3, 18), "lora_B": (12, 3), "lora_E": (0, 1)}, PEFT
        ),
        "PEFT's magnitude of the size of the inputs": ones(
            {"lora_A.weight": (3, 18), "lora_B.weight": (12, 3), "lora_magnitude_vector": (18,)}, PEFT
        ),
        **{
            f"{kind} of empty tensors": {k: torch.ones(0) if t.ndim else t for k, t in of_kind(kind).items()}
            for kind, spec in KINDS.items()
            if not spec.flat and not spec.needs_kernel and spec.algorithm != "tlora"
        },
    },
    refused=True,
)
for _dialect in lyc.WRITTEN:
    CRAFTED[f"shape: nothing that can be read, saved as {_dialect}"] = lambda dialect=_dialect: replace(
        case_of("shape: nothing that can be read", packed(ones({"hada_w2_b": (2, 2)}))), dialect=dialect
    )
