"""What the numbers of a vector of block weights stand for, by its length.

The tables are those of sd-webui-lora-block-weight (`scripts/lora_block_weight.py`), which supermerger
(`pluslora.py`) has too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

OTHERS = ("inspire", "donut", "sd-scripts")
"""Tools whose vectors mean other blocks, or have another weight for blocks that they do not list."""
TOOLS = ("lbw", "supermerger", *OTHERS)


@dataclass(frozen=True)
class Layout:
    """What each number of a vector stands for."""

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
"""The layouts by length."""
