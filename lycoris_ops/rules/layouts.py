"""What the numbers of a vector of block weights stand for, by its length and the tool that it is for.

By index: the tables of sd-webui-lora-block-weight (`scripts/lora_block_weight.py`), which supermerger
(`pluslora.py`) and sd-scripts (`svd_merge_lora.py`) have too. By position: ComfyUI-Inspire-Pack
(`lora_block_weight.py`) and DonutNodes, which give the first number to all that is in no block, and one
number to each block that the file has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

INDEXED, POSITIONED = ("lbw", "supermerger", "sd-scripts"), ("inspire", "donut")
UNLISTED = {"lbw": 0.0, "supermerger": 0.0, "sd-scripts": 1.0}
"""By tool, the weight of blocks that a vector by index does not list."""
POSITIONAL = {
    "inspire": ("in", "mid", "out", "double", "single"),
    "donut": ("in", "mid", "out", "double", "single", "layers", "blocks"),
}
"""By tool, the families whose blocks are counted, in their order."""
TITLES = {
    "lbw": "LBW (sd-webui-lora-block-weight)",
    "supermerger": "supermerger",
    "sd-scripts": "sd-scripts",
    "inspire": "Inspire Pack",
    "donut": "DonutNodes",
}


@dataclass(frozen=True)
class Layout:
    """What each number of a vector by index stands for."""

    title: str
    blocks: tuple[tuple[str, ...], ...]
    """The short names of what each number is for."""
    families: Mapping[str, int]
    """The families of blocks that the model must have, with how many blocks each."""


def _unet(title: str, inputs: Iterable[int], outputs: Iterable[int], count: int) -> Layout:
    blocks = [("te",), *((f"in.{n}",) for n in inputs), ("mid",), *((f"out.{n}",) for n in outputs)]
    return Layout(title, tuple(blocks), {"in": count, "out": count})


LAYOUTS = {
    26: _unet("LyCORIS on SD1 and SD2", range(12), range(12), 12),
    17: _unet("LoRA on SD1 and SD2", (1, 2, 4, 5, 7, 8), range(3, 12), 12),
    12: _unet("LoRA on SDXL", (4, 5, 7, 8), range(6), 9),
    20: _unet("LyCORIS on SDXL", range(9), range(9), 9),
    61: Layout(
        "Flux",
        (
            ("clip_l",),
            ("t5xxl",),
            ("img_in", "txt_in", "time_in", "vector_in", "guidance_in"),
            *((f"double.{n}",) for n in range(19)),
            *((f"single.{n}",) for n in range(38)),
            ("final_layer",),
        ),
        {"double": 19, "single": 38},
    ),
}
"""The layouts by index, by length."""
