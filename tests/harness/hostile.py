"""Malicious and damaged files. Each is refused when it is opened, with an error that names it."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import torch

from lycoris_ops.files.bounds import MAX_BRACKETS, MAX_TENSORS

from .payloads import Call

UP, DOWN = "lora_unet_a.lora_up.weight", "lora_unet_a.lora_down.weight"
LORA = {UP: torch.ones(4, 1), DOWN: torch.ones(1, 4)}
DATA = bytes(32)


def entry(shape: Any, start: Any = 0, end: Any = 0, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = {UP: entry([4, 1], 0, 16), DOWN: entry([1, 4], 16, 32)}


def safetensors(header: Any, data: bytes = DATA) -> bytes:
    """A file with this header, given as a table or as its bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def beside(key: str, value: Any) -> bytes:
    """A file of a good LoRA and one more entry in its header."""
    return safetensors({**GOOD, key: value})


def with_metadata(value: Any) -> bytes:
    return beside("__metadata__", value)


def empties(count: int) -> bytes:
    return safetensors({f"lora_unet_{n}.lora_up.weight": entry([0]) for n in range(count)}, b"")


DEEP = b"[" * 5000 + b"]" * 5000

WRONG = ": x: .*wrong types or sizes"

Make = Callable[[], bytes]


def entry_with(**changed: Any) -> Make:
    """A good file with another entry for its second tensor."""
    return lambda: safetensors({**GOOD, DOWN: {**GOOD[DOWN], **changed}})


WHOLE = safetensors(GOOD)
# The errors of these also tell the user to download or save the file again.
DAMAGE: dict[str, tuple[Make, str]] = {
    "empty": (lambda: b"", "too short"),
    "garbage": (lambda: b"\x8d\x11\x00\xf3\x7e" + b"\xff" * 300, "header"),
    "a page in HTML": (lambda: b"<html>not found</html>" * 9, "a web page, not a model"),
    "cut data": (lambda: WHOLE[:-7], "is cut off"),
    "a cut header": (lambda: WHOLE[:40], "does not fit"),
    "bytes at the end": (lambda: WHOLE + bytes(3), "longer than its header says"),
    "a header beyond the file": (lambda: b"\xff" * 7 + b"\x7f" + b"x" * 50, "does not fit"),
    "no JSON": (lambda: safetensors(b"{" * 200), "not valid JSON"),
    "a list": (lambda: safetensors(b"[]"), "not a table"),
    "no offsets": (lambda: safetensors({**GOOD, DOWN: {"dtype": "F32", "shape": [1, 4]}}), "lacks"),
    "a number for an entry": (lambda: beside("x", 7), "lacks"),
    "a number for metadata": (lambda: with_metadata(7), "not a table"),
    "another shape": (entry_with(shape=[1, 5]), "do not match"),
    "a negative shape": (entry_with(shape=[-1, -4]), "wrong types"),
    "another dtype": (entry_with(dtype="F32X"), "unknown dtype"),
    "far offsets": (entry_with(data_offsets=[10**9, 10**9 + 16]), "overlap or leave gaps"),
    "overlap": (entry_with(data_offsets=[0, 16]), "overlap or leave"),
}
HEADERS: dict[str, tuple[Make, str]] = {
    **{name: (make, f"{words}.* again") for name, (make, words) in DAMAGE.items()},
    "a number of 100,000 digits": (lambda: safetensors(b'{"a":' + b"9" * 100_000 + b"}"), "not valid JSON"),
    "sizes of 4,000 digits": (lambda: beside("x", entry([10**3999] * 9, 32, 32)), WRONG),
    "4,000 digits of offset": (
        lambda: beside("x", entry([1], 32, 10**3999)),
        ": x: .*do not match its shape",
    ),
    "sizes that overflow": (lambda: beside("x", entry([1 << 40] * 16, 32, 32)), WRONG),
    "100,000 sizes": (lambda: beside("x", entry([2] * 100_000, 32, 32)), WRONG),
    "20 sizes": (lambda: beside("x", entry([1] * 20, 32, 36)), WRONG),
    "0 x 2^63": (lambda: beside("x", entry([0, 1 << 63], 32, 32)), WRONG),
    "0 x 2^39 x 2^39": (lambda: beside("x", entry([0, 1 << 39, 1 << 39], 32, 32)), WRONG),
    "a size of 1.0": (lambda: beside("x", entry([1.0], 32, 36)), WRONG),
    "a size of true": (lambda: beside("x", entry([True], 32, 36)), WRONG),
    "an offset of true": (lambda: beside("x", entry([1], True, 36)), WRONG),
    "a dtype that is a table": (lambda: beside("x", entry([1], 32, 36, {})), WRONG),
    "a header of 100 MB": (lambda: safetensors(b" " * 100_000_000), "header is too long.*100000000 bytes"),
    "33 MB of empty lists": (lambda: safetensors(b"[" + b"[]," * 11_000_000 + b"[]]"), "brackets"),
    "as many lists as allowed": (
        lambda: safetensors(b'{"x":[' + b"[]," * (MAX_BRACKETS - 3) + b"[]]}"),
        ": x: .*lacks dtype",
    ),
    "33 MB of numbers": (lambda: safetensors(b'{"x":[' + b"9," * 16_500_000 + b"9]}"), "commas"),
    "1,600,000 keys": (
        lambda: safetensors(("{" + ",".join(f'"{n:x}":0' for n in range(1_600_000)) + "}").encode()),
        "quotation marks",
    ),
    "200,000 empty tensors": (lambda: empties(200_000), "quotation marks"),
    "one empty tensor too many": (
        lambda: empties(MAX_TENSORS + 1),
        "too many tensors.*131073.*at most 131072",
    ),
    "40 MB of metadata": (
        lambda: safetensors(b'{"__metadata__":{"a":"' + b"x" * 40_000_000 + b'"}}'),
        "header is too long",
    ),
    "20,000 metadata": (
        lambda: with_metadata({str(n): "" for n in range(20_000)}),
        "too many entries.*20000",
    ),
    "deep metadata": (lambda: safetensors(b'{"__metadata__":{"a":' + DEEP + b"}}"), "too deep"),
    "deep lists": (lambda: safetensors(DEEP), "too deep"),
    "60,000 dots": (lambda: beside("." * 60_000, entry([0], 32, 32)), "60000 characters, 60000 of them dots"),
    "60,000 underscores": (lambda: beside("_" * 60_000, entry([0], 32, 32)), "60000 characters"),
    "100 dots": (lambda: beside("a." * 100, entry([0], 32, 32)), "100 of them dots"),
    "half a character in a key": (lambda: beside("a\ud800", entry([0], 32, 32)), r"a\\ud800: .*has a name"),
    "half a character in metadata": (lambda: with_metadata({"a": "x\udfff"}), "a: .*not text.*surrogate"),
    "half a character in metadata's key": (lambda: with_metadata({"\udfff": ""}), r"\\udfff: .*not text"),
    "a mark of the byte order": (lambda: safetensors(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()), "BOM"),
    "UTF-16": (lambda: safetensors(json.dumps(GOOD).encode("utf-16")), "not valid JSON"),
    "a key twice": (lambda: safetensors(b'{"a":{},"a":{}}'), "'a' is given twice"),
    "metadata twice": (lambda: safetensors(b'{"__metadata__":{"k":"","k":""}}'), "'k' is given twice"),
}
"""Headers of safetensors files, with words of the error."""


# Pickles.

START, STOP = b"\x80\x02", b"."


def text(value: str) -> bytes:
    """The instruction for a text."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def number(value: int) -> bytes:
    data = value.to_bytes(20, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: list[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def called(name: str, *arguments: bytes) -> bytes:
    """The instructions that call a function."""
    return b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n(" + b"".join(arguments) + b"tR"


def tensor(
    size: list[int], stride: list[int], numel: int, offset: int = 0, kind: str = "Float", key: str = "0"
) -> bytes:
    """The instructions for a tensor in a storage of `numel` elements."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu")
    return called(
        "torch._utils._rebuild_tensor_v2",
        *(storage + number(numel) + b"tQ", number(offset), numbers(size), numbers(stride)),
        *(b"\x89", called("collections.OrderedDict")),
    )


def table(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u"


def archive(value: bytes, storages: dict[str, bytes] | None = None, **how: Any) -> Make:
    """An archive as torch writes it, of a pickle and its storages."""

    def make() -> bytes:
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w", **how) as file:
            file.writestr("x/data.pkl", START + value + STOP)
            file.writestr("x/version", "3")
            for key, storage in (storages or {}).items():
                file.writestr(f"x/data/{key}", storage)
        return data.getvalue()

    return make


def saved(make: Callable[[], Any], **how: Any) -> Make:
    """The file that torch saves for a value."""

    def saved() -> bytes:
        data = io.BytesIO()
        torch.save(make(), data, **how)
        return data.getvalue()

    return saved


def changed(change: Callable[[bytearray], object]) -> Make:
    """A good archive with some of its bytes changed."""

    def make() -> bytes:
        data = bytearray(saved(lambda: LORA)())
        change(data)
        return bytes(data)

    return make


def members_twice() -> bytes:
    """An archive in which many members are the same bytes of the file."""
    data = archive(table(a=tensor([1], [1], 1)), {"0": bytes(4_000_000)})()
    count, start, at = 16, data.index(b"PK\x01\x02"), data.rindex(b"PK\x01\x02")
    listed = b"".join(data[at:-22].replace(b"x/data/0", f"x/data/{n:01x}".encode()) for n in range(count))
    end = struct.pack("<HHIIH", count, count, len(listed), start, 0)
    return data[:start] + listed + b"PK\x05\x06\0\0\0\0" + end


class Marked(torch.Tensor):
    """A tensor of a class of its own."""


PAIR = b"q\x00" + b"h\x00\x86"
"""Puts the tuple (t, t) in the place of a value t."""
LONG_TUPLE = b")" + PAIR * 60
ONE = {"0": bytes(4)}
NOT_PLAIN: dict[str, tuple[Callable[[], Any], str]] = {
    "complex": (lambda: torch.zeros(2, dtype=torch.complex64), "odd: .*dtype complex64"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "_rebuild_sparse_tensor"),
    "CSR": (lambda: torch.eye(3).to_sparse_csr(), "_rebuild_sparse_tensor"),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]),
        "_rebuild_nested_tensor",
    ),
    "meta": (lambda: torch.empty(1 << 40, device="meta"), "_rebuild_meta_tensor_no_storage"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), "_rebuild_qtensor"),
    "expanded": (lambda: torch.zeros(1).expand(1 << 34), "overlap too much"),
    "uint32": (lambda: torch.zeros(2, dtype=torch.uint32), "odd: .*dtype uint32"),
    "a number": (lambda: 3, "odd: .*found int"),
    "a text": (lambda: "x", "odd: .*found str"),
    "a table": (lambda: {"b": torch.zeros(1)}, "odd: .*found dict"),
}
"""Values that are not plain tensors, with words of the error."""

PICKLES: dict[str, tuple[Make, str]] = {
    **{
        name: (saved(lambda make=make: {**LORA, "odd": make()}), words)
        for name, (make, words) in NOT_PLAIN.items()
    },
    "of its own class": (
        saved(lambda: {**LORA, "odd": torch.zeros(2).as_subclass(Marked)}),
        "the name .*Marked",
    ),
    "numbers as names": (saved(lambda: {1: torch.zeros(1)}), "not text.*int"),
    "no table": (saved(lambda: [torch.zeros(1)]), "no table of tensors.*found list"),
    "twice state_dict": (saved(lambda: {"state_dict": {"state_dict": LORA}}), "state_dict: .*found dict"),
    "code": (saved(lambda: {"a": Call(os._exit, 3)}), r"the name (posix|nt)\._exit"),
    "code alone": (lambda: pickle.dumps(Call(os._exit, 3)), "not a pickle of plain"),
    "half a character": (archive(table(**{"\ud800": tensor([1], [1], 1)}), ONE), r"\\ud800: .*a name"),
    "60,000 dots": (archive(table(**{"." * 60_000: tensor([1], [1], 1)}), ONE), "60000 of them dots"),
    "a short storage": (archive(table(a=tensor([9], [1], 9)), ONE), ": a: .*differ in size.*36 bytes"),
    "no storage": (
        archive(table(a=tensor([1], [1], 1, key="7")), ONE),
        "data that torch cannot read.*data/7",
    ),
    "beyond its storage": (archive(table(a=tensor([1], [1], 1, 1)), ONE), "data that torch cannot read"),
    "before its storage": (
        archive(table(a=tensor([1], [1], 1, -1)), ONE),
        "data that torch cannot read.*offset -1",
    ),
    "huge strides": (
        archive(table(a=tensor([2], [1 << 62], 1)), ONE),
        "data that torch cannot read.*strides",
    ),
    "a size of 2^63": (archive(table(a=tensor([0, 1 << 63], [1, 1], 1)), ONE), "data that torch cannot read"),
    "a storage of 2^70": (archive(table(a=tensor([1], [1], 1 << 70)), ONE), ": a: .*differ in size"),
    "a tuple of 2^60 as a name": (archive(b"}" + LONG_TUPLE + b"Ns"), "nested deeper"),
    "a call with 2^60": (archive(called("collections.Counter", LONG_TUPLE)), "nested deeper"),
    "a terabyte of bytes": (
        archive(called("builtins.bytearray", number(1 << 40))),
        "the name builtins.bytearray",
    ),
    "a terabyte in a tensor": (
        archive(called("torch.Tensor", number(1 << 40))),
        "data that torch cannot read.*memory",
    ),
    "1,000,000 nested tuples": (archive(b")" + b"\x85" * 999_000), "nested deeper"),
    "8,000,000 tables": (archive(b"}" * 8_000_000), "more than 1000000 instructions"),
    "20 MB of a pickle": (archive(text("x" * 20_000_000)), "data.pkl of 200000"),
    "10,000 dictionaries of one list": (
        archive(b"](" + b"N" * 900_000 + b"eq\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 10_000),
        "nested deeper",
    ),
    "one storage 1,000 times": (
        archive(
            table(**{f"a{n}": tensor([250_000], [1], 250_000) for n in range(1000)}), {"0": bytes(1_000_000)}
        ),
        "overlap too much.*1000000000 bytes",
    ),
    "a zip bomb": (
        archive(
            table(a=tensor([1 << 28], [1], 1 << 28)), {"0": bytes(1 << 26)}, compression=zipfile.ZIP_DEFLATED
        ),
        "compressed member",
    ),
    "members on top of each other": (members_twice, "has 4000000 bytes"),
    "a cut archive": (changed(lambda data: data.__delitem__(slice(-100, None))), "cut off or damaged"),
    "an archive without a list": (
        changed(lambda data: data.__setitem__(slice(data.rindex(b"PK\x01\x02"), -100), b"")),
        "damaged data",
    ),
    "a list of 2^60 members": (
        changed(lambda data: data.__setitem__(slice(-66, -42), struct.pack("<QQQ", 1 << 60, 1 << 60, 0))),
        "too many members",
    ),
    "the layout from before torch 1.6": (
        saved(lambda: LORA, _use_new_zipfile_serialization=False),
        "before 1.6.*save it again",
    ),
}
"""Pickles, with words of the error."""

REFUSED: dict[str, tuple[Make, str]] = {
    **{f"{name}.safetensors": case for name, case in HEADERS.items()},
    **{f"{name}.pt": case for name, case in PICKLES.items()},
}
"""All these files, by file name."""
