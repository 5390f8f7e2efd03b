"""Changes of a file's bytes that know nothing of what they mean."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from .. import case
from ..case import Case
from ..seeds import Seed

OF = "any"
Change = Callable[[random.Random, bytearray], bytes]


def _place(rng: random.Random, blob: bytearray) -> int:
    """A place in the file: mostly in its first part, where a header is."""
    if not blob:
        return 0
    end = min(len(blob), 600) if rng.random() < 0.7 else len(blob)
    return rng.randrange(end)


def _flip(rng: random.Random, blob: bytearray) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        blob[_place(rng, blob)] ^= 1 << rng.randrange(8)
    return bytes(blob)


def _replace(rng: random.Random, blob: bytearray) -> bytes:
    for _ in range(rng.choice((1, 1, 3, 16))):
        blob[_place(rng, blob)] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(blob)


def _truncate(rng: random.Random, blob: bytearray) -> bytes:
    return bytes(blob[: rng.choice((0, 1, 7, 8, 9, rng.randrange(len(blob)), len(blob) - 1))])


def _extend(rng: random.Random, blob: bytearray) -> bytes:
    return bytes(blob) + rng.randbytes(rng.choice((1, 8, 1000)))


def _remove(rng: random.Random, blob: bytearray) -> bytes:
    start = _place(rng, blob)
    del blob[start : start + rng.choice((1, 2, 8, 64))]
    return bytes(blob)


def _insert(rng: random.Random, blob: bytearray) -> bytes:
    start = _place(rng, blob)
    blob[start:start] = rng.choice((b"\0", b"\xff" * 8, b"9" * 20, b'"', b"[", b"{}", rng.randbytes(4)))
    return bytes(blob)


def _repeat(rng: random.Random, blob: bytearray) -> bytes:
    start = _place(rng, blob)
    part = blob[start : start + rng.randrange(1, 200)]
    blob[start:start] = part * rng.choice((1, 2, 50))
    return bytes(blob)


def _swap(rng: random.Random, blob: bytearray) -> bytes:
    size = rng.randrange(1, 100)
    first, second = _place(rng, blob), _place(rng, blob)
    one, other = blob[first : first + size], blob[second : second + size]
    if len(one) == len(other):
        blob[first : first + size], blob[second : second + size] = other, one
    return bytes(blob)


def _clear(rng: random.Random, blob: bytearray) -> bytes:
    start = _place(rng, blob)
    size = min(rng.randrange(1, 300), len(blob) - start)
    blob[start : start + size] = bytes(size)
    return bytes(blob)


def _number(rng: random.Random, blob: bytearray) -> bytes:
    """A digit becomes several, or another one."""
    digits = [at for at, byte in enumerate(blob[:4000]) if 48 <= byte <= 57]
    if not digits:
        return _flip(rng, blob)
    at = rng.choice(digits)
    blob[at : at + 1] = rng.choice((b"9" * 19, b"-1", b"0", b"18446744073709551616", b"1e9", b"7", b"1.5"))
    return bytes(blob)


def _length(rng: random.Random, blob: bytearray) -> bytes:
    """The first eight bytes are the length of a safetensors file's header."""
    (length,) = struct.unpack("<Q", blob[:8])
    value = rng.choice((0, 1, length - 1, length + 1, length // 2, 1 << 31, (1 << 63) + 1, (1 << 64) - 1))
    blob[:8] = struct.pack("<Q", value % (1 << 64))
    return bytes(blob)


def _wrong_ending(rng: random.Random, blob: bytearray) -> bytes:
    return bytes(blob)


def _mutation(change: Change) -> Callable[[random.Random, Seed], Case | None]:
    def mutate(rng: random.Random, seed: Seed) -> Case | None:
        blob = bytearray(seed.blob)
        if len(blob) < 16:
            return None
        changed = change(rng, blob)
        ending = rng.choice((".safetensors", ".sft", ".pt", ".bin", ".ckpt", ".pth", ".txt", ""))
        return case.of(
            f"raw{change.__name__}",
            seed,
            changed,
            closed=False,
            ending=ending if change is _wrong_ending else None,
        )

    return mutate


MUTATIONS = [
    _mutation(change)
    for change in (
        _flip,
        _replace,
        _truncate,
        _extend,
        _remove,
        _insert,
        _repeat,
        _swap,
        _clear,
        _number,
        _length,
        _wrong_ending,
    )
]
