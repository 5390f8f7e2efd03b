"""Report what was found in a folder of pictures, and how it was prepared; show its first pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from PIL import Image
from torch import Tensor

from ...lycoris_ops import few, number_of, phrase
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
                phrase("R-held-out"): lambda picture: picture.held_out,
                phrase("R-without-text-file"): lambda picture: (
                    not (picture.found.caption or picture.found.listed)
                ),
                phrase("R-caption-too-long-text-encoder"): (
                    lambda picture: any(map(clip.cuts, picture.texts))
                ),
            },
        ),
        *(_clips_in_words(folder, planned, settings, shown) if has_clips else []),
        *_given_in_words(planned, shown, has_clips=has_clips),
        *_named(
            planned,
            {
                phrase("R-several-pages-or-frames-first"): (lambda picture: picture.is_animated),
                phrase("R-mask"): lambda picture: picture.found in masked,
                # Ignore rounding.
                phrase("R-enlarged-because-they-smaller"): lambda picture: picture.fit.scale > 1.001,
                phrase("R-more-than-cut-off", cut=CUT): lambda picture: picture.fit.lost > CUT,
                phrase("R-not-mirrored-because-words-their"): lambda picture: (
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
    lines = [phrase("R-in-3", count=len(folder.pictures), name=folder.path.name)]
    if len(settings.resolutions) > 1:
        lines.append(phrase("R-each-resolutions", str=map(str, settings.resolutions)))
    if len(groups) > 1:
        lines += [
            f"  {phrase('R-each', name=name, count=count, times=times)}"
            for (name, times), count in sorted(groups.items())
        ]
    return [*lines, phrase("R-sizes-sides-steps-pixels", listed=listed, step=settings.step)]


def _clips_in_words(
    folder: PictureFolder, planned: Sequence[Planned], settings: PictureSettings, shown: Shown
) -> list[str]:
    """The cuts of clips, what their files lack, and their sound."""
    cuts = Counter(view.cut.count for picture in planned for view in picture.views if view.cut)
    clips = sum(picture.is_clip for picture in folder.pictures)
    counted = ", ".join(f"{number_of(count, 'frame')} x{number}" for count, number in sorted(cuts.items()))
    lines = [phrase("R-at-frames-second", clips=clips, frame_rate=settings.frame_rate, counted=counted)]
    groups: dict[str, Callable[[Planned], object]] = {
        phrase("R-repeated-frames-because-clip-has"): lambda picture: picture.clip and picture.clip.repeated,
        phrase("R-whose-end-missing-incomplete-files"): lambda picture: picture.clip and picture.clip.cut_off,
    }
    if settings.frames > settings.frame_step:
        least = 1 + settings.frame_step
        groups[phrase("R-too-short-frames-learned-still", least=least)] = lambda picture: (
            picture.views[0].cut and picture.views[0].cut.count == 1
        )
    return [*lines, *_named(planned, groups), *_sounds_in_words(planned, shown)]


def _given_in_words(planned: Sequence[Planned], shown: Shown, *, has_clips: bool) -> list[str]:
    """What the model is given beside the captions, and what it is not given."""
    given = shown.given
    lines: list[str] = []
    beside = any(picture.found.references for picture in planned if picture.clip)
    if given and (given.masked or (has_clips and (beside or not given.only_beside))):
        lines.append(phrase("R-model-also-given-what-makes", node=given.node))
        if given.seen:
            lines.append(f"  {phrase('R-what-clip-vision-sees-there')}")
        if not given.needed and not given.only_beside:
            lines.append(f"  {phrase('R-text-video-set-first-frames')}")
    sees = shown.references is not None and shown.references.sees
    needs_seeing = sees or (given is not None and given.takes.only_seen)
    if needs_seeing and shown.vision is None and any(picture.found.references for picture in planned):
        lines.append(phrase("R-no-clip-vision-model-sees"))
    if shown.vision is not None and not sees and not (given and given.seen):
        unseen = f" {phrase('R-without-first-frame')}" if given and given.unseen else ""
        lines.append(phrase("R-clip-vision-not-used-model", unseen=unseen))
    if shown.hearing is not None and not shown.hears:
        lines.append(phrase("R-audio-encoder-not-used-model"))
    if shown.misses_frames and has_clips:
        lines.append(phrase("R-model-gets-no-first-frame"))
    if shown.unmade:
        lines.append(shown.unmade)
    groups: dict[str, Callable[[Planned], object]] = {}
    if given and given.takes != Takes() and has_clips:
        groups[phrase("R-clips-control-them")] = lambda picture: picture.found.controls
        groups[phrase("R-reference")] = lambda picture: picture.found.still_references
    if not (given and given.takes.reference_masks):
        groups[phrase("R-whose-references-have-masks-not")] = lambda picture: picture.found.reference_masks
    if shown.references and any(picture.found.references for picture in planned):
        how = phrase("R-references", in_words=shown.references.in_words)
        groups[how] = lambda picture: picture.found.references
        groups[phrase("R-without-reference")] = lambda picture: not picture.found.references
    return lines + _named(planned, groups)


def _sounds_in_words(planned: Sequence[Planned], shown: Shown) -> list[str]:
    """The report's lines on the sound of clips."""
    clips = {picture.found: picture for picture in planned if picture.clip}.values()
    heard = [picture.found.name for picture in clips if picture.clip and picture.clip.sounds]
    silent = [picture.found.name for picture in clips if picture.clip and not picture.clip.sounds]
    without = [phrase("R-without-sound", count=len(silent), silent=few(silent))] if silent else []
    if shown.hears:
        if shown.hearing is None:
            return [phrase("R-model-hears-no-sound-link")] if heard else []
        lines = [phrase("R-sound-model-hears", count=len(heard), heard=few(heard))] if heard else []
        return lines + without
    if shown.sound is not None and not shown.own_sound:
        return [phrase("R-no-sound-learned-model-makes")]
    if not shown.own_sound or not heard:
        return []
    if shown.sound is None:
        clips = number_of(len(heard), "clip")
        return [phrase("R-no-sound-learned-link-audio", clips=clips, heard=few(heard))]
    lines = [phrase("R-sound-learned-too", count=len(heard), heard=few(heard))]
    return lines + without


def encoded_in_words(made: Mapping[str, int], encoded: Sequence[Sequence[Encoded]], total: int) -> str:
    """How much was encoded now. `total` counts views and captions."""
    views = [view for views in encoded for view in views]
    sounds = sum(view.sound is not None for view in views)
    total += sounds + sum(len(view.references) for view in views)
    now = [number_of(made["picture"] + made["reference"], "picture")]
    now += [number_of(made["sound"], "sound")] if sounds else []
    return phrase("R-encoded", now=now, caption=made["caption"], total=total)


def place(kept: Kept, size: int) -> str:
    if kept.folder is None:
        return phrase("R-nothing-kept-on-disk")
    return phrase(
        "R-kept-mb-at-most-gb",
        size=size / 1000000.0,
        most=kept.most / 1000000000.0,
        folder=shown_path(kept.folder),
    )


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
