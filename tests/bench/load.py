"""Opening an adapter file and matching its names with a model, by this pack and by ComfyUI ("host").

`python -m tests.bench.load [ROUNDS]` writes a LoRA of about 350 MB for every linear layer and convolution of
SDXL's UNet. It then measures two things in turn, in one process, with the file in the page cache: our
`load_adapter` and `resolve`, and the host's `load_torch_file` and `load_lora`. The host's map of names is
made outside the timing.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import lycoris_ops as lyc
from lycoris_ops.reading.load import _load
from tests.harness.facts import ROOT, facts
from tests.harness.listings import target

RANK = 56
"""The rank with which the file has about 350 MB."""


def shapes() -> dict[str, tuple[int, ...]]:
    """The keys of a loaded SDXL UNet."""
    wrapper = "model.diffusion_model."
    found = target("sdxl").items()
    return {key.removeprefix("model."): shape for key, shape in found if key.startswith(wrapper)}


def host_map() -> dict[str, str]:
    """The host's own map of names for SDXL's UNet, from a model whose weights take no memory."""
    import comfy.lora
    import comfy.model_detection

    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in target("sdxl").items()}
        config = comfy.model_detection.model_config_from_unet(state, "model.diffusion_model.")
        model = config.get_model(state, "model.diffusion_model.", device="meta")
    return comfy.lora.model_lora_keys_unet(model, {})


def write(path: Path, keys: dict[str, tuple[int, ...]]) -> int:
    """Write the adapter and return its number of tensors. They are zeros: only names and sizes count here."""
    tensors: dict[str, torch.Tensor] = {}
    for key, shape in keys.items():
        if key.endswith(".weight") and len(shape) > 1:
            name = "lora_unet_" + key.removeprefix("diffusion_model.").removesuffix(".weight").replace(
                ".", "_"
            )
            ones = [1 for _ in shape[2:]]
            tensors[f"{name}.lora_up.weight"] = torch.zeros(shape[0], RANK, *ones, dtype=torch.float16)
            tensors[f"{name}.lora_down.weight"] = torch.zeros(RANK, *shape[1:], dtype=torch.float16)
            tensors[f"{name}.alpha"] = torch.tensor(float(RANK), dtype=torch.float16)
    save_file(tensors, path)
    return len(tensors)


def main(rounds: int) -> None:
    # At the end of the path: the host has a package `tests` too.
    sys.path.append(str(facts().comfyui))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    import comfy.lora
    import comfy.utils

    keys = shapes()
    key_map = host_map()
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        path = Path(folder) / "adapter.safetensors"
        count = write(path, keys)
        size = path.stat().st_size / 1e6
        for _ in range(rounds + 1):
            # Headers are remembered, so a second load would read nothing.
            _load.cache_clear()
            start = time.perf_counter()
            resolution = lyc.resolve(lyc.Stack([lyc.Entry(lyc.load_adapter(path))]), keys)
            ours.append(time.perf_counter() - start)
            start = time.perf_counter()
            loaded = comfy.lora.load_lora(comfy.utils.load_torch_file(str(path), safe_load=True), key_map)
            theirs.append(time.perf_counter() - start)
    matched = resolution.entries[0].count()
    assert matched == len(loaded), (matched, len(loaded))
    # The first round warms up.
    one, other = (1e3 * statistics.median(values[1:]) for values in (ours, theirs))
    print(f"{size:.0f} MB, {count} tensors, {matched} layers")
    print(
        f"load_adapter + resolve {one:.1f} ms; load_torch_file + load_lora {other:.1f} ms: {one / other:.2f}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
