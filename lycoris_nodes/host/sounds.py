"""The sound of a video. The host's own nodes encode it and join it to the video's latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from ...lycoris_ops import TrainError
from .sampling import own_node

VAES = {"LTXAV": "AudioVAE", "MiniMaxH3": "MiniMaxH3AudioVAE"}
"""The host's classes of models that make clips with sound, and of their audio VAEs."""
ALWAYS = ("MiniMaxH3",)
"""Models that only make clips with sound."""
_RATE = 16000
"""Samples a second for audio encoders."""
_OF_MUSIC = 44100
"""Samples a second of music, as on a CD."""
_HEARD: Mapping[str, Callable[[Any], tuple[int, int]]] = {
    # Windows of eight times, with five means over the layers.
    "WAN21_HuMo": lambda net: (33, net.audio_proj.audio_proj_glob_1.layer.in_features // 40),
    "WAN22_S2V": lambda net: (
        net.casual_audio_encoder.weights.shape[1],
        net.casual_audio_encoder.encoder.conv1_local.conv.in_channels,
    ),
}
"""The layers of the audio encoder of models that hear sound, and their width, by the host's class."""


def takes_sound(model: Any) -> bool:
    """Whether a model makes clips with sound."""
    return type(model).__name__ in VAES


def needs_sound(model: Any) -> bool:
    """Whether a model cannot make clips without sound."""
    return type(model).__name__ in ALWAYS


def check_audio_vae(vae: Any, model: Any) -> None:
    """Raise TrainError for a VAE that is not for the sound of the model."""
    # In older hosts the audio VAE is not a VAE with an inner model, and is refused.
    inner = getattr(vae, "first_stage_model", None)
    if type(inner).__name__ != VAES[type(model).__name__]:
        raise TrainError(
            "this is not the audio VAE of the model",
            key="audio_vae",
            got=type(inner or vae).__name__,
            expected="what the node Load LTXV Audio VAE of a recent ComfyUI loads for LTX-2, or Load VAE for "
            "MiniMax-H3",
        )


def heard_by(audio_encoder: Any, model: Any, sound: Callable[[int], Tensor], frames: int) -> Any:
    """What an audio encoder gives for a clip's sound, see `encoded_sound`.

    Raises TrainError for another one than that of the model.
    """
    heard = audio_encoder.encode_audio(sound(_RATE), _RATE)
    _check_heard(heard, model)
    return heard


def music_of(sound: Callable[[int], Tensor], frames: int) -> Any:
    """What the host's node gives for the music of a clip of so many frames, see `encoded_sound`."""
    node = own_node("WanDancerEncodeAudio", "this ComfyUI cannot give music to the model")
    audio = {"waveform": sound(_OF_MUSIC), "sample_rate": _OF_MUSIC}
    return node.execute(video_frames=frames, audio_inject_scale=1.0, audio=audio).args[0]


def _check_heard(heard: Mapping[str, Any], model: Any) -> None:
    """Raise TrainError for the output of another audio encoder than that of a model that hears sound."""
    layers = heard["encoded_audio_all_layers"]
    size, wanted = (len(layers), layers[0].shape[-1]), _HEARD[type(model).__name__](model.diffusion_model)
    if size != wanted:
        raise TrainError(
            "this is not the audio encoder of the model",
            key="audio_encoder",
            got="{} layers of {} values".format(*size),
            expected="{} layers of {} values".format(*wanted),
            hint="Link the one that you sample the model with",
        )


def encoded_sound(vae: Any, sound: Callable[[int], Tensor], frames: int, frame_rate: float) -> Tensor:
    """The latent (1, C, ..., T, ...) of a clip's sound, cut to the length of the host's empty sound for the
    clip.

    `sound` gives the waveform (1, channels, n) for a number of samples per second.
    """
    samples = getattr(vae, "audio_sample_rate", 44100)
    waveform = sound(samples)
    # The VAE takes multiples of a length, and would cut off the rest at both ends.
    waveform = functional.pad(waveform, (0, -waveform.shape[2] % vae.downscale_ratio))
    latent = _run("VAEEncodeAudio", vae=vae, audio={"waveform": waveform, "sample_rate": samples})["samples"]
    if type(vae.first_stage_model).__name__ == VAES["MiniMaxH3"]:
        _, empty = _run("EmptyMiniMaxH3LatentAV", width=32, height=32, length=frames)["samples"].unbind()
        return latent[..., : empty.shape[-1]]
    size = {"frames_number": frames, "frame_rate": frame_rate, "batch_size": 1}
    empty = _run("LTXVEmptyLatentAudio", **size, audio_vae=vae)["samples"]
    return latent[:, :, : empty.shape[2]]


def with_sound(latent: dict[str, Any], sound: Tensor) -> dict[str, Any]:
    """A video's latent, as the graph has it, with the latent of its sound joined to it."""
    return _run("LTXVConcatAVLatent", video_latent=latent, audio_latent={"samples": sound})


def _run(name: str, **inputs: Any) -> dict[str, Any]:
    hint = "Update ComfyUI, or unlink `audio_vae`"
    return own_node(name, "this ComfyUI cannot encode sound for the model", hint).execute(**inputs).args[0]
