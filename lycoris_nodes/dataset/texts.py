"""Caption texts: files, trigger words, choices in braces, orders of tags."""

from __future__ import annotations

import codecs
import os
import random
import re
import unicodedata
from pathlib import Path

from ...lycoris_ops import TrainError

# UTF-32's mark begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and the encodings they announce."""
LONGEST = 100_000
"""The most bytes in a caption."""
BRACES = re.compile(r"\{([^{}|]*\|[^{}]*)\}")
"""Choices in a caption, as in ComfyUI's prompts."""
CHOICES = 16
"""The most captions made from one with choices."""
BRACED = 100
"""The most opening braces in a caption."""
SIDED = re.compile(r"\b(left|right|text|letters?|writing|logo)\b", re.IGNORECASE)
"""Words for things that a mirrored picture would show wrong."""


def caption_of_file(path: Path) -> str:
    """The text of a caption file, on one line.

    The text is in UTF-8, or in UTF-16 or UTF-32 with a byte order mark. Raises TrainError for a file in
    another encoding, and for one that cannot be read, is too long or has more braces than `BRACED`.
    """
    return one_line(text_of(content_of(path, LONGEST), path), path)


def content_of(path: Path, most: int, what: str = "caption") -> bytes:
    """The bytes of a file. Raises TrainError for one that cannot be read, or has more than `most`."""
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise TrainError("E-text-file-unreadable", file=str(path), what=what, got=error.strerror) from error
    if len(raw) > most:
        raise TrainError("E-text-file-too-long", file=str(path), what=what, size=size, most=most)
    return raw


def text_of(raw: bytes, path: Path) -> str:
    """The text in a file. Raises TrainError for one in another encoding than `caption_of_file` reads."""
    encoding = next((name for mark, name in MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        text, where = "\0", f"byte {error.start} is not"
    else:
        where = "it has bytes that are 0"
    if "\0" in text:
        raise TrainError("E-caption-not-utf8", file=str(path), got=where)
    return text


def one_line(text: str, path: Path) -> str:
    """A caption on one line. Raises TrainError for one that is too long or has more braces than `BRACED`."""
    if len(text) > LONGEST:
        raise TrainError("E-caption-too-long", file=str(path), count=len(text), longest=LONGEST)
    if text.count("{") > BRACED:
        raise TrainError("E-caption-too-many-choices", file=str(path), braces=text.count("{"), braced=BRACED)
    return " ".join(text.split())


def alike(name: str) -> str:
    """The same text for names that users take for one: Windows wrote some in capitals, and macOS writes an
    accent as a letter of its own."""
    return unicodedata.normalize("NFC", name).lower()


def with_trigger(text: str, trigger: str) -> str:
    """A caption with the trigger in place of `[trigger]`. One without either gets the trigger in front."""
    if "[trigger]" in text:
        return " ".join(text.replace("[trigger]", trigger).split())
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", text, re.IGNORECASE):
        return text
    return f"{trigger}, {text}" if text else trigger


def orders_of(text: str, count: int, kept: int) -> list[str]:
    """A caption of tags in several orders, first as it is written. The first `kept` tags stay in front.

    The orders are the same in each run. A few tags may have fewer orders than `count`.
    """
    tags = [tag.strip() for tag in text.split(",") if tag.strip()]
    front, rest = tags[:kept], tags[kept:]
    orders = [text]
    draw = random.Random(text)
    # Draw several times as often as there are orders to find: some orders come twice.
    for _ in range(4 * (count - 1)):
        mixed = ", ".join([*front, *draw.sample(rest, len(rest))])
        if len(orders) < count and mixed not in orders and mixed != ", ".join(tags):
            orders.append(mixed)
    return orders


def choices_of(text: str) -> list[str]:
    """The captions of a text with choices, such as `a {red|blue} cat`: at most `CHOICES`, spread evenly.

    Inner braces are expanded first.
    """
    texts, done = [text], False
    while not done:
        done, opened = True, texts
        choices: list[tuple[str, str, str]] = []
        for choice in opened:
            braces = BRACES.search(choice)
            if braces is None:
                choices.append((choice, "", ""))
                continue
            done = False
            front, back = choice[: braces.start()], choice[braces.end() :]
            choices += [(front, choice.strip(), back) for choice in braces[1].split("|")]
        # Only then are texts made: each may be as long as a caption.
        if len(choices) > CHOICES:
            choices = [choices[number * len(choices) // CHOICES] for number in range(CHOICES)]
        texts = ["".join(pieces) for pieces in choices]
    return list(dict.fromkeys(" ".join(choice.split()) for choice in texts))


def may_be_mirrored(text: str) -> bool:
    """Whether a caption stays true for the mirrored picture."""
    return not SIDED.search(text)
