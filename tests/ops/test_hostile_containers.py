"""Files that were made to do harm: each is read rightly or refused by name, in bounded time and memory.

The files of `HEADERS`, `PICKLES` and `BASES` are opened in processes with limits, see `in_a_child`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import runpy
import struct
import subprocess
import sys
import unicodedata
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from in_a_child import HONEST
from safetensors.torch import save_file
from torch import Tensor

import lycoris_ops as lyc
from lycoris_ops.errors import printable
from lycoris_ops.files.bounds import MAX_BRACKETS, MAX_TENSORS
from lycoris_ops.files.pickle_file import PickleFile
from lycoris_ops.files.quantised import beginning_with
from tests.harness.payloads import Call

# All in one process, since they share what is made once.
pytestmark = pytest.mark.xdist_group("hostile")

ROOT = Path(__file__).parents[2]
UP, DOWN = "lora_unet_a.lora_up.weight", "lora_unet_a.lora_down.weight"
LORA = {UP: torch.ones(4, 1), DOWN: torch.ones(1, 4)}
DATA = bytes(32)
WEIGHT = "diffusion_model.a.weight"


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

HEADERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a number of 100,000 digits": (lambda: safetensors(b'{"a":' + b"9" * 100_000 + b"}"), "not valid JSON"),
    "sizes of 4,000 digits": (
        lambda: beside("x", entry([10**3999] * 9, 32, 32)),
        WRONG,
    ),
    "4,000 digits of offset": (
        lambda: beside("x", entry([1], 32, 10**3999)),
        ": x: .*do not match its shape",
    ),
    "sizes that overflow": (
        lambda: beside("x", entry([1 << 40] * 16, 32, 32)),
        WRONG,
    ),
    "100,000 sizes": (lambda: beside("x", entry([2] * 100_000, 32, 32)), WRONG),
    "20 sizes": (lambda: beside("x", entry([1] * 20, 32, 36)), WRONG),
    "0 x 2^63": (lambda: beside("x", entry([0, 1 << 63], 32, 32)), WRONG),
    "0 x 2^39 x 2^39": (
        lambda: beside("x", entry([0, 1 << 39, 1 << 39], 32, 32)),
        WRONG,
    ),
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
    "half a character in metadata": (lambda: with_metadata({"a": "x\udfff"}), "a: .*no text.*surrogates"),
    "half a character in metadata's key": (lambda: with_metadata({"\udfff": ""}), r"\\udfff: .*no text"),
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


Write = Callable[[Path], object]


def archive(value: bytes, storages: dict[str, bytes] | None = None, **how: Any) -> Write:
    """Write an archive as torch does, of a pickle and its storages."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", **how) as file:
            file.writestr("x/data.pkl", START + value + STOP)
            file.writestr("x/version", "3")
            for key, data in (storages or {}).items():
                file.writestr(f"x/data/{key}", data)

    return write


def saved(value: Any) -> Write:
    return lambda path: torch.save(value, path)


def changed(change: Callable[[bytearray], object]) -> Write:
    """Write a good archive with some of its bytes changed."""

    def write(path: Path) -> None:
        torch.save(LORA, path)
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    return write


def members_twice(path: Path) -> None:
    """An archive in which many members are the same bytes of the file."""
    archive(table(a=tensor([1], [1], 1)), {"0": bytes(4_000_000)})(path)
    data = path.read_bytes()
    at = data.rindex(b"PK\x01\x02")
    listed = b"".join(data[at:-22].replace(b"x/data/0", f"x/data/{n:01x}".encode()) for n in range(16))
    count, start = 16, data.index(b"PK\x01\x02")
    path.write_bytes(
        data[:start]
        + listed
        + b"PK\x05\x06\0\0\0\0"
        + struct.pack("<HHIIH", count, count, len(listed), start, 0)
    )


class Marked(torch.Tensor):
    """A tensor of a class of its own."""


PAIR = b"q\x00" + b"h\x00\x86"
"""Puts the tuple (t, t) in the place of a value t."""
LONG_TUPLE = b")" + PAIR * 60
ONE = {"0": bytes(4)}
MEGABYTE = {"0": bytes(1_000_000)}
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
    "expanded": (lambda: torch.zeros(1).expand(1 << 34), "on top of each other"),
    "uint32": (lambda: torch.zeros(2, dtype=torch.uint32), "odd: .*dtype uint32"),
    "a number": (lambda: 3, "odd: .*found int"),
    "a text": (lambda: "x", "odd: .*found str"),
    "a table": (lambda: {"b": torch.zeros(1)}, "odd: .*found dict"),
}
"""Values that are no plain tensors, with words of the error."""

PICKLES: dict[str, tuple[Write, str]] = {
    **{
        name: (lambda path, make=make: torch.save({**LORA, "odd": make()}, path), words)
        for name, (make, words) in NOT_PLAIN.items()
    },
    "of its own class": (saved({**LORA, "odd": torch.zeros(2).as_subclass(Marked)}), "the name .*Marked"),
    "numbers as names": (saved({1: torch.zeros(1)}), "no name.*int"),
    "no table": (saved([torch.zeros(1)]), "no table of tensors.*found list"),
    "twice state_dict": (saved({"state_dict": {"state_dict": LORA}}), "state_dict: .*found dict"),
    "code": (saved({"a": Call(os._exit, 3)}), r"the name (posix|nt)\._exit"),
    "code alone": (lambda path: path.write_bytes(pickle.dumps(Call(os._exit, 3))), "not a pickle of plain"),
    "half a character": (archive(table(**{"\ud800": tensor([1], [1], 1)}), ONE), r"\\ud800: .*a name"),
    "60,000 dots": (archive(table(**{"." * 60_000: tensor([1], [1], 1)}), ONE), "60000 of them dots"),
    "a short storage": (archive(table(a=tensor([9], [1], 9)), ONE), ": a: .*not of the size.*36 bytes"),
    "no storage": (archive(table(a=tensor([1], [1], 1, key="7")), ONE), "what torch cannot read.*data/7"),
    "beyond its storage": (archive(table(a=tensor([1], [1], 1, 1)), ONE), "what torch cannot read"),
    "before its storage": (
        archive(table(a=tensor([1], [1], 1, -1)), ONE),
        "what torch cannot read.*offset -1",
    ),
    "huge strides": (archive(table(a=tensor([2], [1 << 62], 1)), ONE), "what torch cannot read.*strides"),
    "a size of 2^63": (archive(table(a=tensor([0, 1 << 63], [1, 1], 1)), ONE), "what torch cannot read"),
    "a storage of 2^70": (archive(table(a=tensor([1], [1], 1 << 70)), ONE), ": a: .*not of the size"),
    "a tuple of 2^60 as a name": (archive(b"}" + LONG_TUPLE + b"Ns"), "within each other"),
    "a call with 2^60": (archive(called("collections.Counter", LONG_TUPLE)), "within each other"),
    "a terabyte of bytes": (
        archive(called("builtins.bytearray", number(1 << 40))),
        "the name builtins.bytearray",
    ),
    "a terabyte in a tensor": (
        archive(called("torch.Tensor", number(1 << 40))),
        "what torch cannot read.*memory",
    ),
    "1,000,000 nested tuples": (archive(b")" + b"\x85" * 999_000), "within each other"),
    "8,000,000 tables": (archive(b"}" * 8_000_000), "more than 1000000 instructions"),
    "20 MB of a pickle": (archive(text("x" * 20_000_000)), "data.pkl of 200000"),
    "10,000 dictionaries of one list": (
        archive(b"](" + b"N" * 900_000 + b"eq\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 10_000),
        "within each other",
    ),
    "one storage 1,000 times": (
        archive(
            table(**{f"a{n}": tensor([250_000], [1], 250_000) for n in range(1000)}), {"0": bytes(1_000_000)}
        ),
        "on top of each other.*1000000000 bytes",
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
        "archive",
    ),
    "a list of 2^60 members": (
        changed(lambda data: data.__setitem__(slice(-66, -42), struct.pack("<QQQ", 1 << 60, 1 << 60, 0))),
        "too many members",
    ),
    "the layout from before torch 1.6": (
        lambda path: torch.save(LORA, path, _use_new_zipfile_serialization=False),
        "before torch 1.6.*save it again",
    ),
}
"""Pickles, with words of the error."""

WIDE = {f"{'_' * n}": entry([0], 64, 64, "I8") for n in range(1, 1000)}
BASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "base names that begin like each other": (
        lambda: safetensors({WEIGHT: entry([4, 4], 0, 64), **WIDE}, bytes(64)),
        "read: .*1 weight merged",
    ),
    "base 60,000 underscores": (
        lambda: safetensors(
            {WEIGHT: entry([4, 4], 0, 64), "_" * 60_000: entry([0], 64, 64, "I8")}, bytes(64)
        ),
        "60000 characters",
    ),
}
"""Checkpoints to merge into, with words of the outcome."""


def write(data: bytes) -> Write:
    return lambda path: path.write_bytes(data) and None


CASES: dict[str, tuple[Write, str]] = {
    **{
        f"{name}.safetensors": (lambda p, m=make: write(m())(p), words)
        for name, (make, words) in HEADERS.items()
    },
    **{f"{name}.pt": case for name, case in PICKLES.items()},
    **{
        f"{name}.safetensors": (lambda p, m=make: write(m())(p), words)
        for name, (make, words) in BASES.items()
    },
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What comes of each file, by its name."""
    pytest.importorskip("resource")
    folder = tmp_path_factory.mktemp("hostile")
    save_file(LORA, folder / HONEST)
    for name, (make, _) in CASES.items():
        make(folder / name)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("in_a_child.py"))],
        input="".join(f"{folder / name}\n" for name in CASES),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    print(done.stderr)
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_a_file_that_was_made_to_do_harm_is_refused_by_name(outcomes: dict[str, str], name: str) -> None:
    """The error names the file and the fault; no time, memory or exception of another family escapes."""
    words = CASES[name][1]
    found = outcomes[name]
    assert re.search(words, found, re.DOTALL), found
    assert words.startswith("read: ") or (found.startswith("refused: ") and name in found), found


# What honest files hold is read as before.


def test_plain_tensors_of_every_form_are_read_from_a_pickle_bit_by_bit(tmp_path: Path) -> None:
    """The reference are the tensors that torch saved: parts of others, transposed, strided, of any dtype."""
    large = torch.randn(10, 20)
    marked = torch.randn(2)
    marked.note = "an attribute"
    tensors = {
        "part": large[::2, 3:7],
        "whole": large,
        "transposed": large.T,
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "repeated": large[0, :3].expand(4, 3),
        "scalar": torch.tensor(2.0, dtype=torch.float16),
        "empty": torch.zeros(0, 4),
        "learnt": torch.nn.Parameter(torch.randn(2, 2)),
        "marked": marked,
        **{
            str(dtype): torch.randn(5).mul(9).to(dtype)
            for dtype in (
                torch.float64,
                torch.bfloat16,
                torch.float8_e5m2,
                torch.int64,
                torch.uint8,
                torch.bool,
            )
        },
    }
    held = OrderedDict(tensors)
    held._metadata = {"": {"version": 1}}
    others = {
        "epoch": 3,
        "rate": 1e-4,
        "betas": (0.9, 0.99),
        "names": ["a"],
        "on": {1: None},
        "size": torch.Size([3]),
    }
    path = tmp_path / "x.pt"
    torch.save({"state_dict": held, **others}, path)
    read = PickleFile.open(path).read(list(tensors), lyc.TensorCache(0))
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape), name
        assert read[name].is_contiguous() and read[name].untyped_storage().nbytes() == read[name].nbytes
        assert torch.equal(bits(read[name]), bits(tensor.detach().contiguous())), name


def bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def test_pickles_are_refused_where_torch_reads_them_unsafely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(LORA, tmp_path / "x.pt")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.5.1"))
    with pytest.raises(lyc.FileFormatError, match=r"x\.pt.*2\.5\.1.*2\.6.*Convert.*safetensors"):
        lyc.load_adapter(tmp_path / "x.pt")


def test_long_but_honest_headers_are_read(tmp_path: Path) -> None:
    """Names, metadata and numbers of tensors of real files are far within the bounds."""
    name = "base_model.model." + ".".join(f"module_{n}" for n in range(25)) + ".q"
    pair = {f"{name}.lora_A.weight": torch.ones(1, 4), f"{name}.lora_B.weight": torch.ones(4, 1)}
    many = {
        f"lora_unet_{n}.{side}.weight": torch.ones(1, 1)
        for n in range(3000)
        for side in ("lora_up", "lora_down")
    }
    tags = json.dumps({f"folder {n}": {f"tag, {m}": m for m in range(100)} for n in range(2000)})
    save_file({**pair, **many}, tmp_path / "x.safetensors", {"ss_tag_frequency": tags, "名": "字"})
    adapter = lyc.load_adapter(tmp_path / "x.safetensors")
    assert len(tags) > 2_900_000 and adapter.metadata["ss_tag_frequency"] == tags
    assert len(adapter.info) == 3001 and name in adapter.info


def test_metadata_that_are_no_texts_are_taken_for_their_texts(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(with_metadata({"a": 1, "b": None, "c": [1.5]}))
    assert lyc.load_adapter(tmp_path / "x.safetensors").metadata == {"a": "1", "b": "None", "c": "[1.5]"}


def test_the_names_that_begin_with_one_of_many_heads() -> None:
    """The reference looks at every name with every head."""
    names = {"", "a", "a.", "a.b", "a.b_c", "a_", "ab", "b.c", "b.c.d", "é.x", "\U0010ffff.x"}
    for heads in ([], ["a."], ["a.", "a.b_"], ["", "a"], ["b.", "a_", "a.b"], ["\U0010ffff"], ["c", "é."]):
        assert beginning_with(names, heads) == {n for n in names if any(n.startswith(h) for h in heads)}


# Texts out of files.

EVIL = "lora_unet_x\n  applied 9 of 9 layers\r\x1b[2J\x1b]0;title\x07\u202e\u200bэто"
"""A layer's name that moves the cursor, clears the screen, names the window and turns the text around."""


def is_plain(text: str, lines: int | None = None) -> bool:
    """Whether a text holds nothing but printed characters and line breaks, of which there are so many."""
    odd = [c for c in text.replace("\n", "") if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    return not odd and lines in (None, text.count("\n") + 1)


def test_what_a_file_says_can_neither_add_a_line_nor_control_a_terminal(tmp_path: Path) -> None:
    texts: list[list[str]] = []
    for name in (EVIL, "lora_unet_x_applied"):
        tensors = {
            f"{name}.lora_up.weight": torch.ones(4, 1),
            f"{name}.lora_down.weight": torch.ones(1, 4),
            f"{name}2.lora_up.weight": torch.ones(4, 1),
            f"{name}3": torch.ones(1),
        }
        save_file(tensors, tmp_path / "x.safetensors", {name: name})
        adapter = lyc.load_adapter(tmp_path / "x.safetensors")
        resolution = lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), {WEIGHT: (4, 4)})
        texts.append([lyc.in_words(lyc.summary(adapter)), lyc.describe(resolution)])
        with pytest.raises(lyc.MatchError) as caught:
            resolution.check(strict=True)
        texts[-1].append(str(caught.value))
    for evil, honest in zip(*texts, strict=True):
        assert is_plain(evil, honest.count("\n") + 1), evil
        assert "applied 9 of 9" in evil and r"\x1b[2J" in evil and r"\u202e" in evil and "это" in evil


def test_each_part_of_an_error_is_shown_plain_and_short() -> None:
    evil = "é\n\x1b[31m\ud800" + "x" * 100_000 + "end"
    error = lyc.FileFormatError(evil, file=evil, key=evil, weight=evil, got=evil, expected=evil, hint=evil)
    assert is_plain(str(error), 1) and len(str(error)) < 5000 and str(error).count("end") == 7
    # What a program reads is as it was.
    assert error.key == evil
    for kept in ("模型/风格 1.safetensors", "a b.pt", "naïve\u3000名", "🎨", r"C:\loras\x.pt"):
        assert printable(kept) == kept


def test_a_text_that_no_file_can_hold_is_not_written(tmp_path: Path) -> None:
    save_file(LORA, tmp_path / "x.safetensors")
    adapter = lyc.load_adapter(tmp_path / "x.safetensors")
    with pytest.raises(lyc.WriteError, match=r"no text that a file can hold.*\\udc80"):
        lyc.save_adapter(adapter, tmp_path / "out.safetensors", metadata={"note": "\udc80"})
    assert not (tmp_path / "out.safetensors").exists()


# Names of files, and the environment.


@pytest.mark.parametrize(
    "name",
    [".", "/", "", "..", "a\0b", "loop/x.safetensors", "loop", "x" * 300 + "/a.pt", "\ud800.pt", "x/" * 3000],
)
def test_a_path_that_is_no_files_is_an_error_of_the_family(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for read in (lyc.load_adapter, lyc.adapter_stamp, lambda path: lyc.read_shapes([f"{path}.safetensors"])):
        with pytest.raises(lyc.FileFormatError) as caught:
            read(name)
        assert is_plain(str(caught.value), 1)


def test_a_broken_file_breaks_neither_another_nor_its_own_mended_one(tmp_path: Path) -> None:
    save_file(LORA, tmp_path / "good.safetensors")
    for name in ("broken.safetensors", "broken.pt"):
        (tmp_path / name).write_bytes(b"\x80" * 50)
        stamp = lyc.adapter_stamp(tmp_path / name)
        for _ in range(2):
            with pytest.raises(lyc.FileFormatError, match=name):
                lyc.load_adapter(tmp_path / name)
        assert lyc.load_adapter(tmp_path / "good.safetensors").layers["lora_unet_a"].rank == 1
        (save_file if name.endswith("s") else torch.save)(LORA, tmp_path / name)
        assert lyc.adapter_stamp(tmp_path / name) != stamp
        assert lyc.load_adapter(tmp_path / name).layers["lora_unet_a"].rank == 1


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("value", ["4 GB", "", "-1", "1e3", "4096.0", "9" * 5000])
def test_a_wrong_size_of_the_cache_is_an_error_where_it_is_first_used(
    tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is imported all the same, so that the host can show the error where a node runs."""
    monkeypatch.setenv("LYCORIS_CACHE_MB", value)
    cache = runpy.run_module("lycoris_ops.files.cache")["DEFAULT_CACHE"]
    save_file(LORA, tmp_path / "x.safetensors")
    adapter = lyc.load_adapter(tmp_path / "x.safetensors", cache=cache)
    for _ in range(2):
        with pytest.raises(lyc.LycorisError, match=r"LYCORIS_CACHE_MB.*whole number without a unit.*4096"):
            adapter.layers["lora_unet_a"]
    monkeypatch.setenv("LYCORIS_CACHE_MB", "16")
    assert adapter.layers["lora_unet_a"].rank == 1 and cache.max_bytes == 16 << 20
