"""LyCORIS Training Pictures in the real host, in this process: from folders of real pictures to trainings."""

from __future__ import annotations

import codecs
import errno
import importlib
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hosting import Host, Patched, patcher
from PIL import Image
from trainable import PIXELS, WORD_WIDTH, Counted, encoded, tiny, train

from tests.harness import zoo
from tests.harness.packages import DATA

pytestmark = pytest.mark.host

CAT, CUP, ROCKET = ("chelsea.png", "coffee.png", "rocket.jpg")


def dataset(host: Host, name: str) -> Any:
    """A module of the pack's `dataset`, as the host has loaded the pack."""
    return importlib.import_module(f"{host.pack.__name__}.lycoris_nodes.dataset.{name}")


def picture(name: str) -> Image.Image:
    """A photograph of scikit-image's: 451 x 300, 600 x 400 and 640 x 427 pixels."""
    with Image.open(DATA.file(f"skimage/data/{name}")) as opened:
        return opened.convert("RGB")


@pytest.fixture
def photographs(folder: Path) -> Path:
    """The folder with three photographs and their captions."""
    for name, text in ((CAT, "a cat"), (CUP, "a cup on a table"), (ROCKET, "a rocket, left")):
        shutil.copy(DATA.file(f"skimage/data/{name}"), folder / name)
        (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    return folder


GRIDS = {
    "SD1.5": 32,
    "SDXL": 32,
    "Flux 1": 16,
    "Wan 2.1 t2v": 16,
    "Qwen-Image": 16,
    "LTX-Video": 32,
    "HunyuanImage 2.1": 32,
    "Ideogram 4": 16,
    "Lens": 16,
}
"""How many pixels wide one value of a latent is, times a transformer's patch, or times 4 for a UNet of 3
levels. The latents of Ideogram and Lens are cut into patches already."""


def test_the_grid_is_the_models(host: Host) -> None:
    training = host.module("lycoris_nodes.host.training")
    assert {name: training.grid_of(tiny(name)) for name in GRIDS} == GRIDS


WIDE: dict[str, tuple[dict[str, int], Callable[[], Counted]]] = {
    "SD1.5": ({"context_dim": WORD_WIDTH}, lambda: Counted(4)),
    "SDXL": ({"context_dim": WORD_WIDTH, "adm_in_channels": WORD_WIDTH + 6 * 256}, lambda: Counted(4)),
    "Flux 1": (
        {"in_channels": 16, "out_channels": 16, "context_in_dim": WORD_WIDTH, "vec_in_dim": WORD_WIDTH},
        lambda: Counted(16),
    ),
    "Wan 2.1 t2v": ({"in_dim": 16, "out_dim": 16, "text_dim": WORD_WIDTH}, lambda: Counted(16, video=True)),
}
"""Tiny models that take the checkpoint's conditionings, with a VAE for each."""


@pytest.mark.parametrize("architecture", WIDE)
def test_pictures_go_straight_into_a_training(
    host: Host,
    prepare: Callable[..., Any],
    photographs: Path,
    architecture: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # Else the zoo would cut the embedding of SDXL's sizes.
    monkeypatch.setattr(zoo, "LARGE", 10**6)
    changed, vae = WIDE[architecture]
    model = patcher(tiny(architecture, **changed))
    data = prepare(model=model, vae=vae().vae, held_out=1, trigger="qwx", mirror=True)
    # The cat is held out, and the rocket has "left" in its caption, so that only the cup is mirrored.
    assert len(data["latents"]) == 3 and len(data["validation_latents"]) == 1
    cup, mirrored, rocket = (one["samples"] for one in data["latents"])
    assert data["positive"][0] is data["positive"][1] or architecture == "SDXL"
    assert not torch.equal(cup, mirrored) and not torch.equal(mirrored, rocket)
    shapes = {tuple(one["samples"].shape[-2:]) for one in data["latents"]}
    # 3 : 2 lies between 128 x 128 and 256 x 64, and 128 x 128 is nearer.
    assert shapes == {(16, 16)}
    assert data["masks"] == [] and len(data["captions"]) == len(data["positive"]) == 3
    assert data["captions"][0] == "qwx, a cup on a table" and data["validation_captions"] == ["qwx, a cat"]
    node = host.nodes.NODE_CLASS_MAPPINGS["LycorisTrain"]
    # Captions as texts are for text encoders that are trained.
    linked = {one.id for one in node.GET_SCHEMA().inputs} - {"captions", "validation_captions"}
    given: dict[str, Any] = {name: value for name, value in data.items() if name in linked}
    given["empty_caption"] = [data["empty_caption"]]
    given |= {"model": model, "steps": 2, "rank": 2, "batch_size": 2, "validate_every": 2}
    report = train(host, tmp_path, **given)["report"]
    assert "with a mask" not in report and "Held-out loss" in report
    assert f"{len(data['latents'])} latents" in report and "captions dropped" in report
    told = data["positive"][0][0][1]
    if architecture == "SDXL":
        # The middle square is kept. The crop counts pixels after resizing: half of the excess width.
        width, height = told["width"], told["height"]
        assert (width, height) == (600, 400)
        assert told["crop_w"] == round((PIXELS * width / height - PIXELS) / 2) and told["crop_h"] == 0
        assert told["target_width"] == told["target_height"] == PIXELS
    else:
        assert "width" not in told


def test_pictures_are_learned_in_several_resolutions(
    host: Host, prepare: Callable[..., Any], photographs: Path, model: Any, vae: Counted, tmp_path: Path
) -> None:
    """Each picture and its mask as from a run in each resolution alone, the largest first."""
    half = Image.new("L", picture(CUP).size)
    half.paste(255, (0, 0, 300, 400))
    half.save(photographs / "coffee_mask.png")
    Image.new("RGB", (64, 64), "red").save(photographs / "small.png")
    (photographs / "small.txt").write_text("a dot", encoding="utf-8")
    (photographs / "2_more").mkdir()
    for ending in (".png", ".txt"):
        (photographs / f"chelsea{ending}").rename(photographs / "2_more" / f"chelsea{ending}")
    sides = (192, 128, 64)
    given: dict[str, Any] = {"held_out": 1, "enlarge": False}
    alone = [prepare(**given, resolution=side) for side in sides]
    called = vae.calls
    # Checked as the host does it.
    checks = host.module("lycoris_nodes.schema.checks")
    data = prepare(**given, resolution=" 64, 192,128, 64")
    assert vae.calls == called, "encoded for one resolution, and again for several"
    for name in ("latents", "masks", "captions", "validation_latents"):
        count = len(data[name]) // len(sides)
        assert count * len(sides) == len(data[name]) > 0

        def key(one: Any) -> Any:
            one = one["samples"] if isinstance(one, dict) else one
            return one if isinstance(one, str) else (*one.shape, float(one.double().square().sum()))

        wanted = [key(one) for each in alone for one in each[name]]
        assert sorted(map(key, data[name])) == sorted(wanted)
    # A small picture that has one size in all of them is one object that counts as often.
    assert len({id(one) for one in data["latents"]}) < len(data["latents"])
    assert "4 pictures in set" in data["report"] and "each in the resolutions 192, 128, 64" in data["report"]
    # The training goes on with them.
    linked = {name: data[name] for name in ("latents", "positive", "masks")}
    common = {"model": model, **linked, "rank": 2, "batch_size": 2, "checkpoint_every": 2}
    train(host, tmp_path, **common, steps=2)
    again = prepare(**given, resolution="64,128,192")
    common |= {name: again[name] for name in ("latents", "positive", "masks")}
    report = train(host, tmp_path, **common, steps=4, resume=True)["report"]
    assert "went on from" in report
    assert checks.READ[checks.USUAL_NUMBERS]("auto: 512") == []


def test_all_shapes_of_pictures_keep_them(host: Host) -> None:
    sizes = dataset(host, "sizes")
    for resolution, grid in ((512, 64), (1024, 16), (1000, 96), (100, 64)):
        step = sizes.step_of(grid)
        assert step % grid == 0 and step >= 64
        for source in ((512, 512), (4000, 3000), (333, 1000), (5000, 1000), (64, 80), (1, 900)):
            for enlarge in (True, False):
                fitted = sizes.fit(source, resolution, step, enlarge=enlarge)
                width, height = fitted.size
                left, top, right, bottom = fitted.box
                assert width % step == height % step == 0
                assert width * height <= max(resolution**2, step**2)
                assert 0 <= left < right <= source[0] and 0 <= top < bottom <= source[1]
                # Nothing is stretched, and only one side is cut.
                assert (right - left) / (bottom - top) == pytest.approx(width / height)
                assert right - left == pytest.approx(source[0]) or bottom - top == pytest.approx(source[1])
                assert enlarge or width * height <= max(source[0] * source[1], step**2)
    # Ordinary shapes lose little.
    assert sizes.fit((4000, 3000), 1024, 64, enlarge=True).size == (1152, 896)
    assert sizes.fit((4000, 3000), 1024, 64, enlarge=True).lost < 0.04


def test_a_folder_is_read_as_it_is(
    host: Host, plain: Patched, prepare: Callable[..., Any], folder: Path, vae: Counted
) -> None:
    """Encodings of captions, masks by name and in a folder, transparency, rotation, repeats, other files."""
    cat = picture(CAT).crop((0, 0, 256, 256)).resize((PIXELS, PIXELS))
    pixels = torch.from_numpy(np.asarray(cat, np.float32) / 255)[None]
    texts = {
        "bom": codecs.BOM_UTF8 + "a café\r\nby night\r\n".encode(),
        "utf16": codecs.BOM_UTF16_LE + "a café by night".encode("utf-16-le"),
        "plain": "a café by night".encode(),
    }
    endings = {"bom": ".PNG", "utf16": ".jfif", "plain": ".avif"}
    for name, raw in texts.items():
        # Read by what is in them.
        cat.save(folder / f"{name}{endings[name]}", "PNG")
        (folder / f"{name}.TXT").write_bytes(raw)
    # Turned to the left, and marked to be turned back.
    exif = Image.Exif()
    exif[274] = 6
    cat.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    deep = folder / "4_a_cat"
    (deep / "masks").mkdir(parents=True)
    half = Image.new("L", (2 * PIXELS, 2 * PIXELS))
    half.paste(255, (0, 0, PIXELS, 2 * PIXELS))
    for name in ("by_folder", "by_name", "clear"):
        cat.save(deep / f"{name}.png")
    half.save(deep / "masks" / "by_folder.png")
    # White strokes on nothing. What is transparent is often stored as white.
    strokes = Image.new("RGBA", half.size, "white")
    strokes.putalpha(half)
    strokes.save(deep / "by_name-masklabel.png")
    clear = cat.convert("RGBA")
    clear.putalpha(half.resize((PIXELS, PIXELS)))
    clear.save(deep / "clear.png")
    twice = folder / "2_twice"
    twice.mkdir()
    blank = Image.new("RGB", cat.size, "white")
    cat.save(twice / "again.tiff", save_all=True, append_images=[blank])
    for name in ("wave.webp", "wave.png"):
        cat.save(twice / name, save_all=True, append_images=[blank])
    (folder / "notes.md").write_text("not a caption", encoding="utf-8")
    (folder / "gone.txt").write_text("of no picture", encoding="utf-8")
    (folder / "BOM.PNG").write_bytes(b"of a name that is there in other letters")
    (deep / "masks" / "by_folder.txt").write_text("not a mask", encoding="utf-8")
    cat.save(folder / "lost_mask.png")
    cat.save(deep / "lost_control.png")
    (folder / "reg" / "1_cat").mkdir(parents=True)
    cat.save(folder / "reg" / "1_cat" / "cat.png")
    cat.save(folder / "film.gif")
    (folder / "film.txt").write_text("of a clip", encoding="utf-8")
    (folder / "told.csv").write_text("bom,a cat", encoding="utf-8")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.png").write_bytes(b"")

    data = prepare(trigger="qwx", keep=False)
    # Once, twice and four times, in the order of folders and names.
    assert len(data["latents"]) == 4 * 1 + 1 * 2 + 3 * 4
    bom, named, turned, utf16, *_ = data["positive"]
    assert bom is named and bom is utf16
    for found, text in ((bom, "qwx, a café by night"), (turned, "qwx"), (data["positive"][-1], "qwx, a cat")):
        assert torch.equal(found[0][0], encoded(host, plain.clip, text)[0][0])
    latents = [one["samples"] for one in data["latents"]]
    with torch.inference_mode():
        wanted = vae.vae.encode(pixels)
    # All but the transparent one are the same picture, and repeats are the same tensor.
    clears = [not torch.equal(latent, wanted) for latent in latents]
    assert sum(clears) == 4 and len({latent.data_ptr() for latent in latents}) == 8
    assert [tuple(mask.shape) for mask in data["masks"]] == [(1, PIXELS, PIXELS)] * 18
    masks = [mask for mask in data["masks"] if not bool((mask == 1).all())]
    assert len(masks) == 12
    for mask in masks:
        assert (
            float(mask[0, :, : PIXELS // 2 - 2].min()) == 1
            and float(mask[0, :, PIXELS // 2 + 2 :].max()) == 0
        )
    report = data["report"]
    for words in (
        "8 pictures in set",
        "4_a_cat: 3, each 4 times",
        "without a text file: 5 (turned.png, 2_twice/again.tiff, 4_a_cat/by_folder.png and 2 more)",
        "with several pages or frames, of which the first is learned: 1 (2_twice/again.tiff)",
        "with a mask: 3 (4_a_cat/by_folder.png, 4_a_cat/by_name.png, 4_a_cat/clear.png)",
        "left out: 4 (4_a_cat/masks/by_folder.txt, BOM.PNG, gone.txt and 1 more)",
        "left out, because they are named as masks or references and have no caption of their own: "
        "2 (4_a_cat/lost_control.png, lost_mask.png)",
        "left out, because they are for regularisation, which takes a node of its own: 1 (reg)",
        "clips, which this model does not learn: 3 (2_twice/wave.png, 2_twice/wave.webp, film.gif)",
        "no captions were taken from: 1 (told.csv)",
        "nothing is kept on disk",
    ):
        assert words in report
    # With white behind it, the transparent half is not a mask.
    white = prepare(trigger="qwx", keep=False, transparent="white")
    assert sum(not bool((mask == 1).all()) for mask in white["masks"]) == 8


def test_choices_of_a_strangers_caption_take_little(host: Host) -> None:
    texts = dataset(host, "texts")
    tracemalloc.start()
    assert texts.choices_of("{" + "|" * 99_000) == ["{" + "|" * 99_000]
    found = texts.choices_of("a" * 50_000 + "{b" + "|" * 49_000 + "}")
    assert found == ["a" * 50_000 + "b", "a" * 50_000]
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def test_repeats_count_by_their_proportion(host: Host, folder: Path) -> None:
    """Only the proportion counts: 20 and 30 million repeats become 2 and 3."""
    for name in ("20000000_a", "30000000_b"):
        (folder / name).mkdir()
        picture(CAT).save(folder / name / "cat.png")
    found = dataset(host, "folder").PictureFolder.of(folder)
    assert [one.repeats for one in found.pictures] == [2, 3]


def test_captions_are_taken_by_the_letter(
    host: Host,
    plain: Patched,
    prepare: Callable[..., Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The conditionings are those of the texts that a user would write into CLIP Text Encode."""
    texts = {
        "five": "a {{tall|wide} red|blue} cup",
        "one": "a cat",
        "two": "a (small) cat",
        "three": "in a frame, [trigger]",
        "four": "QWX by the sea",
    }
    for name, text in texts.items():
        picture(CAT).resize((64, 64)).save(folder / f"{name}.png")
        if name not in ("two", "three"):
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    # A list of captions is read for those without a file of their own. Its texts may have any line separator.
    told = {**texts, "one": "a dog", "TWO": "a\u2028(small)\x85cat"}
    del told["two"]
    rows = [{"file_name": f"{name}.png", "text": text} for name, text in told.items()]
    rows.append({"file_name": "gone.png", "caption": "gone"})
    listed = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "metadata.jsonl").write_bytes(f"{listed}\r\n\r\n".encode("utf-16"))
    data = prepare(trigger="qwx", resolution=64)
    assert "without a text file" not in data["report"] and "left out" not in data["report"]
    cups = [f"qwx, a {kind} cup" for kind in ("tall red", "blue", "wide red")]
    wanted = [*cups, "QWX by the sea", "qwx, a cat", "in a frame, qwx", r"qwx, a \(small\) cat", ""]
    for found, text in zip([*data["positive"], data["empty_caption"]], wanted, strict=True):
        ((tensor, more),) = encoded(host, plain.clip, text)
        assert torch.equal(found[0][0], tensor) and torch.equal(
            found[0][1]["pooled_output"], more["pooled_output"]
        )
    tags = prepare(trigger="qwx", resolution=64, tag_orders=3, kept_tags=0)
    # Two tags have only two orders, and one tag has one. Each choice is learned in all orders.
    assert len(tags["latents"]) == len(tags["positive"]) == 3 * 2 + 1 + 2 + 2 + 2

    # As the tokenizer of LongCat does, which keeps 512 tokens.
    whole = plain.clip.tokenizer.tokenize_with_weights
    monkeypatch.setattr(
        plain.clip.tokenizer,
        "tokenize_with_weights",
        lambda text, *args, **kwargs: whole(" ".join(text.split()[:60]), *args, **kwargs),
    )
    for name, words in (("one", 60), ("two", 61)):
        (folder / f"{name}.txt").write_text("meow " * words, encoding="utf-8")
    # Refused unless it is asked for, see `BAD`.
    Image.new("RGB", (10000, 10)).save(folder / "two.png")
    report = prepare(resolution=64, keep=False, cut_off=1.0)["report"]
    assert "5 pictures" in report and "which cuts off its end: 1 (two.png)" in report


TOLD: dict[str, tuple[str, Any, dict[str, str]]] = {
    "JSON of a picture": ("in/a.json", {"caption": "a cat", "url": "x"}, {"in/a.png": "a cat"}),
    "JSON of a picture with tags": (
        "in/a.json",
        {"caption": "a cat", "tags": ["sofa", "indoors"]},
        {"in/a.png": "a cat, sofa, indoors"},
    ),
    "JSON of the host": ("in/a.json", {"nodes": [], "version": 0.4}, {}),
    "JSONL of Hugging Face": ("metadata.jsonl", [{"file_name": "in/a.png", "text": "a"}], {"in/a.png": "a"}),
    "JSONL of musubi-tuner": (
        "train_metadata.jsonl",
        [{"image_path": r"C:\data\a.png", "caption": "a"}, {"image_path": "in/b.png", "caption": "b"}],
        {"in/a.png": "a", "in/b.png": "b"},
    ),
    "CSV of Hugging Face": (
        "in/metadata.csv",
        'file_name,text\r\na.png,"a cat, ""asleep"""\r\n\r\nb.png,b\r\n',
        {"in/a.png": 'a cat, "asleep"', "in/b.png": "b"},
    ),
    "JSON of sd-scripts": (
        "meta_cap.json",
        {"a": {"caption": "a", "tags": "b, c"}, "/data/b.png": {"tags": "d"}, "c": {"image_size": [8, 8]}},
        {"in/a.png": "a, b, c", "in/b.png": "d"},
    ),
    "JSON of texts": ("in/captions.json", {"a.png": "a"}, {"in/a.png": "a"}),
    "metadata of something else": ("metadata.json", {"version": 3, "name": "set"}, {}),
    "an unknown list": ("labels.csv", "a.png,a", {}),
}


@pytest.mark.parametrize("form", TOLD)
def test_captions_of_other_tools_are_taken(host: Host, folder: Path, form: str) -> None:
    name, content, wanted = TOLD[form]
    (folder / "in").mkdir()
    for one in ("a", "b"):
        Image.new("RGB", (64, 64)).save(folder / "in" / f"{one}.png")
    if isinstance(content, list):
        content = "\n".join(map(json.dumps, content))
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_bytes(text.encode())
    found = dataset(host, "folder").PictureFolder.of(folder)
    assert {one.name: one.listed for one in found.pictures if one.listed} == wanted
    # A list that gave no caption is named.
    left_out = {str(reason): names for reason, names in found.left_out.items()}
    untold = left_out.get("no captions were taken from", ())
    assert list(untold) == ([] if wanted else [name])


def test_what_was_encoded_is_kept_by_its_content(
    prepare: Callable[..., Any], photographs: Path, vae: Counted, tmp_path: Path, plain: Patched
) -> None:
    def calls(**inputs: Any) -> tuple[int, dict[str, Any]]:
        before = vae.calls
        data = prepare(**inputs)
        return vae.calls - before, data

    first, data = calls()
    assert first == 3 and "encoded: 3 pictures and 4 captions of 7" in data["report"]
    second, again = calls()
    assert second == 0 and "encoded: 0 pictures and 0 captions of 7" in again["report"]
    for one, other in zip(data["latents"], again["latents"], strict=True):
        assert torch.equal(one["samples"], other["samples"])
    for one, other in zip(data["positive"], again["positive"], strict=True):
        assert torch.equal(one[0][0], other[0][0]) and one[0][1].keys() == other[0][1].keys()
    # A picture under another name or with another time is the same; one with other bytes is not.
    (photographs / CAT).rename(photographs / "renamed.png")
    (photographs / "chelsea.txt").rename(photographs / "renamed.txt")
    assert calls()[0] == 0
    picture(ROCKET).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photographs / ROCKET)
    changed, data = calls()
    assert changed == 1 and "encoded: 1 picture and 0 captions" in data["report"]
    (photographs / "renamed.txt").write_text("another caption", encoding="utf-8")
    report = calls()[1]["report"]
    assert "encoded: 0 pictures and 1 caption" in report
    # The folder is named as the user knows it, not by its path on this machine.
    assert " GB in user/__lycoris/encoded" in report and str(tmp_path) not in report
    # A damaged file is replaced by a new one.
    kept = sorted((tmp_path / "user" / "__lycoris" / "encoded").glob("*.safetensors"))
    sizes = {path: path.stat().st_size for path in kept}
    for path in kept:
        path.write_bytes(path.read_bytes()[:-7])
    assert calls()[0] == 3
    assert all(path.stat().st_size in (sizes[path], sizes[path] - 7) for path in kept)
    assert calls()[0] == 0
    # Checkpoints lack this weight, and nothing reads it: after a restart it holds whatever memory held.
    with torch.no_grad():
        plain.clip.cond_stage_model.clip_l.transformer.text_projection.weight.add_(1.0)
    assert "encoded: 0 pictures and 0 captions of 7" in calls()[1]["report"]
    # Other settings, another VAE or another text encoder need new encodings.
    assert calls(resolution=192)[0] == 3
    other = Counted(4)
    with torch.no_grad():
        other.vae.first_stage_model.taesd_encoder[0].weight.mul_(1.5)
    prepare(vae=other.vae)
    assert other.calls == 3
    deeper = plain.clip.clone()
    deeper.clip_layer(-2)
    assert "encoded: 0 pictures and 4 captions" in prepare(clip=deeper)["report"]
    # An encoder with patches cannot be recognised, so nothing that it encodes is kept.
    patched = plain.clip.clone()
    key = next(key for key in patched.patcher.model_state_dict() if key.endswith("fc1.weight"))
    shape = patched.patcher.model_state_dict()[key].shape
    patched.add_patches({key: ("diff", (torch.randn(shape),))}, 1.0, 1.0)
    for _ in range(2):
        made = prepare(clip=patched)
        assert "encoded: 0 pictures and 4 captions" in made["report"]
    assert not torch.equal(made["empty_caption"][0][0], data["empty_caption"][0][0])
    # While the patches are loaded, the encoder without them is still recognised.
    assert "encoded: 0 pictures and 0 captions" in calls()[1]["report"]


def test_the_longest_unused_go_first(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = dataset(host, "kept")
    old = kept.Kept(tmp_path / "a" / "encoded")
    for number in range(4):
        old.fetch(f"k{number}", lambda number=number: {"latent": torch.full((1000,), float(number))})
        os.utime(old.folder / f"k{number}.safetensors", (number, number))
    size = (old.folder / "k0.safetensors").stat().st_size
    assert old.sweep() == 4 * size
    new = kept.Kept(old.folder, most=2 * size)
    assert torch.equal(new.fetch("k0", dict)["latent"], torch.zeros(1000)) and new.made == 0
    assert new.sweep() == 2 * size
    assert {path.stem for path in old.folder.iterdir()} == {"k0", "k3"}

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError

    # As on a network share, or where another process reads the file.
    with monkeypatch.context() as patched:
        patched.setattr(os, "utime", refuse)
        patched.setattr(Path, "unlink", refuse)
        kept_there = kept.Kept(old.folder, most=0)
        assert torch.equal(kept_there.fetch("k0", dict)["latent"], torch.zeros(1000))
        assert kept_there.sweep() == 2 * size


def test_stop_keeps_what_was_encoded(prepare: Callable[..., Any], photographs: Path, vae: Counted) -> None:
    import comfy.model_management

    begun = vae.calls
    vae.then = lambda: comfy.model_management.interrupt_current_processing(vae.calls - begun == 2)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            prepare()
    finally:
        vae.then = int
        comfy.model_management.interrupt_current_processing(False)
    assert vae.calls - begun == 2
    prepare()
    assert vae.calls - begun == 3


def test_the_host_runs_it_again_when_the_folder_changes(host: Host, photographs: Path) -> None:
    node = host.nodes.NODE_CLASS_MAPPINGS["LycorisDataset"]
    first = node.fingerprint_inputs(folder="set")
    assert node.fingerprint_inputs(folder="set", resolution=3) == first
    (photographs / "chelsea.txt").write_text("a cat, asleep", encoding="utf-8")
    second = node.fingerprint_inputs(folder="set")
    assert second != first
    # A caption counts by its text: another text of the same length and time is new, a later time is not.
    caption = photographs / "chelsea.txt"
    times = caption.stat().st_atime_ns, caption.stat().st_mtime_ns
    caption.write_text("a cat, awake!", encoding="utf-8")
    os.utime(caption, ns=times)
    assert node.fingerprint_inputs(folder="set") != second
    caption.write_text("a cat, asleep", encoding="utf-8")
    os.utime(caption, (1, 1))
    assert node.fingerprint_inputs(folder="set") == second
    # A link in the input folder counts as one of its folders; nothing else outside it does. An empty folder,
    # such as the host's own for 3D models, is not offered.
    (photographs.parent / "link").symlink_to(photographs)
    (photographs.parent / "3d" / "nothing").mkdir(parents=True)
    (photographs / "round").symlink_to(photographs.parent)
    assert node.define_schema().inputs[0].options == ["link", "set"]


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


BAD: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "empty": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        {},
        r"no pictures in the folder.*nothing",
    ),
    "only others": (
        lambda folder: [path.unlink() for path in folder.glob("*.*g")],
        {},
        r"no pictures.*chelsea\.txt, coffee\.txt",
    ),
    "outside": (lambda folder: None, {"folder": "../user"}, r"`folder`.*none of its choices|no such folder"),
    "absolute": (lambda folder: None, {"folder": "/etc"}, r"`folder`.*none of its choices|no such folder"),
    "braces": (
        lambda folder: (folder / "chelsea.txt").write_text("{a|b}" * 101),
        {},
        r"chelsea\.txt.*too many choices.*101 opening braces",
    ),
    "braces in a list": (
        lambda folder: (folder / "metadata.jsonl").write_text(
            json.dumps({"file_name": CAT, "text": "{a|b}" * 101})
        ),
        {},
        r"metadata\.jsonl: line 1: .*too many choices.*101 opening braces",
    ),
    "a list of captions with another line": (
        lambda folder: (folder / "metadata.jsonl").write_text('{"file_name": "a.png"}'),
        {},
        r"metadata\.jsonl: line 1: a line of the list.*a\.png.*expected .*text",
    ),
    "a JSON that is none": (
        lambda folder: (folder / "chelsea.txt").rename(folder / "chelsea.json"),
        {},
        r"chelsea\.json: the JSON with captions cannot be read.*Correct it",
    ),
    "a JSON with a number for a caption": (
        lambda folder: (
            (folder / "chelsea.txt").unlink(),
            (folder / "chelsea.json").write_text('{"caption": 5}'),
        ),
        {},
        r"chelsea\.json: the caption in a JSON is not a text.*caption is of the type int",
    ),
    "tags that are not texts": (
        lambda folder: (folder / "meta_cap.json").write_text('{"chelsea": {"tags": [["a"]]}}'),
        {},
        r"meta_cap\.json: chelsea: a line of the list.*tags is of the type list",
    ),
    "a table of captions without their column": (
        lambda folder: (folder / "metadata.csv").write_text("file_name,title\nchelsea.png,a cat"),
        {},
        r"metadata\.csv: line 2: a line of the list.*found file_name, title.*file_name, text",
    ),
    "a list that is nested too much": (
        lambda folder: (folder / "meta_cap.json").write_text("[" * 600_000),
        {},
        r"meta_cap\.json: the list of captions is nested too much.*600000",
    ),
    "lists that are too long together": (
        lambda folder: [(folder / f"metadata{n}.jsonl").write_bytes(b" " * 9_000_000) for n in ("", "_2")],
        {},
        r"metadata_2\.jsonl: the file is too long for a list of captions.*9000000 bytes.*at most 7000000",
    ),
    "only masks": (
        lambda folder: [path.rename(folder / f"{path.stem}_mask.png") for path in folder.glob("*.*g")],
        {"trigger": "qwx"},
        r"no pictures.*named as masks.*chelsea_mask\.png.*Put their pictures there",
    ),
    "only clips": (
        lambda folder: [path.rename(folder / f"{path.stem}.mp4") for path in folder.glob("*.*g")],
        {"trigger": "qwx"},
        r"no pictures.*clips, which this model does not learn: chelsea\.mp4.*a model that makes videos",
    ),
    "no caption": (
        lambda folder: (folder / "chelsea.txt").unlink(),
        {},
        r"pictures without a caption.*1 of 3: chelsea\.png.*trigger",
    ),
    "empty caption": (
        lambda folder: (folder / "chelsea.txt").write_text(" \n"),
        {},
        r"pictures without a caption.*chelsea\.png",
    ),
    "caption in another encoding": (
        lambda folder: (folder / "chelsea.txt").write_bytes("café".encode("cp1252")),
        {},
        r"chelsea\.txt.*UTF-8.*byte 3",
    ),
    "cut off": (lambda folder: broken(folder / CAT), {}, r"chelsea\.png.*cannot be read"),
    "no picture": (
        lambda folder: (folder / CAT).write_text("<html>"),
        {},
        r"chelsea\.png.*cannot be read.*no picture",
    ),
    "huge": (
        lambda folder: Image.new("1", (20000, 9000)).save(folder / CAT),
        {},
        r"chelsea\.png.*cannot be read.*180000000 pixels.*Make it smaller",
    ),
    "long and narrow": (
        lambda folder: Image.new("1", (10000, 10)).save(folder / CAT),
        {},
        r"chelsea\.png.*would be cut off.*100% of 10000 x 10.*at most 50%.*raise `cut_off`",
    ),
    "mask of another shape": (
        lambda folder: Image.new("L", (90, 90), 255).save(folder / "chelsea_mask.png"),
        {},
        r"chelsea_mask\.png.*another shape.*90 x 90.*451 x 300",
    ),
    "black mask": (
        lambda folder: Image.new("L", (451, 300)).save(folder / "chelsea_mask.png"),
        {},
        r"chelsea_mask\.png.*leaves nothing",
    ),
    "nothing but transparent": (
        lambda folder: Image.new("RGBA", (451, 300)).save(folder / CAT),
        {},
        r"chelsea\.png.*transparent everywhere.*opaque.*`transparent`",
    ),
    "all held out": (lambda folder: None, {"held_out": 3}, r"held_out leaves no picture.*has 3.*found 3"),
    "low resolution": (lambda folder: None, {"resolution": 32}, r"resolution.*too low.*32.*at least 64"),
    "huge resolution": (lambda folder: None, {"resolution": 1 << 20}, r"resolution.*1048576.*at most 16384"),
    "cut off, in several resolutions": (
        lambda folder: broken(folder / CAT),
        {"resolution": "64, 128"},
        r"^(?!.*files).*chelsea\.png.*cannot be read",
    ),
    "a resolution of 0 among others": (lambda folder: None, {"resolution": "0, 64"}, r"resolution.*up to 8"),
    "too many resolutions": (
        lambda folder: None,
        {"resolution": ", ".join(str(64 * n) for n in range(1, 10))},
        r"resolution.*up to 8 with commas",
    ),
    "part of a pixel": (lambda folder: None, {"resolution": 768.5}, r"resolution.*768\.5.*whole number"),
    "no clip": (lambda folder: None, {"clip": None}, r"`clip` cannot be used.*text encoder"),
    "no vae": (lambda folder: None, {"vae": None}, r"`vae` cannot be used.*loaded VAE"),
    "too many repeats": (
        lambda folder: shutil.copytree(folder, folder / "20260131_trip"),
        {},
        r"20260131_trip.*too often.*Rename",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(host: Host, prepare: Callable[..., Any], photographs: Path, case: str) -> None:
    change, inputs, words = BAD[case]
    change(photographs)
    with pytest.raises(host.ops.LycorisError, match=words):
        prepare(**inputs)


@pytest.mark.parametrize("header", [True, False], ids=["without a header", "cut off"])
def test_all_bad_pictures_are_named_at_once(
    host: Host, prepare: Callable[..., Any], photographs: Path, header: bool
) -> None:
    pictures = sorted(photographs.glob("*.png"))
    bad = [pictures[0], pictures[-1]]
    for path in bad:
        path.write_bytes(b"<html>" if header else path.read_bytes()[:-2000])
    with pytest.raises(host.ops.TrainError, match="2 files cannot be used") as caught:
        prepare()
    for path in bad:
        assert path.name in str(caught.value)
    assert str(caught.value).count("the picture cannot be read") == 1


def test_a_folder_inside_that_cannot_be_read_is_named(
    host: Host, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("inner", "lost+found"):
        (photographs / name).mkdir()
    scandir = os.scandir

    # The superuser may read everything.
    def refuse(path: str) -> Any:
        if Path(path).name in ("inner", "lost+found"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    read = dataset(host, "folder").PictureFolder.of
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(host.ops.TrainError, match=r"inner: the folder cannot be read.*Permission denied"):
            read(photographs)
        # Folders of the system are not the user's, and the root of a disk has them.
        (photographs / "inner").rmdir()
        assert read(photographs).pictures


def test_a_vae_of_another_model_is_named(host: Host, prepare: Callable[..., Any], photographs: Path) -> None:
    with pytest.raises(host.ops.LycorisError, match=r"chelsea\.png.*not of this model.*16.*VAE that belongs"):
        prepare(vae=Counted(16).vae)
