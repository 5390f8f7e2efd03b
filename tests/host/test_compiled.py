"""A stack under the host's TorchCompileModel: other strengths, masks and files compile nothing again.

Graphs are counted by torch's own counters.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hosting import Host, Patched, load, model_of, patcher, unload
from masking import made, masked, once, stack_for
from torch._dynamo.utils import counters
from trainable import tiny

pytestmark = pytest.mark.host


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def begin() -> None:
    torch._dynamo.reset()
    counters.clear()
    # Torch's own default.
    torch._dynamo.config.skip_nnmodule_hook_guards = True


@pytest.mark.parametrize("kind", ["lora", "lokr-full-low", "oft", "lora-dora-out"])
def test_another_stack_compiles_nothing_again(host: Host, kind: str) -> None:
    """On a layer that was compiled without a stack."""
    begin()
    layers = torch.nn.Sequential(torch.nn.Linear(16, 8))
    base, x = model_of(some=layers), torch.randn(3, 16)
    compiled: Any = torch.compile(layers, backend="aot_eager", fullgraph=True)
    counted: list[int] = []
    for number in range(6):
        adapter = {"diffusion_model.some.0": made(host, kind, (8, 16), number)}
        entry = host.ops.Entry(host.ops.Adapter.of(adapter, name="test"), strength=0.3 + number)
        with torch.inference_mode():
            before = compiled(x)
            bound = host.apply(base, host.ops.Stack([entry]), mode="bypass", clip=False)
            load(bound.model)
            found = compiled(x)
            assert torch.equal(found, layers(x)) and not torch.equal(found, before)
        unload()
        counted.append(graphs())
    # The first one makes torch look at hooks, so that it compiles the plain layer once more.
    assert counted[1:] == counted[1:2] * 5 and counted[1] == 3


SMALL = {
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [0, 0],
    "transformer_depth_middle": -2,
}
"""A UNet of one level, with one transformer."""


@pytest.mark.parametrize(
    ("name", "changed", "changes"),
    [
        pytest.param("SD1.5", SMALL, 4, id="small UNet"),
        *(
            pytest.param(name, {}, 20, id=name, marks=pytest.mark.soak)
            for name in ("SD1.5", "Flux 1", "Wan 2.1 t2v")
        ),
    ],
)
def test_changes_of_a_masked_stack_compile_nothing_again(
    host: Host, monkeypatch: pytest.MonkeyPatch, name: str, changed: dict[str, Any], changes: int
) -> None:
    """Of the file, strengths, the mask and the moment."""
    from comfy.ldm.modules import attention

    # As on a GPU. The one for CPUs asks for the free memory, which no graph can hold.
    for module in [one for one in sys.modules.values() if hasattr(one, "optimized_attention")]:
        monkeypatch.setattr(module, "optimized_attention", attention.attention_pytorch)
    begin()
    model = tiny(name, **changed)
    base = Patched(patcher(model), None)
    counted: list[int] = []
    outputs: list[torch.Tensor] = []
    for number in range(1 + changes):
        share = number / (1 + changes)
        (entry,) = stack_for(host, model, ("lora", "oft"), seed=50 * number)
        stack = host.ops.Stack([replace(entry, strength=0.5 + share)])
        stack = masked(host, host.scheduled(stack, "0:0.2, 1:1"), mask=torch.rand(1, 8, 8), outside=share)
        bound = host.apply(base, stack, clip=False)
        sigma = 0.02 + share
        (compiled,) = host.run("TorchCompileModel", bound.model, backend="aot_eager")
        load(compiled)
        outputs.append(once(Patched(compiled, None), name, sigma=sigma))
        load(bound.model)
        assert torch.equal(outputs[-1], once(bound, name, sigma=sigma))
        counted.append(graphs())
    assert counted == counted[:1] * len(counted) and not counters["graph_break"]
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == len(outputs)
    unload()
