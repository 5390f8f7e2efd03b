"""Wan 2.1 and 2.2 with their variants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..sampling import own_node
from .family import Family, Network, Unmade, marked
from .node import BOTH, FIRST, NONE, NOTHING, SEEN_REFERENCE, Node, Takes, batch
from .times import Times

_BERNINI = "Bernini"
"""Has the layers of Wan for text-to-video."""


def _named(images: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    return {f"reference_image_{number}": image for number, image in enumerate(images)}


_OF_PICTURES = Node({FIRST: "WanImageToVideo", BOTH: "WanFirstLastFrameToVideo"})
_SUBJECTS = Node(
    {NONE: "WanPhantomSubjectToVideo"},
    Takes((), "images", most=4, joined=batch("bilinear"), instead=_BERNINI),
    needed=False,
)
_OF_BERNINI = Node(
    {NONE: "BerniniConditioning"},
    Takes(("source_video", "reference_video"), "reference_images", most=8, joined=_named),
    needed=False,
)


def _first(name: str, takes: Takes = NOTHING, *, needed: bool = True) -> Node:
    """A node that takes a first frame, and needs none if it takes something else."""
    return Node(dict.fromkeys((FIRST, NONE) if takes is not NOTHING else (FIRST,), name), takes, needed)


_OF_CHANNELS = {
    48: _first("WanFunControlToVideo", Takes(("control_video",))),
    52: _first("Wan22FunControlToVideo", Takes(("control_video",), "ref_image")),
}


def _given(model: Any, way: str) -> Node:
    if node := _OF_CHANNELS.get(model.model_config.unet_config.get("in_dim") or 0):
        return node
    return _OF_PICTURES if marked(model) else _OF_BERNINI if way == _BERNINI else _SUBJECTS


def _music(sound: Callable[[int], Tensor], frames: int) -> Any:
    """What the host's node gives for the music of a clip, which has 44100 samples a second."""
    node = own_node("WanDancerEncodeAudio", "give music to the model")
    audio = {"waveform": sound(44100), "sample_rate": 44100}
    return node.execute(video_frames=frames, audio_inject_scale=1.0, audio=audio).args[0]


def _heard_by_humo(network: Any) -> tuple[int, int]:
    # Windows of eight times, with five means over the layers.
    return 33, network.audio_proj.audio_proj_glob_1.layer.in_features // 40


def _heard_by_s2v(network: Any) -> tuple[int, int]:
    encoder = network.casual_audio_encoder
    return encoder.weights.shape[1], encoder.encoder.conv1_local.conv.in_channels


_VACE = Takes(
    ("control_video",),
    "reference_image",
    masks="control_masks",
    kept="control_video",
    ahead=lambda settings: settings["vace_frames"][0][:, :16],
)
_ANIMATE = Takes(
    ("pose_video", "face_video", "background_video"),
    "reference_image",
    masks="character_mask",
    kept="background_video",
    ahead=lambda settings: settings["concat_latent_image"],
)
_SCAIL2 = Takes(
    ("pose_video", "pose_video_mask"),
    "reference_image",
    most=16,
    joined=batch("bicubic"),
    reference_masks="reference_image_mask",
)


FAMILY = Family(
    hosts=("WAN21",),
    name="Wan",
    source="kohya-ss/musubi-tuner; the times: ai-toolkit",
    times=Times(shift=3.0),
    rank=32,
    lr=2e-4,
    include=("head.head",),
    resolution=512,
    frame_rate=16,
    boundary=0.875,
    latents={"Wan21": 4},
    given=_given,
    ways=(_BERNINI,),
    networks={
        **dict.fromkeys(
            (
                f"{kind}WanModel"
                for kind in ("", "Vace", "Camera", "Humo", "Animate", "SCAIL", "SCAIL2", "Causal")
            ),
            Network(),
        ),
        **dict.fromkeys(("WanDancerModel", "WanModel_S2V"), Network(norms="AudioInjector_WAN")),
    },
    variants={
        "WAN21_I2V": {"boundary": 0.9},
        "WAN22": {
            "frame_rate": 24,
            "boundary": None,
            "given": _first("Wan22ImageToVideoLatent", needed=False),
        },
        "WAN21_CausalAR": {"given": None},
        "WAN21_FlowRVS": {"given": None},
        "WAN21_Vace": {"given": _first("WanVaceToVideo", _VACE)},
        "WAN21_Camera": {
            "unmade": Unmade("camera_conditions", "WanCameraImageToVideo"),
            "given": _first("WanCameraImageToVideo"),
        },
        "WAN21_HuMo": {
            "frame_rate": 25,
            "given": _first("WanHuMoImageToVideo", Takes((), "ref_image", hears=_heard_by_humo)),
        },
        "WAN22_S2V": {
            "given": _first(
                "WanSoundImageToVideo", Takes(("control_video",), "ref_image", hears=_heard_by_s2v)
            )
        },
        "WAN22_Animate": {"frame_rate": 30, "given": _first("WanAnimateToVideo", _ANIMATE)},
        # It takes neither further references nor masks.
        "WAN21_SCAIL": {"given": _first("WanSCAILToVideo", Takes(("pose_video",), "reference_image"))},
        "WAN21_SCAIL2": {"given": _first("WanSCAILToVideo", _SCAIL2)},
        "WAN22_WanDancer": {
            "frame_rate": 30,
            "given": _first("WanDancerVideo", Takes((), SEEN_REFERENCE, music=_music)),
        },
    },
)
