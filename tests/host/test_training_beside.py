"""What belongs to a clip in a folder: clips that control it, a reference, a mask, and its sound."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosting import Host, patcher
from PIL import Image
from test_training_given import in_training
from test_training_pairs import drawing, film, pixels
from test_training_sounds import film as film_with_sound
from torch import Tensor
from trainable import PIXELS, WORD_WIDTH, Counted, by_the_sampler, same, tiny, train

from tests.harness.zoo import SPECIES

pytestmark = pytest.mark.host

LENGTH = 9
"""Frames of a clip."""


@dataclass(frozen=True)
class Row:
    """A model, the host's node for it, and that node's inputs for what is in the folder."""

    architecture: str
    node: str
    controls: tuple[str, ...] = ()
    reference: str = ""
    mask: str = ""
    layers: int = 0
    """The layers of the audio encoder, if the model hears."""
    width: int = 8
    """Their width."""
    first: str = ""
    changed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    config: str = ""


_MORE = {"in_dim": 20, "out_dim": 16}
_IN, _OUT = {"in_dim": 16, "out_dim": 16}, {"out_dim": 16}
ROWS: Mapping[str, Row] = {
    "VACE": Row(
        "Wan VACE",
        "WanVaceToVideo",
        ("control_video",),
        "reference_image",
        "control_masks",
        changed={**_IN, "vace_in_dim": 96},
    ),
    "camera": Row("Wan camera", "WanCameraImageToVideo", first="start_image", changed=_OUT),
    "control": Row(
        "Wan 2.1 i2v",
        "WanFunControlToVideo",
        ("control_video",),
        first="start_image",
        changed={"in_dim": 48, **_OUT},
        config="WAN21_FunControl2V",
    ),
    "control of 2.2": Row(
        "Wan 2.1 i2v",
        "Wan22FunControlToVideo",
        ("control_video",),
        "ref_image",
        changed={"in_dim": 52, **_OUT},
    ),
    "HuMo": Row(
        "Wan HuMo",
        "WanHuMoImageToVideo",
        (),
        "ref_image",
        layers=33,
        width=1280,
        changed={"audio_token_num": 16, **_OUT},
    ),
    "S2V": Row(
        "Wan S2V", "WanSoundImageToVideo", ("control_video",), "ref_image", layers=25, width=16, changed=_IN
    ),
    "Animate": Row(
        "Wan Animate",
        "WanAnimateToVideo",
        # Not `face_video`: the network for faces is not small.
        ("pose_video",),
        "reference_image",
        changed={"in_dim": 36, **_OUT},
    ),
    "SCAIL": Row("Wan SCAIL", "WanSCAILToVideo", ("pose_video",), "reference_image", changed=_MORE),
    "SCAIL 2": Row(
        "Wan SCAIL 2", "WanSCAILToVideo", ("pose_video", "pose_video_mask"), "reference_image", changed=_MORE
    ),
    "dancer": Row("WanDancer", "WanDancerVideo", first="start_image", changed=_OUT),
}


class Hearing:
    """An audio encoder of random layers, in the form that the host's have."""

    def __init__(self, layers: int, width: int) -> None:
        self.model, self.dtype = torch.nn.Linear(1, width * layers), torch.float32
        self.patcher, self.calls = patcher(self.model), 0
        self.layers = layers

    def encode_audio(self, waveform: Tensor, rate: int) -> dict[str, Any]:
        assert rate == 16000
        self.calls += 1
        # Fifty values a second.
        heard = waveform.mean(1)[:, ::320, None]
        layers = list(self.model(heard).detach().chunk(self.layers, -1))
        return {
            "encoded_audio": layers[-1],
            "encoded_audio_all_layers": layers,
            "audio_samples": waveform.shape[2],
        }


@pytest.mark.soak
@pytest.mark.parametrize("name", ROWS)
def test_a_clip_is_trained_with_what_belongs_to_it_as_the_hosts_node_gives_it(
    host: Host,
    prepare: Callable[..., Any],
    folder: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = ROWS[name]
    path = film_with_sound(folder / "a.mkv")
    shown = film(tmp_path / "b.mp4", 25, 25)
    for number in range(len(row.controls)):
        (folder / f"a_control_{number}.mp4").write_bytes(shown.read_bytes())
    if row.reference:
        drawing(folder / "a_reference.png", "green", (96, 64))
    if row.mask:
        Image.new("L", (PIXELS, PIXELS), 255).save(folder / "a_mask.png")
    if row.config:
        monkeypatch.setitem(SPECIES, row.architecture, replace(SPECIES[row.architecture], config=row.config))
    # Cut, the network for voices could not run.
    model = tiny(row.architecture, cut=name != "HuMo", **{"text_dim": WORD_WIDTH, **row.changed})
    vae, hearing = Counted(16, video=True), Hearing(row.layers or 1, row.width)
    given: dict[str, Any] = {"model": patcher(model), "vae": vae.vae, "trigger": "qwx", "frames": LENGTH}
    # The host's node for S2V counts 16 frames a second.
    rate = 16 if name == "S2V" else 25
    given |= {"frame_rate": rate, "first_frames": "first" if row.first else "none"}
    if row.layers:
        given["audio_encoder"] = hearing
    data = prepare(**given)
    called = vae.calls, hearing.calls
    again = prepare(**given)
    assert (vae.calls, hearing.calls) == called and same(again["positive"], data["positive"])

    clip, sizes = (host.module(f"lycoris_nodes.dataset.{one}") for one in ("clip", "sizes"))
    whole, cut = sizes.middle((PIXELS, PIXELS), (PIXELS, PIXELS)), clip.Cut(0, LENGTH)
    told: dict[str, Any] = {one: clip.pixels_of_clip(shown, cut, rate, whole) for one in row.controls}
    if row.reference:
        told[row.reference] = pixels(folder / "a_reference.png")
    if row.mask:
        told[row.mask] = torch.ones(LENGTH, PIXELS, PIXELS)
    if row.layers:
        told["audio_encoder_output"] = hearing.encode_audio(clip.sound_of(path, cut, rate, 16000), 16000)
    if row.first:
        told[row.first] = clip.pixels_of_clip(path, clip.Cut(0, 1), rate, whole)
    node = host.nodes.NODE_CLASS_MAPPINGS[row.node]
    known = {
        one.id: one.default for one in node.GET_SCHEMA().inputs if getattr(one, "default", None) is not None
    }
    size = {"width": PIXELS, "height": PIXELS, "length": LENGTH} | (
        {"batch_size": 1} if "batch_size" in known else {}
    )
    text = [[torch.zeros(1, 5, WORD_WIDTH), {}]]
    with torch.inference_mode():
        made = host.run(row.node, **{**known, **size, **told}, positive=text, negative=text, vae=vae.vae)
    ((_, wanted),), ((words, found),) = made[0], data["positive"][0]
    assert set(wanted) <= set(found)
    assert [key for key in wanted if not same(found[key], wanted[key])] == []
    # The latent is as long as the node's own, which begins with the reference where the model makes it again.
    (latent,) = (one["samples"] for one in data["latents"])
    assert latent.shape == made[2]["samples"].shape

    with_it = [[words, {**wanted, "frame_rate": rate}]]
    called_with = by_the_sampler(model, with_it, made[2]["samples"])
    del called_with["x"], called_with["sigma"]
    trained = in_training(host, model, data["positive"][0], made[2]["samples"])
    assert trained.keys() == called_with.keys()
    assert [key for key in trained if not same(trained[key], called_with[key])] == []
    how: dict[str, Any] = {"steps": 6, "rank": 4, "learning_rate": 1e-2, "warmup": 0, "validate_every": 6}
    how |= {one: data[one] for one in ("latents", "positive")}
    how |= {f"validation_{one}": data[one] for one in ("latents", "positive")}
    result = train(host, tmp_path, model=patcher(model), preset="full", **how)
    losses = dict(result["loss_map"]["validation"])
    assert losses[6] < losses[0]


def test_what_no_model_can_learn_from_a_folder_is_refused(
    host: Host, prepare: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    drawing(folder / "a.png", "blue")
    drawing(folder / "a_reference.png", "green")
    refused, given = host.ops.TrainError, {"vae": Counted(16, video=True).vae, "trigger": "qwx"}
    for architecture, node in (("SeedVR2", "SeedVR2Conditioning"), ("PiD", "PiDConditioning")):
        model = patcher(tiny(architecture))
        with pytest.raises(refused, match=rf"not made from a folder.*{node}"):
            prepare(**given, model=model)
        kind = model.model.latent_format
        latent = torch.ones(1, kind.latent_channels, *(8,) * kind.latent_dimensions)
        text = [[torch.zeros(1, 5, 20), {"pooled_output": torch.zeros(1, 12)}]]
        with pytest.raises(refused, match=rf"also takes `.*{node}"):
            train(host, tmp_path, model=model, latents=[{"samples": latent}], positive=[text], steps=1)
    hearing = {"model": patcher(tiny("Wan S2V", text_dim=WORD_WIDTH, **_IN))}
    with pytest.raises(refused, match=r"takes references of clips, and this is a picture.*a_reference\.png"):
        prepare(**given, **hearing)
    (folder / "a.png").unlink()
    film(folder / "a.mp4", 12, 16)
    film(folder / "a_control.mp4", 8, 16)
    with pytest.raises(refused, match=r"a_control\.mp4.*shorter than the one.*8 frames.*at least 9"):
        prepare(**given, **hearing, frames=9)
    with pytest.raises(refused, match=r"hears sound at its own frame rate alone.*24.*expected 16"):
        prepare(**given, **hearing, frame_rate=24, audio_encoder=Hearing(1, 8))
    film(folder / "a_mask.mp4", 1, 16)
    with pytest.raises(refused, match=r"a_mask\.mp4: a mask is a picture"):
        prepare(**given, **hearing)
    (folder / "a_mask.mp4").unlink()
    film(folder / "b_control.mp4", 12, 16)
    with pytest.raises(refused, match=r"references without their picture.*b_control\.mp4.*or clip"):
        prepare(**given, **hearing)
    (folder / "b_control.mp4").unlink()
    drawing(folder / "control" / "a.frames" / "0.png", "blue")
    with pytest.raises(refused, match=r"more clips as references than.*, a\.frames.*at most 1"):
        prepare(**given, **hearing)
    camera = patcher(tiny("Wan camera", text_dim=WORD_WIDTH, **_OUT))
    shutil.rmtree(folder / "control")
    for path in folder.glob("a_*"):
        path.unlink()
    report = prepare(**given, model=camera, frames=9, audio_encoder=Hearing(1, 8))["report"]
    assert "audio_encoder is not used" in report
    assert "not given `camera_conditions`" in report and "WanCameraImageToVideo" in report
    (folder / "a.mp4").unlink()
    film_with_sound(folder / "a.mkv")
    report = prepare(**given, **hearing, frames=9)["report"]
    assert "the model hears no sound: link audio_encoder" in report
    other = r"not the audio encoder.*3 layers of 8 values.*25 layers of 16.*that you sample"
    with pytest.raises(refused, match=other):
        prepare(**given, **hearing, frames=9, audio_encoder=Hearing(3, 8))


@pytest.mark.soak
def test_pixels_of_references_are_beside_the_captions(
    host: Host, prepare: Callable[..., Any], folder: Path
) -> None:
    drawing(folder / "a.png", "blue")
    shown = drawing(folder / "a_reference.png", "green", (96, 64))
    model = tiny("HiDream-O1")
    vae = SimpleNamespace(
        **{name: getattr(Counted(4).vae, name) for name in ("first_stage_model", "patcher")}
    )
    vae.vae_dtype, vae.temporal_compression_decode, vae.decode = torch.float32, lambda: None, None
    vae.encode = lambda values: values.movedim(-1, 1) * 2 - 1
    data = prepare(model=patcher(model), vae=vae, trigger="qwx")
    (found,) = data["positive"][0][0][1]["reference_latents"]
    assert torch.equal(found, pixels(shown))
    assert "with references, which are pixels beside the captions: 1 (a.png)" in data["report"]


class MiniMaxH3AudioVAE(torch.nn.Linear):
    """Named as the host's."""


@pytest.mark.soak
def test_a_model_that_only_makes_clips_with_sound_is_given_their_sound(
    host: Host, prepare: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    film_with_sound(folder / "a.mkv")
    inner = MiniMaxH3AudioVAE(1, 32)
    heard: list[Tensor] = []

    def encode(waveform: Tensor) -> Tensor:
        heard.append(waveform)
        values = waveform[:, ::800].movedim(2, 1)[:, None].expand(-1, 32, -1, -1)
        return values.clone()

    ears = SimpleNamespace(first_stage_model=inner, patcher=patcher(inner), vae_dtype=torch.float32)
    ears.audio_sample_rate, ears.downscale_ratio, ears.encode, ears.decode = 32000, 800, encode, None
    frames = Counted(16, video=True).vae
    eyes = SimpleNamespace(first_stage_model=frames.first_stage_model, patcher=frames.patcher)
    eyes.vae_dtype, eyes.temporal_compression_decode, eyes.decode = torch.float32, lambda: 3, None
    eyes.encode = lambda values: torch.rand(
        1, 24, (len(values) - 5) // 17 * 5 + 2, *(n // 16 for n in values.shape[1:3])
    )
    given: dict[str, Any] = {
        "model": patcher(tiny("MiniMax-H3")),
        "vae": eyes,
        "trigger": "qwx",
        "frames": 33,
    }
    with pytest.raises(host.ops.TrainError, match=r"only makes clips with sound.*Link its audio VAE"):
        prepare(**given)
    data = prepare(**given, audio_vae=ears)
    video, sound = data["latents"][0]["samples"].unbind()
    (wanted,) = host.run("EmptyMiniMaxH3LatentAV", PIXELS, PIXELS, 22)
    assert [part.shape for part in (video, sound)] == [part.shape for part in wanted["samples"].unbind()]
    assert torch.equal(sound, encode(heard[-1])[..., : sound.shape[-1]])
    drawing(folder / "b.png", "blue")
    with pytest.raises(host.ops.TrainError, match=r"only learns clips with sound.*b\.png"):
        prepare(**given, audio_vae=ears)
