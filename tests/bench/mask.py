"""What a mask costs: a pass of a model with a masked stack beside one with the same stack unmasked.

`python -m tests.bench.mask [--rounds N] [--kinds KIND ...]` takes a UNet of SD1.5's layout and a transformer
of Flux's, with random weights and a layer of one kind beside each of their own. Passes take turns in one
process. It prints the median of the ratios of the times, and the ratio of the most memory that a pass takes
beyond the model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.bench.side import Resident, Table, in_turn, middle, parser, ratio, versions
from tests.harness import zoo
from tests.harness.assets import install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process, loaded_pack
from tests.ops.layers import KINDS

CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "UNet": (
        "SD1.5",
        {"model_channels": 192, "context_dim": 768, "num_head_channels": 64},
        (4, 32, 32),
        {"c_crossattn": (77, 768)},
    ),
    "transformer": (
        "Flux 1",
        {"hidden_size": 1024, "num_heads": 8, "axes_dim": [16, 56, 56], "context_in_dim": 512},
        (4, 64, 64),
        {"c_crossattn": (128, 512), "y": (12,), "guidance": ()},
    ),
}
"""By title: the architecture, settings of the model, the latent, and what else the model is given."""
OF_KINDS = ("lora", "loha", "lokr-full-low", "lora-dora-out", "oft")
RANK = 16


def stack_for(ops: Any, model: Any, kind: str) -> Any:
    spec = KINDS[kind]
    layers = {
        path: ops.ALGORITHMS[spec.algorithm].load(
            {**spec.make(tuple(layer.weight.shape), RANK), "alpha": torch.tensor(1.0)}, spec.options
        )
        for path, layer in zoo.adaptable(model).items()
        if layer.weight.shape[0] % 4 == 0
    }
    return ops.Stack([ops.Entry(ops.Adapter.of(layers, name=kind), strength=0.5)])


def main() -> None:
    asked = parser(__doc__, rounds=7)
    asked.add_argument("--kinds", nargs="+", default=OF_KINDS, choices=OF_KINDS)
    options = asked.parse_args()
    base = install(base_directory(ROOT / ".cache" / facts().host / "bench-mask", ROOT))
    nodes = boot_in_process(facts().comfyui, base)
    import comfy.model_management
    from comfy.model_patcher import ModelPatcher
    from comfy.patcher_extension import merge_nested_dicts

    ops: Any = loaded_pack(base).lycoris_ops
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1

    def run(node: str, *given: Any, **options: Any) -> Any:
        return nodes.NODE_CLASS_MAPPINGS[node].execute(*given, **options).args[0]

    table = Table("model", "kind", "unmasked ms", "masked ms", "ratio", "memory, masked to unmasked")
    for title, (architecture, settings, latent, given) in CASES.items():
        model = zoo.make(architecture, changed=settings, cut=False)
        device = torch.device("cpu")
        plain = ModelPatcher(model, load_device=device, offload_device=device)
        x = torch.randn(1, *latent)
        conds = {name: torch.randn(1, *shape) for name, shape in given.items()}
        for kind in options.kinds:
            stack = stack_for(ops, model, kind)
            patchers = {
                "unmasked": run("LycorisApplyStack", plain, stack, mode="bypass"),
                "masked": run("LycorisApplyStack", plain, run("LycorisMask", stack, half, text="whole")),
            }

            def passed(
                name: str, x: torch.Tensor = x, conds: dict[str, Any] = conds, held: Any = patchers
            ) -> None:
                own = {**held[name].model_options["transformer_options"], "cond_or_uncond": [0]}
                known = merge_nested_dicts(own, {"wrappers": held[name].wrappers})
                with torch.inference_mode():
                    held[name].model.apply_model(x, torch.full((1,), 0.5), transformer_options=known, **conds)

            def loaded(name: str, held: Any = patchers, once: Callable[[str], None] = passed) -> None:
                comfy.model_management.load_models_gpu([held[name]])
                once(name)

            works = {name: partial(passed, name) for name in patchers}
            times = in_turn(works, options.rounds, before=loaded)
            memory, peaks = Resident(), dict[str, float]()
            for name in patchers:
                loaded(name)
                memory.forget()
                start = memory.now
                passed(name)
                peaks[name] = memory.peak - start
            took = middle(times)
            table.row(
                *(title, kind, f"{took['unmasked']:.0f}", f"{took['masked']:.0f}"),
                *(f"{ratio(times, 'masked', 'unmasked'):.3f}", f"{peaks['masked'] / peaks['unmasked']:.3f}"),
            )
    print(f"\n{versions()}")


if __name__ == "__main__":
    main()
