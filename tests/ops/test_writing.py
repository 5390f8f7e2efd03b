"""A written file is whole or not there at all, and no other file is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import lora
from safetensors.torch import load_file, save_file

import lycoris_ops as lyc
from lycoris_ops.commands import main
from lycoris_ops.writing import save as saving

ENDINGS = lyc.SAFETENSORS + lyc.PICKLES
PAIR = ("adapter_config.json", "adapter_model.safetensors")
FOLDER = ("README.md", *PAIR)
"""What is written into an empty folder; a card that is there is kept."""
WRITERS = ("bake", "kohya", "peft")
Files = dict[str, bytes]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with a base and an adapter for it."""
    folder = tmp_path / "sources"
    folder.mkdir()
    layer = {f"base_model.model.x.{key}": tensor for key, tensor in lora((12, 18), 4).items()}
    renamed = {k.replace("lora_up", "lora_B").replace("lora_down", "lora_A"): t for k, t in layer.items()}
    save_file(renamed, folder / "peft.safetensors")
    save_file(
        {f"lora_unet_x.{key}": tensor for key, tensor in lora((12, 18), 4).items()},
        folder / "kohya.safetensors",
    )
    save_file({"model.diffusion_model.x.weight": torch.randn(12, 18)}, folder / "base.safetensors")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder to write to."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def write(writer: str, sources: Path, path: Path | str, **options: Any) -> str:
    """Write with one of WRITERS, and return the path of the file that was written."""
    if writer == "bake":
        stack = lyc.Stack([lyc.Entry(lyc.load_adapter(sources / "kohya.safetensors"))])
        return lyc.merge_checkpoint(sources / "base.safetensors", stack, path, **options).path
    adapter = lyc.load_adapter(sources / f"{writer}.safetensors")
    return lyc.save_adapter(adapter, path, writer, **options).path  # type: ignore[arg-type]


def name_of(writer: str) -> str:
    return PAIR[1] if writer == "peft" else "x.safetensors"


def files_in(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Unfinished files.


@pytest.mark.parametrize("writer", WRITERS)
def test_an_unfinished_file_ends_like_no_model(
    sources: Path, out: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    """Hosts list a folder with all folders in it, hidden ones too."""
    seen: list[str] = []
    fsync = os.fsync

    def look(handle: int) -> None:
        seen.extend(path.name for path in out.rglob("*"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", look)
    # Look only at the sync that comes before a file takes its name.
    monkeypatch.setattr("lycoris_ops.files.writing._sync", lambda folder: None)
    write(writer, sources, out / name_of(writer))
    assert seen and all(name.endswith(".part") for name in seen)


# Sources that change.


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\x01" * 8)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def replaced(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes()[::-1])
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("change", [overwritten, cut, replaced, Path.unlink])
@pytest.mark.parametrize(("writer", "source"), [("bake", "base"), ("bake", "kohya"), ("kohya", "kohya")])
def test_a_source_that_changes_while_it_is_read_is_an_error(
    sources: Path, out: Path, writer: str, source: str, change: Callable[[Path], None]
) -> None:
    """Progress is complete once everything is read, shortly before the file takes its name."""
    path = sources / f"{source}.safetensors"
    (out / "x.safetensors").write_bytes(b"earlier")
    left = [change]

    def update(done: int, total: int) -> None:
        if done == total and left:
            left.pop()(path)

    with pytest.raises(lyc.FileFormatError, match=rf"{source}\.safetensors"):
        write(writer, sources, out / "x.safetensors", progress=update)
    assert not left and files_in(out) == {"x.safetensors": b"earlier"}


@pytest.mark.parametrize("change", [overwritten, cut, replaced, Path.unlink])
def test_a_source_that_changes_while_the_file_is_read_back_is_an_error(
    sources: Path, out: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    honest = saving.check_written

    def check(*given: Any) -> None:
        change(sources / "kohya.safetensors")
        honest(*given)

    monkeypatch.setattr(saving, "check_written", check)
    with pytest.raises(lyc.FileFormatError, match=r"kohya\.safetensors"):
        write("kohya", sources, out / "x.safetensors")
    assert not files_in(out)


# Names that are taken.


@pytest.mark.parametrize("links", [True, False], ids=["", "no hard links"])
@pytest.mark.parametrize(("writer", "name"), [*((w, name_of(w)) for w in WRITERS), ("peft", PAIR[0])])
def test_a_file_that_appears_meanwhile_is_not_replaced(
    sources: Path, out: Path, monkeypatch: pytest.MonkeyPatch, writer: str, name: str, links: bool
) -> None:
    """exFAT and some network drives have no hard links."""
    if not links:

        def refuse(*given: object) -> None:
            raise PermissionError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)

    def update(done: int, total: int) -> None:
        (out / name).write_bytes(b"another's")

    with pytest.raises(lyc.WriteError, match="of that name already"):
        write(writer, sources, out / name_of(writer), overwrite=False, progress=update)
    assert files_in(out) == {name: b"another's"}
    (out / name).unlink()
    path = Path(write(writer, sources, out / name_of(writer), overwrite=False))
    assert load_file(path) and set(files_in(out)) == {path.name, *(FOLDER if writer == "peft" else ())}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_is_a_name_that_is_taken_and_is_replaced_itself(sources: Path, out: Path, writer: str) -> None:
    """A link to nowhere counts too. If a link is replaced, the file that it leads to stays as it is."""
    link, target = out / name_of(writer), out.parent / "target.safetensors"
    for leads_to in (target, link, None):
        link.unlink(missing_ok=True)
        if leads_to is None:
            target.write_bytes(b"another's")
        link.symlink_to(leads_to or target)
        # The error comes before anything is made.
        with pytest.raises(lyc.WriteError, match="of that name already"):
            write(writer, sources, link, overwrite=False, progress=never)
        assert link.is_symlink() and (leads_to is None or not link.exists())
        for path in out.iterdir():
            assert path == link
        write(writer, sources, link)
        assert not link.is_symlink() and load_file(link)
        for path in out.iterdir():
            path.unlink()
    assert target.read_bytes() == b"another's"


def never(done: int, total: int) -> None:
    raise AssertionError("something was made")


@pytest.mark.parametrize("name", ["NUL.safetensors", "com1/mine.safetensors", "con .a.safetensors"])
def test_windows_has_devices_in_place_of_some_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lyc.check_name(name) == Path(name)
    monkeypatch.setattr("lycoris_ops.files.writing.ON_WINDOWS", True)
    with pytest.raises(lyc.WriteError, match="keeps this name for a device"):
        lyc.check_name(name)
    assert lyc.check_name("null/console.safetensors") == Path("null/console.safetensors")


def test_a_linked_folder_is_written_into(sources: Path, out: Path) -> None:
    (out.parent / "link").symlink_to(out)
    write("kohya", sources, out.parent / "link" / "x.safetensors")
    write("peft", sources, out.parent / "link" / "style")
    assert sorted(files_in(out)) == [*(f"style/{name}" for name in FOLDER), "x.safetensors"]


# Two files that belong together.


@pytest.fixture
def pair(sources: Path, out: Path) -> Files:
    """An earlier adapter in PEFT's files, with another rank, in the folder to write to."""
    layer = {"lora_A.weight": torch.randn(2, 18), "lora_B.weight": torch.randn(12, 2)}
    save_file(
        {f"base_model.model.x.{key}": tensor for key, tensor in layer.items()}, sources / "old.safetensors"
    )
    lyc.save_adapter(lyc.load_adapter(sources / "old.safetensors"), out, "peft")
    found = files_in(out)
    assert tuple(sorted(found)) == FOLDER and json.loads(found[PAIR[0]])["r"] == 2
    return found


class Interrupt(BaseException):
    """An interrupt that is not an Exception, like the host's own."""


def failing(monkeypatch: pytest.MonkeyPatch, steps: range, error: BaseException, *, done: bool) -> None:
    """Let the renames with these numbers (from 1) fail; with `done`, only after they have taken place."""
    replace, count = os.replace, [0]

    def rename(*given: Any) -> None:
        count[0] += 1
        if done or count[0] not in steps:
            replace(*given)
        if count[0] in steps:
            raise error

    monkeypatch.setattr(os, "replace", rename)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), Interrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_weights_and_configuration_are_replaced_together_or_not_at_all(
    sources: Path,
    out: Path,
    pair: Files,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    error: BaseException,
    done: bool,
) -> None:
    """Both earlier files are moved aside, then both new ones take their names: four renames."""
    with monkeypatch.context() as patched:
        failing(patched, range(step, step + 1), error, done=done)
        with pytest.raises((lyc.WriteError, Interrupt)) as caught:
            write("peft", sources, out)
    if isinstance(error, OSError):
        assert "an earlier file of that name is untouched" in str(caught.value)
    assert files_in(out) == pair
    write("peft", sources, out)
    assert json.loads((out / PAIR[0]).read_bytes())["r"] == 4 and tuple(sorted(files_in(out))) == FOLDER


@pytest.mark.parametrize("step", [4, 5, 6])
def test_where_there_were_no_files_none_is_left(
    sources: Path, out: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The first three renames find no file to move aside. Then card, configuration and weights are named."""
    for folder in (out, out / "new"):
        with monkeypatch.context() as patched:
            failing(patched, range(step, step + 1), Interrupt(), done=True)
            with pytest.raises(Interrupt):
                write("peft", sources, folder)
        assert not list(out.iterdir())


def test_the_earlier_files_come_back_where_another_program_has_removed_the_new_one(
    sources: Path, out: Path, pair: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, count = os.replace, [0]

    def rename(*given: Any) -> None:
        count[0] += 1
        if count[0] == 4:
            (out / PAIR[0]).unlink()
            raise Interrupt
        replace(*given)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", rename)
        with pytest.raises(Interrupt):
            write("peft", sources, out)
    assert files_in(out) == pair


def test_what_cannot_be_put_back_is_whole_and_is_named(
    sources: Path, out: Path, pair: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process leaves the same: no weights, and the earlier files under names that no model has."""
    with monkeypatch.context() as patched:
        failing(patched, range(4, 99), OSError(errno.EIO, "broken"), done=False)
        with pytest.raises(lyc.WriteError, match=r"cannot be put back.*by hand.*\.part") as caught:
            write("peft", sources, out)
    assert "untouched" not in str(caught.value)
    found = files_in(out)
    assert sorted(found.values()) == sorted(pair.values())
    assert all(name.startswith(".") and name.endswith(".part") for name in found if name != FOLDER[0])
    earlier = next(name for name in found if PAIR[1] in name)
    for path in (out, out / PAIR[1]):
        with pytest.raises(lyc.FileFormatError, match="was being replaced") as read:
            lyc.load_adapter(path)
        assert f"rename {earlier} to {PAIR[1]}" in str(read.value)


# What an interrupt says.


@pytest.mark.parametrize("writer", ["bake", "kohya", "peft"])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_an_interrupt_says_what_is_there(
    sources: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    writer: str,
    done: bool,
) -> None:
    """Ctrl-C may come just before or just after the rename by which a file takes its name."""
    target = out / "style" if writer == "peft" else out / "x.safetensors"
    write(writer, sources, target)
    before = files_in(out)
    adapter = str(sources / f"{'kohya' if writer == 'bake' else writer}.safetensors")
    given = (
        ["bake", str(sources / "base.safetensors"), "--adapter", adapter, "0.5"]
        if writer == "bake"
        else ["convert", adapter, "--dialect", writer, "--metadata", "note=new"]
    )
    if writer == "peft" and done:
        # An interrupted exchange of the two files is undone. So interrupt the report, when all is done.
        monkeypatch.setattr("lycoris_ops.commands.verbs.convert.show", interrupt)
    else:
        failing(monkeypatch, range(1, 2), KeyboardInterrupt(), done=done)
    assert main([*given, "-o", str(target), "--overwrite"]) == 130
    said = capsys.readouterr().err
    assert ("is written and complete" in said) is done and ("nothing was written" in said) is not done
    assert (files_in(out) != before) is done and set(files_in(out)) == set(before)


def interrupt(*given: object) -> None:
    raise KeyboardInterrupt


# Names and places.


def loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop" / "x.safetensors"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "adapter_model.safetensors")
    return folder / "adapter_model.safetensors"


PLACES: dict[str, Callable[[Path], Path | str]] = {
    "NUL": lambda folder: f"{folder}/a\0b.safetensors",
    "NUL in the folder": lambda folder: f"{folder}/a\0b/adapter_model.safetensors",
    "half a character": lambda folder: f"{folder}/\ud83d.safetensors",
    "a byte that is no text": lambda folder: f"{folder}/\udc80.safetensors",
    "a folder of that byte": lambda folder: f"{folder}/\udc80/adapter_model.safetensors",
    "a loop": loop,
    "a long folder": lambda folder: folder / ("x" * 300) / "adapter_model.safetensors",
    "a missing folder": lambda folder: folder / "a" / "b" / "adapter_model.safetensors",
    "a file as the folder": lambda folder: folder.parent / "sources" / "base.safetensors" / "x.safetensors",
    "a pipe": pipe,
    "no name": lambda folder: "",
    "a dot": lambda folder: ".",
    "the root": lambda folder: "/",
}


@pytest.mark.parametrize(
    ("writer", "place"),
    # The last three places are folders, and PEFT's files may be in these.
    [(w, place) for w in WRITERS for place in PLACES if w != "peft" or place not in [*PLACES][-3:]],
)
def test_a_place_that_cannot_be_written_is_an_error_of_the_family(
    sources: Path, out: Path, writer: str, place: str
) -> None:
    path = PLACES[place](out)
    before = {*out.rglob("*")}
    with pytest.raises(lyc.WriteError) as caught:
        write(writer, sources, path)
    # The message can be printed, and does not speak of writing: the place is found unfit first.
    assert b"untouched" not in str(caught.value).encode()
    assert {*out.rglob("*")} == before


@pytest.mark.parametrize("name", ["style-v1.5", "style.v2", "a.b.c", "style"])
def test_a_folder_of_peft_s_may_have_a_dot_in_its_name(sources: Path, out: Path, name: str) -> None:
    """Only the endings of adapter files count as endings."""
    assert write("peft", sources, out / name) == str(out / name / PAIR[1])
    assert sorted(files_in(out)) == [f"{name}/{file}" for file in FOLDER]
    for ending in ENDINGS:
        with pytest.raises(lyc.WriteError, match=r"only under one name.*choose another dialect"):
            write("peft", sources, out / f"{name}{ending}")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_gets_full_leaves_the_earlier_file(
    sources: Path, out: Path, pair: Files, writer: str
) -> None:
    write(writer, sources, out / name_of(writer))
    before = files_in(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # For a writer, a limit on the size of files is like a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(lyc.WriteError, match=r"the disk is full.*untouched"):
            write(writer, sources, out / name_of(writer))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_in(out) == before


@pytest.mark.parametrize("writer", WRITERS)
def test_too_little_room_is_known_before_a_byte_is_written(
    sources: Path, out: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    # In place of the result of shutil.disk_usage.
    class Usage:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    with pytest.raises(lyc.WriteError, match=r"no room.*0\.00 MB free"):
        write(writer, sources, out / name_of(writer))
    assert not files_in(out)


@pytest.mark.parametrize("writer", WRITERS)
def test_an_interrupt_on_the_way_leaves_the_earlier_file(sources: Path, out: Path, writer: str) -> None:
    write(writer, sources, out / name_of(writer))
    before = files_in(out)

    def update(done: int, total: int) -> None:
        if done > total // 2:
            raise Interrupt

    with pytest.raises(Interrupt):
        write(writer, sources, out / name_of(writer), progress=update)
    assert files_in(out) == before


# A power cut.


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("writer", WRITERS)
def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(
    sources: Path, out: Path, monkeypatch: pytest.MonkeyPatch, writer: str, overwrite: bool
) -> None:
    """After a power cut no name may lead to a file without its bytes, and no finished name may be lost."""
    steps: list[int] = []
    renames = {name: getattr(os, name) for name in ("replace", "link")}
    fsync = os.fsync

    def synced(handle: int) -> None:
        steps.append(os.fstat(handle).st_ino)
        fsync(handle)

    def named(name: str) -> Callable[..., None]:
        def step(*given: Any) -> None:
            renames[name](*given)
            steps.append(-os.stat(given[1]).st_ino)

        return step

    monkeypatch.setattr(os, "fsync", synced)
    for name in renames:
        monkeypatch.setattr(os, name, named(name))
    path = Path(write(writer, sources, out / name_of(writer), overwrite=overwrite))
    for file in [path, *([path.with_name(name) for name in FOLDER[:2]] if writer == "peft" else [])]:
        assert steps.index(file.stat().st_ino) < steps.index(-file.stat().st_ino)
    assert steps[-1] == out.stat().st_ino
