"""The keys of the cache of encoded pictures: all that changes what is encoded changes its key."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hosting import Host

pytestmark = pytest.mark.host


def test_each_part_of_a_key_counts(host: Host) -> None:
    encode, plan, sizes, clip = (
        host.module(f"lycoris_nodes.dataset.{name}") for name in ("encode", "plan", "sizes", "clip")
    )

    def fit(side: int) -> Any:
        return sizes.middle((side, side), (side, side))

    def encoder(identity: str | None) -> Any:
        return plan.Encoder(print, identity)

    source = encode.Source(Path("a"), b"a", fit(64), False, None, clip.Cut(0, 1), 8.0)
    of_source = {"content": b"b", "fit": fit(128), "mirrored": True, "background": "white"}
    of_source |= {"cut": clip.Cut(1, 1), "rate": 9.0}
    key = encode.CacheKey("picture", (encoder("a"),), source)
    of_key = {"what": "sound", "encoders": (encoder("b"),), "target": None, "mask": source}
    of_key |= {"controls": (source,), "references": (source,), "reference_masks": (source,)}
    of_key |= {"listener": encoder("a"), "text": "b", "how": ("node",)}
    # A part that is new here must be tried here too.
    assert of_key.keys() == {each.name for each in fields(key)}
    assert of_source.keys() == {each.name for each in fields(source)} - {"path"}
    changed = [replace(key, **{name: value}) for name, value in of_key.items()]
    changed += [replace(key, target=replace(source, **{name: value})) for name, value in of_source.items()]
    shorts = [each.short for each in (key, *changed)]
    assert None not in shorts and len(set(shorts)) == len(shorts)
    # A file counts by its content, not by its name.
    assert replace(key, target=replace(source, path=Path("b"))).short == key.short
    # What cannot be recognised is not kept.
    for unknown in ({"encoders": (encoder(None),)}, {"listener": encoder(None)}, {"text": "embedding:b"}):
        assert replace(key, **unknown).short is None


def test_all_that_a_clip_is_encoded_from_is_in_its_key(host: Host, tmp_path: Path) -> None:
    encode, plan, sizes, clip, folder, kept = (
        host.module(f"lycoris_nodes.dataset.{name}")
        for name in ("encode", "plan", "sizes", "clip", "folder", "kept")
    )
    given, node = (host.module(f"lycoris_nodes.host.{name}") for name in ("given", "families.node"))
    names = ("a.mp4", "control.mp4", "still.png", "still_mask.png", "mask.png")
    target, control, still, still_mask, mask = files = [tmp_path / name for name in names]
    for path in files:
        path.write_bytes(path.name.encode())
    found = folder.Found(
        target,
        "a",
        mask=mask,
        references=(control, still),
        reference_masks=((still, still_mask),),
        is_clip=True,
    )
    takes = node.Takes(("video",), "image", reference_masks="masks", hears=print)
    giving = given.Given("Node", print, ends="first", seen=True, takes=takes)
    facts = clip.ClipFacts((100, 100), 9, sounds=True)
    # Of another shape than the clip, so that it is fitted by itself.
    of_control = (clip.ClipFacts((90, 150), 9),)
    view = plan.View(mirrored=False, cut=clip.Cut(0, 5))
    settings = plan.PictureSettings((128,), 64, frames=9, background="white")
    picture = plan.Planned(
        found, 128, sizes.middle((100, 100), (128, 128)), ("a text",), False, (view,), facts, of_control
    )
    vae, text, vision, hearing = [plan.Encoder(print, name) for name in "abcd"]
    shown = plan.Shown(None, None, given=giving, vision=vision, hearing=hearing)

    def short(encoder: Any = vae, how: Any = settings, sees: Any = shown, **changes: Any) -> tuple[str, str]:
        """The keys of the clip, and of a caption that is encoded together with it."""
        encoding = encode.Encoding(how, encoder, text, kept.Kept(None), print, sees)
        of_view = replace(
            view, **{name: changes.pop(name) for name in ("cut", "mirrored") if name in changes}
        )
        keys: list[str] = []

        class FetchedError(Exception):
            pass

        def fetch(key: str, make: Any) -> Any:
            keys.append(key)
            raise FetchedError

        encoding.kept.fetch = fetch
        for begin in (encoding.view, lambda *of: encoding.caption_beside(*of, "a text")):
            with pytest.raises(FetchedError):
                begin(replace(picture, **changes), of_view)
        return keys[0], keys[1]

    first = short()
    assert short() == first
    other = replace(vae, identity="e")
    changed = {
        "step": short(how=replace(settings, step=32)),
        "enlarge": short(how=replace(settings, enlarge=False)),
        "rate": short(how=replace(settings, frame_rate=9.0)),
        "background": short(how=replace(settings, background=None)),
        "VAE": short(other),
        "audio encoder": short(sees=replace(shown, hearing=other)),
        "no audio encoder": short(sees=replace(shown, hearing=None)),
        "node": short(sees=replace(shown, given=replace(giving, node="Other"))),
        "ends": short(sees=replace(shown, given=replace(giving, ends="none"))),
        "inputs": short(sees=replace(shown, given=replace(giving, takes=replace(takes, controls=("b",))))),
        "masks": short(sees=replace(shown, given=replace(giving, takes=replace(takes, reference_masks="")))),
        "resolution": short(resolution=192),
        "fit": short(fit=sizes.middle((100, 100), (64, 64))),
        "cut": short(cut=clip.Cut(1, 5)),
        "mirrored": short(mirrored=True),
    }
    for path in files:
        before = path.read_bytes()
        path.write_bytes(b"other")
        changed[path.name] = short()
        path.write_bytes(before)
    for number in (0, 1):
        keys = [first[number], *(each[number] for each in changed.values())]
        assert len(set(keys)) == len(keys), [
            name for name, each in changed.items() if keys.count(each[number]) > 1
        ]
    assert short(sees=replace(shown, vision=other))[0] != first[0]
