"""The node LyCORIS Training Pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ...lycoris_ops import LycorisError, TrainError, paragraph, phrase
from ..dataset.folder import PictureFolder, stamps
from ..dataset.kept import Kept, identity_of
from ..dataset.plan import Encoder, PictureSettings, Shown
from ..dataset.prepare import PreparedPicture, prepared
from ..dataset.sizes import step_of
from ..host.families import WAYS
from ..host.families.family import Family
from ..host.families.node import ENDS
from ..host.files import kept_folder, picture_folder, picture_folders
from ..host.given import Given, check_made, given_of, misses_frames
from ..host.page import io, progress, shown_picture
from ..host.sampling import NOISE_MASK, encoded_text, is_cut
from ..host.sounds import check_audio_vae, encoded_sound, heard_by, with_sound
from ..host.training import grid_of
from ..host.weights import own_weights
from ..schema.checks import checked
from ..schema.inputs import TRAIN, advanced, count_input, number_input, optional, output, usual_input
from ..schema.report import report_output, stages, with_report
from ..training.data.families import trained_family
from ..training.data.latents import latent_of

LARGEST = 16384
"""The highest resolution, as in the host's own inputs for picture sizes."""
TRANSPARENT = {"not learned": None, "white": "white", "black": "black"}
"""The choices for transparent parts, each with the colour that they get."""


class LycorisDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisDataset",
            display_name="LyCORIS Training Pictures",
            category=TRAIN,
            description="Makes latents and conditionings for Train LoRA / LyCORIS from a folder of pictures "
            "or clips with text files beside them. Pictures keep their shapes, in sizes that suit the model. "
            "What was encoded is kept on disk, so that the next run starts at once.",
            search_aliases=[
                *("training dataset", "load dataset", "dataset from folder", "load images and captions"),
                *("resolution buckets", "caption folder", "kohya dataset"),
            ],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=picture_folders(),
                    tooltip="A folder in ComfyUI's input folder, or a link there to one elsewhere. Beside "
                    "each picture is a text file of the same name with its caption. Folders inside it count "
                    "too: the pictures of one named 3_cat count three times. Choose it here: where another "
                    "node gives the name, ComfyUI does not notice that files in it change.",
                ),
                io.Model.Input(
                    "model", tooltip="The model that will be trained. It says which sizes suit it."
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the model, for the captions."),
                io.Vae.Input("vae", tooltip="The VAE of the model, for the pictures."),
                *optional(
                    io.Vae.Input(
                        "audio_vae",
                        tooltip="The audio VAE of LTX-2 or MiniMax-H3. With it the sound of clips is "
                        "learned too.",
                    ),
                    io.ClipVision.Input(
                        "clip_vision",
                        tooltip="For image-to-video models such as Wan 2.1, which are also given what a CLIP "
                        "vision model sees in the first frame. Link it here if you sample with it.",
                    ),
                    io.AudioEncoder.Input(
                        "audio_encoder",
                        tooltip="For models that move to a sound, such as Wan S2V and HuMo: the audio "
                        "encoder that you sample with. They hear the sound of each clip.",
                    ),
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    tooltip="A word of your own that is put in front of each caption, or in the place of "
                    "[trigger] there. It will call up what was learned.",
                ),
                usual_input(
                    "resolution",
                    "Pictures get about as many pixels as a square of this side has. Several, such as "
                    "512, 768, 1024: each picture is learned in all of them.",
                    several=True,
                ),
                count_input(
                    "held_out",
                    "How many pictures are not trained on, but come out of `validation_latents`. "
                    "The choice stays the same when pictures are added.",
                    most=1000,
                ),
                io.Boolean.Input(
                    "mirror",
                    default=False,
                    tooltip="On: each picture is also used mirrored, unless its caption has words such "
                    "as left, right or text. Not for faces and things that are not symmetrical.",
                ),
                *advanced(
                    io.Boolean.Input(
                        "enlarge",
                        default=True,
                        tooltip="On: small pictures are enlarged to the resolution. Off: they are trained in "
                        "the size that they have.",
                    ),
                    io.Combo.Input(
                        "transparent",
                        options=list(TRANSPARENT),
                        default="not learned",
                        tooltip="What becomes of transparent parts: not learned (they are masked), or "
                        "learned as white or black.",
                    ),
                    count_input(
                        "tag_orders",
                        "For captions of tags with commas between them: in how many orders each is "
                        "learned. 1: only as it is written.",
                        most=64,
                        default=1,
                        least=1,
                    ),
                    count_input(
                        "kept_tags",
                        "How many tags stay in front in all orders. The trigger is the first.",
                        most=64,
                        default=1,
                    ),
                    io.Boolean.Input(
                        "keep",
                        default=True,
                        tooltip="On: what was encoded is kept on disk for later runs.",
                    ),
                    number_input(
                        "cut_off",
                        "The largest share of a picture that may be cropped to fit a training size. A "
                        "picture that would lose more is an error. 1: no limit.",
                        most=1.0,
                        default=0.5,
                        step=0.05,
                    ),
                    io.Combo.Input(
                        "references",
                        options=list(WAYS),
                        default="auto",
                        tooltip="How the model is given reference pictures. auto: as its newest version "
                        "takes them. The first Qwen-Image-Edit (August 2025) takes one reference, and has "
                        "its own prompt template. A Wan model for text-to-video takes them as Phantom, or as "
                        "Bernini.",
                    ),
                    count_input(
                        "frames",
                        "For video models: the most frames in a cut of a clip, at the frame rate. More "
                        "frames take more memory.",
                        most=1000,
                        default=33,
                        least=1,
                    ),
                    usual_input(
                        "frame_rate", "Frames a second at which clips are read, whatever their own rate is."
                    ),
                    count_input(
                        "cuts",
                        "How many cuts of a long clip are trained, evenly spaced and without overlap. "
                        "1: its beginning.",
                        most=1000,
                        default=1,
                        least=1,
                    ),
                    io.Combo.Input(
                        "first_frames",
                        options=list(ENDS),
                        default=ENDS[0],
                        tooltip="For image-to-video models: which frames of each clip they are given. "
                        "v2 (replace) is for HunyuanVideo's second image-to-video model.",
                    ),
                ),
            ],
            outputs=[
                output(io.Latent, "latents", "A latent for each picture.", many=True),
                output(io.Conditioning, "positive", "The encoded caption of each latent.", many=True),
                output(io.String, "captions", "The caption of each latent as a text.", many=True),
                output(
                    io.Mask,
                    "masks",
                    "Where each picture is learned: where its mask is white and it is not transparent. "
                    "Empty if no picture has a mask.",
                    many=True,
                ),
                output(
                    io.Conditioning,
                    "empty_caption",
                    "The encoded empty text. With it linked, captions are dropped now and "
                    "then in the training.",
                ),
                output(io.Latent, "validation_latents", "The pictures that are held out.", many=True),
                output(io.Conditioning, "validation_positive", "Their captions, encoded.", many=True),
                output(io.String, "validation_captions", "Their captions as texts.", many=True),
                report_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", **inputs: Any) -> str:
        try:
            path = picture_folder(folder)
        except LycorisError as error:
            return str(error)
        return hashlib.sha256("\n".join(stamps(path)).encode(errors="surrogateescape")).hexdigest()

    @classmethod
    @checked
    def execute(
        cls,
        *,
        folder: str,
        model: Any,
        clip: Any,
        vae: Any,
        trigger: str,
        resolution: Sequence[float],
        transparent: str,
        references: str,
        frames: int,
        frame_rate: float,
        first_frames: str,
        keep: bool,
        audio_vae: Any = None,
        clip_vision: Any = None,
        audio_encoder: Any = None,
        **how: Any,
    ) -> io.NodeOutput:
        network = model.model
        check_made(network, {})
        family = trained_family(network)
        step = step_of(grid_of(network))
        # The host knows one ratio, which does not fit all models.
        frame_step, frame_least = family.clip or (vae.temporal_compression_decode(), 1)
        own_rate = family.frame_rate
        films = own_rate is not None and frame_step is not None
        sides = sorted({*(resolution or [family.resolution])}, reverse=True)
        if wrong := [side for side in sides if side % 1 or side > LARGEST]:
            raise TrainError("E-resolution-unusable", key="resolution", largest=LARGEST, got=str(wrong[0]))
        settings = PictureSettings(
            resolutions=tuple(map(int, sides)),
            step=step,
            background=TRANSPARENT[transparent],
            trigger=" ".join(trigger.split()),
            sized=family.told_size,
            frames=frames,
            frame_step=frame_step or 1,
            frame_least=frame_least,
            frame_rate=frame_rate or own_rate or 1.0,
            **how,
        )
        if settings.resolutions[-1] < step:
            raise TrainError(
                "E-resolution-too-low", key="resolution", step=step, got=str(settings.resolutions[-1])
            )
        cpu = torch.device("cpu")
        pictures = PictureFolder.of(picture_folder(folder), clips=films)
        vision = None if clip_vision is None else _vision_encoder(clip_vision)
        giving = given_of(network, first_frames, vision.encode if vision else None, references)
        hearing = None
        if giving and giving.takes.music:
            hearing = Encoder(giving.takes.music, "music")
        elif audio_encoder is not None:
            hearing = _hearing(audio_encoder, giving, network.diffusion_model)
        shown = Shown(
            vae,
            clip,
            references=family.references_of(network, references),
            given=giving,
            misses_frames=misses_frames(network, first_frames),
            own_sound=family.sound,
            sound=None if audio_vae is None else _sound_encoder(audio_vae, family),
            vision=vision,
            clip_vision=clip_vision,
            hearing=hearing,
            unmade=_unmade(family),
        )
        if shown.listener and giving and giving.takes.hears and settings.frame_rate != own_rate:
            # The host's nodes share out what is heard at this rate.
            raise TrainError(
                "E-sound-frame-rate-fixed",
                key="frame_rate",
                got=f"{settings.frame_rate:g}",
                expected=f"{own_rate:g}",
            )
        dataset = prepared(
            pictures,
            settings,
            Encoder(vae.encode, _identity_of_vae(vae)),
            _text_encoder(clip),
            Kept(kept_folder() if keep else None),
            progress,
            lambda latent: latent_of(network, latent, cpu),
            stages(cls.hidden),
            shown,
        )
        return with_report(
            _latents(dataset.training),
            [sample.conditioning for sample in dataset.training],
            [sample.text for sample in dataset.training],
            dataset.masks,
            dataset.empty,
            _latents(dataset.held_out),
            [sample.conditioning for sample in dataset.held_out],
            [sample.text for sample in dataset.held_out],
            report=paragraph(dataset.report),
            shown=shown_picture(dataset.shown, cls),
        )


def _latents(samples: list[PreparedPicture]) -> list[dict[str, Any]]:
    # A sample that counts several times is the same object, so that it is in memory once.
    latents: dict[int, dict[str, Any]] = {}
    return [latents.setdefault(id(sample), _latent(sample)) for sample in samples]


def _latent(sample: PreparedPicture) -> dict[str, Any]:
    mask = {} if sample.noise_mask is None else {NOISE_MASK: sample.noise_mask}
    latent = {"samples": sample.latent, **mask}
    return latent if sample.sound is None else with_sound(latent, sample.sound)


def _sound_encoder(vae: Any, family: Family) -> Encoder:
    if family.sound is None:
        # It is not used, and the report says so.
        return Encoder(vae.encode, None)
    check_audio_vae(vae, family.sound)
    return Encoder(partial(encoded_sound, vae, family.sound), _identity_of_vae(vae))


def _hearing(audio_encoder: Any, giving: Given | None, network: Any) -> Encoder:
    if giving is None or giving.takes.hears is None:
        # It is not used, and the report says so.
        return Encoder(audio_encoder.encode_audio, None)
    named = (type(audio_encoder.model).__name__, str(audio_encoder.dtype))
    hear = partial(heard_by, audio_encoder, giving.takes.hears(network))
    return Encoder(hear, _identity(audio_encoder, *named))


def _unmade(family: Family) -> str:
    if family.unmade is None:
        return ""
    way = phrase("R-train-link-positive-through", node=family.unmade.node)
    return phrase("R-model-not-given-no-folder", setting=family.unmade.setting, way=way)


def _text_encoder(clip: Any) -> Encoder:
    kinds = (type(clip.cond_stage_model).__name__, type(clip.tokenizer).__name__)
    named = (*kinds, str(clip.layer_idx), repr(sorted(clip.tokenizer_options.items())))
    return Encoder(partial(encoded_text, clip), _identity(clip, *named), partial(is_cut, clip))


def _vision_encoder(clip_vision: Any) -> Encoder:
    # Without a crop, so that the whole frame is seen and not only a square of it.
    see = partial(clip_vision.encode_image, crop=False)
    named = (type(clip_vision.model).__name__, str(clip_vision.dtype), str(clip_vision.image_size))
    return Encoder(see, _identity(clip_vision, *named))


def _identity_of_vae(vae: Any) -> str | None:
    # With the compute dtype, which may differ after a restart of the host.
    return _identity(vae, type(vae.first_stage_model).__name__, str(vae.vae_dtype))


def _identity(patchable: Any, *named: str) -> str | None:
    own = own_weights(patchable)
    return None if own is None else identity_of(own[0], *named, *own[1])
