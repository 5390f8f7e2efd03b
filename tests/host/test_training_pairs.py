"""Pairs and clips of LyCORIS Training Pictures: references beside captions, and given frames of clips."""

from __future__ import annotations

import importlib
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hosting import Host, Patched, patcher
from PIL import Image
from torch import Tensor
from trainable import (
    PIXELS,
    WORD_WIDTH,
    Counted,
    by_the_node,
    clip_with_words,
    encoded,
    frames_of,
    same,
    tiny,
    train,
    vision_model,
)

pytestmark = pytest.mark.host

RATE = 16
"""Frames a second of Wan."""


def drawing(path: Path, colour: str, size: tuple[int, int] = (PIXELS, PIXELS)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.new("RGB", size, colour)
    made.paste("white", (0, 0, size[0] // 3, size[1] // 2))
    made.save(path)
    return path


def pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), np.float32) / 255)[None]


def named(found: Any) -> dict[str, list[str]]:
    """The references of each picture, its mask, and theirs, by their paths."""
    beside = {
        one.name: [*one.references, *filter(None, [one.mask]), *(mask for _, mask in one.reference_masks)]
        for one in found.pictures
    }
    return {
        name: [path.relative_to(found.path).as_posix() for path in paths] for name, paths in beside.items()
    }


LAYOUTS: dict[str, tuple[list[str], dict[str, list[str]], list[str]]] = {
    "by name": (
        [
            "a.png",
            "a_control.png",
            "b.png",
            "b-condlabel.png",
            "c.png",
            "c_reference_2.png",
            "c_reference.png",
        ],
        {
            "a.png": ["a_control.png"],
            "b.png": ["b-condlabel.png"],
            "c.png": ["c_reference.png", "c_reference_2.png"],
        },
        [],
    ),
    "a folder of references beside the pictures, as musubi-tuner has it": (
        ["a.png", "b.png", "control/a_0.png", "control/a_1.png", "control/b.jpg", "control/c.png"],
        {"a.png": ["control/a_0.png", "control/a_1.png"], "b.png": ["control/b.jpg"]},
        ["control/c.png"],
    ),
    "folders beside that of the pictures, as ai-toolkit has it": (
        ["target/a.png", "control_2/a.png", "control_1/a.png", "other/b.png"],
        {"other/b.png": [], "target/a.png": ["control_1/a.png", "control_2/a.png"]},
        [],
    ),
    "names that end in numbers": (
        ["a.png", "a_1.png", "control/a.png", "control/a_1.png"],
        {"a.png": ["control/a.png"], "a_1.png": ["control/a_1.png"]},
        [],
    ),
    "an accent that is a letter of its own": (
        ["e\u0301.png", "é_mask.png", "control/É.png"],
        {"e\u0301.png": ["control/É.png", "é_mask.png"]},
        [],
    ),
    "masks of references": (
        ["a.png", "a_reference.png", "a_reference_mask.png", "control/a_1.png", "control/a_1_mask.png"],
        {
            "a.png": [
                *("a_reference.png", "control/a_1.png", "a_reference_mask.png", "control/a_1_mask.png"),
            ]
        },
        [],
    ),
    "masks of clips, and clips as masks": (
        ["a.mp4", "a_control.mp4", "a_control_mask.mp4", "control/a_1_mask.png", "control/a_1.mp4"],
        {"a.mp4": ["a_control.mp4", "control/a_1.mp4"]},
        ["a_control_mask.mp4", "control/a_1_mask.png"],
    ),
    "a folder of that name alone": (["control/a.png", "control/a.txt"], {"control/a.png": []}, []),
    "masks beside the folders of the pictures": (
        ["img/a.png", "2_more/a.png", "masks/a.png", "masks/b.png"],
        {"2_more/a.png": ["masks/a.png"], "img/a.png": ["masks/a.png"]},
        ["masks/b.png"],
    ),
    "masks beside pictures that have others below": (
        ["a.png", "mask/a.png", "more/a.png"],
        {"a.png": ["mask/a.png"], "more/a.png": []},
        [],
    ),
    "pictures of masks": (
        ["hats/a.png", "masks/a.png", "masks/a.txt"],
        {"hats/a.png": [], "masks/a.png": []},
        [],
    ),
    "a folder of masks alone": (["masks/a.png", "masks/a.txt"], {"masks/a.png": []}, []),
    "no picture of that name": (["a_control.png", "a_control.txt"], {"a_control.png": []}, []),
    "neither their pictures nor captions": (
        [
            *("a.png", "b_mask.png", "c-masklabel.png", "d.mask.png", "e_control.png", "f-condlabel.png"),
            *("g_mask.png", "g-masklabel.png", "g.png", "more/masks/h.png", "more/control/i.png"),
        ],
        {"a.png": [], "g.png": ["g_mask.png"]},
        [
            *("b_mask.png", "c-masklabel.png", "d.mask.png", "e_control.png", "f-condlabel.png"),
            *("g-masklabel.png", "more/control/i.png", "more/masks/h.png"),
        ],
    ),
    "pictures for regularisation, as sd-scripts have them": (
        ["img/10_qwx cat/a.png", "reg/1_cat/a.png", "reg/1_cat/a.txt"],
        {"img/10_qwx cat/a.png": []},
        ["reg"],
    ),
    "clips of a model that makes pictures": (
        ["a.png", "a_control.mp4", "b.mp4", "b.txt", "b_mask.png", "b_control.mp4", "c.frames/1.png"],
        {"a.png": []},
        ["a_control.mp4", "b.mp4", "c.frames"],
    ),
}
OF_PICTURES = "clips of a model that makes pictures"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_references_and_masks_are_found_by_name_and_by_folder(host: Host, folder: Path, layout: str) -> None:
    files, wanted, left_out = LAYOUTS[layout]
    for file in files:
        if file.endswith((".png", ".jpg")):
            drawing(folder / file, "red")
        else:
            (folder / file).touch()
    clips = layout != OF_PICTURES and any(file.endswith(".mp4") for file in files)
    found = host.module("lycoris_nodes.dataset.folder").PictureFolder.of(folder, clips=clips)
    assert named(found) == wanted
    assert sorted(name for names in found.left_out.values() for name in names) == left_out


def flux(**changed: int) -> Any:
    sizes = {"in_channels": 16, "out_channels": 16, "context_in_dim": WORD_WIDTH, "vec_in_dim": WORD_WIDTH}
    return patcher(tiny("Flux 1", **{**sizes, **changed}))


def trained_on(host: Host, folder: Path, model: Any, data: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What a short training on prepared data gives."""
    given: dict[str, Any] = {"steps": 2, "rank": 2, "latents": data["latents"], "positive": data["positive"]}
    return train(host, folder, model=model, **{**given, **more})


def test_references_are_latents_beside_the_caption_as_the_hosts_nodes_give_them(
    host: Host, plain: Patched, prepare: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    """They are mirrored and cached too, and stay where captions are dropped. A training takes them."""
    wide = drawing(folder / "control" / "a.png", "green", (2 * PIXELS, PIXELS // 2))
    drawing(folder / "a.png", "blue")
    drawing(folder / "b.png", "yellow")
    vae, model = Counted(16), flux()
    given: dict[str, Any] = {"model": model, "vae": vae.vae, "trigger": "qwx"}
    data = prepare(**given, mirror=True)
    (first, flipped, *others), called = data["positive"], vae.calls
    with torch.inference_mode():
        latents = [vae.vae.encode(pixels(wide).flip(2) if flip else pixels(wide)) for flip in (False, True)]
        (wanted,) = host.run("ReferenceLatent", encoded(host, plain.clip, "qwx"), {"samples": latents[0]})
    assert torch.equal(first[0][0], wanted[0][0])
    for one, latent in ((first, latents[0]), (flipped, latents[1])):
        (found,) = one[0][1]["reference_latents"]
        assert torch.equal(found, latent)
    assert all("reference_latents" not in one[0][1] for one in others)
    assert (
        "with references, which are latents beside the captions: 1 (a.png)" in data["report"]
        and "without a reference: 1 (b.png)" in data["report"]
    )
    again = prepare(**given, mirror=True)
    assert vae.calls == called + 2
    assert torch.equal(again["positive"][0][0][1]["reference_latents"][0], latents[0])
    # Where captions are dropped the references stay, as they do for the negative prompt of a sampler.
    samples = importlib.import_module(f"{host.pack.__name__}.lycoris_nodes.training.data.samples")
    session = importlib.import_module(f"{host.pack.__name__}.lycoris_nodes.training.model.session")
    with session.opened(model) as opened:
        made = samples.samples_of(opened, data["latents"], data["positive"], empty=[data["empty_caption"]])
    assert ["ref_latents" in one.without.conds for one in made] == [True, True, False, False]
    trained = trained_on(host, tmp_path, model, data, empty_caption=[data["empty_caption"]])
    assert trained["steps_done"] == 2


def test_references_are_learned_in_the_resolutions_of_their_targets(
    host: Host, prepare: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    """Each pair is as from a run in each resolution alone, also where the target has one size in all."""
    drawing(folder / "a.png", "blue", (256, 192))
    drawing(folder / "control" / "a.png", "green", (192, 256))
    drawing(folder / "dot.png", "red", (64, 64))
    drawing(folder / "control" / "dot.png", "yellow", (256, 128))
    vae, model, sides = Counted(16), flux(), (192, 128, 64)
    given: dict[str, Any] = {"model": model, "vae": vae.vae, "trigger": "qwx", "enlarge": False}

    def pairs(data: dict[str, Any]) -> list[Any]:
        latents = [one["samples"] for one in data["latents"]]
        shown = [reference for one in data["positive"] for reference in one[0][1]["reference_latents"]]
        return sorted((key(one), key(other)) for one, other in zip(latents, shown, strict=True))

    def key(latent: Tensor) -> tuple[float, ...]:
        return (*latent.shape, float(latent.double().square().sum()))

    alone = [pairs(prepare(**given, resolution=side)) for side in sides]
    assert len({other for one in alone for _, other in one}) == 6
    called = vae.calls
    data = prepare(**given, resolution="64, 192, 128")
    assert vae.calls == called and pairs(data) == sorted(pair for one in alone for pair in one)
    assert trained_on(host, tmp_path, model, data, batch_size=2, steps=6)["steps_done"] == 6


def test_what_references_show_is_learned(host: Host, tmp_path: Path) -> None:
    """All latents have one text, and each is its own reference."""
    draw = torch.Generator().manual_seed(1)
    latents = [3 * torch.randn(1, 16, 1, 1, generator=draw).expand(1, 16, 8, 8) for _ in range(8)]
    text, pooled = torch.randn(1, 5, 20, generator=draw), torch.randn(1, 12, generator=draw)
    positive = [[[text, {"pooled_output": pooled, "reference_latents": [one]}]] for one in latents]
    data: dict[str, Any] = {"latents": [{"samples": one} for one in latents], "positive": positive}
    held = {f"validation_{name}": values for name, values in data.items()}
    model = patcher(tiny("Flux 1", in_channels=16, out_channels=16))
    how = {
        "steps": 40,
        "rank": 8,
        "learning_rate": 1e-2,
        "batch_size": 8,
        "validate_every": 40,
        "preset": "full",
    }
    losses = dict(train(host, tmp_path, model=model, **data, **held, **how)["loss_map"]["validation"])
    assert losses[40] < 0.9 * losses[0]


def test_references_that_are_concatenated_are_cut_as_their_targets(
    host: Host, prepare: Callable[..., Any], folder: Path
) -> None:
    drawing(folder / "a.png", "blue")
    wide = drawing(folder / "a_control.png", "green", (2 * PIXELS, PIXELS))
    vae = Counted(16)
    data = prepare(model=flux(in_channels=32), vae=vae.vae, trigger="qwx")
    middle = pixels(wide)[:, :, PIXELS // 2 : -PIXELS // 2]
    with torch.inference_mode():
        assert torch.equal(data["positive"][0][0][1]["concat_latent_image"], vae.vae.encode(middle))
    drawing(folder / "a_control.png", "green", (3 * PIXELS, PIXELS))
    with pytest.raises(host.ops.TrainError, match=r"a_control\.png: more of the picture .*67% of 384 x 128"):
        prepare(model=flux(in_channels=32), vae=vae.vae, trigger="qwx")


def test_references_without_their_picture_are_refused(
    host: Host, prepare: Callable[..., Any], folder: Path
) -> None:
    drawing(folder / "a.png", "blue")
    drawing(folder / "b_control.png", "green")
    inputs: dict[str, Any] = {"model": flux(), "vae": Counted(16).vae, "trigger": "qwx"}
    with pytest.raises(host.ops.TrainError, match=r"without their picture.*found b_control\.png"):
        prepare(**inputs)
    (folder / "b_control.txt").write_text("a remote control")
    assert len(prepare(**inputs)["latents"]) == 2


def test_references_for_a_model_that_takes_none_are_refused(
    host: Host, prepare: Callable[..., Any], folder: Path
) -> None:
    drawing(folder / "a.png", "blue")
    drawing(folder / "a_control.png", "green")
    with pytest.raises(host.ops.TrainError, match=r"a\.png.*takes no references.*a_control\.png.*Rename"):
        prepare(trigger="qwx")


def film(
    path: Path, frames: int, rate: int, size: tuple[int, int] = (PIXELS, PIXELS), like: str = ""
) -> Path:
    """A clip of grey frames that get brighter, in the codec that files with the ending `like` have here."""
    codecs = {
        ".mp4": ("libx264", "yuv420p"),
        ".webm": ("libvpx-vp9", "yuv420p"),
        ".gif": ("gif", "gray"),
        ".avi": ("mjpeg", "yuvj420p"),
    }
    codec, kind = codecs[like or path.suffix]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = *size, kind
        for number in range(frames):
            grey = np.full((size[1], size[0], 3), 255 * number // frames, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif", ".avi"])
def test_frames_of_a_clip_are_taken_by_their_times(host: Host, tmp_path: Path, ending: str) -> None:
    clip, sizes = (host.module(f"lycoris_nodes.dataset.{name}") for name in ("clip", "sizes"))
    # A GIF counts in hundredths of a second.
    own = 25 if ending == ".gif" else 24
    paths = [film(tmp_path / f"a{ending}", 48, own)]
    # H.264 stores frames in another order than they are shown in, and AVI has no place for that.
    paths += [film(tmp_path / "b.avi", 48, own, like=".mp4")] if ending == ".avi" else []
    assert ending in clip.CLIPS
    for path in paths:
        facts = clip.facts_of(path, RATE)
        assert facts.size == (PIXELS, PIXELS) and abs(facts.frames - 48 * RATE / own) < 1
        assert not facts.repeated and not facts.cut_off
        fitted = sizes.middle(facts.size, (64, 64))
        for rate, start, count in ((RATE, 0, 9), (RATE, 11, 5), (own, 0, 48), (2 * own, 5, 9)):
            found = clip.pixels_of_clip(path, clip.Cut(start, count), rate, fitted)
            shown = [int((start + n) / rate * own + 1e-6) for n in range(count)]
            wanted = torch.tensor([255 * number // 48 for number in shown])
            assert found.shape == (count, 64, 64, 3)
            # Codecs round colours, by less than half the step from frame to frame.
            assert (found.mean((1, 2, 3)) * 255 - wanted).abs().max() < 2.6, (path.name, rate, start)
    path = paths[0]
    assert clip.facts_of(path, 2 * own).repeated
    # The end of the file is missing.
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    if ending == ".mp4":
        with pytest.raises(host.ops.TrainError, match=r"clip cannot be read.*found Invalid data"):
            clip.facts_of(path, RATE)
    else:
        assert clip.facts_of(path, RATE).cut_off


def animation(path: Path, frames: list[Image.Image], shown: list[int], **how: Any) -> Path:
    """An animated WebP, APNG or GIF of these frames, each shown for so many milliseconds."""
    how = {"lossless": True, "minimize_size": False, **how} if path.suffix == ".webp" else how
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=shown, loop=0, **how)
    return path


def moving(count: int, mode: str = "RGB") -> list[Image.Image]:
    """A bar that moves, on nothing where the mode has transparency."""
    made = [Image.new(mode, (PIXELS, 32)) for _ in range(count)]
    for number, one in enumerate(made):
        one.paste((250, 20 * number, 90, 255)[: len(mode)], (6 * number, 4, 6 * number + 20, 28))
    return made


@pytest.mark.parametrize("ending", [".webp", ".png", ".apng", ".gif"])
def test_animated_pictures_are_clips_with_their_own_times(host: Host, tmp_path: Path, ending: str) -> None:
    clip, sizes = (host.module(f"lycoris_nodes.dataset.{name}") for name in ("clip", "sizes"))
    # Browsers show a frame of 0 for 100 milliseconds, and FFmpeg does so with a GIF.
    shown, seen = [100, 200, 0, 300, 40, 60], [100, 200, 100, 300, 40, 60]
    times = np.cumsum([0, *seen]) / 1000
    for mode in ("RGB", "RGBA"):
        frames = moving(6, mode)
        disposal = {"disposal": 2} if (mode, ending) == ("RGBA", ".gif") else {}
        path = animation(tmp_path / f"{mode}{ending}", frames, shown, **disposal)
        if (mode, ending) == ("RGBA", ".webp"):
            # Pillow does not say in the header that there is transparency.
            content = bytearray(path.read_bytes())
            content[20] |= 16
            path.write_bytes(content)
        assert clip.is_film(path)
        facts = clip.facts_of(path, RATE)
        # A GIF does not say how long its last frame is shown.
        assert facts.size == (PIXELS, 32) and 0 <= facts.frames - 12 <= 2 * (ending == ".gif")
        assert facts.repeated and not facts.cut_off and not facts.sounds
        fitted = sizes.middle(facts.size, facts.size)
        for rate, start, count in ((RATE, 0, 12), (RATE, 5, 5), (50, 0, 40)):
            found = clip.pixels_of_clip(path, clip.Cut(start, count), rate, fitted)
            at = [(start + n) / rate + 2e-3 for n in range(count)]
            numbers = np.searchsorted(times, at, "right") - 1
            white = Image.new("RGBA", (PIXELS, 32), "white")
            wanted = [Image.alpha_composite(white, frames[n].convert("RGBA")) for n in numbers]
            drawn = np.stack([np.asarray(one.convert("RGB"), np.float32) for one in wanted])
            assert (found * 255 - torch.from_numpy(drawn)).abs().max() < 1, (mode, rate, start)
    still = tmp_path / f"still{ending}"
    moving(1)[0].save(still)
    assert clip.is_film(still) == (ending == ".gif")


def test_an_apng_with_another_picture_in_front_begins_with_its_first_frame(
    host: Host, tmp_path: Path
) -> None:
    clip, sizes = (host.module(f"lycoris_nodes.dataset.{name}") for name in ("clip", "sizes"))
    frames = moving(4)
    front = Image.new("RGB", frames[0].size, "green")
    path = tmp_path / "a.png"
    front.save(path, save_all=True, default_image=True, append_images=frames, duration=125)
    facts = clip.facts_of(path, 8)
    assert facts.frames == 4 and not facts.repeated
    found = clip.pixels_of_clip(path, clip.Cut(0, 4), 8, sizes.middle(facts.size, facts.size))
    for one, frame in zip(found, frames, strict=True):
        assert torch.equal((one * 255).round().to(torch.uint8), torch.from_numpy(np.array(frame)))


def webp_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)


def hostile_webp(count: int, size: tuple[int, int], milliseconds: int) -> bytes:
    """A WebP that states frames of one pixel on a canvas, without the pixels."""
    canvas = b"".join((side - 1).to_bytes(3, "little") for side in size)
    frame = bytes(12) + milliseconds.to_bytes(3, "little") + b"\0"
    chunks = webp_chunk(b"VP8X", b"\2\0\0\0" + canvas) + webp_chunk(b"ANIM", bytes(6))
    chunks += webp_chunk(b"ANMF", frame) * count
    return b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WEBP" + chunks


def hostile_png(count: int, size: tuple[int, int], stated: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))

    frame = struct.pack(">IIIIIHHBB", 0, *size, 0, 0, 1, 10, 0, 0)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)) + chunk(
        b"acTL", struct.pack(">II", stated, 0)
    )
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"fcTL", frame) * count + chunk(b"IEND", b"")


HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "too many frames": (".webp", lambda: hostile_webp(100_000, (1, 1), 20), "more than 36000 frames"),
    "a huge canvas": (".webp", lambda: hostile_webp(2, (16_000, 16_000), 20), "2 frames of 16000 x 16000"),
    "much together": (".webp", lambda: hostile_webp(9_000, (1920, 1080), 20), "9000 frames of 1920 x 1080"),
    "hours": (".webp", lambda: hostile_webp(2, (8, 8), 16_000_000), "533 minutes"),
    "an end that is missing": (".webp", lambda: hostile_webp(5, (8, 8), 20)[:-3], "its end is missing"),
    "no pixels": (".webp", lambda: hostile_webp(5, (8, 8), 20), "cannot be read"),
    "a huge PNG": (".png", lambda: hostile_png(2, (30_000, 30_000), 2), "2 frames of 30000 x 30000"),
    "wrong numbers": (
        ".png",
        lambda: hostile_png(3, (8, 8), 4_000_000_000),
        "states 4000000000 frames and has 3",
    ),
    "a PNG without its end": (".png", lambda: hostile_png(5, (8, 8), 5)[:-13], "its end is missing"),
    "a PNG without pixels": (".png", lambda: hostile_png(5, (8, 8), 5), "cannot be read"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_strangers_animation_is_bounded(host: Host, tmp_path: Path, kind: str) -> None:
    clip, sizes = (host.module(f"lycoris_nodes.dataset.{name}") for name in ("clip", "sizes"))
    ending, made, words = HOSTILE[kind]
    path = tmp_path / f"a{ending}"
    path.write_bytes(made())
    assert clip.is_film(path)
    tracemalloc.start()
    with pytest.raises(host.ops.TrainError, match=rf"a\{ending}.*{words}"):
        facts = clip.facts_of(path, RATE)
        clip.pixels_of_clip(path, clip.Cut(0, 2), RATE, sizes.middle(facts.size, (8, 8)))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_a_film_without_a_frame_is_named(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = host.module("lycoris_nodes.dataset.clip")
    path = film(tmp_path / "a.mp4", 2, 24)
    monkeypatch.setattr(clip, "_decoded", lambda *_: iter(()))
    with pytest.raises(host.ops.TrainError, match=r"a\.mp4.*no frame of it can be decoded"):
        clip.facts_of(path, RATE)


def test_frames_of_a_folder_are_its_pictures_by_their_numbers(host: Host, tmp_path: Path) -> None:
    clip = host.module("lycoris_nodes.dataset.clip")
    names = [f"{number}.png" for number in (1, 2, 10)]
    for name in reversed(names):
        drawing(tmp_path / name, "blue")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty.frames").mkdir()
    with pytest.raises(host.ops.TrainError, match=r"empty\.frames: .*has no frames"):
        clip.frame_files(tmp_path / "empty.frames")
    assert [path.name for path in clip.frame_files(tmp_path)] == names
    # A frame that is cut off is named, although its header is whole.
    damaged = tmp_path / names[1]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(host.ops.TrainError, match=r"2\.png: the picture cannot be read"):
        frames_of(host, tmp_path, RATE, 3)


def test_cuts_are_evenly_spaced_and_of_the_lengths_that_a_vae_takes(host: Host) -> None:
    clip = host.module("lycoris_nodes.dataset.clip")

    def cuts(*given: int) -> list[tuple[int, int]]:
        return [(one.start, one.count) for one in clip.cuts_of(*given)]

    assert cuts(100, 33, 4, 1) == [(0, 33)]
    assert cuts(100, 33, 4, 3) == [(0, 33), (34, 33), (67, 33)]
    assert cuts(100, 33, 4, 9) == [(0, 33), (34, 33), (67, 33)]
    assert cuts(32, 33, 4, 3) == [(0, 29)] and cuts(3, 33, 4, 3) == [(0, 1), (1, 1), (2, 1)]
    assert cuts(100, 34, 8, 1) == [(0, 33)] and cuts(7, 100, 6, 1) == [(0, 7)]


def wan(architecture: str = "Wan 2.1 t2v", **changed: int) -> Any:
    return patcher(tiny(architecture, **{"out_dim": 16, "text_dim": WORD_WIDTH, **changed}))


def test_clips_are_trained_with_pictures(
    host: Host,
    prepare: Callable[..., Any],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A long film in two cuts, a short one, a folder of frames and a picture, for a model of videos."""
    film(folder / "long.mp4", 60, 24)
    film(folder / "short.gif", 10, 25)
    for number in range(6):
        drawing(folder / "walk.frames" / f"{number}.png", "blue")
    drawing(folder / "still.png", "green")
    animation(folder / "wave.webp", moving(10), [50] * 10)
    (folder / "long.txt").write_text("a light", encoding="utf-8")
    vae, model = Counted(16, video=True), wan(in_dim=16)
    given: dict[str, Any] = {"model": model, "vae": vae.vae, "trigger": "qwx", "frames": 9, "cuts": 2}
    data = prepare(**given)
    assert data["captions"] == ["qwx, a light", "qwx, a light", "qwx", "qwx", "qwx", "qwx"]
    lengths = [one["samples"].shape[2] for one in data["latents"]]
    assert lengths == [3, 3, 2, 1, 2, 2]
    assert "4 clips, at 16 frames a second: 5 frames x3, 9 frames x2" in data["report"]
    missing = "the model gets no first frame: no known node"
    assert missing not in data["report"]
    called = vae.calls
    again = prepare(**given, first_frames="first and last")
    assert vae.calls == called and missing in again["report"]
    for one, other in zip(data["latents"], again["latents"], strict=True):
        assert torch.equal(one["samples"], other["samples"])
    prepare(**given, frame_rate=8)
    assert vae.calls == called + 7
    report = trained_on(host, tmp_path, model, data)["report"]
    assert "6 latents (3 x 16 x 16 x2, 2 x 16 x 16 x2, " in " ".join(report.split())
    # Models of pictures leave them out.
    still = prepare(trigger="qwx")
    left = "clips, which this model does not learn: 4 (long.mp4, short.gif, walk.frames and 1 more)"
    assert len(still["latents"]) == 1 and left in still["report"] and "left out" not in still["report"]
    # One that is gone when its frames are to be read.
    made = host.module("lycoris_nodes.dataset.plan")
    facts_of = made.facts_of

    def gone(path: Path, rate: float) -> Any:
        found = facts_of(path, rate)
        if path.name == "short.gif":
            path.unlink()
        return found

    monkeypatch.setattr(made, "facts_of", gone)
    with pytest.raises(host.ops.TrainError, match=r"short\.gif: the file cannot be read.*No such file"):
        prepare(**given)


def test_a_first_and_a_last_frame_are_given_as_by_the_hosts_nodes(
    host: Host, prepare: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    path = film(folder / "a.mp4", 12, RATE)
    vae, model = Counted(16, video=True), wan("Wan 2.1 i2v", in_dim=36)
    frames = frames_of(host, path, RATE, 9)
    given: dict[str, Any] = {"model": model, "vae": vae.vae, "trigger": "qwx", "frames": 9}
    ends: dict[str, Any] = {"start_image": frames[:1], "length": 9, "vae": vae.vae}
    vision = vision_model(tmp_path, 2)
    with torch.inference_mode():
        first, last = (vision.encode_image(one, crop=False) for one in (frames[:1], frames[-1:]))
    seen: tuple[dict[str, Any], ...] = (
        {"clip_vision_output": first},
        {"clip_vision_start_image": first, "clip_vision_end_image": last},
    )
    nodes = {"first": "WanImageToVideo", "first and last": "WanFirstLastFrameToVideo"}
    for (which, node), looks in zip(nodes.items(), seen, strict=True):
        data = prepare(**given, first_frames=which)
        made = by_the_node(host, node, **ends)
        wanted, found = made[0][0][1], data["positive"][0][0][1]
        for name in ("concat_latent_image", "concat_mask"):
            assert torch.equal(found[name], wanted[name])
        assert f"the model is also given what {node} makes\n" in data["report"]
        # A CLIP vision model may see the frames too.
        made = by_the_node(host, node, **ends, **looks)
        for _ in range(2):
            found = prepare(**given, first_frames=which, clip_vision=vision)
            states = found["positive"][0][0][1]["clip_vision_output"].penultimate_hidden_states
            assert torch.equal(states, made[0][0][1]["clip_vision_output"].penultimate_hidden_states)
            assert "and what clip_vision sees there" in found["report"]
        ends["end_image"] = frames[-1:]
    assert "concat_mask" not in prepare(**given, first_frames="none")["positive"][0][0][1]
    trained_on(host, tmp_path, model, data, steps=1)


def test_frames_are_put_into_the_latent_where_the_hosts_node_does_so(
    host: Host, prepare: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    path = film(folder / "a.mp4", 12, RATE)
    drawing(folder / "still.png", "green")
    made = tiny("Cosmos-Predict2", in_channels=17, crossattn_emb_channels=WORD_WIDTH)
    made.image_to_video, made.concat_keys = True, ("mask_inverted",)
    # Only the class of the configuration tells the model of videos from that of pictures.
    made.model_config.__class__ = importlib.import_module("comfy.supported_models").CosmosI2VPredict2
    vae, model = Counted(16, video=True), patcher(made)
    frames = frames_of(host, path, RATE, 9)
    given: dict[str, Any] = {"model": model, "vae": vae.vae, "trigger": "qwx", "frames": 9}
    plain, _ = prepare(**given, first_frames="none")["latents"]
    data = prepare(**given, first_frames="first and last")
    ends = {"start_image": frames[:1], "end_image": frames[-1:], "length": 9, "vae": vae.vae}
    (wanted,) = by_the_node(host, "CosmosPredict2ImageToVideoLatent", **ends)
    (found, still), shown = data["latents"], wanted["noise_mask"] == 0
    assert torch.equal(found["noise_mask"], wanted["noise_mask"])
    assert torch.equal(found["samples"] * shown, wanted["samples"] * shown)
    assert torch.equal(found["samples"] * ~shown, plain["samples"] * ~shown)
    assert "noise_mask" not in plain and "noise_mask" not in still
    called = vae.calls
    again = prepare(**given, first_frames="first and last")
    assert vae.calls == called and same(again["latents"], data["latents"])
    with pytest.raises(host.ops.TrainError, match=r"a\.mp4.*all of the clip is given"):
        prepare(**{**given, "frames": 5}, first_frames="first and last")
    # A training mask may be given as well.
    white = torch.ones(2, PIXELS, PIXELS)
    report = trained_on(host, tmp_path, model, data, steps=1, masks=[white])["report"]
    assert "1 partly given to the model, which does not learn that part" in " ".join(report.split())


def test_what_is_around_a_hole_is_given_to_a_model_that_fills_it(
    host: Host, plain: Patched, prepare: Callable[..., Any], folder: Path, vae: Counted, tmp_path: Path
) -> None:
    path = drawing(folder / "a.png", "blue")
    hole = Image.new("L", (PIXELS, PIXELS))
    hole.paste(255, (0, 0, PIXELS // 2, PIXELS))
    hole.save(folder / "a_mask.png")
    model = tiny("SD1.5", context_dim=WORD_WIDTH, in_channels=9)
    model.set_inpaint()
    data = prepare(model=patcher(model), trigger="qwx")
    mask = torch.from_numpy(np.asarray(hole, np.float32) / 255)[None]
    text = encoded(host, plain.clip, "qwx")
    with torch.inference_mode():
        wanted = host.nodes.InpaintModelConditioning().encode(text, text, pixels(path), vae.vae, mask, False)
    for name in ("concat_latent_image", "concat_mask"):
        assert torch.equal(data["positive"][0][0][1][name], wanted[0][0][1][name])
    # The whole picture is learned, not only the hole.
    assert data["masks"] == []
    trained_on(host, tmp_path, patcher(model), data, steps=1)


@pytest.mark.parametrize("way", ["auto", pytest.param("first Qwen-Image-Edit", marks=pytest.mark.soak)])
def test_a_text_encoder_that_sees_is_shown_references_as_by_the_hosts_node(
    host: Host, prepare: Callable[..., Any], folder: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing(folder / "a.png", "blue")
    shown = drawing(folder / "a_control.png", "green", (96, 64))
    (folder / "a.txt").write_text("make it (very) green", encoding="utf-8")
    clip, vae = clip_with_words("Qwen-Image"), Counted(16, video=True)
    told: list[Any] = []

    def encode(tokens: Any) -> list[Any]:
        """Stand in for the vision encoder, which has no tiny version."""
        told.append(tokens)
        return [[torch.zeros(1, 5, 20), {}]]

    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", encode)
    model = patcher(tiny("Qwen-Image", in_channels=64, out_channels=16))
    data = prepare(model=model, clip=clip, vae=vae.vae, references=way)
    plus = way == "auto"
    picture = {"image1" if plus else "image": pixels(shown)}
    with torch.inference_mode():
        node = f"TextEncodeQwenImageEdit{'Plus' if plus else ''}"
        prompt = r"make it \(very\) green"
        (((_, more),),) = host.run(node, clip=clip, prompt=prompt, vae=vae.vae, **picture)
    assert same(told[-2], told[-1])
    ((_, said),) = data["positive"][0]
    assert said.keys() == {*more, "lycoris_caption", "lycoris_trigger"}
    assert torch.equal(said["reference_latents"][0], more["reference_latents"][0])
