"""The sound of a video. The host's own nodes encode it and join it to the video's latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from ...lycoris_ops import TrainError
from .families.family import Sound
from .families.shared import of_sound

_RATE = 16000
"""Samples a second for audio encoders."""


def check_audio_vae(vae: Any, own: Sound) -> None:
    """Raise TrainError for a VAE that is not for the sound of the model."""
    # In older hosts the audio VAE is not a VAE with an inner model, and is refused.
    inner = getattr(vae, "first_stage_model", None)
    if type(inner).__name__ != own.vae:
        raise TrainError("E-audio-vae-of-another-model", key="audio_vae", got=type(inner or vae).__name__)


def heard_by(audio_encoder: Any, wanted: tuple[int, int], sound: Callable[[int], Tensor], frames: int) -> Any:
    """What an audio encoder gives for a clip's sound, see `encoded_sound`.

    `wanted` are the layers of the model's own audio encoder, and their width. Raises TrainError for another
    one.
    """
    heard: Mapping[str, Any] = audio_encoder.encode_audio(sound(_RATE), _RATE)
    layers = heard["encoded_audio_all_layers"]
    size = (len(layers), layers[0].shape[-1])
    if size != wanted:
        raise TrainError(
            "E-audio-encoder-of-another-model",
            key="audio_encoder",
            got="{} layers of {} values".format(*size),
            expected="{} layers of {} values".format(*wanted),
        )
    return heard


def encoded_sound(
    vae: Any, own: Sound, sound: Callable[[int], Tensor], frames: int, frame_rate: float
) -> Tensor:
    """The latent (1, C, ..., T, ...) of a clip's sound, cut to the length of the host's empty sound for the
    clip.

    `sound` gives the waveform (1, channels, n) for a number of samples per second.
    """
    samples = getattr(vae, "audio_sample_rate", 44100)
    waveform = sound(samples)
    # The VAE takes multiples of a length, and would cut off the rest at both ends.
    waveform = functional.pad(waveform, (0, -waveform.shape[2] % vae.downscale_ratio))
    latent = of_sound("VAEEncodeAudio", vae=vae, audio={"waveform": waveform, "sample_rate": samples})[
        "samples"
    ]
    return own.cut(vae, latent, frames, frame_rate)


def with_sound(latent: dict[str, Any], sound: Tensor) -> dict[str, Any]:
    """A video's latent, as the graph has it, with the latent of its sound joined to it."""
    return of_sound("LTXVConcatAVLatent", video_latent=latent, audio_latent={"samples": sound})
