"""Changes of a file's bytes that ignore what the bytes mean."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from .. import case
from ..case import Case
from ..seeds import Seed

ENDINGS = (".safetensors", ".sft", ".pt", ".bin", ".ckpt", ".pth", ".txt", "")
ODD = (b"\0", b"\xff" * 8, b"9" * 20, b'"', b"[", b"{}", b"-1", b"1e9", b"18446744073709551616")


def _place(rng: random.Random, blob: bytearray) -> int:
    """A place in the file: mostly in its first part, where a header is."""
    return rng.randrange(min(len(blob), 600) if rng.random() < 0.7 else len(blob))


def _bits(rng: random.Random, blob: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = _place(rng, blob)
        blob[at] = rng.choice((blob[at] ^ 1 << rng.randrange(8), 0, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(rng: random.Random, blob: bytearray) -> None:
    del blob[rng.choice((0, 1, 7, 8, 9, rng.randrange(len(blob)), len(blob) - 1)) :]


def _part(rng: random.Random, blob: bytearray) -> None:
    """A part is removed, repeated, zeroed or replaced by another."""
    start, size = _place(rng, blob), rng.choice((1, 2, 8, 64, rng.randrange(1, 300)))
    part, there = blob[start : start + size], _place(rng, blob)
    new = rng.choice((b"", part * 2, part * 50, bytes(len(part)), blob[there : there + len(part)]))
    blob[start : start + size] = new


def _inserted(rng: random.Random, blob: bytearray) -> None:
    at = rng.choice((len(blob), _place(rng, blob)))
    blob[at:at] = rng.choice((*ODD, rng.randbytes(4), rng.randbytes(1000)))


def _number(rng: random.Random, blob: bytearray) -> None:
    """A digit becomes another one, a long number or odd bytes."""
    digits = [at for at, byte in enumerate(blob[:4000]) if 48 <= byte <= 57]
    if digits:
        at = rng.choice(digits)
        blob[at : at + 1] = rng.choice((b"9" * 19, b"0", b"7", b"1.5", *ODD))


def _length(rng: random.Random, blob: bytearray) -> None:
    """The first eight bytes are the length of a safetensors file's header."""
    (length,) = struct.unpack("<Q", blob[:8])
    value = rng.choice((0, 1, length - 1, length + 1, length // 2, 1 << 31, (1 << 63) + 1, (1 << 64) - 1))
    blob[:8] = struct.pack("<Q", value % (1 << 64))


def _mutation(change: Callable[[random.Random, bytearray], None]) -> Callable[..., Case | None]:
    def mutate(rng: random.Random, seed: Seed) -> Case | None:
        blob = bytearray(seed.blob)
        if len(blob) < 16:
            return None
        change(rng, blob)
        return case.of(f"raw{change.__name__}", seed, bytes(blob))

    return mutate


def _wrong_ending(rng: random.Random, seed: Seed) -> Case | None:
    return case.of("raw_wrong_ending", seed, seed.blob, ending=rng.choice(ENDINGS))


MUTATIONS = [*map(_mutation, (_bits, _bits, _cut, _part, _part, _inserted, _number, _length)), _wrong_ending]
