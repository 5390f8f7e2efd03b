"""The time to save a LoRA as a PEFT folder: by this pack, and by PEFT's own `save_pretrained`.

`python -m benchmarks.save [--rounds N]` prints a table. The LoRA has rank 16 on 224 linear layers of width
1024, 29 MB in float32. The ways take turns in one process, and each writes a new folder. "file" is from an
adapter that was read from a file and is read again for it, "memory" from tensors. Times are medians in ms.
A ratio is the median over the rounds of a way's time over PEFT's. PEFT neither reads back what it wrote, nor
waits until it is on the disk. "PEFT, checked" does both by the shortest way. This is the least that a save
costs which promises that the file is there and right.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import lycoris_ops as lyc
from benchmarks.side import Table, in_turn, middle, parser, ratio

LAYERS, WIDTH, RANK = 224, 1024, 16


def in_peft() -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    # One base weight for all layers: it is not saved.
    weight = nn.Parameter(torch.zeros(WIDTH, WIDTH))
    model = nn.ModuleDict(
        {f"layer_{number}": nn.Linear(WIDTH, WIDTH, bias=False) for number in range(LAYERS)}
    )
    for layer in model.values():
        layer.weight = weight
    names = list(model)
    return get_peft_model(model, LoraConfig(r=RANK, target_modules=names, init_lora_weights=False))  # type: ignore[arg-type]


def checked(model: Any, held: dict[str, torch.Tensor], out: Path) -> None:
    """Save by PEFT, wait for the disk, and compare what a reader finds with the tensors of the model."""
    model.save_pretrained(out)
    for path in [*out.iterdir(), out]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    found = load_file(out / "adapter_model.safetensors")
    assert found.keys() == held.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in held.items())


def main() -> None:
    options = parser(__doc__, rounds=15).parse_args()
    theirs = in_peft()
    with TemporaryDirectory() as name:
        folder = Path(name)
        theirs.save_pretrained(folder / "source")
        source = lyc.load_adapter(folder / "source", cache=lyc.TensorCache(0))
        held = lyc.Adapter.of(dict(source.layers), name="held")
        tensors = load_file(folder / "source" / "adapter_model.safetensors")
        out = folder / "out"
        ways: dict[str, Callable[[], object]] = {
            "PEFT": lambda: theirs.save_pretrained(out),
            "PEFT, checked": lambda: checked(theirs, tensors, out),
            "file": lambda: lyc.save_adapter(source, out, "peft"),
            "memory": lambda: lyc.save_adapter(held, out, "peft"),
        }

        def fresh(_: str) -> None:
            shutil.rmtree(out, ignore_errors=True)
            # What the way before wrote must not be written to the disk in this one's time.
            os.sync()

        times = in_turn(ways, options.rounds, before=fresh)
    table = Table("way", "ms", "time over PEFT's", "over PEFT's, checked")
    for way, found in middle(times).items():
        ratios = (f"{ratio(times, way, other):.2f}" for other in ("PEFT", "PEFT, checked"))
        table.row(way, f"{found:.0f}", *ratios)


if __name__ == "__main__":
    main()
