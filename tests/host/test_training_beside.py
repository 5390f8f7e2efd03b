"""What belongs to a clip in a folder: clips that control it, references, masks, and its sound."""

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
from test_training_given import in_training, narrow_faces
from test_training_pairs import drawing, film, pixels
from test_training_sounds import film as film_with_sound
from torch import Tensor
from trainable import (
    PIXELS,
    WORD_WIDTH,
    Counted,
    by_the_node,
    by_the_sampler,
    clip_with_words,
    frames_of,
    module,
    same,
    tiny,
    train,
    trained_into_an_exact_file,
)

from tests.harness.zoo import LLAMA, SPECIES

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
    references: int = 1
    """How many of them are in the folder."""
    coloured: str = ""
    """The node's input for masks of the references."""
    mask: str = ""
    layers: int = 0
    """The layers of the audio encoder, if the model hears."""
    width: int = 8
    """Their width."""
    first: str = ""
    music: bool = False
    cut: bool = True
    """Whether it runs after the zoo has cut its large weights."""
    way: str = "auto"
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
        mask="control_masks",
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
        cut=False,
    ),
    "S2V": Row(
        "Wan S2V", "WanSoundImageToVideo", ("control_video",), "ref_image", layers=25, width=16, changed=_IN
    ),
    "Animate": Row(
        "Wan Animate",
        "WanAnimateToVideo",
        ("pose_video",),
        "reference_image",
        changed={"in_dim": 36, **_OUT},
    ),
    "Animate with a background": Row(
        "Wan Animate",
        "WanAnimateToVideo",
        ("pose_video", "face_video", "background_video"),
        "reference_image",
        mask="character_mask",
        changed={"num_layers": 5, "in_dim": 36, "motion_encoder_dim": 512, **_OUT},
        cut=False,
    ),
    "SCAIL": Row("Wan SCAIL", "WanSCAILToVideo", ("pose_video",), "reference_image", changed=_MORE),
    "SCAIL 2": Row(
        "Wan SCAIL 2",
        "WanSCAILToVideo",
        ("pose_video", "pose_video_mask"),
        "reference_image",
        2,
        "reference_image_mask",
        changed=_MORE,
    ),
    "dancer": Row(
        "WanDancer",
        "WanDancerVideo",
        music=True,
        first="start_image",
        changed={"music_feature_dim": 35, **_OUT},
    ),
    "Phantom": Row("Wan 2.1 t2v", "WanPhantomSubjectToVideo", (), "images", 2, changed=_IN),
    "Bernini": Row(
        "Wan 2.1 t2v",
        "BerniniConditioning",
        ("source_video", "reference_video"),
        "reference_images",
        2,
        way="Bernini",
        changed=_IN,
    ),
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
    stills: list[Path] = []
    for number in range(row.references if row.reference else 0):
        stills.append(drawing(folder / f"a_reference_{number}.png", ("green", "blue")[number], (96, 64)))
        if row.coloured:
            drawing(folder / f"a_reference_{number}_mask.png", ("red", "blue")[number], (96, 64))
    if row.mask:
        Image.new("L", (PIXELS, PIXELS), 255).save(folder / "a_mask.png")
    if row.music:
        # Without a CLIP vision model it is not given.
        drawing(folder / "a_reference.png", "green", (96, 64))
    if row.config:
        monkeypatch.setitem(SPECIES, row.architecture, replace(SPECIES[row.architecture], config=row.config))
    model = tiny(row.architecture, cut=row.cut, **{"text_dim": WORD_WIDTH, **row.changed})
    if "face_video" in row.controls:
        # As the host's node makes them.
        narrow_faces(model, 512)
    vae, hearing = Counted(16, video=True), Hearing(row.layers or 1, row.width)
    given: dict[str, Any] = {"model": patcher(model), "vae": vae.vae, "trigger": "qwx", "frames": LENGTH}
    # The host's node for S2V counts 16 frames a second.
    rate = 16 if name == "S2V" else 25
    given |= {"frame_rate": rate, "first_frames": "first" if row.first else "none", "references": row.way}
    if row.layers:
        given["audio_encoder"] = hearing
    if row.music:
        own = host.nodes.NODE_CLASS_MAPPINGS["WanDancerEncodeAudio"].execute.__func__.__globals__
        monkeypatch.setitem(
            own, "torchaudio", SimpleNamespace(functional=SimpleNamespace(resample=resampled))
        )
    data = prepare(**given)
    assert ("link clip_vision, as for sampling" in data["report"]) is row.music
    called = vae.calls, hearing.calls
    again = prepare(**given)
    assert (vae.calls, hearing.calls) == called and same(again["positive"], data["positive"])

    clip = host.module("lycoris_nodes.dataset.clip")
    cut = clip.Cut(0, LENGTH)
    told: dict[str, Any] = {one: frames_of(host, shown, rate, LENGTH) for one in row.controls}
    if row.reference:
        told[row.reference] = torch.cat([pixels(still) for still in stills])
    if row.way == "Bernini":
        told[row.reference] = {
            f"reference_image_{number}": pixels(still) for number, still in enumerate(stills)
        }
    if row.coloured:
        told[row.coloured] = torch.cat([pixels(still.with_stem(f"{still.stem}_mask")) for still in stills])
    if row.mask:
        told[row.mask] = torch.ones(LENGTH, PIXELS, PIXELS)
    if row.layers:
        told["audio_encoder_output"] = hearing.encode_audio(clip.sound_of(path, cut, rate, 16000), 16000)
    if row.music:
        audio = {"waveform": clip.sound_of(path, cut, rate, 44100), "sample_rate": 44100}
        told["audio_encoder_output"], _ = host.run("WanDancerEncodeAudio", LENGTH, 1.0, audio)
    if row.first:
        told[row.first] = frames_of(host, path, rate, 1)
    made = by_the_node(host, row.node, length=LENGTH, vae=vae.vae, **told)
    latent = next(one for one in made if isinstance(one, dict))
    compare_and_train(host, model, data, made[0], latent, {"frame_rate": rate}, tmp_path)


@pytest.mark.soak
def test_what_one_model_does_not_take_is_not_kept_for_another_of_the_same_node(
    prepare: Callable[..., Any], folder: Path
) -> None:
    film(folder / "a.mp4", 25, 25)
    drawing(folder / "a_reference.png", "green")
    drawing(folder / "a_reference_mask.png", "red")
    given = {"vae": Counted(16, video=True).vae, "trigger": "qwx", "frames": 5, "first_frames": "none"}
    made = [
        prepare(**given, model=patcher(tiny(architecture, text_dim=WORD_WIDTH, **_MORE)))
        for architecture in ("Wan SCAIL", "Wan SCAIL 2")
    ]
    assert ["ref_mask_28ch" in one["positive"][0][0][1] for one in made] == [False, True]
    assert ["which are not used: 1 (a.mp4)" in one["report"] for one in made] == [True, False]


def resampled(waveform: Tensor, rate: int, wanted: int) -> Tensor:
    """Resampled by lines between the samples, for the host's node for music: the tests have no torchaudio."""
    count = round(waveform.shape[-1] * wanted / rate)
    return torch.nn.functional.interpolate(waveform.reshape(1, 1, -1), count, mode="linear")[0, 0]


def compare_and_train(
    host: Host,
    model: Any,
    data: dict[str, Any],
    wanted: Any,
    latent: dict[str, Any],
    more: dict[str, Any],
    folder: Path,
    **inputs: Any,
) -> None:
    """The only sample has what the host's node makes: `wanted` is its conditioning, and `latent` its latent.

    A step of its training is given what the sampler gives, its loss falls, and its file gives the model this
    loss in the host.
    """
    ((_, told),), ((words, found),) = wanted, data["positive"][0]
    assert set(told) <= set(found)
    assert [key for key in told if not same(found[key], told[key])] == []
    # The latent is as long as the node's own, which may begin with a reference, or end with guides.
    (own,) = data["latents"]
    assert own["samples"].shape == latent["samples"].shape
    assert own.keys() - {"samples"} == latent.keys() & {"noise_mask"}

    usual = module(host, "").trained_family(model).guidance
    said = {**told, **more} if usual is None else {**told, **more, "guidance": usual}
    called_with = by_the_sampler(
        model, [[words, said]], latent["samples"], noise_mask=latent.get("noise_mask")
    )
    del called_with["x"], called_with["sigma"]
    trained = in_training(host, model, data["positive"][0], latent["samples"], latent.get("noise_mask"))
    assert trained.keys() == called_with.keys()
    assert [key for key in trained if not same(trained[key], called_with[key])] == []
    pictures = {one: data[one] for one in ("latents", "positive")}
    trained_into_an_exact_file(host, model, folder, pictures, **inputs)


@pytest.mark.soak
def test_a_control_clip_is_learned_in_the_resolutions_of_its_clip(
    host: Host, prepare: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    """As from a run in each resolution alone, whether the control clip has the clip's size or another."""
    for name, frames, size in ("a", 12, (128, 128)), ("b", 20, (64, 128)):
        film(folder / f"{name}.mp4", frames, 16, (128, 128))
        film(folder / f"{name}_control.mp4", frames, 16, size)
    row, vae = ROWS["VACE"], Counted(16, video=True)
    model = patcher(tiny(row.architecture, text_dim=WORD_WIDTH, **row.changed))
    given: dict[str, Any] = {"model": model, "vae": vae.vae, "trigger": "qwx", "frames": 5}

    def examples(data: dict[str, Any]) -> list[Any]:
        pairs = zip(data["latents"], data["positive"], strict=True)
        return [(one["samples"], told[0][1]["vace_frames"]) for one, told in pairs]

    alone = [one for side in (128, 64) for one in examples(prepare(**given, resolution=side))]
    called = vae.calls
    data = prepare(**given, resolution="64, 128")
    together = examples(data)
    assert vae.calls == called and len(together) == len(alone) == 4
    assert all(sum(same(one, other) for other in together) == 1 for one in alone)
    linked = {name: data[name] for name in ("latents", "positive")}
    assert train(host, tmp_path, model=model, **linked, steps=4, rank=2, batch_size=2)["steps_done"] == 4


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
    phantom = {"model": patcher(tiny("Wan 2.1 t2v", text_dim=WORD_WIDTH, **_IN))}
    with pytest.raises(refused, match=r"takes no clips as references.*for Bernini, set `references`"):
        prepare(**given, **phantom)
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


@pytest.fixture
def minimax(prepare: Callable[..., Any], folder: Path) -> Callable[..., dict[str, Any]]:
    """Run the node on a film with sound for a tiny MiniMax-H3, with stand-ins for its two VAEs."""
    film_with_sound(folder / "a.mkv")
    inner = MiniMaxH3AudioVAE(1, 32)
    ears = SimpleNamespace(first_stage_model=inner, patcher=patcher(inner), vae_dtype=torch.float32)
    ears.audio_sample_rate, ears.downscale_ratio, ears.decode = 32000, 800, None
    ears.encode = lambda waveform: (
        waveform[:, ::800].movedim(2, 1)[:, None].expand(-1, 32, -1, -1).contiguous()
    )
    frames = Counted(16, video=True).vae
    eyes = SimpleNamespace(first_stage_model=frames.first_stage_model, patcher=frames.patcher)
    eyes.vae_dtype, eyes.temporal_compression_decode, eyes.decode = torch.float32, lambda: 3, None

    def seen(values: Tensor) -> Tensor:
        count = 2 if len(values) > 1 else 1
        count += (len(values) - 5) // 17 * 5 if len(values) > 5 else 0
        mean = torch.nn.functional.avg_pool2d(values.mean(0).movedim(-1, 0), 16)
        return mean[:1].expand(24, count, -1, -1)[None].contiguous()

    eyes.encode = seen
    model = tiny("MiniMax-H3", latents_dim=24, audio_latents_dim=32, text_dim=WORD_WIDTH)
    given: dict[str, Any] = {"model": patcher(model), "vae": eyes, "audio_vae": ears, "trigger": "qwx"}
    return lambda **more: {**given, **prepare(**{**given, "frames": 33, **more})}


@pytest.mark.soak
def test_a_model_that_only_makes_clips_with_sound_is_given_their_sound(
    host: Host, minimax: Callable[..., Any], folder: Path
) -> None:
    none = {"first_frames": "none"}
    with pytest.raises(host.ops.TrainError, match=r"only makes clips with sound.*Link its audio VAE"):
        minimax(**none, audio_vae=None)
    data = minimax(**none)
    video, sound = data["latents"][0]["samples"].unbind()
    (wanted,) = host.run("EmptyMiniMaxH3LatentAV", PIXELS, PIXELS, 22)
    assert [part.shape for part in (video, sound)] == [part.shape for part in wanted["samples"].unbind()]
    clip = host.module("lycoris_nodes.dataset.clip")
    heard = clip.sound_of(folder / "a.mkv", clip.Cut(0, 22), 24, 32000).movedim(1, -1)
    heard = torch.nn.functional.pad(heard, (0, 0, 0, -heard.shape[1] % 800))
    assert torch.equal(sound, data["audio_vae"].encode(heard)[..., : sound.shape[-1]])
    drawing(folder / "b.png", "blue")
    with pytest.raises(host.ops.TrainError, match=r"only learns clips with sound.*b\.png"):
        minimax(**none)


@pytest.mark.soak
@pytest.mark.parametrize("what", ["first", "first and last", "references"])
def test_a_text_is_encoded_with_the_frames_and_references_of_its_clip(
    host: Host,
    minimax: Callable[..., Any],
    folder: Path,
    tmp_path: Path,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, told = clip_with_words("Qwen-Image"), list[Any]()

    def encode(tokens: Any) -> list[Any]:
        """Stand in for the vision encoder, which has no tiny version."""
        told.append(tokens)
        return [[torch.ones(1, 5, WORD_WIDTH), {"minimax_token_tags": torch.zeros(5, dtype=torch.long)}]]

    tokenize = clip.tokenize
    # What it is shown comes back with its tokens.
    monkeypatch.setattr(clip, "tokenize", lambda text, **shown: (tokenize(text), shown))
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", encode)
    if what == "references":
        still = drawing(folder / "a_reference.png", "green", (96, 64))
        shown = film(folder / "a_control.mp4", 25, 24)
    data = minimax(clip=clip, first_frames="first" if what == "references" else what)
    given: dict[str, Any] = {"clip": clip, "vae": data["vae"], "prompt": "qwx", "length": 22}
    if what == "references":
        given |= {"ref_images": {"ref_image_0": pixels(still)}, "audio_vae": None}
        given |= {"ref_videos": {"ref_video_0": frames_of(host, shown, 24, 22)}}
        made = by_the_node(host, "MiniMaxH3ReferenceToVideo", **given)
    else:
        given |= {"first_frame": frames_of(host, folder / "a.mkv", 24, 1)}
        given |= {"last_frame": frames_of(host, folder / "a.mkv", 24, 1, 21)} if what != "first" else {}
        made = by_the_node(host, "MiniMaxH3ImageToVideo", **given)
    assert same(told[-1], told[-2])
    model = data["model"].model
    assert "MiniMaxH3ImageToVideo makes" in data["report"]
    compare_and_train(host, model, data, made[0], made[1], {"frame_rate": 24}, tmp_path)


class Means:
    """A VAE whose values are means of 32 x 32 pixels, and of eight frames after the first one."""

    def __init__(self, channels: int, *, video: bool = False) -> None:
        self.first_stage_model = torch.nn.Linear(3, channels)
        self.patcher, self.vae_dtype = patcher(self.first_stage_model), torch.float32
        self.video, self.calls, self.decode = video, 0, None
        # The sizes of LTX-Video.
        self.downscale_index_formula = (8, 32, 32)

    def temporal_compression_decode(self) -> int | None:
        return 8 if self.video else None

    def encode(self, values: Tensor) -> Tensor:
        self.calls += 1
        first, rest = values[:1], values[1 : 1 + (len(values) - 1) // 8 * 8]
        times = torch.cat([first, rest.reshape(-1, 8, *rest.shape[1:]).mean(1)])
        small = torch.nn.functional.avg_pool2d(times.movedim(-1, 1), 32).movedim(1, -1)
        made = self.first_stage_model(small).movedim(-1, 0)[None]
        return made if self.video else made[:, :, 0]


class Siglip:
    """A CLIP vision model of random values, in the form that the host's have, with patches of 16 pixels."""

    def __init__(self) -> None:
        self.model, self.dtype, self.image_size = torch.nn.Linear(3, 12), torch.float32, 64
        self.patcher, self.calls = patcher(self.model), 0

    def encode_image(self, image: Tensor, crop: bool = True) -> Any:
        from comfy.clip_vision import Output

        # As the node calls it.
        assert crop
        self.calls += 1
        small = torch.nn.functional.adaptive_avg_pool2d(image.movedim(-1, 1), 4).movedim(1, -1)
        made = Output()
        made["last_hidden_state"] = self.model(small.reshape(1, 16, 3)).detach()
        made["image_sizes"] = [(3, 64, 64)]
        return made


@pytest.mark.soak
def test_a_model_of_several_pictures_is_given_what_is_seen_of_them(
    host: Host, prepare: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    drawing(folder / "a.png", "blue")
    size = (2 * PIXELS, PIXELS // 2)
    stills = [drawing(folder / f"a_reference_{number}.png", "green", size) for number in (1, 2)]
    clip, vae, vision = clip_with_words("Z-Image"), Means(16), Siglip()
    sizes = {"in_channels": 16, "cap_feat_dim": LLAMA["hidden_size"], "siglip_feat_dim": 12}
    model = tiny("Z-Image", **sizes)
    given: dict[str, Any] = {"model": patcher(model), "vae": vae, "clip": clip, "trigger": "qwx"}
    data = prepare(**given, clip_vision=vision)
    called = vae.calls, vision.calls
    again = prepare(**given, clip_vision=vision)
    assert (vae.calls, vision.calls) == called and same(again["positive"], data["positive"])
    pictures = {f"image{number}": pixels(still) for number, still in enumerate(stills, 1)}
    with torch.inference_mode():
        made = host.run("TextEncodeZImageOmni", clip, "qwx", vision, False, vae, **pictures)
    assert "as by TextEncodeZImageOmni: 1 (a.png)" in data["report"]
    assert "link clip_vision, as for sampling" in prepare(**given)["report"]
    with pytest.raises(host.ops.TrainError, match="takes no references"):
        prepare(**given | {"model": patcher(tiny("Z-Image", in_channels=16))})
    compare_and_train(host, model, data, made[0], {"samples": torch.zeros(1, 16, 4, 4)}, {}, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("ends", ["first", "first and last", "none"])
@pytest.mark.parametrize("architecture", ["LTX-Video", "LTX-2"])
def test_guides_are_behind_the_clip_as_the_hosts_nodes_put_them(
    host: Host,
    prepare: Callable[..., Any],
    folder: Path,
    tmp_path: Path,
    ends: str,
    architecture: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clip and a picture, beside the first and the last frame. Samples on the way are given them too."""
    path = film(folder / "a.mp4", 25, 25)
    shown = film(folder / "a_control.mp4", 25, 25)
    still = drawing(folder / "a_reference.png", "green", (96, 64))
    # LTX-2 has half of its caption for the sound.
    width = WORD_WIDTH // (2 if architecture == "LTX-2" else 1)
    model = tiny(architecture, in_channels=128, caption_channels=width)
    vae = Means(128, video=True)
    given: dict[str, Any] = {"model": patcher(model), "vae": vae, "trigger": "qwx", "frames": 17}
    data = prepare(**given, first_frames=ends)
    called = vae.calls
    again = prepare(**given, first_frames=ends)
    assert vae.calls == called and same(again["positive"], data["positive"])

    frames, controls = (frames_of(host, one, 25, 17) for one in (path, shown))
    if ends == "none":
        text = [[torch.zeros(1, 5, WORD_WIDTH), {}]]
        made = text, text, *by_the_node(host, "EmptyLTXVLatentVideo", length=17)
    else:
        made = by_the_node(host, "LTXVImgToVideo", image=frames[:1], vae=vae, length=17, strength=1.0)
    guides = [(frames[-1:], -1)] if ends == "first and last" else []
    with torch.inference_mode():
        for image, place in (*guides, (controls, 0), (pixels(still), 0)):
            made = host.run("LTXVAddGuide", *made[:2], vae, made[2], image, place, 1.0)
    own, wanted = data["latents"][0], made[2]
    given_frames = wanted["noise_mask"] == 0
    assert torch.equal(own["noise_mask"], wanted["noise_mask"])
    assert torch.equal(own["samples"] * given_frames, wanted["samples"] * given_frames)
    assert f"what {'LTXVAddGuide' if ends == 'none' else 'LTXVImgToVideo'} makes" in data["report"]
    # The text encoder of LTX-Video gives a mask too.
    words = data["positive"][0][0][0].shape[1]
    more = {"frame_rate": 25, "attention_mask": torch.ones(1, words, dtype=torch.long)}
    for one in (data["positive"][0], data["empty_caption"]):
        one[0][1].update(more)
    told: list[Any] = []
    previews = host.module("lycoris_nodes.training.node.previews")
    sample = previews.sampled

    def sampled(*inputs: Any, **more: Any) -> Tensor:
        told.append((inputs[-1], more["known"], sample(*inputs, **more)))
        return told[-1][-1]

    monkeypatch.setattr(previews, "sampled", sampled)
    latents = list[Tensor]()
    rough = previews.rough_picture
    monkeypatch.setattr(
        previews, "rough_picture", lambda patcher, latent: latents.append(latent) or rough(patcher, latent)
    )
    how = {"sample_every": 6, "empty_caption": [data["empty_caption"]]}
    compare_and_train(host, model, data, made[0], wanted, more, tmp_path, **how)
    negative, ((shown, mask),), made_of_it = told[-1]
    assert same(negative[0][1]["keyframe_idxs"], made[0][0][1]["keyframe_idxs"])
    torch.testing.assert_close(shown, wanted["samples"] * given_frames)
    torch.testing.assert_close(made_of_it * given_frames, shown)
    # The last frame of the clip, before the guides.
    assert torch.equal(latents[-1], made_of_it[:, :, 2:3])
    assert torch.equal(mask, wanted["noise_mask"].expand_as(mask))
