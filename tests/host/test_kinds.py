"""Every kind of layer in the real host: weights, biases, norms, and low VRAM.

DoRA as the host's own loader computes it is tested here, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, Patched, calculated, in_low_vram, load, loaded_by_the_host, unload
from kinds import KINDS, kinds, loha, lokr, lora
from safetensors.torch import save_file
from torch import Tensor

from tests.ops.layers import Factors, rand

pytestmark = pytest.mark.host
LORAS = "loras"

LINEAR = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0"
CONV = "diffusion_model.input_blocks.1.0.out_layers.3"
NORM = "diffusion_model.input_blocks.1.0.out_layers.0"
FILE = "kinds_under_test.safetensors"


@pytest.fixture(autouse=True)
def nothing_loaded(host: Host) -> None:
    """Unload all models. Clones share their weights, which an earlier test may have patched."""
    unload()


def write(host: Host, layers: dict[str, Factors]) -> Path:
    path = host.base / "models" / LORAS / FILE
    save_file({f"{name}.{key}": t for name, layer in layers.items() for key, t in layer.items()}, path)
    return path


def shape_of(plain: Patched, path: str) -> tuple[int, ...]:
    return tuple(plain.model.model_state_dict()[f"{path}.weight"].shape)


def applied(
    host: Host, plain: Patched, layers: dict[str, Factors], strength: float, **options: str
) -> Patched:
    """Load one file with these layers and apply it, both by the nodes."""
    write(host, layers)
    (stack,) = host.run("LycorisLoadAdapter", FILE, strength, strength, None, **options)
    return host.apply(plain, stack)


def expected(host: Host, key: str, weight: Tensor, tensors: Factors, strength: float) -> Tensor:
    """The exact weight or bias, in float64, from the library's layer alone.

    The tests of the library compare what a layer computes with other implementations.
    """
    layer = host.ops.algorithms.detect(tensors).load(tensors)
    parameter = "bias" if key.endswith(".bias") else "weight"
    return weight.double() + strength * host.ops.Part(layer, parameter=parameter).delta(weight.double())


@pytest.mark.parametrize("path", [LINEAR, CONV], ids=["linear", "conv2d"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_every_path_of_the_host(host: Host, plain: Patched, kind: str, path: str) -> None:
    """The host patches a weight in float32 when it loads a model, and in 16 bits when it is short of memory.

    The patched weight must be exact in float32, and one rounding from the exact one in 16 bits.
    """
    tensors = kinds(shape_of(plain, path))[kind]
    patched = applied(host, plain, {path: tensors}, 0.7)
    keys = [f"{path}.weight"]
    keys += [f"{path}.bias"] if kind in ("full", "lora-bias") else []
    assert sorted(patched.patches) == sorted(keys)
    assert "applied 1 of 1 layers" in patched.report
    for key in keys:
        weight = plain.model.model_state_dict()[key].float()
        exact = expected(host, key, weight, tensors, 0.7)
        found = calculated(patched.patches, key, weight)
        assert found.dtype == torch.float32
        assert (found.double() - exact).abs().max() < 16 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert (exact - weight).norm() > 1e-3 * weight.norm()
        for dtype in (torch.bfloat16, torch.float16):
            narrow = weight.to(dtype)
            exact = expected(host, key, narrow, tensors, 0.7)
            error = (in_low_vram(patched, key)(narrow.clone()).double() - exact).abs()
            half_ulp = torch.finfo(dtype).eps / 2 * exact.abs()
            assert (error <= half_ulp + 1e-5 * exact.abs().max()).all()


def test_a_norms_weight_and_bias_are_changed_and_given_back(host: Host, plain: Patched) -> None:
    size = shape_of(plain, NORM)
    layer = {"w_norm": rand(*size), "b_norm": rand(*size)}
    patched = applied(host, plain, {NORM: layer}, -0.5)
    state = plain.model.model_state_dict()
    before = {key: state[key].clone() for key in (f"{NORM}.weight", f"{NORM}.bias")}
    load(patched.model)
    live = patched.model.model_state_dict()
    for key, name in ((f"{NORM}.weight", "w_norm"), (f"{NORM}.bias", "b_norm")):
        torch.testing.assert_close(live[key].float(), before[key].float() - 0.5 * layer[name])
    unload()
    after = plain.model.model_state_dict()
    assert all(torch.equal(after[key], weight) for key, weight in before.items())


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("make", [lora, loha, lokr], ids=["lora", "loha", "lokr"])
@pytest.mark.parametrize("path", [LINEAR, CONV], ids=["linear", "conv2d"])
def test_dora_as_the_host_computes_it_can_be_had(
    host: Host, plain: Patched, make: Any, path: str, strength: float
) -> None:
    """The reference is the host's own loader. It differs from the paper for magnitudes of the outputs.

    For magnitudes of the inputs the host and the paper agree.
    """
    shape = shape_of(plain, path)
    key = f"{path}.weight"
    weight = plain.model.model_state_dict()[key].float()
    output = {**make(shape), "dora_scale": 1 + torch.rand(shape[0], *[1 for _ in shape[1:]])}
    inputs = {**make(shape), "dora_scale": 1 + torch.rand(1, shape[1], *[1 for _ in shape[2:]])}
    for layer, dora, same in ((output, "host", True), (output, "paper", False), (inputs, "paper", True)):
        ours = calculated(applied(host, plain, {path: layer}, strength, dora=dora).patches, key, weight)
        theirs = loaded_by_the_host(plain, host.base / "models" / LORAS / FILE, strength)
        found = calculated(theirs.patches, key, weight)
        effect = (found - weight).norm()
        assert bool((ours - found).norm() < 1e-4 * effect) is same
