"""Every kind on every kind of layer against the forward pass of the lycoris-lora package.

Not against its merge: `merge_to` and `get_diff_weight` of 4.1.3 apply alpha / rank twice for LoHa and
LoKr. The last test shows that fault, so that a version without it is noticed.
"""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from layers import WEIGHTS
from torch import nn

from lycoris_ops.algorithms import detect

# Its fused kernels round to the precision of a GPU; read once, when it is imported.
os.environ["LYCORIS_KERNEL_BACKEND"] = "torch"
RANK, ALPHA = 2, 3.0
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("locon.LoConModule", {}),
    "lora-tucker": ("locon.LoConModule", {"use_tucker": True}),
    "loha": ("loha.LohaModule", {}),
    "loha-tucker": ("loha.LohaModule", {"use_tucker": True}),
    "lokr": ("lokr.LokrModule", {"factor": 2}),
    "lokr-tucker": ("lokr.LokrModule", {"factor": 2, "use_tucker": True}),
    "lokr-full": ("lokr.LokrModule", {"factor": 2, "full_matrix": True}),
    "lokr-both": ("lokr.LokrModule", {"decompose_both": True}),
    "lokr-both-tucker": ("lokr.LokrModule", {"decompose_both": True, "use_tucker": True}),
    "lokr-unbalanced": ("lokr.LokrModule", {"factor": 4, "unbalanced_factorization": True}),
}
LAYERS = ("linear", "conv1d", "conv2d", "conv2d-1x1", "conv2d-wide", "conv3d")
SCALED_TWICE = ("loha", "lokr", "lokr-both")


def module(weight: str) -> nn.Module:
    """A layer with zero weights whose kernel just covers its input, so that its Jacobian is its weight."""
    # Large enough for both factors of a LoKr layer to be low-rank.
    out, inputs, *kernel = (4 * size if n < 2 else size for n, size in enumerate(WEIGHTS[weight]))
    if not kernel:
        layer: nn.Module = nn.Linear(inputs, out, bias=False)
    else:
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel) - 1]
        layer = convolution(inputs, out, tuple(kernel), stride=tuple(kernel), bias=False)
    nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
    return layer


def adapted(kind: str, weight: str) -> Any:
    import lycoris.modules as modules

    path, options = OPTIONS[kind]
    name, _, cls = path.partition(".")
    base = module(weight)
    made = getattr(getattr(modules, name), cls)("layer", base, 1.0, RANK, ALPHA, **options)
    made.base = base
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[-1]))
    nn.init.zeros_(base.weight)
    return made.double().eval().requires_grad_(False)


def jacobian(layer: Any) -> torch.Tensor:
    """The weight that a layer's forward pass multiplies with: row o is the gradient of output o."""
    shape = tuple(layer.base.weight.shape)
    x = torch.zeros(1, *shape[1:], dtype=torch.float64, requires_grad=True)
    outputs = layer.forward(x).flatten()
    units = torch.eye(shape[0], dtype=torch.float64)
    return torch.autograd.grad(outputs, x, units, is_grads_batched=True)[0].reshape(shape)


@pytest.mark.parametrize("weight", LAYERS)
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_delta_is_what_lycoris_computes(kind: str, weight: str, dtype: torch.dtype) -> None:
    theirs = adapted(kind, weight)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.to(dtype))
    tensors = {
        key: tensor if key == "alpha" else tensor.to(dtype)
        for key, tensor in theirs.custom_state_dict().items()
    }
    shape = tuple(theirs.base.weight.shape)
    wanted = jacobian(theirs)
    algorithm = detect(tensors)
    assert algorithm is not None and algorithm.algorithm == kind.partition("-")[0]
    delta = algorithm.load(tensors).delta(torch.zeros(shape, dtype=torch.float64))
    # A Tucker core is folded in float32 unless the file holds float64.
    eps = torch.finfo(torch.float32 if "tucker" in kind else torch.float64).eps
    assert wanted.abs().max() > 1e-3
    assert (delta - wanted).abs().max() <= 16 * eps * wanted.abs().max()


@pytest.mark.parametrize("kind", SCALED_TWICE)
def test_lycoris_still_scales_twice_when_it_merges(kind: str) -> None:
    theirs = adapted(kind, "linear")
    shape = tuple(theirs.base.weight.shape)
    forward = jacobian(theirs)
    merged, _ = theirs.get_diff_weight(1.0, shape)
    torch.testing.assert_close(merged, forward * (ALPHA / RANK))
