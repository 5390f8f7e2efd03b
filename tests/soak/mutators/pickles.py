"""Changes of pickles: the archive, and the table of tensors in it."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from typing import Any

import torch

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


MUTATIONS = [*map(_archive, (_members, _more_members, _directory)), _content]
