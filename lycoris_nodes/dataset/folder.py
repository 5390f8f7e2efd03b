"""Scan a folder of training pictures for captions, masks, references and repeats."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from ...lycoris_ops import Phrase, TrainError, few
from .clip import CLIPS, FILMS, FRAMES, is_film
from .lists import LISTS, Lists, caption_of_json
from .picture import PICTURES
from .texts import LONGEST, alike

CAPTIONS = (".txt", ".caption")
"""The endings of caption files in ComfyUI's data set nodes and kohya-ss/sd-scripts."""
OF_A_PICTURE = ".json"
"""The ending of a JSON that may have the caption of one picture, as in WebDataset and ostris/ai-toolkit."""
MAY_TELL = (OF_A_PICTURE, ".jsonl", ".csv", ".tsv", ".parquet", ".tar")
"""The endings of files that may have captions."""
MASKS = ("-masklabel", "_mask", ".mask")
"""Endings that a mask's name adds to its picture's name. The first is OneTrainer's."""
MASK_FOLDERS = ("mask", "masks")
"""Folders of masks, beside the pictures or beside their folder. Each mask has its picture's name."""
BESIDE = re.compile(r"(.+?)(?:-condlabel|_control|_reference)_?(\d*)")
"""A reference's name: its picture's name and one of these endings. The first is OneTrainer's."""
BESIDE_FOLDERS = re.compile(r"(?:controls?|references?|conditioning)_?(\d*)")
"""Folders of references, beside the pictures (kohya-ss/musubi-tuner) or beside their folder
(ostris/ai-toolkit). Each file has its picture's name, perhaps with `_` and a number."""
REGULARISATION = re.compile(
    r"regs?|regulari[sz]ation|(?:reg|regulari[sz]ation|class)_?(?:images?|imgs?|pictures?|data)"
)
"""Folders of pictures for regularisation, as kohya-ss/sd-scripts and diffusers call them."""
OTHERS = "left out"
ALONE = Phrase("R-left-out-as-masks")
REGULAR = Phrase("R-left-out-as-regularisation")
FILMED = Phrase("R-clips-not-learned")
UNTOLD = Phrase("R-no-captions-from")
"""Why files are not used."""
HINTS = {
    FILMED: "Take a model that makes videos, or put pictures into the folder",
    ALONE: "Put their pictures there, or a caption beside each that is to be learned itself",
    REGULAR: "To use only those, choose the folder that they are in",
}
REPEATED = re.compile(r"(\d+)_(.*)")
"""A folder's name with the repeats of its pictures in front, as in kohya-ss/sd-scripts."""
OF_SYSTEMS = {"thumbs.db", "desktop.ini", "system volume information", "$recycle.bin", "lost+found", "@eadir"}
"""Files and folders that Windows, Linux and Synology put beside those of users."""
MOST = 100_000
"""The most samples in a folder, repeats included."""


@dataclass(frozen=True)
class Found:
    """A picture or clip in the folder, with its caption, mask and references."""

    path: Path
    name: str
    """The path below the folder, with `/` between its parts."""
    caption: Path | None = None
    listed: str = ""
    """Its caption in a JSON or a list, which counts if it has no file for one."""
    mask: Path | None = None
    references: tuple[Path, ...] = ()
    """The pictures and clips that the model is shown beside the caption, in order."""
    reference_masks: tuple[tuple[Path, Path], ...] = ()
    """References that have a mask, each with it."""
    is_clip: bool = False
    repeats: int = 1
    subject: str = ""
    """The folder's name after the number of repeats."""

    @property
    def controls(self) -> tuple[Path, ...]:
        """Its references that are clips."""
        return tuple(filter(is_film, self.references))

    @property
    def still_references(self) -> tuple[Path, ...]:
        """Its references that are pictures."""
        films = self.controls
        return tuple(path for path in self.references if path not in films)

    @property
    def is_alone(self) -> bool:
        """Whether it is named as a mask or reference, without its picture, and nothing says what it shows."""
        stem = alike(self.path.stem)
        named = stem.endswith(MASKS) or BESIDE.fullmatch(stem) is not None
        return named and not (self.caption or self.listed)


@dataclass(frozen=True)
class PictureFolder:
    """The pictures in a folder and its subfolders, in the order of their names."""

    path: Path
    pictures: tuple[Found, ...]
    left_out: Mapping[str | Phrase, Sequence[str]]
    """The names of files, folders and links that are not used, by the reason in words."""

    @classmethod
    def of(cls, path: Path, *, clips: bool = False) -> PictureFolder:
        """Look through a folder, for clips too if they are asked for.

        Raises TrainError where it has no picture, or too many repeats, and for a folder in it that cannot be
        read.
        """
        try:
            return cls._of(path, clips=clips)
        except OSError as error:
            raise TrainError(
                "E-pictures-folder-unreadable", file=str(error.filename or path), got=error.strerror
            ) from error

    @classmethod
    def _of(cls, path: Path, *, clips: bool) -> PictureFolder:
        pictures: list[Found] = []
        reasons = (OTHERS, ALONE, REGULAR, FILMED, UNTOLD)
        left_out: dict[str | Phrase, list[str]] = {reason: [] for reason in reasons}
        lists = Lists(path)
        beside: dict[Path, list[Path]] = {}
        shelves: dict[Path, _Shelf] = {}
        drawn: set[Path] = set()
        referenced: set[Path] = set()
        masks_for: dict[Path, list[Path]] = {}

        def leave(reason: str | Phrase, paths: Iterable[Path]) -> None:
            left_out[reason] += [_below(file, path) for file in paths]

        for folder, folders, files in os.walk(path, onerror=_raised):
            here = Path(folder)
            links = [name for name in folders if (here / name).is_symlink()]
            leave(OTHERS, [here / name for name in links])
            folders[:] = sorted(name for name in folders if not _is_hidden(name) and name not in links)
            # A folder of frames is a clip, like a file.
            framed = [name for name in folders if name.lower().endswith(FRAMES)]
            regular = [name for name in folders if REGULARISATION.fullmatch(name.lower())]
            leave(REGULAR, [here / name for name in regular])
            folders[:] = [name for name in folders if name not in (*framed, *regular)]
            names = [name for name in files if not _is_hidden(name)]
            listed = _lists_of(names)
            lists.add(here, listed)
            found_here, rest = _in_one_folder(
                here, [*(name for name in names if name not in listed), *framed]
            )
            beside[here] = _taken_out(here, folders, lists, has_pictures=bool(found_here))
            shelves |= {folder: _shelf_of(folder) for folder in beside[here]}
            masks = _masks_beside(here, folders, lists, has_pictures=bool(found_here))
            drawn |= {*masks}
            if not found_here:
                masks_for[here] = masks
            else:
                found_here = _with_masks(found_here, masks or masks_for.get(here.parent, []))
                shown = beside[here] or beside.get(here.parent, [])
                found_here = _with_references(found_here, [shelves[folder] for folder in shown])
            referenced |= {reference for picture in found_here for reference in picture.references}
            repeats, subject = _repeats_of(here.relative_to(path))
            leave(OTHERS, rest)
            if not repeats:
                leave(OTHERS, [picture.path for picture in found_here])
                continue
            pictures += [
                replace(
                    picture,
                    name=_below(picture.path, path),
                    # Clips only belong to clips where the model learns pictures alone.
                    references=tuple(
                        shown
                        for shown in picture.references
                        if clips or picture.is_clip or shown not in picture.controls
                    ),
                    listed=picture.listed or ("" if picture.caption else lists.caption_of(picture.path)),
                    repeats=repeats,
                    subject=subject,
                )
                for picture in found_here
            ]
        used = {reference for picture in pictures for reference in picture.references}
        shown = {file for shelf in shelves for file in _files_of(shelf)}
        used |= {picture.mask for picture in pictures if picture.mask}
        used |= {mask for picture in pictures for _, mask in picture.reference_masks}
        leave(OTHERS, (shown | drawn | referenced) - used)
        leave(UNTOLD, lists.unused)
        left_out[UNTOLD] += [name for name in left_out[OTHERS] if name.lower().endswith(MAY_TELL)]
        left_out[OTHERS] = [name for name in left_out[OTHERS] if not name.lower().endswith(MAY_TELL)]
        leave(ALONE, [picture.path for picture in pictures if picture.is_alone])
        pictures = [picture for picture in pictures if not picture.is_alone]
        if not clips:
            leave(FILMED, [picture.path for picture in pictures if picture.is_clip])
            pictures = [picture for picture in pictures if not picture.is_clip]
        reasons = {reason: tuple(sorted(names)) for reason, names in left_out.items() if names}
        if not pictures:
            raise TrainError(
                "E-folder-without-pictures",
                file=str(path),
                pictures=(*PICTURES, *(CLIPS if clips else ())),
                got="; ".join(f"{reason}: {few(names)}" for reason, names in reasons.items()) or "nothing",
                hint=next((HINTS[reason] for reason in HINTS if reason in reasons), None),
            )
        return cls(path, _in_proportion(pictures), reasons)


def _raised(error: OSError) -> NoReturn:
    raise error


def _lists_of(names: list[str]) -> list[str]:
    """The lists of captions among the files of a folder. The JSON of a picture is none."""
    stems = {alike(Path(name).stem) for name in names if name.lower().endswith((*PICTURES, *CLIPS))}
    return [name for name in names if LISTS.fullmatch(name.lower()) and alike(Path(name).stem) not in stems]


def _in_one_folder(folder: Path, names: list[str]) -> tuple[list[Found], list[Path]]:
    """The pictures and clips directly in a folder with what belongs to each, and the rest of its files."""
    # Of two names that are alike, one is left out.
    known = {alike(name): folder / name for name in sorted(names)}
    used: set[Path] = set()
    pictures = {name: path for name, path in known.items() if name.endswith((*PICTURES, *FILMS))}
    stems = {name.rpartition(".")[0] for name in pictures}
    masks: dict[str, Path] = {}
    references: dict[str, list[tuple[int, Path]]] = {}
    for name, path in pictures.items():
        stem = name.rpartition(".")[0]
        if (shown := BESIDE.fullmatch(stem)) and shown[1] in stems:
            references.setdefault(shown[1], []).append((int(shown[2] or 0), path))
            continue
        of = next((stem[: -len(mark)] for mark in MASKS if stem.endswith(mark)), None)
        if of in stems:
            masks[of] = path
    of_others = {*masks.values(), *(path for each in references.values() for _, path in each)}
    pictures_here: list[Found] = []
    for name, path in sorted(pictures.items()):
        stem = name.rpartition(".")[0]
        if path in of_others:
            continue
        caption = next((known[stem + end] for end in CAPTIONS if stem + end in known), None)
        of_it, listed = known.get(stem + OF_A_PICTURE), None
        if of_it and not caption:
            listed = caption_of_json(of_it)
        shown = tuple(reference for _, reference in sorted(references.get(stem, ())))
        of_shown = tuple(
            (reference, mask)
            for reference in shown
            if (mask := masks.get(alike(reference.name).rpartition(".")[0]))
            and _are_pictures(reference, mask)
        )
        rest = (masks.get(stem), shown, of_shown, is_film(path))
        pictures_here.append(Found(path, path.name, caption, listed or "", *rest))
        used |= {path, *shown, *(mask for _, mask in of_shown)}
        used |= {file for file in (caption, masks.get(stem), of_it if listed else None) if file}
    return pictures_here, [path for name in names if (path := folder / name) not in used]


def _masks_beside(folder: Path, folders: list[str], lists: Lists, *, has_pictures: bool) -> list[Path]:
    """The files in folders of masks, which are removed from `folders`.

    Where no picture is beside them, they are for pictures in the other folders; if they have captions, they
    are pictures themselves, and stay.
    """
    named = [name for name in folders if name.lower() in MASK_FOLDERS]
    files = [path for name in named for path in _files_of(folder / name)]
    if not has_pictures and _are_told(files, lists):
        return []
    folders[:] = [name for name in folders if name not in named]
    return files


def _are_told(files: list[Path], lists: Lists) -> bool:
    """Whether some of the files of a folder are captions, or have one in a list."""
    return any(path.name.lower().endswith((*CAPTIONS, OF_A_PICTURE)) for path in files) or any(
        map(lists.caption_of, files)
    )


def _with_masks(pictures: list[Found], files: list[Path]) -> list[Found]:
    """The pictures with their masks among these files."""
    masks = {alike(path.stem): path for path in files if path.name.lower().endswith(PICTURES)}
    return [
        replace(picture, mask=picture.mask or masks.get(alike(picture.path.stem))) for picture in pictures
    ]


def _taken_out(folder: Path, folders: list[str], lists: Lists, *, has_pictures: bool) -> list[Path]:
    """Take the folders of references out of `folders`, and return them in the order of their numbers.

    If there is nothing else, and they have captions, they are learned.
    """
    matches = {name: match for name in folders if (match := BESIDE_FOLDERS.fullmatch(name.lower()))}
    alone = not has_pictures and len(matches) == len(folders)
    if alone and _are_told([path for name in matches for path in _files_of(folder / name)], lists):
        return []
    for name in matches:
        folders.remove(name)
    return [folder / name for name in sorted(matches, key=lambda name: (int(matches[name][1] or 0), name))]


_Shelf = dict[str, list[tuple[str, Path, Path | None]]]
"""A folder's references as (name, path, mask), by the name of the picture that each may belong to."""


def _shelf_of(folder: Path) -> _Shelf:
    """Each list begins with the reference without a number; the others follow by number."""
    references: dict[str, list[tuple[int, str, Path]]] = {}
    files = [path for path in _files_of(folder) if path.name.lower().endswith((*PICTURES, *FILMS))]
    names = {alike(path.stem) for path in files if _are_pictures(path)}
    masks: dict[str, Path] = {}
    for path in files:
        name = alike(path.stem)
        of = next((name[: -len(mark)] for mark in MASKS if name.endswith(mark)), None)
        if of in names and _are_pictures(path):
            masks[of] = path
        else:
            references.setdefault(name, []).append((-1, name, path))
            front, _, number = name.rpartition("_")
            if front and number.isdecimal():
                references.setdefault(front, []).append((int(number), name, path))
    return {
        key: [(name, path, masks.get(name)) for _, name, path in sorted(rows)]
        for key, rows in references.items()
    }


def _are_pictures(*paths: Path) -> bool:
    """Only pictures have masks as references, and only pictures are such masks."""
    return not any(map(is_film, paths))


def _with_references(pictures: list[Found], shelves: list[_Shelf]) -> list[Found]:
    """The pictures with their references. `a_1` belongs to the picture `a_1` if there is one, else to `a`."""
    names = {alike(picture.path.stem) for picture in pictures}
    completed: list[Found] = []
    for target in pictures:
        own = alike(target.path.stem)
        rows = [
            row for shelf in shelves for row in shelf.get(own, ()) if row[0] == own or row[0] not in names
        ]
        masks = tuple((path, mask) for _, path, mask in rows if mask)
        references = (*target.references, *(path for _, path, _ in rows))
        completed.append(
            replace(target, references=references, reference_masks=(*target.reference_masks, *masks))
        )
    return completed


def _files_of(folder: Path) -> list[Path]:
    """The files in a folder, and its folders of frames."""
    return sorted(
        path
        for path in folder.iterdir()
        if (path.is_file() or path.name.lower().endswith(FRAMES)) and not _is_hidden(path.name)
    )


def _repeats_of(folder: Path) -> tuple[int, str]:
    """The repeats and subject of a folder's pictures, by the name of the nearest folder that states them."""
    for segment in reversed(folder.parts):
        if match := REPEATED.fullmatch(segment):
            return int(match[1]), match[2].replace("_", " ").strip()
    return 1, ""


def _in_proportion(pictures: list[Found]) -> tuple[Found, ...]:
    """Divide the repeats by their common factor: only their proportions matter to a training."""
    common = math.gcd(*(picture.repeats for picture in pictures))
    samples = sum(picture.repeats for picture in pictures) // common
    if samples > MOST:
        most = max(pictures, key=lambda picture: picture.repeats)
        raise TrainError(
            "E-folders-repeat-too-often",
            file=str(most.path.parent),
            samples=samples,
            count=len(pictures),
            most=MOST,
        )
    return tuple(replace(picture, repeats=picture.repeats // common) for picture in pictures)


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__")) or name.lower() in OF_SYSTEMS


def stamps(folder: Path) -> Iterator[str]:
    """A stamp for each file in a folder: its path, size and time, or the hash of a caption's text."""
    for here, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(here, name)
            with suppress(OSError):
                state = path.stat()
                if name.lower().endswith((*CAPTIONS, *MAY_TELL)) and state.st_size <= LONGEST:
                    yield f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}"
                else:
                    yield f"{path} {state.st_size} {state.st_mtime_ns}"
