"""A stack under the host's TorchCompileModel: other strengths, masks and files compile nothing again.

Graphs are counted by torch's own counters.
"""

from __future__ import annotations

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


@pytest.mark.soak
@pytest.mark.parametrize("name", ["Flux 1", "Wan 2.1 t2v"])
def test_twenty_changes_of_a_model(host: Host, name: str) -> None:
    begin()
    model = tiny(name)
    base = Patched(patcher(model), None)
    counted: list[int] = []
    for number in range(21):
        stack = masked(
            host,
            host.scheduled(stack_for(host, model, ("lora", "oft"), seed=50 * number), "0:0.2, 1:1"),
            mask=torch.rand(1, 8, 8),
            outside=number / 21,
        )
        bound = host.apply(base, stack, clip=False)
        sigma = 0.02 + number / 21
        (compiled,) = host.run("TorchCompileModel", bound.model, backend="aot_eager")
        load(compiled)
        found = once(Patched(compiled, None), name, sigma=sigma)
        load(bound.model)
        assert torch.equal(found, once(bound, name, sigma=sigma))
        counted.append(graphs())
    assert counted == counted[:1] * 21
    unload()
