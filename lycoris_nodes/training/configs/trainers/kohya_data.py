"""A data set of kohya-ss/sd-scripts or musubi-tuner: the TOML that `dataset_config` names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from ..config import Config
from .kohya import BUCKETS, OF_PICTURES

NAME, FORM = "kohya's data set", "TOML with datasets"
INSIDE = ("datasets", "subsets")
WHERE = {
    "num_repeats": "put a number and `_` in front of the folder's name",
    "is_reg": "link `regularisation_latents`",
    "control_directory": "name the folder `control`, beside the folder of the pictures",
    "conditioning_data_dir": "name the folder `masks`, beside the folder of the pictures",
}
"""What is not an input of the node of pictures."""
FOLDERS = (
    *("image_dir", "image_directory", "video_directory", "class_tokens", "target_frames"),
    *("frame_extraction", "source_fps", "max_frames"),
)


def config_of(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a file of this form, the first of each name; None for others."""
    if not isinstance(table.get("datasets"), list):
        return None
    found: dict[str, Any] = {}
    for name, value in _settings(table):
        found[name] = found.get(name) or value
    return found


def read(config: Config) -> None:
    config.put("batch_size", "batch_size", int, usual=1)
    config.put("caption_dropout_rate", "caption_dropout", float, usual=0)
    for name, where in WHERE.items():
        config.elsewhere(where, name)
    config.elsewhere("set on LyCORIS Training Pictures", *OF_PICTURES, *FOLDERS)
    config.unused(*BUCKETS, "cache_directory")


def _settings(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a table and of those in it: what is given for all is the usual value of each."""
    inner = [one for key in INSIDE for one in cast("list[dict[str, Any]]", table.get(key) or [])]
    for one in inner:
        yield from _settings(one)
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _settings(cast("dict[str, Any]", value))
        elif key not in INSIDE:
            yield key, value
