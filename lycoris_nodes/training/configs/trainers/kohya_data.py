"""A data set of kohya-ss/sd-scripts or musubi-tuner: the TOML that `dataset_config` names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from ..config import OF_PICTURES, Config
from .kohya import BUCKETS, ON_PICTURES, side_of

NAME, FORM = "kohya's data set", "TOML with datasets"
INSIDE = ("datasets", "subsets")
WHERE = {
    "num_repeats": "put a number and `_` in front of the folder's name",
    "is_reg": "link `regularisation_latents`",
    "control_directory": "name the folder `control`, beside the folder of the pictures",
    "conditioning_data_dir": "name the folder `masks`, beside the folder of the pictures",
}
"""What is not an input of the node of pictures."""
PLACES = ("image_dir", "image_directory", "video_directory", "image_jsonl_file", "video_jsonl_file")
FOLDERS = (
    *("image_dir", "image_directory", "video_directory", "class_tokens", "target_frames"),
    *("frame_extraction", "source_fps", "max_frames"),
)


def config_of(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a file of this form, the first of each name; None for others."""
    if not isinstance(table.get("datasets"), list):
        return None
    settings: dict[str, Any] = {}
    for name, value in _settings(table):
        settings[name] = settings.get(name) or value
    if sides := _resolutions(table):
        settings["resolution"] = sides
    return settings


def read(config: Config) -> None:
    config.put("batch_size", "batch_size", int, usual=1)
    config.put("caption_dropout_rate", "caption_dropout", float, usual=0)
    for name, where in WHERE.items():
        config.elsewhere(where, name)
    config.elsewhere(OF_PICTURES, *ON_PICTURES, *FOLDERS)
    config.resolution("resolution", lambda values: [side_of(value) for value in values])
    config.unused(*BUCKETS, "cache_directory")


def _resolutions(table: Mapping[str, Any]) -> list[Any]:
    """The resolutions of data sets that are of the same pictures; of others, that of the first."""
    general = cast("dict[str, Any]", table.get("general") or {})
    usual = table.get("resolution", general.get("resolution"))
    sets = [list(_settings(dataset)) for dataset in cast("list[dict[str, Any]]", table["datasets"])]
    paths = [sorted(str(value) for name, value in dataset if name in PLACES) for dataset in sets]
    sides = [dict(dataset).get("resolution", usual) for dataset in sets]
    count = len(sets) if all(own == paths[0] for own in paths) else 1
    return [side for side in sides[:count] if side]


def _settings(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a table and of those in it: what is given for all is the usual value of each."""
    inner = [
        inner_table for key in INSIDE for inner_table in cast("list[dict[str, Any]]", table.get(key) or [])
    ]
    for below in inner:
        yield from _settings(below)
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _settings(cast("dict[str, Any]", value))
        elif key not in INSIDE:
            yield key, value
