"""Changes of pickles: the archive, the program in it, the tensors that it makes and the table of them."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import case
from ..case import Case
from ..containers import pickled
from ..seeds import Seed

OF = "pickle"


def rewritten(
    blob: bytes,
    change: Callable[[str, bytes], tuple[str, bytes] | None],
    *,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """An archive whose members are each what `change` makes of their name and content; None drops one."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for member in old.infolist():
            found = change(member.filename, old.read(member))
            if found is not None:
                new.writestr(*found)
    return out.getvalue()


def program(blob: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """An archive whose pickle is changed."""
    return rewritten(
        blob, lambda name, content: (name, change(content) if name.endswith("data.pkl") else content)
    )


def _archive(
    change: Callable[[random.Random, bytes], bytes], *, same: bool = False
) -> Callable[[random.Random, Seed], Case | None]:
    def mutate(rng: random.Random, seed: Seed) -> Case | None:
        if seed.container != "archive":
            return None
        blob = change(rng, seed.blob)
        return case.of(f"pickles{change.__name__}", seed, blob, same=1.0 if same else None, closed=False)

    return mutate


def _opcode(rng: random.Random, blob: bytes) -> bytes:
    """One number or operation of the program becomes another."""

    def change(content: bytes) -> bytes:
        code = bytearray(content)
        places = [place for _, _, place in pickletools.genops(content) if place is not None]
        at = rng.choice(places)
        if rng.random() < 0.5:
            code[at] = rng.choice(b"KMJI\x8a\x8b]})(t\x85\x86\x87qrhj0N\x88\x89QRbcu.\x80GXUaes2")
        elif at + 1 < len(code):
            code[at + 1] = rng.choice((0, 1, 2, 127, 128, 255, rng.randrange(256)))
        return bytes(code)

    return program(blob, change)


def _sizes(rng: random.Random, blob: bytes) -> bytes:
    """A number of the program, such as a size, a stride or a count, becomes a large one."""

    def change(content: bytes) -> bytes:
        numbers = [(op, place) for op, _, place in pickletools.genops(content) if op.name == "BININT1"]
        if not numbers:
            return content
        _, at = rng.choice(numbers)
        assert at is not None
        value = rng.choice(
            (0, 3, 255, 1 << 20, (1 << 31) - 1, -1, 1 << 40, (1 << 63) - 1, -(1 << 63), 1 << 100)
        )
        number = pickle.dumps(value, protocol=2)[2:-1]
        return content[:at] + number + content[at + 2 :]

    return program(blob, change)


def _cut_storage(rng: random.Random, blob: bytes) -> bytes:
    """A storage is shorter or longer than the program says."""

    def change(name: str, content: bytes) -> tuple[str, bytes]:
        if "/data/" not in name or rng.random() < 0.3:
            return name, content
        return name, rng.choice((b"", content[:-1], content[: len(content) // 2], content + content))

    return rewritten(blob, change)


def _member(rng: random.Random, blob: bytes) -> bytes:
    def change(name: str, content: bytes) -> tuple[str, bytes] | None:
        if rng.random() < 0.6:
            return name, content
        return rng.choice(
            (
                None,
                (f"x/{name}", content),
                (f"../{name}", content),
                (f"/{name}", content),
                (name.replace("data", "date"), content),
                (name, rng.randbytes(len(content))),
                (name, b""),
            )
        )

    return rewritten(blob, change)


def _compressed(rng: random.Random, blob: bytes) -> bytes:
    """torch writes archives without compression."""
    method = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    return rewritten(blob, lambda name, content: (name, content), compression=method)


def _extra_members(rng: random.Random, blob: bytes) -> bytes:
    out = io.BytesIO(blob)
    with zipfile.ZipFile(out, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        for number in range(rng.choice((1, 1, 3000))):
            archive.writestr(f"{root}/data/x{number}", rng.choice((b"", b"\0" * 100)))
        if rng.random() < 0.5:
            archive.writestr(f"{root}/code/x.py", b"raise SystemExit")
            archive.writestr("constants.pkl", b"\x80\x02N.")
    return out.getvalue()


def _directory(rng: random.Random, blob: bytes) -> bytes:
    """Damage at the end of the archive, where its members are listed."""
    changed = bytearray(blob)
    for _ in range(rng.choice((1, 1, 4))):
        changed[-rng.randrange(1, min(len(changed), 800))] = rng.choice(
            (0, 1, 0x7F, 0xFF, rng.randrange(256))
        )
    return bytes(changed)


# Tensors of other sorts.


def exotic(rng: random.Random, tensor: Tensor) -> Tensor:
    """A tensor that is not plain and dense, made of a plain one."""
    flat = tensor.detach().float()
    matrix = flat.reshape(-1, 1) if flat.ndim < 2 else flat.reshape(flat.shape[0], -1)
    made: list[Callable[[], Any]] = [
        lambda: torch.complex(flat, flat),
        lambda: torch.complex(flat, flat).conj(),
        lambda: torch.complex(flat, flat).imag,
        flat.to_sparse,
        matrix.to_sparse_csr,
        matrix.to_sparse_csc,
        lambda: torch.nested.nested_tensor([flat.reshape(-1), flat.reshape(-1)[:1]]),
        lambda: flat.to("meta"),
        lambda: torch.zeros(1).expand(1 << 12, 1 << 12),
        lambda: torch.zeros(1).as_strided((1 << 20, 1 << 9), (0, 0)),
        lambda: torch.quantize_per_tensor(flat, 0.1, 0, torch.qint8),
        lambda: torch.quantize_per_channel(
            matrix, torch.ones(len(matrix)), torch.zeros(len(matrix)), 0, torch.quint8
        ),
        lambda: flat.to(torch.float8_e4m3fn),
        lambda: flat.to(torch.uint8).view(torch.uint16) if flat.numel() % 2 == 0 else flat.to(torch.uint8),
        lambda: flat.to(torch.complex32),
        lambda: torch.nn.Parameter(flat),
        lambda: torch.nn.Parameter(flat, requires_grad=False),
        lambda: torch.nn.Buffer(flat),
        flat.requires_grad_,
        lambda: torch._neg_view(flat),
        lambda: flat.reshape(-1)[:0],
        flat.to_mkldnn,
    ]
    return rng.choice(made)()


def _exotic(rng: random.Random, seed: Seed) -> Case | None:
    tensors = dict(seed.tensors)
    key = rng.choice(list(tensors))
    try:
        tensors[key] = exotic(rng, tensors[key])
        blob = pickled(tensors)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError, ValueError):
        # Not every sort can be made of every tensor, or saved in both formats.
        return None
    return case.of("pickles_exotic", seed, blob, closed=False)


def _strided(rng: random.Random, seed: Seed) -> Case | None:
    """The same values, transposed or with gaps between them in their storage."""

    def moved(tensor: Tensor) -> Tensor:
        if tensor.ndim < 2 or rng.random() < 0.3:
            # Every second place of a longer storage.
            wide = torch.full((*tensor.shape, 2), 7.0).to(tensor.dtype)
            wide[..., 0] = tensor
            return wide[..., 0]
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)

    tensors = {key: moved(tensor) for key, tensor in seed.tensors.items()}
    return case.of("pickles_strided", seed, pickled(tensors), same=1.0, ending=".pt")


def _shared(rng: random.Random, seed: Seed) -> Case | None:
    """The tensors of each dtype are parts of one storage."""
    whole: dict[torch.dtype, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for dtype in {tensor.dtype for tensor in seed.tensors.values()}:
        own = [tensor.reshape(-1) for tensor in seed.tensors.values() if tensor.dtype == dtype]
        whole[dtype] = torch.cat(own)
    place = dict.fromkeys(whole, 0)
    for key, tensor in seed.tensors.items():
        start = place[tensor.dtype]
        tensors[key] = whole[tensor.dtype][start : start + tensor.numel()].reshape(tensor.shape)
        place[tensor.dtype] += tensor.numel()
    blob = pickled(tensors)
    return case.of("pickles_shared", seed, blob, same=1.0, ending=".pt")


# Tables of other sorts.


def _content(rng: random.Random, seed: Seed) -> Case | None:
    tensors: Any = dict(seed.tensors)
    loop: dict[str, Any] = dict(tensors)
    loop["loop"] = loop
    deep: Any = tensors
    for _ in range(rng.choice((3, 500))):
        deep = {"state_dict": deep}
    contents: tuple[Any, ...] = (
        *(None, 0, "text", [], (), {}, set(), b"x", 1.5, True, list(tensors.values()), list(tensors.items())),
        *({"state_dict": None}, {"state_dict": []}, {"state_dict": tensors, **tensors}, {"model": tensors}),
        *({**tensors, "epoch": 3}, {**tensors, "x": None}, {**tensors, "x": [torch.ones(1)]}, loop, deep),
        *({"state_dict": {**tensors, "x": {}}}, torch.ones(3), {**tensors, "x": torch.Size([3])}),
        *({**tensors, "x": torch.float32}, {**tensors, "x": torch.device("cpu")}, {"x": torch.ones(0)}),
    )
    content = rng.choice(contents)
    try:
        blob = pickled(content)
    except (RecursionError, TypeError):
        return None
    return case.of("pickles_content", seed, blob, closed=False)


def _ordered(rng: random.Random, seed: Seed) -> Case | None:
    """The same table as another sort of dictionary."""
    content: Any = OrderedDict(seed.tensors)
    if rng.random() < 0.5:
        content = {"state_dict": content, "epoch": 7, "config": {"lr": 1e-4, "betas": (0.9, 0.99)}}
    blob = pickled(content)
    return case.of("pickles_ordered", seed, blob, same=1.0, ending=".pt")


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def _calls(rng: random.Random, seed: Seed) -> Case | None:
    """A call of a function, in the table or in its place."""
    function, *arguments = rng.choice(
        (
            (exec, "raise SystemExit(3)"),
            (eval, "1 / 0"),
            (__import__, "antigravity"),
            (open, "/etc/passwd"),
            (getattr, torch.Size, "mro"),
            (torch.load, "/etc/passwd"),
            (torch.zeros, 1 << 34),
            (torch.hub.load, "x", "y"),
            (bytearray, 1 << 34),
            (print, "\x1b[2J"),
        )
    )
    call = Call(function, *arguments)
    content = rng.choice((call, {**seed.tensors, "x": call}, [call], {call.function.__name__: call}))
    file = io.BytesIO()
    if rng.random() < 0.3:
        pickle.dump(content, file, protocol=rng.choice((0, 2, 4, 5)))
    else:
        torch.save(content, file)
    return case.of("pickles_calls", seed, file.getvalue(), closed=False)


MUTATIONS = [
    *(
        _archive(change)
        for change in (
            _opcode,
            _sizes,
            _cut_storage,
            _member,
            _compressed,
            _extra_members,
            _directory,
        )
    ),
    _exotic,
    _strided,
    _shared,
    _content,
    _ordered,
    _calls,
]
