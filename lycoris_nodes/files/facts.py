"""The facts that the page's list shows for each file, kept on disk until the file changes.

To tell a file's kind, the names of all its tensors are read: this takes minutes for thousands of files.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from ...lycoris_ops import LycorisError, WriteError, about, adapter_stamp, language, new_files, peek_adapter
from ..host.files import kept_folder
from .beside import CLIPS, PICTURES, files_beside, notes_beside, trigger_words
from .loras import lora_path
from .thumbnails import THUMBNAIL

TAGS = 30
"""The most tags sent for a file: further ones are rare."""
MOST = 1 << 15
"""The most files whose facts are kept."""
PAUSE = 5
"""Seconds for which new facts are collected before they are written."""


@dataclass(frozen=True)
class Facts:
    """Brief facts of a file for the page, since one answer may be about thousands of files."""

    error: str = ""
    """Why the file cannot be used; "" where it can."""
    kind: str = ""
    rank: str = ""
    family: str = ""
    families: Sequence[str] = ()
    triggers: Sequence[str] = ()
    stated: bool = False
    """Whether the file states its trigger words. Else they come from the tags of the training pictures."""
    tags: Sequence[str] = ()
    title: str = ""
    base: str = ""
    favourite: bool = False
    """Whether it is one of ComfyUI-Lora-Manager's favourites."""
    preview: str = ""
    """`picture` or `clip`; "" where there is none."""
    problems: Sequence[str] = ()
    """What is wrong with the file's metadata, its numbers or the files beside it, in words."""


def facts_of(names: Iterable[str]) -> dict[str, Facts]:
    """The facts of files by their names."""
    # List a folder once, rather than ask for each name that may be in it.
    listed: dict[str, frozenset[str]] = {}

    def there(path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = frozenset(os.listdir(folder) if os.path.isdir(folder) else ())
        return name in listed[folder]

    return {name: _facts(name, there) for name in names}


def _facts(name: str, there: Callable[[str], bool]) -> Facts:
    try:
        path = lora_path(name)
        own = _KEPT.of(path)
    except LycorisError as error:
        return Facts(error=str(error))
    notes = notes_beside(path, there)
    beside = {"picture": PICTURES, "clip": tuple(CLIPS)}
    previews = (kind for kind, endings in beside.items() if any(files_beside(path, endings, there)))
    return replace(
        own,
        triggers=trigger_words(own.triggers, own.stated, notes),
        stated=own.stated or bool(notes.words),
        tags=tuple(dict.fromkeys((*own.tags, *notes.tags))),
        title=notes.title,
        base=notes.base or own.base,
        favourite=notes.favourite,
        preview=next(previews, own.preview),
        problems=(*own.problems, *notes.problems),
    )


class _Kept:
    """The facts read from the files themselves, by path, each with the file's stamp at that time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, tuple[str, Facts]] | None = None
        self._later: threading.Timer | None = None

    def of(self, path: str) -> Facts:
        # The facts have words of the language in which they were read.
        stamp = f"{adapter_stamp(path)} {language()}"
        with self._lock:
            if self._found is None:
                self._found = _read()
            known = self._found.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        facts = _own(path)
        # Errors are not kept: what the system refuses today it may allow tomorrow.
        if not facts.error:
            with self._lock:
                # Put it at the end, where the latest are.
                self._found.pop(path, None)
                self._found[path] = stamp, facts
                if self._later is None:
                    self._later = threading.Timer(PAUSE, self.write)
                    self._later.daemon = True
                    self._later.start()
        return facts

    def write(self) -> None:
        """Write the facts, so that the host's next start has them."""
        with self._lock:
            self._later = None
            latest = list((self._found or {}).items())[-MOST:]
        kept = {path: [stamp, asdict(facts)] for path, (stamp, facts) in latest}
        data = json.dumps({"pack": _pack(), "files": kept}).encode()
        # If nothing can be written, the next start reads the files again.
        with suppress(WriteError), new_files([_place()], len(data), make_folder=True) as (file,):
            file.write(data)


_KEPT = _Kept()


def _place() -> Path:
    return kept_folder().with_name("files.json")


def _read() -> dict[str, tuple[str, Facts]]:
    """The facts that an earlier start wrote; {} if another version of the pack wrote them."""
    try:
        said = json.loads(_place().read_bytes())
        files = said["files"] if said["pack"] == _pack() else {}
        return {path: (stamp, Facts(**facts)) for path, (stamp, facts) in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        # The file is missing or damaged: the adapters are read again.
        return {}


@cache
def _pack() -> int:
    """A number that changes with the pack's code."""
    return max(file.stat().st_mtime_ns for file in Path(__file__).parents[2].glob("lycoris_*/**/*.py"))


def _own(path: str) -> Facts:
    try:
        adapter = peek_adapter(path)
    except LycorisError as error:
        return Facts(error=str(error))
    said = about(adapter)
    return Facts(
        kind=said.kind,
        rank=said.rank,
        family=said.family,
        families=said.families,
        base=said.base,
        triggers=said.triggers,
        stated=said.stated,
        tags=tuple(tag for tag, _ in said.tags[:TAGS]),
        problems=said.problems,
        preview="picture" if adapter.metadata.get(THUMBNAIL, "").startswith("data:image/") else "",
    )
