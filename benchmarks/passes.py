"""Small models of the host for times of whole passes: a UNet of SD1.5's layout, a transformer of Flux's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tests.harness import zoo
from tests.ops.layers import KINDS

OF_KINDS = ("lora", "loha", "lokr-full-low", "lora-dora-out", "oft")
RANK = 16


@dataclass(frozen=True)
class Small:
    """A model with random weights, and the shapes of what a pass of one picture is given."""

    title: str
    architecture: str
    settings: Mapping[str, Any]
    latent: tuple[int, ...]
    conds: Mapping[str, tuple[int, ...]]

    @cached_property
    def model(self) -> Any:
        return made(self.architecture, self.settings).requires_grad_(False)

    @cached_property
    def plain(self) -> Any:
        """The patcher of the model without adapters."""
        from comfy.model_patcher import ModelPatcher

        device = torch.device("cpu")
        return ModelPatcher(self.model, load_device=device, offload_device=device)

    @cached_property
    def given(self) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(1)
        return {name: torch.randn(1, *shape, generator=draw) for name, shape in self.conds.items()}

    def stack(self, ops: Any, kind: str, seed: int = 0) -> Any:
        """A stack of one adapter, with a layer of the kind for each of the model's."""
        torch.manual_seed(seed)
        spec = KINDS[kind]
        own: Mapping[str, Any] = zoo.adaptable(self.model)
        layers = {
            path: ops.ALGORITHMS[spec.algorithm].load(
                {**spec.make(tuple(layer.weight.shape), RANK), "alpha": torch.tensor(1.0)}, spec.options
            )
            for path, layer in own.items()
            # OFT has no blocks for other sizes.
            if layer.weight.shape[0] % 4 == 0
        }
        return ops.Stack([ops.Entry(ops.Adapter.of(layers, name=f"{kind} {seed}"), strength=0.5)])

    def loaded(self, patcher: Any, x: Tensor) -> None:
        """Load the model with a patcher's adapters, and make the pass that sets things up."""
        import comfy.model_management

        comfy.model_management.load_models_gpu([patcher])
        patcher.pre_run()
        self.passed(patcher, x)

    def passed(self, patcher: Any, x: Tensor) -> Tensor:
        """One pass of the loaded model as the host's sampler makes it."""
        from comfy.patcher_extension import merge_nested_dicts

        own = {**patcher.model_options["transformer_options"], "cond_or_uncond": [0]}
        known = merge_nested_dicts(own, {"wrappers": patcher.wrappers})
        conds = {name: one.expand(len(x), *one.shape[1:]) for name, one in self.given.items()}
        with torch.inference_mode():
            return patcher.model.apply_model(
                x, torch.full((len(x),), 0.5), transformer_options=known, **conds
            )


UNET = Small(
    "UNet",
    "SD1.5",
    {"model_channels": 192, "context_dim": 768, "num_head_channels": 64},
    (4, 32, 32),
    {"c_crossattn": (77, 768)},
)
TRANSFORMER = Small(
    "transformer",
    "Flux 1",
    {"hidden_size": 1024, "num_heads": 8, "axes_dim": [16, 56, 56], "context_in_dim": 512},
    (4, 64, 64),
    {"c_crossattn": (128, 512), "y": (12,), "guidance": ()},
)


def made(architecture: str, settings: Mapping[str, Any]) -> Any:
    """A model of the zoo with the usual initial weights."""
    from comfy.model_base import model_sampling

    model = zoo.make(architecture, changed=settings, cut=False)
    # The zoo has overwritten the noise levels.
    model.model_sampling = model_sampling(model.model_config, model.model_type)
    return usual_weights(model)


def usual_weights(model: Any) -> Any:
    """The model with the usual initial weights, all of them trainable."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(float(not name.endswith("bias")))
    return model.requires_grad_()


def run(nodes: Any, node: str, *given: Any, **named: Any) -> Any:
    """What a node of the host or of this pack gives."""
    kind = nodes.NODE_CLASS_MAPPINGS[node]
    if hasattr(kind, "GET_SCHEMA"):
        return kind.execute(*given, **named).args
    return getattr(kind(), kind.FUNCTION)(*given, **named)
