"""Opening an adapter file and matching its names with a model, by this pack and by ComfyUI.

`python -m tests.bench.load [--rounds N]` writes a LoRA of about 350 MB for every linear layer and convolution
of SDXL's UNet. It then measures two things in turn, in one process, with the file in the page cache: our
`load_adapter` and `resolve`, and the host's `load_torch_file` and `load_lora`. The host's map of names is
made outside the timing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import lycoris_ops as lyc
from lycoris_ops.reading.load import _load
from tests.bench.side import boot, in_turn, middle, parser
from tests.harness.facts import ROOT
from tests.harness.listings import target

RANK = 56
"""The rank with which the file has about 350 MB."""
Shapes = dict[str, tuple[int, ...]]


def host_map() -> dict[str, str]:
    """The host's own map of names for SDXL's UNet, from a model whose weights take no memory."""
    import comfy.lora
    import comfy.model_detection

    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in target("sdxl").items()}
        config = comfy.model_detection.model_config_from_unet(state, "model.diffusion_model.")
        model = config.get_model(state, "model.diffusion_model.", device="meta")
    return comfy.lora.model_lora_keys_unet(model, {})


def write(path: Path, keys: Shapes) -> int:
    """Write the adapter and return its number of tensors. They are zeros: only names and sizes count here."""
    tensors: dict[str, torch.Tensor] = {}
    for key, shape in keys.items():
        if key.endswith(".weight") and len(shape) > 1:
            path_in_model = key.removeprefix("diffusion_model.").removesuffix(".weight")
            name, ones = "lora_unet_" + path_in_model.replace(".", "_"), [1 for _ in shape[2:]]
            tensors[f"{name}.lora_up.weight"] = torch.zeros(shape[0], RANK, *ones, dtype=torch.float16)
            tensors[f"{name}.lora_down.weight"] = torch.zeros(RANK, *shape[1:], dtype=torch.float16)
            tensors[f"{name}.alpha"] = torch.tensor(float(RANK), dtype=torch.float16)
    save_file(tensors, path)
    return len(tensors)


def main() -> None:
    options = parser(__doc__, rounds=7).parse_args()
    boot()
    import comfy.lora
    import comfy.utils

    # The keys of a loaded UNet.
    keys = {k.removeprefix("model."): s for k, s in target("sdxl").items() if k.startswith("model.diffusion")}
    key_map, found = host_map(), dict[str, Any]()
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        path = Path(folder) / "adapter.safetensors"
        count = write(path, keys)

        def ours() -> None:
            found["ours"] = lyc.resolve(lyc.Stack([lyc.Entry(lyc.load_adapter(path))]), keys)

        def theirs() -> None:
            tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
            found["theirs"] = comfy.lora.load_lora(tensors, key_map)

        # Headers are remembered, so a second load would read nothing.
        forget = lambda name: _load.cache_clear()  # noqa: E731
        ms = middle(in_turn({"ours": ours, "theirs": theirs}, options.rounds, before=forget))
        size = path.stat().st_size / 1e6
    matched = found["ours"].entries[0].count()
    assert matched == len(found["theirs"]), (matched, len(found["theirs"]))
    print(f"{size:.0f} MB, {count} tensors, {matched} layers")
    print(
        f"load_adapter + resolve {ms['ours']:.1f} ms; load_torch_file + load_lora {ms['theirs']:.1f} ms: "
        f"{ms['ours'] / ms['theirs']:.2f}"
    )


if __name__ == "__main__":
    main()
