"""Clips with sound, for LTX-2, which learns pictures and sound; and models of sound alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hosting import Host, Patched, patcher
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from trainable import CPU, PIXELS, WORD_WIDTH, Counted, in_a_step, module, same, tiny, train

pytestmark = pytest.mark.host

RATE, FRAMES = 25, 9
"""Frames a second, and the most frames of a cut."""
SAMPLES = 44100
"""Samples a second of the sound. At this rate the host's node need not resample it."""


def sound() -> np.ndarray:
    """A second of sound in two channels."""
    time = np.arange(SAMPLES) / SAMPLES
    return np.stack([np.sin(2000 * time), time]).astype(np.float32)


def film(path: Path) -> Path:
    """A second of pictures with `sound`, which is stored as it is."""
    with av.open(str(path), "w") as container:
        pictures: Any = container.add_stream("libx264", rate=Fraction(RATE))
        pictures.width, pictures.height, pictures.pix_fmt = PIXELS, PIXELS, "yuv420p"
        heard: Any = container.add_stream("pcm_f32le", rate=SAMPLES, layout="stereo")
        for number in range(RATE):
            frame = np.full((PIXELS, PIXELS, 3), 9 * number, np.uint8)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(pictures.encode())
        # Parts whose length the container has to round, because it counts in milliseconds.
        for start in range(0, SAMPLES, 1000):
            part = sound()[:, start : start + 1000]
            made = av.AudioFrame.from_ndarray(part.T.reshape(1, -1).copy(), format="flt", layout="stereo")
            made.sample_rate, made.pts, made.time_base = SAMPLES, start, Fraction(1, SAMPLES)
            container.mux(heard.encode(made))
        container.mux(heard.encode())
    return path


@pytest.fixture(scope="module")
def audio_vae(host: Host) -> Any:
    """The host's audio VAE of LTX-2 with random weights. Its spectra are made here, because the host makes
    them by torchaudio, which the tests do without."""
    import comfy.ldm.lightricks.vae.audio_vae as audio
    from comfy.sd import VAE

    encode = host.nodes.NODE_CLASS_MAPPINGS["LTXVAudioVAEEncode"]
    if "VAEEncodeAudio" not in [kind.__name__ for kind in encode.__mro__]:
        pytest.skip("in this host the audio VAE is not of the class VAE")

    sizes = {"double_z": True, "mel_bins": 64, "z_channels": 8, "resolution": 64, "in_channels": 2}
    sizes |= {"out_ch": 2, "downsample_time": False, "ch": 8, "ch_mult": [1, 2, 4], "num_res_blocks": 1}
    sizes |= {"attn_resolutions": [], "dropout": 0.0, "mid_block_add_attention": False}
    sizes |= {"norm_type": "pixel", "causality_axis": "height"}
    config = {
        "audio_vae": {
            "model": {"params": {"ddconfig": sizes, "sampling_rate": SAMPLES}},
            "preprocessing": {"stft": {"filter_length": 126, "hop_length": SAMPLES // 100}},
        },
        "vocoder": {"upsample_rates": [2], "upsample_kernel_sizes": [4], "resblock_kernel_sizes": [3]}
        | {"resblock_dilation_sizes": [[1, 3, 5]], "upsample_initial_channel": 8},
    }
    metadata = {"config": json.dumps(config)}
    torch.manual_seed(3)
    empty = audio.AudioVAE(metadata).state_dict()
    weights = {name: torch.rand_like(one) * 0.2 for name, one in empty.items()}
    vae = VAE(sd=weights, metadata=metadata)

    def spectra(waveform: Tensor, rate: int, device: torch.device) -> Tensor:
        assert rate == SAMPLES
        window = torch.hann_window(126)
        found = torch.stft(waveform[0], 126, SAMPLES // 100, window=window, return_complex=True)
        return found.abs().clamp(min=1e-5).log().transpose(1, 2)[None]

    vae.first_stage_model.preprocessor.waveform_to_mel = spectra
    # Give the latents the spread that trained weights give them.
    spread = vae.first_stage_model.autoencoder.per_channel_statistics.get_buffer("std-of-means").fill_(1)
    with torch.inference_mode():
        spread.fill_(float(vae.encode(torch.from_numpy(sound().T[None, : 4 * 4096])).std()))
    return vae


@pytest.fixture
def given(prepare: Callable[..., Any], folder: Path) -> dict[str, Any]:
    """A film with sound in two cuts, a film without sound, and a picture, for a tiny LTX-2."""
    film(folder / "loud.mkv")
    frames = [Image.new("RGB", (PIXELS, PIXELS), (20 * number, 0, 99)) for number in range(FRAMES)]
    frames[0].save(folder / "still.gif", save_all=True, append_images=frames[1:], duration=40)
    frames[0].save(folder / "picture.png")
    vae = Counted(16, video=True).vae
    sixteen = vae.encode
    vae.encode = lambda pixels: sixteen(pixels).repeat(1, 8, 1, 1, 1)
    wide = {"in_channels": 128, "caption_channels": WORD_WIDTH // 2}
    return {
        "model": patcher(tiny("LTX-2", **wide)),
        "vae": vae,
        "trigger": "qwx",
        "frames": FRAMES,
        "cuts": 2,
        "first_frames": "none",
    }


def test_the_sound_of_a_cut_begins_and_ends_with_its_frames(host: Host, tmp_path: Path) -> None:
    clip, whole = host.module("lycoris_nodes.dataset.clip"), torch.from_numpy(sound())[None]
    path = film(tmp_path / "a.mkv")
    assert clip.facts_of(path, RATE).sounds
    for start, count in ((0, 9), (9, 9), (20, 9)):
        found = clip.sound_of(path, clip.Cut(start, count), RATE, SAMPLES)
        first, length = round(start / RATE * SAMPLES), round(count / RATE * SAMPLES)
        wanted = torch.zeros(1, 2, length)
        part = whole[:, :, first : first + length]
        # After the end of the film it is silent.
        wanted[:, :, : part.shape[2]] = part
        assert torch.equal(found, wanted)
    # At another number of samples a second, in a channel that changes slowly.
    found = clip.sound_of(path, clip.Cut(5, 9), RATE, 16000)
    wanted = 0.2 + torch.arange(5760) / 16000
    torch.testing.assert_close(found[0, 1], wanted, atol=1e-3, rtol=0)


def test_the_sound_of_clips_is_learned_with_their_pictures(
    host: Host, prepare: Callable[..., Any], given: dict[str, Any], audio_vae: Any, tmp_path: Path
) -> None:
    data = prepare(**given, audio_vae=audio_vae)
    assert "with sound, which is learned too: 1 (loud.mkv)\nwithout sound: 1 (still.gif)" in data["report"]
    assert "encoded: 4 pictures, 2 sounds and 2 captions of 8" in data["report"]
    loud, later, _, still = data["latents"]
    assert not getattr(still["samples"], "is_nested", False)
    with torch.inference_mode():
        length = round(FRAMES / RATE * SAMPLES)
        # The VAE takes multiples of 4096 samples, and cuts off the rest at both ends.
        padded = torch.nn.functional.pad(torch.from_numpy(sound())[None, :, :length], (0, -length % 4096))
        wave = {"waveform": padded, "sample_rate": SAMPLES}
        (heard,) = host.run("LTXVAudioVAEEncode", wave, audio_vae)
        (empty,) = host.run("LTXVEmptyLatentAudio", FRAMES, RATE, 1, audio_vae)
        (joined,) = host.run("LTXVConcatAVLatent", {"samples": still["samples"]}, empty)
    assert [part.shape for part in loud["samples"].unbind()] == [
        part.shape for part in joined["samples"].unbind()
    ]
    assert torch.equal(loud["samples"].unbind()[1], heard["samples"][:, :, : empty["samples"].shape[2]])
    assert not torch.equal(later["samples"].unbind()[1], loud["samples"].unbind()[1])
    # The sound is cached like the pictures.
    again = prepare(**given, audio_vae=audio_vae)
    assert "encoded: 0 pictures, 0 sounds and 0 captions of 8" in again["report"]
    assert same(again["latents"][0]["samples"].unbind(), loud["samples"].unbind())
    # Without an audio VAE the report says so, and another VAE is refused.
    bare = prepare(**given)
    assert "no sound is learned: link audio_vae to learn the sound of 1 clip (loud.mkv)" in bare["report"]
    assert not getattr(bare["latents"][0]["samples"], "is_nested", False)
    with pytest.raises(host.ops.TrainError, match="not the audio VAE of the model"):
        prepare(**given, audio_vae=given["vae"])

    # What the model is called with is bitwise what the sampler calls it with.
    wanted, found = in_a_step(host, given["model"].model, data["positive"][0], loud["samples"])
    assert found.keys() == wanted.keys() and found["frame_rate"] == RATE
    assert [key for key in wanted if not same(found[key], wanted[key])] == []

    # Picture and sound are learned, and a training that goes on ends as one that never stopped.
    how: dict[str, Any] = {
        "rank": 8,
        "warmup": 0,
        "learning_rate": 1.5e-2,
        "sample_every": 4,
        "batch_size": 2,
        "preset": "full",
        # The connectors of the tiny model are cut to a smaller size.
        "exclude": "*_connector.*",
    }
    how |= {name: data[name] for name in ("latents", "positive")} | {"model": given["model"]}
    # One clip with sound and one without.
    kept = {f"validation_{name}": data[name][::3] for name in ("latents", "positive")}
    made = train(host, tmp_path / "whole", **how, **kept, steps=8, validate_every=8)
    losses = dict(made["loss_map"]["validation"])
    assert losses[8] < 0.95 * losses[0]
    assert (tmp_path / "whole/loras/style_00001_-checkpoints/sample-000008.png").exists()
    named = load_file(made["path"])
    assert any("audio_attn" in name for name in named)
    # With the adapter applied, the loss is that at the end of the training.
    applied = host.apply(Patched(given["model"], None), made["stack"], mode="bypass", clip=False)
    again = train(
        host, tmp_path / "one", **{**how, "model": applied.model}, **kept, steps=1, validate_every=1
    )
    assert again["loss_map"]["validation"][0][1] == pytest.approx(losses[8], rel=1e-4)
    train(host, tmp_path / "two", **how, **kept, steps=4, validate_every=8)
    other = train(host, tmp_path / "two", **how, **kept, steps=8, validate_every=8, resume=True)
    assert same(load_file(other["path"]), named)


def test_a_mask_of_a_clip_leaves_its_sound(host: Host) -> None:
    from comfy.nested_tensor import NestedTensor

    training, latents, model = module(host, ""), module(host, "latents"), tiny("LTX-2", in_channels=128)
    latent = training.latent_of(
        model, NestedTensor([torch.ones(1, 128, 2, 2, 4), torch.ones(1, 8, 3, 16)]), CPU
    )
    pixels = torch.zeros(64, 128)
    pixels[:, :64] = 1
    video, heard = torch.rand(1, 128, 2, 2, 4), torch.rand(1, 8, 3, 16)
    values = torch.cat([video.flatten(), heard.flatten()]).view(1, 1, -1)
    mask = training.mask_of(model, pixels, latent)
    wanted = video[..., :2].mean() + heard.mean()
    torch.testing.assert_close(latents.means(values, latent.shapes, mask), wanted[None])
    with pytest.raises(host.ops.TrainError, match="leaves nothing"):
        training.mask_of(model, torch.zeros(64, 128), latent)


OF_SOUND: dict[str, tuple[dict[str, int], tuple[int, ...], int, dict[str, Any]]] = {
    "Stable Audio": (
        {"io_channels": 64, "cond_token_dim": 768, "global_cond_dim": 1536, "project_cond_tokens": True},
        (64, 16),
        768,
        {},
    ),
    "ACE-Step": (
        {"speaker_embedding_dim": 512},
        (8, 16, 8),
        12,
        {"conditioning_lyrics": torch.ones(1, 3, dtype=torch.long)},
    ),
}
"""Tiny models of sound alone: changed settings, the shape of a latent, the width of a text, and what else the
conditioning has."""


@pytest.mark.parametrize("architecture", OF_SOUND)
def test_a_model_of_sound_alone_is_not_sampled_as_pictures(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    import comfy.sd

    changed, shape, words, said = OF_SOUND[architecture]
    given: dict[str, Any] = {
        "model": patcher(tiny(architecture, cut=False, **changed)),
        "latents": [{"samples": torch.randn(2, *shape)}],
        "positive": [[[torch.randn(1, 5, words), said]]],
        "preset": "attn-only",
        "rank": 2,
        "learning_rate": 1e-3,
        "steps": 1,
    }
    # The host's VAE of Stable Audio, small.
    small = partial(comfy.sd.AudioOobleckVAE, channels=4)
    monkeypatch.setattr(comfy.sd, "AudioOobleckVAE", small)
    vae = comfy.sd.VAE(sd=small().state_dict())
    for asked, key in (({"sample_every": 1}, "sample_every"), ({"vae": vae}, "vae")):
        with pytest.raises(host.ops.LycorisError, match=f"{key}: samples on the way are pictures") as error:
            train(host, tmp_path / key, **given, **asked)
        assert "set `sample_every` to 0" in str(error.value)
    assert train(host, tmp_path, **given)["steps_done"] == 1
