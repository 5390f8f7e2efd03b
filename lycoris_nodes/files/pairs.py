"""Files that are published in pairs, one for each of the two experts of a model, as for Wan 2.2.

Both have the same name, except for the word that says high or low noise. It may be anywhere in the path:
`ink_high_noise`, `Ink-HighNoise_v2`, `INK_HIGH_fp16`, `ink_HN`, `ink/high_noise_model`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

Expert = Literal["high noise", "low noise"]
HIGH: Expert = "high noise"
LOW: Expert = "low noise"

ENDING = re.compile(r"(?:\.(?:safetensors|sft|gguf|ckpt|pth?|bin))+$", re.IGNORECASE)
WORD = re.compile(r"/|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")
"""A word of a path: `wan/Ink2.2HighNoise` has wan, /, Ink, 2, 2, High and Noise."""
GLUED = re.compile(r"((?:high|hi|low|lo)noise)")
"""Marks of the expert that count even inside a longer word: WANHIGHNOISEINK."""
NOISE = "noise"
MARKS: Mapping[str, Expert] = {
    **dict.fromkeys(("high", "hn", "highnoise", "hinoise"), HIGH),
    **dict.fromkeys(("low", "ln", "lownoise", "lonoise"), LOW),
}
BEFORE_NOISE: Mapping[str, Expert] = {"hi": HIGH, "lo": LOW}
"""Words that name the expert if the word noise follows."""
UNSURE: Mapping[str, Expert] = {"h": HIGH, "hi": HIGH, "l": LOW, "lo": LOW}
"""Words that may name the expert, or mean anything else."""
COUNT = re.compile(
    r"(?<![a-z])(?:epochs?|epoc|ep?)[ _.-]*\d+|\d+[ _.-]*epoc(?:hs?)?(?![a-z])|(?<!\d)0*\d{6,}(?!\d)"
    r"|\d{3,}[ _.-]*steps?(?![a-z])|\(\d+\)",
    re.IGNORECASE,
)
"""A length of training or the number of a copy. The two files of a pair may differ in it."""
SEPARATORS = re.compile(r"[^ _.-]")
"""Every character except the separators between words."""
STAND_IN = "*"
"""Stands for the word that says which of the two files it is."""


class Partner(NamedTuple):
    """The file that makes a pair with another one."""

    file: str
    expert: Expert
    """The expert that it is for."""
    sure: bool
    """Whether the names differ only in a clear mark of the expert. If not, `COUNT` differs, or the mark is
    one of `UNSURE`."""


class _Read(NamedTuple):
    expert: Expert
    rest: tuple[str, ...]
    """The words of a path, with `STAND_IN` for those that name the expert."""


def expert_of(name: str) -> Expert | None:
    """The expert that a file is for, by its name; None if the name says neither or both."""
    read = _plainly(name)
    return None if read is None else read.expert


def partner_of(name: str, names: Sequence[str]) -> Partner | None:
    """The file among `names` that makes a pair with `name`, which is among them too.

    None if no file fits, or several fit equally.
    """
    return _partners(tuple(names)).get(name)


@lru_cache(maxsize=2)
def _partners(names: tuple[str, ...]) -> Mapping[str, Partner]:
    sure = _matched(names, _plainly, sure=True)
    return {**_matched((name for name in names if name not in sure), _loosely, sure=False), **sure}


def _matched(names: Iterable[str], read: Callable[[str], _Read | None], *, sure: bool) -> dict[str, Partner]:
    """The partner of each name that has exactly one."""
    groups = _grouped((name, read_name.expert, read_name.rest) for name in names if (read_name := read(name)))
    partners: dict[str, Partner] = {}
    for group in groups:
        # If several files differ only in separators, those with the same separators are a pair.
        alike = (
            [group]
            if len(group) == 2
            else _grouped((*member, SEPARATORS.sub("", member[0])) for member in group)
        )
        for pair in alike:
            read_name = {expert: name for name, expert in pair}
            if len(pair) == len(read_name) == 2:
                partners |= {
                    read_name[HIGH]: Partner(read_name[LOW], LOW, sure),
                    read_name[LOW]: Partner(read_name[HIGH], HIGH, sure),
                }
    return partners


def _grouped(names: Iterable[tuple[str, Expert, Hashable]]) -> list[list[tuple[str, Expert]]]:
    """Groups of names that agree in the rest, each name with its expert."""
    groups: dict[Hashable, list[tuple[str, Expert]]] = {}
    for name, expert, rest in names:
        groups.setdefault(rest, []).append((name, expert))
    return list(groups.values())


def _plainly(name: str) -> _Read | None:
    words = _words(name)
    return _read(words, _said(words), lambda word: word)


def _loosely(name: str) -> _Read | None:
    words = _words(COUNT.sub(" ", name))
    unsure: list[Expert] = [UNSURE[word] for word in words if word in UNSURE]
    said = _said(words)
    if not said and len(unsure) == 1:
        said = unsure
    return _read(words, said, lambda word: UNSURE.get(word, word))


def _said(words: Sequence[str]) -> list[Expert]:
    return [expert for expert in (HIGH, LOW) if expert in words]


def _read(words: Sequence[str], said: Sequence[Expert], meant: Callable[[str], str]) -> _Read | None:
    if len(said) != 1:
        return None
    return _Read(said[0], tuple(STAND_IN if meant(word) == said[0] else word for word in words))


def _words(name: str) -> list[str]:
    """The words of a path in lower case. Words that surely name the expert are replaced by its name."""
    path = ENDING.sub("", name.replace("\\", "/"))
    pieces = [segment for word in WORD.findall(path) for segment in GLUED.split(word.lower()) if segment]
    words: list[str] = []
    for piece in pieces:
        if piece == NOISE and words and words[-1] in BEFORE_NOISE:
            words[-1] = BEFORE_NOISE[words[-1]]
        elif piece == NOISE and words and words[-1] in (HIGH, LOW):
            continue
        else:
            words.append(MARKS.get(piece, piece))
    return words
