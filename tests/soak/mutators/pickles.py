"""Changes of pickles: the archive, the tensors in it and the table of them. The program is read by torch."""

from __future__ import annotations

import io
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
from .oddities import TEXTS, anything


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


# The archive.


def _members(rng: random.Random, blob: bytes) -> bytes:
    """Members that are missing, renamed, shorter or longer than they are said to be, or compressed."""

    def change(name: str, content: bytes) -> tuple[str, bytes] | None:
        if rng.random() < 0.6:
            return name, content
        odd = (b"", content[:-1], content[: len(content) // 2], content * 2, rng.randbytes(len(content)))
        names = (f"x/{name}", f"../{name}", f"/{name}", name.replace("data", "date"))
        return rng.choice((None, (rng.choice(names), content), (name, rng.choice(odd))))

    methods = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
    return rewritten(blob, change, compression=rng.choice(methods))


def _more_members(rng: random.Random, blob: bytes) -> bytes:
    out = io.BytesIO(blob)
    with zipfile.ZipFile(out, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        for number in range(rng.choice((1, 1, 3000))):
            archive.writestr(f"{root}/data/x{number}", rng.choice((b"", b"\0" * 100)))
        archive.writestr(f"{root}/code/x.py", b"raise SystemExit")
        archive.writestr("constants.pkl", b"\x80\x02N.")
    return out.getvalue()


def _directory(rng: random.Random, blob: bytes) -> bytes:
    """Damage at the end of the archive, where its members are listed."""
    changed = bytearray(blob)
    for _ in range(rng.choice((1, 1, 4))):
        at = -rng.randrange(1, min(len(changed), 800))
        changed[at] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
    return bytes(changed)


def _archive(change: Callable[[random.Random, bytes], bytes]) -> Callable[[random.Random, Seed], Case | None]:
    def mutate(rng: random.Random, seed: Seed) -> Case | None:
        if seed.container != "archive":
            return None
        return case.of(f"pickles{change.__name__}", seed, change(rng, seed.blob))

    return mutate


# Tensors of other sorts.

EXOTIC: dict[str, Callable[[Tensor], Any]] = {
    "complex": lambda t: torch.complex(t, t),
    "conjugated": lambda t: torch.complex(t, t).conj(),
    "imaginary part": lambda t: torch.complex(t, t).imag,
    "sparse": lambda t: t.to_sparse(),
    "CSR": lambda t: t.to_sparse_csr(),
    "nested": lambda t: torch.nested.nested_tensor([t[0], t[0, :1]]),
    "meta": lambda t: t.to("meta"),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "expanded": lambda t: torch.zeros(1).as_strided((1 << 20, 1 << 9), (0, 0)),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "half complex": lambda t: t.to(torch.complex32),
    "parameter": torch.nn.Parameter,
    "negated": torch._neg_view,
    "empty": lambda t: t[:0],
}
"""What makes tensors that are not plain, dense and real of a matrix."""


def _exotic(rng: random.Random, seed: Seed) -> Case | None:
    tensors: dict[str, Any] = dict(seed.tensors)
    key = rng.choice([*tensors])
    matrix = tensors[key].float()
    matrix = matrix.reshape(-1, 1) if matrix.ndim < 2 else matrix.flatten(1)
    try:
        tensors[key] = rng.choice(list(EXOTIC.values()))(matrix)
        blob = pickled(tensors)
    except (RuntimeError, NotImplementedError, IndexError):
        # Not every sort can be made of every tensor, or saved.
        return None
    return case.of("pickles_exotic", seed, blob, ending=".pt")


def strided(tensor: Tensor) -> Tensor:
    """The same values with gaps between them in their storage."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def _alike(rng: random.Random, seed: Seed) -> Case | None:
    """The same values: with gaps, transposed, as parts of one storage, or in another sort of dictionary."""
    if seed.is_safetensors:
        # Its metadata may say how it is read, and a pickle has none.
        return None
    tensors = dict(seed.tensors)
    how = rng.randrange(4)
    if how == 0:
        tensors = {key: strided(tensor) for key, tensor in tensors.items()}
    elif how == 1:
        turned = {key: t.transpose(0, 1).contiguous() for key, t in tensors.items() if t.ndim > 1}
        tensors |= {key: tensor.transpose(0, 1) for key, tensor in turned.items()}
    elif how == 2:
        for dtype in {tensor.dtype for tensor in tensors.values()}:
            own = {key: tensor for key, tensor in tensors.items() if tensor.dtype == dtype}
            whole = torch.cat([tensor.reshape(-1) for tensor in own.values()])
            parts = whole.split([tensor.numel() for tensor in own.values()])
            tensors |= {key: part.reshape(own[key].shape) for key, part in zip(own, parts, strict=True)}
    content: Any = OrderedDict(tensors)
    if how == 3:
        content = {"state_dict": content, "epoch": 7, "config": {"lr": 1e-4, "betas": (0.9, 0.99)}}
    return case.of("pickles_alike", seed, pickled(content), same=1.0, ending=".pt")


# Tables of other sorts.


def _content(rng: random.Random, seed: Seed) -> Case | None:
    tensors: Any = dict(seed.tensors)
    loop: dict[str, Any] = dict(tensors)
    loop["loop"] = loop
    deep: Any = tensors
    for _ in range(rng.choice((3, 500))):
        deep = {"state_dict": deep}
    odd = (None, 0, "text", b"x", 1.5, torch.Size([3]), torch.float32, torch.device("cpu"), torch.ones(0))
    contents: tuple[Any, ...] = (
        *(*odd, [], set(), list(tensors.values()), list(tensors.items()), loop, deep, {"model": tensors}),
        *({"state_dict": rng.choice(odd)}, {"state_dict": tensors, **tensors}, {**tensors, "epoch": 3}),
        *({**tensors, "x": rng.choice(odd)}, {**tensors, rng.choice(TEXTS): anything(rng, odd)}),
        *({"state_dict": {**tensors, "x": {}}}, anything(rng, odd)),
    )
    try:
        blob = pickled(rng.choice(contents))
    except (RecursionError, TypeError, UnicodeEncodeError):
        return None
    return case.of("pickles_content", seed, blob, ending=rng.choice((".pt", ".ckpt")))


MUTATIONS = [
    *map(_archive, (_members, _more_members, _directory)),
    *(_exotic, _alike, _content),
]
