"""Report what was found in a folder of pictures, and how it was prepared; show its first pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from PIL import Image
from torch import Tensor

from ...lycoris_ops import few, number_of
from ..host.families.node import Takes
from ..host.files import shown_path
from .encode import Encoded
from .folder import Found, PictureFolder
from .kept import Kept
from .picture import GAP, row
from .plan import Encoder, PictureSettings, Planned, Shown

CUT = 0.2
"""The report names a picture as cut off if it loses more than this share."""
SHOWN = 25
"""How many pictures are shown at most."""


def described(
    folder: PictureFolder,
    planned: Sequence[Planned],
    encoded: Sequence[Sequence[Encoded]],
    settings: PictureSettings,
    clip: Encoder,
    shown: Shown,
) -> list[str]:
    """The report: what was found, and how it was prepared."""
    masked = {
        picture.found for picture, (view, *_) in zip(planned, encoded, strict=True) if view.mask is not None
    }
    has_clips = any(picture.clip for picture in planned)
    return [
        *_folder_in_words(folder, planned, settings),
        *_named(
            planned,
            {
                "held out": lambda picture: picture.held_out,
                "without a text file": lambda picture: not (picture.found.caption or picture.found.listed),
                "with a caption that is too long for the text encoder, which cuts off its end": (
                    lambda picture: any(map(clip.cuts, picture.texts))
                ),
            },
        ),
        *(_clips_in_words(folder, planned, settings, shown) if has_clips else []),
        *_given_in_words(planned, shown, has_clips=has_clips),
        *_named(
            planned,
            {
                "with several pages or frames, of which the first is learned": (
                    lambda picture: picture.is_animated
                ),
                "with a mask": lambda picture: picture.found in masked,
                # Ignore rounding.
                "enlarged, because they are smaller": lambda picture: picture.fit.scale > 1.001,
                f"more than {CUT:.0%} cut off": lambda picture: picture.fit.lost > CUT,
                "not mirrored, because of words in their captions": lambda picture: (
                    settings.mirror and not picture.held_out and not picture.views[-1].mirrored
                ),
            },
        ),
        *(f"{reason}: {len(names)} ({few(names)})" for reason, names in folder.left_out.items()),
    ]


def _named(planned: Sequence[Planned], lines: Mapping[str, Callable[[Planned], object]]) -> list[str]:
    """A line for each group of pictures, with their names; none for an empty group."""
    names = {
        what: list(dict.fromkeys(picture.found.name for picture in planned if chosen(picture)))
        for what, chosen in lines.items()
    }
    return [f"{what}: {len(some)} ({few(some)})" for what, some in names.items() if some]


def _folder_in_words(
    folder: PictureFolder, planned: Sequence[Planned], settings: PictureSettings
) -> list[str]:
    """How many pictures there are, how often they count, and their sizes."""
    sizes: Counter[str] = Counter()
    for target in planned:
        sizes["{} x {}".format(*target.fit.size)] += target.times
    listed = ", ".join(f"{words} x{count}" for words, count in sizes.most_common())
    groups = Counter(
        (picture.name.rpartition("/")[0] or folder.path.name, picture.repeats) for picture in folder.pictures
    )
    lines = [f"{number_of(len(folder.pictures), 'picture')} in {folder.path.name}"]
    if len(settings.resolutions) > 1:
        lines.append(f"each in the resolutions {', '.join(map(str, settings.resolutions))}")
    if len(groups) > 1:
        lines += [
            f"  {name}: {count}, each {number_of(times, 'time')}"
            for (name, times), count in sorted(groups.items())
        ]
    return [*lines, f"sizes: {listed}; sides in steps of {settings.step} pixels"]


def _clips_in_words(
    folder: PictureFolder, planned: Sequence[Planned], settings: PictureSettings, shown: Shown
) -> list[str]:
    """The cuts of clips, what their files lack, and their sound."""
    cuts = Counter(view.cut.count for picture in planned for view in picture.views if view.cut)
    clips = sum(picture.is_clip for picture in folder.pictures)
    counted = ", ".join(f"{number_of(count, 'frame')} x{number}" for count, number in sorted(cuts.items()))
    lines = [f"{number_of(clips, 'clip')}, at {settings.frame_rate:g} frames a second: {counted}"]
    groups: dict[str, Callable[[Planned], object]] = {
        "with repeated frames, because the clip has too few": lambda picture: (
            picture.clip and picture.clip.repeated
        ),
        "whose end is missing, as in incomplete files": lambda picture: picture.clip and picture.clip.cut_off,
    }
    if settings.frames > settings.frame_step:
        least = 1 + settings.frame_step
        groups[f"too short for {least} frames, and learned as a still picture"] = lambda picture: (
            picture.views[0].cut and picture.views[0].cut.count == 1
        )
    return [*lines, *_named(planned, groups), *_sounds_in_words(planned, shown)]


def _given_in_words(planned: Sequence[Planned], shown: Shown, *, has_clips: bool) -> list[str]:
    """What the model is given beside the captions, and what it is not given."""
    given = shown.given
    lines: list[str] = []
    beside = any(picture.found.references for picture in planned if picture.clip)
    if given and (given.masked or (has_clips and (beside or not given.only_beside))):
        lines.append(f"the model is also given what {given.node} makes")
        if given.seen:
            lines.append("  and what clip_vision sees there")
        if not given.needed and not given.only_beside:
            lines.append("  for text to video set first_frames to none")
    sees = shown.references is not None and shown.references.sees
    needs_seeing = sees or (given is not None and given.takes.only_seen)
    if needs_seeing and shown.vision is None and any(picture.found.references for picture in planned):
        lines.append("no CLIP vision model sees the references: link clip_vision, as for sampling")
    if shown.vision is not None and not sees and not (given and given.seen):
        unseen = " without a first frame" if given and given.unseen else ""
        lines.append(f"clip_vision is not used: this model does not take its output{unseen}")
    if shown.hearing is not None and not shown.hears:
        lines.append("audio_encoder is not used: this model hears no sound")
    if shown.misses_frames and has_clips:
        lines.append("the model gets no first frame: no known node makes one for it")
    if shown.unmade:
        lines.append(shown.unmade)
    groups: dict[str, Callable[[Planned], object]] = {}
    if given and given.takes != Takes() and has_clips:
        groups["with clips that control them"] = lambda picture: picture.found.controls
        groups["with a reference"] = lambda picture: picture.found.still_references
    if not (given and given.takes.reference_masks):
        groups["whose references have masks, which are not used"] = lambda picture: (
            picture.found.reference_masks
        )
    if shown.references and any(picture.found.references for picture in planned):
        how = f"with references, which are {shown.references.in_words}"
        groups[how] = lambda picture: picture.found.references
        groups["without a reference"] = lambda picture: not picture.found.references
    return lines + _named(planned, groups)


def _sounds_in_words(planned: Sequence[Planned], shown: Shown) -> list[str]:
    """The report's lines on the sound of clips."""
    clips = {picture.found: picture for picture in planned if picture.clip}.values()
    heard = [picture.found.name for picture in clips if picture.clip and picture.clip.sounds]
    silent = [picture.found.name for picture in clips if picture.clip and not picture.clip.sounds]
    without = [f"without sound: {len(silent)} ({few(silent)})"] if silent else []
    if shown.hears:
        if shown.hearing is None:
            return ["the model hears no sound: link audio_encoder, as for sampling"] if heard else []
        lines = [f"with sound, which the model hears: {len(heard)} ({few(heard)})"] if heard else []
        return lines + without
    if shown.sound is not None and not shown.own_sound:
        return ["no sound is learned: this model makes none, so audio_vae is not used"]
    if not shown.own_sound or not heard:
        return []
    if shown.sound is None:
        clips = number_of(len(heard), "clip")
        return [f"no sound is learned: link audio_vae to learn the sound of {clips} ({few(heard)})"]
    lines = [f"with sound, which is learned too: {len(heard)} ({few(heard)})"]
    return lines + without


def encoded_in_words(made: Mapping[str, int], encoded: Sequence[Sequence[Encoded]], total: int) -> str:
    """How much was encoded now. `total` counts views and captions."""
    views = [view for views in encoded for view in views]
    sounds = sum(view.sound is not None for view in views)
    total += sounds + sum(len(view.references) for view in views)
    now = [number_of(made["picture"] + made["reference"], "picture")]
    now += [number_of(made["sound"], "sound")] if sounds else []
    return f"encoded: {', '.join(now)} and {number_of(made['caption'], 'caption')} of {total}"


def place(kept: Kept, size: int) -> str:
    if kept.folder is None:
        return "nothing is kept on disk"
    return f"kept: {size / 1e6:.1f} MB of at most {kept.most / 1e9:.0f} GB in {shown_path(kept.folder)}"


def shown_first(
    planned: Sequence[Planned],
    encoded: Sequence[Sequence[Encoded]],
    references: Callable[[Planned], list[Tensor]],
) -> Image.Image:
    """The first pictures in their largest size, each after its small `references`."""
    largest = dict[Found, Tensor]()
    for picture, views in zip(planned, encoded, strict=True):
        if picture.found not in largest and len(largest) < SHOWN:
            largest[picture.found] = row([*references(picture), views[0].small])
    return _side_by_side([*largest.values()])


def _side_by_side(shown: Sequence[Tensor]) -> Image.Image:
    """Small pictures (h, w, 3) of bytes in a grid that is nearly a square, transparent between them."""
    columns = math.ceil(math.sqrt(len(shown)))
    side = max(max(picture.shape[:2]) for picture in shown) + GAP
    rows = -(-len(shown) // columns)
    picture = Image.new("RGBA", (side * columns + GAP, side * rows + GAP))
    for number, small_picture in enumerate(shown):
        line, column = divmod(number, columns)
        height, width = small_picture.shape[:2]
        left, top = (
            GAP + column * side + (side - GAP - width) // 2,
            GAP + line * side + (side - GAP - height) // 2,
        )
        picture.paste(Image.fromarray(small_picture.numpy()), (left, top))
    return picture
