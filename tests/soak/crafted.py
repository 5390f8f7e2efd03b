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
from tests.ops.layers import KINDS, WEIGHTS, factors, rand

from .case import CANARY, Case
from .containers import described, joined, packed, pickled
from .mutators.pickles import Call, program, rewritten
from .seeds import CONFIG, PATHS, Seed, base_of

NAME = "lora_unet_blocks_0_x"
"""A layer of the model, of `LINEAR` outputs and inputs."""
LINEAR = WEIGHTS["linear"]
PEFT = f"base_model.model.{PATHS['linear']}"
CRAFTED: dict[str, Callable[[], Case]] = {}


def _fixed() -> None:
    torch.manual_seed(11)


def lora(name: str = NAME, rank: int = 3) -> dict[str, Tensor]:
    """The factors of a plain LoRA of the linear layer."""
    _fixed()
    rows, columns = LINEAR
    return {
        f"{name}.lora_up.weight": rand(rows, rank),
        f"{name}.lora_down.weight": rand(rank, columns),
        f"{name}.alpha": torch.tensor(2.0),
    }


def _of_kind(kind: str, weight: str = "linear", name: str | None = None) -> dict[str, Tensor]:
    _fixed()
    root = name or f"lora_unet_{PATHS[weight].replace('.', '_')}"
    return {f"{root}.{suffix}": tensor for suffix, tensor in factors(kind, weight).items()}


def _case(
    name: str,
    blob: bytes,
    ending: str = ".safetensors",
    *,
    refused: bool = False,
    config: bytes | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    same: float | None = None,
    model: str = "plain",
) -> Case:
    """The case of a file. `tensors` are those that it holds, where its change is known."""
    adapter = f"adapter_model{ending}"
    files = {adapter: blob} | ({CONFIG: config} if config is not None else {})
    seed = Seed(f"crafted/{name}/safetensors", tensors, model=model) if tensors is not None else None
    return Case(
        name, files, adapter, model, seed=seed, same=same, closed=tensors is not None, refused=refused
    )


def _add(name: str, make: Callable[[], bytes], ending: str = ".safetensors", **options: Any) -> None:
    CRAFTED[name] = lambda: _case(name, make(), ending, **options)


# Pickles.


def _sorts() -> dict[str, Callable[[Tensor], Any]]:
    """Tensors that are not plain, dense and real."""
    return {
        "complex": lambda t: torch.complex(t, t),
        "conjugated": lambda t: torch.complex(t, t).conj(),
        "imaginary part": lambda t: torch.complex(t, t).imag,
        "sparse": lambda t: t.to_sparse(),
        "CSR": lambda t: t.to_sparse_csr(),
        "nested": lambda t: torch.nested.nested_tensor([t[0], t[1, :2]]),
        "meta": lambda t: t.to("meta"),
        "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    }


def _with_sort(make: Callable[[Tensor], Any]) -> bytes:
    tensors: dict[str, Any] = lora()
    tensors[f"{NAME}.lora_up.weight"] = make(tensors[f"{NAME}.lora_up.weight"])
    return pickled(tensors)


for _name, _make in _sorts().items():
    _add(f"pickle: {_name} tensor", partial(_with_sort, _make), ".pt", refused=_name != "imaginary part")
_add(
    "pickle: negated tensor",
    lambda: pickled(
        {key: -torch._neg_view(tensor) if tensor.ndim else tensor for key, tensor in lora().items()}
    ),
    ".pt",
)
_add(
    "pickle: expanded tensor of a terabyte",
    lambda: pickled({**lora(), "x": torch.zeros(1).as_strided((1 << 20, 1 << 18), (0, 0))}),
    ".pt",
    refused=True,
)
_add(
    "pickle: expanded factors of gigabytes",
    lambda: pickled(
        {
            f"{NAME}.lora_up.weight": torch.ones(1).as_strided((20_000, 20_000), (0, 0)),
            f"{NAME}.lora_down.weight": torch.ones(1).as_strided((20_000, 20_000), (0, 0)),
        }
    ),
    ".pt",
    refused=True,
)


def _transposed() -> Case:
    tensors = lora()
    turned = {key: tensor.T.contiguous().T if tensor.ndim else tensor for key, tensor in tensors.items()}
    wide = {key: torch.stack([tensor, tensor], -1)[..., 0] for key, tensor in turned.items()}
    return _case("pickle: transposed and strided tensors", pickled(wide), ".pt", tensors=tensors, same=1.0)


CRAFTED["pickle: transposed and strided tensors"] = _transposed


def _strided(kind: str) -> Case:
    """The tensors of a kind with gaps between their values."""
    tensors = _of_kind(kind)
    wide = {key: torch.stack([tensor, tensor], -1)[..., 0] for key, tensor in tensors.items()}
    name = f"pickle: strided tensors of {kind}"
    return _case(name, pickled(wide), ".pt", tensors=tensors, same=1.0)


for _kind in ("loha", "lokr-full-low", "lokr-low-low", "oft", "glora"):
    CRAFTED[f"pickle: strided tensors of {_kind}"] = partial(_strided, _kind)
_add(
    "pickle: one value with strides of 0",
    lambda: pickled(
        {key: tensor if tensor.ndim else torch.ones(()).expand(1, 1) for key, tensor in lora(rank=1).items()}
        | {"lora_unet_blocks_3_x.oft_R.weight": torch.ones(()).expand(1, 1)}
    ),
    ".pt",
)
for _length in (1, 500, 1000, -1, -22, -98):
    _add(
        f"pickle: archive cut at {_length}",
        lambda n=_length: pickled(_of_kind("loha"))[:n],
        ".pt",
        refused=True,
    )
_add(
    "pickle: a core in float8",
    lambda: pickled(
        {
            key: tensor.to(torch.float8_e4m3fn) if key.endswith("lora_mid.weight") else tensor
            for key, tensor in _of_kind("lora-tucker", "conv2d").items()
        }
    ),
    ".pt",
)


def _cut(size: Callable[[bytes], bytes]) -> bytes:
    return rewritten(
        pickled(lora()), lambda name, content: (name, size(content) if name.endswith("data/0") else content)
    )


_add(
    "pickle: storage cut in half",
    lambda: _cut(lambda content: content[: len(content) // 2]),
    ".pt",
    refused=True,
)
_add("pickle: storage empty", lambda: _cut(lambda content: b""), ".pt", refused=True)
_add("pickle: storage missing", lambda: rewritten(pickled(lora()), _without), ".pt", refused=True)


def _without(name: str, content: bytes) -> tuple[str, bytes] | None:
    return None if name.endswith("data/0") else (name, content)


def _many_sizes(old: int, new: int) -> bytes:
    """A number of a pickle's program replaced wherever it stands."""

    def change(content: bytes) -> bytes:
        return content.replace(b"K" + bytes([old]), pickle.dumps(new, protocol=2)[2:-1])

    return program(pickled(lora()), change)


for _size in (1 << 31, 1 << 40, (1 << 63) - 1, -1, -(1 << 63), 1 << 70):
    _add(f"pickle: sizes of {_size}", partial(_many_sizes, LINEAR[0], _size), ".pt", refused=True)


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
    tensors: dict[str, Any] = {
        f"{NAME}.lora_up.weight": torch.zeros(1),
        f"{NAME}.lora_down.weight": torch.zeros(1),
    }

    def change(content: bytes) -> bytes:
        # Count and shape of the first tensor.
        count = pickle.dumps(size >> 2, protocol=2)[2:-1]
        return content.replace(b"K\x01", count, 1).replace(b"K\x01\x85", count + b"\x85", 1)

    piece = bytes(1 << 24)
    return _inflating(program(pickled(tensors), change), "data/0", b"", piece, size >> 24, b"")


def _long_program() -> bytes:
    """A pickle's program of half a gigabyte: it puts a value on the stack and takes it off, over and over."""
    blob = pickled(lora())
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        content = archive.read("archive/data.pkl")
    return _inflating(blob, "data.pkl", content[:2], b"N0" * (1 << 23), 32, content[2:])


_add("pickle: zip bomb of 1.6 GB", lambda: _bomb(1600 << 20), ".pt", refused=True)
_add(
    "pickle: storage of 100 MB for a few values",
    lambda: _inflating(pickled(lora()), "data/0", b"", bytes(1 << 20), 100, b""),
    ".pt",
)
_add("pickle: program of half a gigabyte", _long_program, ".pt", refused=True)
_add("pickle: archive cut short", lambda: pickled(lora())[:-300], ".pt", refused=True)
_add("pickle: archive without its directory", lambda: pickled(lora())[:1200], ".pt", refused=True)
_add("pickle: archive of nothing", lambda: b"PK\5\6" + bytes(18), ".pt", refused=True)
_add("pickle: empty file", lambda: b"", ".pt", refused=True)
_add("pickle: an old archive that is a tar", lambda: b"x" * 257 + b"ustar" + bytes(2000), ".pt", refused=True)
_add("pickle: nested in itself", lambda: pickled(_loop()), ".pt", refused=True)
_add(
    "pickle: keys that are no text",
    lambda: pickled({0: torch.ones(2), None: torch.ones(2), **lora()}),
    ".pt",
)
_add(
    "pickle: keys that are the same text",
    lambda: pickled({1: torch.ones(2), "1": torch.ones(3), **lora()}),
    ".pt",
    refused=True,
)
_add(
    "pickle: a parameter that learns",
    lambda: pickled({k: torch.nn.Parameter(t) for k, t in lora().items()}),
    ".pt",
)


def _loop() -> dict[str, Any]:
    table: dict[str, Any] = dict(lora())
    table["state_dict"] = table
    table["x"] = table
    return table


def _memo(count: int) -> bytes:
    """A program that names a dictionary over and over, so that its text doubles when it is walked."""
    table: Any = {"x": 1}
    for _ in range(count):
        table = {"a": table, "b": table}
    return pickled({**lora(), "deep": table})


_add("pickle: tables that hold each other forty times", lambda: _memo(40), ".pt", refused=True)
for _function, _arguments in (
    (exec, ("raise SystemExit(3)",)),
    (torch.zeros, (1 << 34,)),
    (bytearray, (1 << 34,)),
):
    _add(
        f"pickle: a call of {_function.__name__}",
        lambda function=_function, arguments=_arguments: pickled({**lora(), "x": Call(function, *arguments)}),
        ".pt",
        refused=True,
    )
_add(
    "pickle: a number of a gigabyte",
    lambda: b"\x80\x02\x8b\xff\xff\xff\x3f" + bytes(1000),
    ".pt",
    refused=True,
)
_add("pickle: a frame of exabytes", lambda: b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.", ".bin", refused=True)

# Headers.


def _header(change: Callable[[dict[str, Any]], Any]) -> bytes:
    header, data = described(lora())
    changed = change(header)
    return joined(header if changed is None else changed, data)


def _set(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[f"{NAME}.lora_up.weight"][field] = value

    return change


def _replaced(old: str, new: str) -> Callable[[dict[str, Any]], str]:
    return lambda header: json.dumps(header).replace(old, new, 1)


for _name, _change in {
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
    "the same key twice": lambda header: (
        json.dumps(header)[:-1] + f', "{NAME}.alpha": {json.dumps(header[f"{NAME}.alpha"])}}}'
    ),
    "brackets 100,000 deep": lambda header: "[" * 100_000 + "]" * 100_000,
    "metadata that are a list": lambda header: {**header, "__metadata__": [1, 2]},
}.items():
    _add(f"header: {_name}", partial(_header, _change), refused=True)


for _name, _change in {
    "a shape of 200,000 sizes of one": _set("shape", [12, 3] + [1] * 200_000),
    "a byte order mark": lambda header: "\ufeff" + json.dumps(header),
    "text in UTF-16": lambda header: json.dumps(header).encode("utf-16"),
}.items():
    # Whatever is read of them is right.
    _add(f"header: {_name}", partial(_header, _change), tensors=lora())


def _empty_value() -> bytes:
    """A tensor of 0 x 2^63, which holds no byte."""
    header, data = described(lora())
    header["x"] = {"dtype": "F32", "shape": [0, 1 << 63], "data_offsets": [0, 0]}
    return joined(header, data)


_add("header: a tensor of 0 x 2^63", _empty_value)
_add("header: 100 MB of empty lists", lambda: joined("[" + "[]," * 33_000_000 + "[]]", b""), refused=True)
_add(
    "header: 90 MB of empty lists in a field",
    lambda: _header(lambda header: json.dumps(header)[:-1] + ',"x":[' + "[]," * 30_000_000 + "[]]}"),
    refused=True,
)
_add(
    "header: 200,000 empty tensors",
    lambda: _header(
        lambda header: (
            header | {f"x{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(200_000)}
        )
    ),
)
_add(
    "header: 200,000 layers of no values",
    lambda: _header(
        lambda header: (
            header
            | {
                f"lora_unet_blocks_{n}_y.diff": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                for n in range(200_000)
            }
        )
    ),
)
_add(
    "header: 40 MB of metadata",
    lambda: packed(lora(), {f"ss_{n}": "x" * 1000 for n in range(40_000)}),
)
_add("header: one metadata text of 40 MB", lambda: packed(lora(), {"ss_tag_frequency": "x\n" * 20_000_000}))
_add(
    "header: network arguments of 40 MB",
    lambda: packed(lora(), {"ss_network_args": "[" + "[]," * 13_000_000 + "1]"}),
)
for _name, _key in {
    "60,000 dots": "." * 60_000,
    "60,000 underscores": "_" * 60_000,
    "60,000 short words": "a." * 30_000,
    "60,000 numbers": "0_" * 30_000,
    "60,000 letters": "x" * 60_000,
}.items():
    _add(
        f"key: {_name}",
        lambda key=_key: packed(
            {**lora(), f"{key}.lora_up.weight": rand(2, 2), f"{key}.alpha": torch.ones(())}
        ),
    )
    _add(f"key: {_name} after a known prefix", lambda key=_key: packed(lora(f"lora_unet_{key}")))
_add("key: 2,000 of 5,000 dots", lambda: packed({f"{'.' * 5000}{n}": torch.ones(1) for n in range(2000)}))
_add("key: a lone surrogate", lambda: packed({**lora(), "x\ud800y": torch.ones(2)}))
_add("key: a lone surrogate in a layer", lambda: packed(lora("lora_unet_\udcff_x")))
_add("key: an escape sequence", lambda: packed({**lora(), "\x1b[2Jx": torch.ones(2)}))
_add("key: a line of the report", lambda: packed({**lora(), f"x\n  {CANARY}": torch.ones(2)}))
_add("key: a line of the report in a layer", lambda: packed({**lora(), **lora(f"lora_unet_y\n  {CANARY}\n")}))
_add("key: a line of the report after U+2028", lambda: packed({**lora(), f"x\u2028{CANARY}": torch.ones(2)}))
_add("key: empty", lambda: packed({**lora(), "": torch.ones(2)}))
_add(
    "key: a suffix alone", lambda: packed({**lora(), "lora_up.weight": rand(2, 2), ".alpha": torch.ones(())})
)
_add("metadata: a lone surrogate", lambda: packed(lora(), {"ss_title": "\ud800", "\udfff": "x"}))
_add(
    "metadata: escape sequences and lines",
    lambda: packed(lora(), {"ss_title": f"\x1b[31m\n  {CANARY}\r\x85{CANARY}"}),
)

# Models.


def _base(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], metadata: Mapping[str, str] | None = None
) -> bytes:
    return packed(change(dict(base_of("plain"))), metadata)


def _under(name: str, make: Callable[[], bytes], *, refused: bool = False) -> None:
    CRAFTED[name] = lambda: Case(
        name,
        {"adapter_model.safetensors": packed(lora()), "base.safetensors": make()},
        "adapter_model.safetensors",
        base="base.safetensors",
        closed=False,
        refused=refused,
    )


for _name, _key in {
    "60,000 dots": "." * 60_000,
    "60,000 underscores": "_" * 60_000,
    "60,000 short words": "a." * 30_000,
    "60,000 numbers": "blocks.0." * 6_000,
}.items():
    _under(f"model: {_name}", lambda key=_key: _base(lambda t: {**t, f"{key}.weight": torch.ones(2, 2)}))
_under("model: a lone surrogate", lambda: _base(lambda t: {**t, "x\ud800.weight": torch.ones(2, 2)}))
_under("model: metadata with a lone surrogate", lambda: _base(lambda t: t, {"x": "\ud800"}))
_under("model: weights without dimensions", lambda: _base(lambda t: {key: torch.ones(()) for key in t}))
_under("model: empty weights", lambda: _base(lambda t: {key: torch.ones(0, 18) for key in t}))
_under("model: 20 dimensions", lambda: _base(lambda t: {key: torch.ones([1] * 20) for key in t}))
_under(
    "model: 200,000 empty tensors",
    lambda: joined(
        {
            f"diffusion_model.blocks.{n}.y.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
            for n in range(200_000)
        },
        b"",
    ),
)
_under(
    "model: NaN in a weight",
    lambda: _base(lambda t: {key: x * math.nan if x.is_floating_point() else x for key, x in t.items()}),
)
_under(
    "model: large weights in half precision",
    lambda: _base(lambda t: {key: torch.full(x.shape, 65504.0).half() for key, x in t.items()}),
)
for _name, _mark in {
    "a list": b"[1, 2]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "no format": b"{}",
    "a format that is a list": b'{"format": ["nvfp4"]}',
    "no UTF-8": b"\xff\xfe\xfd",
    "empty": b"",
}.items():
    _under(
        f"model: mark of quantisation, {_name}",
        lambda mark=_mark: _base(
            lambda t: {
                **t,
                f"diffusion_model.{PATHS['linear']}.comfy_quant": torch.tensor(list(mark), dtype=torch.uint8),
                f"diffusion_model.{PATHS['linear']}.weight": torch.ones(LINEAR).to(torch.float8_e4m3fn),
            },
            {"_quantization_metadata": mark.decode("latin-1")},
        ),
    )

# Regular expressions and numbers of a PEFT configuration.


def _configured(
    name: str, table: Any, tensors: Mapping[str, Tensor] | None = None, *, refused: bool = False
) -> None:
    """A PEFT file of `tensors` (a LoRA unless given) with a configuration, given as a table or as text."""
    rows, columns = LINEAR

    def make() -> Case:
        _fixed()
        held = tensors or {f"{PEFT}.lora_A.weight": rand(3, columns), f"{PEFT}.lora_B.weight": rand(rows, 3)}
        text = table if isinstance(table, str) else json.dumps(table)
        return _case(name, packed(held), config=text.encode("utf-8", "surrogatepass"), refused=refused)

    CRAFTED[name] = make


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
PATH_OF_LAYERS = PEFT.replace("blocks.0.x", "blocks.0." + "aaaaaaaa." * 6 + "x")


def _long(suffix: str) -> dict[str, Tensor]:
    """A layer with a path that is long enough for an expression to hang on."""
    rows, columns = LINEAR
    _fixed()
    pair = {"lora_A.weight": rand(3, columns), "lora_B.weight": rand(rows, 3)}
    return {f"{PATH_OF_LAYERS}.{name}": tensor for name, tensor in pair.items()}


for _name, _pattern in HANGING.items():
    for _field in ("rank_pattern", "alpha_pattern"):
        _configured(f"pattern: {_name} in {_field}", {**SETTINGS, _field: {_pattern: 3}}, _long("x"))
    _configured(
        f"pattern: {_name} in feedforward_modules",
        {"peft_type": "IA3", "feedforward_modules": _pattern},
        {f"{PATH_OF_LAYERS}.ia3_l": torch.ones(1, LINEAR[1], 1)},
    )
CRAFTED["pattern: nested repeats in metadata"] = lambda: _case(
    "pattern: nested repeats in metadata",
    packed(
        {key.replace("base_model.model.", "transformer."): tensor for key, tensor in _long("x").items()},
        {
            "lora_adapter_metadata": json.dumps(
                {
                    "transformer.r": 3,
                    "transformer.lora_alpha": 2,
                    "transformer.alpha_pattern": {HANGING["nested repeats"]: 3},
                }
            )
        },
    ),
)
_configured(
    "pattern: 800 of nested repeats",
    {**SETTINGS, "alpha_pattern": {f"(a+)+{n}!": 3 for n in range(800)}},
    _long("x"),
)
_configured("pattern: one that does not compile", {**SETTINGS, "alpha_pattern": {"(": 3}})
_configured(
    "pattern: one that does not compile for feedforward_modules",
    {"peft_type": "IA3", "feedforward_modules": "("},
    {f"{PEFT}.ia3_l": torch.ones(1, LINEAR[1])},
)
_configured("pattern: a megabyte", {**SETTINGS, "alpha_pattern": {"a?" * 500_000: 3}})
_configured("pattern: 5,000 groups", {**SETTINGS, "alpha_pattern": {"(" * 5000 + ")" * 5000: 3}})
_configured("pattern: a repeat of 10^9", {**SETTINGS, "alpha_pattern": {"(a{1000}){1000}{1000}": 3}})
_configured("pattern: a lone surrogate", {**SETTINGS, "alpha_pattern": {"\ud800": 3}})


def _honest_patterns() -> Case:
    """600 layers, each with a rank and an alpha of its own, as the library itself writes them."""
    _fixed()
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for number in range(600):
        path = f"down.{number}.attentions.0.to_q"
        rank = number % 7 + 1
        tensors |= {
            f"base_model.model.{path}.lora_A.weight": rand(rank, 4),
            f"base_model.model.{path}.lora_B.weight": rand(4, rank),
        }
        escaped = path.replace(".", r"\.")
        ranks[f"^{escaped}"] = rank
        alphas[f"^{escaped}"] = number / 10 + 1
    table = {**SETTINGS, "rank_pattern": ranks, "alpha_pattern": alphas}
    return _case("pattern: 600 layers of their own", packed(tensors), config=json.dumps(table).encode())


CRAFTED["pattern: 600 layers of their own"] = _honest_patterns
for _name, _table in {
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
}.items():
    _configured(f"configuration: {_name}", _table)
_configured(
    "configuration: a series of 3,000,000 terms",
    {"peft_type": "OFT", "r": 0, "oft_block_size": 2, "num_cayley_neumann_terms": 3_000_000},
    {f"{PEFT}.oft_R.weight": torch.ones(9, 1) / 8},
)
_configured(
    "configuration: a series of 10^30 terms",
    '{"peft_type": "OFT", "r": 0, "num_cayley_neumann_terms": 1e30}',
    {f"{PEFT}.oft_R.weight": torch.ones(9, 1) / 8},
)
_configured(
    "configuration: a bound of 1e400",
    '{"peft_type": "OFT", "r": 0, "coft": true, "eps": 1e400}',
    {f"{PEFT}.oft_R.weight": torch.ones(9, 1) / 8},
)

# Values that say how others are read.


def _layer(name: str, tensors: Mapping[str, Tensor], *, refused: bool = False) -> None:
    """A file of tensors by key, whose change closed forms know if it is read."""
    CRAFTED[name] = lambda: _case(name, packed(tensors), tensors=tensors, refused=refused)


for _name, _alpha in {
    "NaN": torch.tensor(math.nan),
    "infinity": torch.tensor(math.inf),
    "1e300": torch.tensor(1e300, dtype=torch.float64),
    "3e38": torch.tensor(3e38),
    "of two values": torch.ones(2),
    "empty": torch.ones(0),
    "a truth value": torch.tensor(True),
    "2^62": torch.tensor(1 << 62),
}.items():
    _layer(f"value: alpha {_name}", {**lora(), f"{NAME}.alpha": _alpha})
CRAFTED["value: alpha that is complex"] = lambda: _case(
    "value: alpha that is complex",
    pickled({**lora(), f"{NAME}.alpha": torch.tensor(1 + 2j)}),
    ".pt",
    refused=True,
)
CRAFTED["value: alpha in a dtype that torch lacks"] = lambda: _case(
    "value: alpha in a dtype that torch lacks",
    _header(lambda header: header[f"{NAME}.alpha"].update({"dtype": "F6_E2M3", "shape": [5]})),
    refused=True,
)
_layer(
    "value: factors that are integers",
    {key: tensor.mul(9).to(torch.int64) for key, tensor in lora().items()},
    refused=True,
)
_layer(
    "value: factors whose product overflows",
    {key: tensor * 1e30 if tensor.ndim else tensor for key, tensor in lora().items()},
    refused=True,
)
_layer(
    "value: a LoHa whose product overflows",
    {key: tensor * 1e15 if tensor.ndim else tensor for key, tensor in _of_kind("loha").items()},
    refused=True,
)
_layer(
    "value: a LoKr whose product overflows",
    {key: tensor * 1e25 if tensor.ndim else tensor for key, tensor in _of_kind("lokr-full-low").items()},
    refused=True,
)
_layer("value: on_input of 7", {**_of_kind("ia3"), f"{NAME}.on_input": torch.tensor(7)}, refused=True)
_layer("value: on_input NaN", {**_of_kind("ia3"), f"{NAME}.on_input": torch.tensor(math.nan)}, refused=True)
_layer(
    "value: BOFT of 15,000 stages",
    {"lora_unet_blocks_0_x.oft_blocks": torch.zeros(15_000, 6, 2, 2)},
    refused=True,
)
_layer(
    "value: PEFT's BOFT of 15,000 stages",
    {f"{NAME}.boft_R": torch.zeros(15_000, 9, 2, 2), f"{NAME}.boft_s": torch.ones(12, 1)},
    refused=True,
)
_layer(
    "value: a Tucker core of gigabytes of work",
    {
        f"{NAME}.lora_up.weight": torch.ones(1, 1500, 1, 1),
        f"{NAME}.lora_mid.weight": torch.ones(1500, 1, 300, 300)
        .half()[:, :, :1, :1]
        .expand(1500, 1, 1, 1)
        .contiguous(),
        f"{NAME}.lora_down.weight": torch.ones(1, 200_000, 1, 1).half(),
    },
)
_layer(
    "value: a LoHa core that enlarges a small file",
    {
        f"{NAME}.hada_t1": torch.ones(1, 1, 1000, 1),
        f"{NAME}.hada_w1_a": torch.ones(1, 1000),
        f"{NAME}.hada_w1_b": torch.ones(1, 1000),
        f"{NAME}.hada_t2": torch.ones(1, 1, 1000, 1),
        f"{NAME}.hada_w2_a": torch.ones(1, 1000),
        f"{NAME}.hada_w2_b": torch.ones(1, 1000),
    },
)
_layer(
    "value: reshape_weight of 2^62",
    {**lora(), f"{NAME}.reshape_weight": torch.tensor([1 << 62, 18])},
    refused=True,
)
_layer(
    "value: reshape_weight NaN",
    {**lora(), f"{NAME}.reshape_weight": torch.tensor([math.nan, 18.0])},
    refused=True,
)
_layer(
    "value: bias_size NaN",
    {**_of_kind("lora-sparse"), f"{NAME}.bias_size": torch.tensor([math.nan, 18.0])},
    refused=True,
)
_layer(
    "value: bias_indices of a float",
    {**_of_kind("lora-sparse"), f"{NAME}.bias_indices": torch.full((2, 5), 1e30)},
    refused=True,
)

# Shapes.

_layer(
    "shape: a norm without dimensions",
    {**lora(), "lora_unet_blocks_7_x.w_norm": torch.ones(())},
    refused=True,
)
_layer(
    "shape: a norm's bias without dimensions",
    {**lora(), "lora_unet_blocks_7_x.b_norm": torch.ones(())},
    refused=True,
)
_layer("shape: OFT blocks without dimensions", {**lora(), "lora_unet_blocks_1_x.oft_blocks": torch.ones(())})
_layer("shape: OFT blocks of one dimension", {**lora(), "lora_unet_blocks_1_x.oft_blocks": torch.ones(4)})
_layer("shape: OFTv2 weight without dimensions", {f"{NAME}.oft_R.weight": torch.ones(())}, refused=True)
_layer("shape: OFTv2 weight of one dimension", {f"{NAME}.oft_R.weight": torch.ones(9)}, refused=True)
_layer("shape: OFTv2 weight of three dimensions", {f"{NAME}.oft_R.weight": torch.ones(9, 1, 1)}, refused=True)
_layer(
    "shape: a magnitude without dimensions", {**lora(), f"{NAME}.dora_scale": torch.ones(())}, refused=True
)
_layer("shape: PEFT's factors without dimensions", {f"{NAME}.ia3_l": torch.ones(())}, refused=True)
_layer(
    "shape: PEFT's BOFT scale without dimensions",
    {f"{NAME}.boft_R": torch.zeros(1, 9, 2, 2), f"{NAME}.boft_s": torch.ones(())},
    refused=True,
)
_layer(
    "shape: a difference of 20 dimensions", {f"{NAME}.diff": torch.ones([1] * 18 + [12, 18])}, refused=True
)
_layer(
    "shape: a difference of 70 dimensions", {f"{NAME}.diff": torch.ones([1] * 62 + [12, 18])}, refused=True
)
_layer("shape: a flattened difference", {f"{NAME}.diff": torch.ones(12 * 18)}, refused=True)
_layer("shape: a transposed difference", {f"{NAME}.diff": torch.ones(18, 12)}, refused=True)
_layer(
    "shape: a LoHa whose factors agree in count alone",
    {
        f"{NAME}.hada_w1_a": torch.ones(12, 2),
        f"{NAME}.hada_w1_b": torch.ones(2, 18),
        f"{NAME}.hada_w2_a": torch.ones(12, 2, 1),
        f"{NAME}.hada_w2_b": torch.ones(2, 2, 9),
    },
)
_layer(
    "shape: a flattened down factor",
    {f"{NAME}.lora_up.weight": torch.ones(12, 3), f"{NAME}.lora_down.weight": torch.ones(3 * 18)},
    refused=True,
)
_layer(
    "shape: LoKr factors of three dimensions",
    {
        f"{NAME}.lokr_w1": torch.ones(3, 2, 1),
        f"{NAME}.lokr_w2_a": torch.ones(4, 2, 3),
        f"{NAME}.lokr_w2_b": torch.ones(2, 9),
    },
    refused=True,
)
_layer(
    "shape: T-LoRA's factors without dimensions",
    {
        f"{NAME}.q_layer.weight": torch.ones(1, 18),
        f"{NAME}.p_layer.weight": torch.ones(12, 1),
        f"{NAME}.lambda_layer": torch.ones(()),
    },
)
_layer(
    "shape: oft_blocks under a number that is no number",
    {**lora(), "oft_unet_blocks_1_x.oft_blocks.x": torch.ones(5, 7, 7)},
)
_layer(
    "shape: oft_blocks under a number and without",
    {
        "lora_unet_blocks_1_x.oft_blocks": torch.ones(5, 7, 7),
        "lora_unet_blocks_1_x.oft_blocks.0": torch.ones(5, 7, 7),
    },
)
for _kind in KINDS:
    if not KINDS[_kind].flat and not KINDS[_kind].needs_kernel and KINDS[_kind].algorithm != "tlora":
        _layer(
            f"shape: {_kind} of empty tensors",
            {key: torch.ones(0) if t.ndim else t for key, t in _of_kind(_kind).items()},
            refused=True,
        )
_layer(
    "shape: a LoKr core's factor of three dimensions",
    {
        f"{NAME}.lokr_t2": torch.ones(3, 3, 1),
        f"{NAME}.lokr_w1": torch.ones(3, 3),
        f"{NAME}.lokr_w2_a": torch.ones(3, 3, 4),
        f"{NAME}.lokr_w2_b": torch.ones(3, 6),
    },
)
_layer(
    "shape: GLoRA's inner factor with a kernel",
    {
        f"{NAME}.a1.weight": torch.ones(18, 3),
        f"{NAME}.a2.weight": torch.ones(3, 18, 3, 3),
        f"{NAME}.b1.weight": torch.ones(12, 3),
        f"{NAME}.b2.weight": torch.ones(3, 18),
    },
)
_layer(
    "shape: AdaLoRA without singular values beside factors",
    {
        f"{PEFT}.lora_A": torch.ones(3, 18),
        f"{PEFT}.lora_B": torch.ones(12, 3),
        f"{PEFT}.lora_E": torch.ones(0, 1),
    },
    refused=True,
)
_layer(
    "shape: AdaLoRA with a factor of three dimensions",
    {
        f"{PEFT}.lora_A": torch.ones(3, 1, 18),
        f"{PEFT}.lora_B": torch.ones(12, 3),
        f"{PEFT}.lora_E": torch.ones(3, 1),
    },
)
_layer(
    "shape: PEFT's magnitude of the size of the inputs",
    {
        f"{PEFT}.lora_A.weight": torch.ones(3, 18),
        f"{PEFT}.lora_B.weight": torch.ones(12, 3),
        f"{PEFT}.lora_magnitude_vector": torch.ones(18),
    },
    refused=True,
)
_layer(
    "shape: PEFT's BOFT blocks of five dimensions",
    {f"{NAME}.boft_R": torch.ones(1, 9, 2, 2, 3), f"{NAME}.boft_s": torch.ones(12, 1)},
)
_layer(
    "value: PEFT's BOFT with factors near the largest number",
    {f"{NAME}.boft_R": torch.zeros(1, 9, 2, 2), f"{NAME}.boft_s": torch.full((12, 1), 3e38)},
)
_layer(
    "value: a GLoRA whose product overflows",
    {key: tensor * 1e15 if tensor.ndim else tensor for key, tensor in _of_kind("glora").items()},
    refused=True,
)
for _dialect in lyc.WRITTEN:
    CRAFTED[f"shape: nothing that can be read, saved as {_dialect}"] = lambda dialect=_dialect: replace(
        _case("shape: nothing that can be read", packed({f"{NAME}.hada_w2_b": torch.ones(2, 2)})),
        dialect=dialect,
    )
_layer("shape: a layer that is there under two names", {**lora(), **lora("lora_unet__blocks_0_x")})
