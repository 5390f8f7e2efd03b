"""Stacks on tiny models, masked and unmasked: one pass of them, and some steps of the host's sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hosting import Host, Patched, load, patcher
from torch import Tensor

from tests.harness import zoo
from tests.harness.inputs import FURTHER, INPUTS, WORDS
from tests.ops.layers import KINDS, Factors

OF_KINDS = ("lora", "loha", "lokr-full-low", "lora-dora-out", "oft")


def half() -> Tensor:
    """The left half of a picture."""
    weights = torch.zeros(1, 64, 64)
    weights[..., :32] = 1
    return weights


def made(host: Host, kind: str, shape: tuple[int, ...], seed: int) -> Any:
    """A layer of a kind with random factors."""
    torch.manual_seed(seed)
    spec = KINDS[kind]
    tensors: Factors = {**spec.make(shape, 2), "alpha": torch.tensor(2.0)}
    return host.ops.ALGORITHMS[spec.algorithm].load(tensors, spec.options)


def stack_for(host: Host, model: Any, kinds: tuple[str, ...], seed: int = 0, within: str = "") -> Any:
    """A stack with a layer for every layer of a model that is within a module of this name, of the kinds in
    turn."""
    layers = {
        path: made(host, kinds[number % len(kinds)], tuple(layer.weight.shape), seed + number)
        for number, (path, layer) in enumerate(zoo.adaptable(model).items())
        # OFT has no blocks for some sizes.
        if layer.weight.shape[0] % 4 == 0 and within in path
    }
    return host.ops.Stack([host.ops.Entry(host.ops.Adapter.of(layers, name="test"), strength=0.5)])


def one_adapter(host: Host) -> Any:
    tensors = {"a.lora_up.weight": torch.ones(2, 1), "a.lora_down.weight": torch.ones(1, 2)}
    return host.ops.Stack([host.ops.Entry(host.ops.adapter_of_tensors(tensors, name="a"))])


def masked(host: Host, stack: Any, **inputs: Any) -> Any:
    return host.run("LycorisMask", stack, **{"mask": half(), **inputs})[0]


def applied(host: Host, model: Any, stack: Any, **inputs: Any) -> tuple[Patched, Patched]:
    """A model with the stack beside its layers, and with the masked stack."""
    base = Patched(patcher(model), None)
    bound = host.apply(base, masked(host, stack, **inputs), clip=False)
    return host.apply(base, stack, mode="bypass", clip=False), bound


@dataclass
class Seen:
    """What a layer was given in a pass, and what it gave."""

    module: Any
    x: Tensor
    y: Tensor


def same(x: Tensor) -> Tensor:
    """A copy with the same strides: products of views are rounded in another way."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x)


def once(on: Patched, name: str, rows: int = 2, sigma: float = 0.5, **more: Any) -> Tensor:
    """One pass of a loaded model as the host makes it, which is given `more` beside what it needs."""
    latent, conds = {**INPUTS, **FURTHER}[name].make(rows)
    on.model.pre_run()
    options = {**on.model.model_options["transformer_options"], "cond_or_uncond": [0]}
    with torch.inference_mode():
        return on.model.model.apply_model(
            latent,
            torch.full((rows,), sigma),
            transformer_options=wrapped(on.model, options),
            **conds,
            **more,
        )


def passed(on: Patched, name: str, rows: int = 2, **more: Any) -> tuple[Tensor, dict[str, Seen]]:
    """The result of one pass of a model, and the layers that were in it."""
    load(on.model)
    model, seen, given = on.model.model, dict[str, Seen](), dict[str, Tensor]()
    handles: list[Any] = []
    for path, layer in zoo.adaptable(model).items():

        def before(module: Any, args: Any, path: str = path) -> None:
            given[path] = same(args[0])

        def after(module: Any, args: Any, y: Tensor, path: str = path) -> None:
            seen[path] = Seen(module, given[path], y.clone())

        handles += [layer.register_forward_pre_hook(before, prepend=True), layer.register_forward_hook(after)]
    try:
        return once(on, name, rows, **more), seen
    finally:
        for handle in handles:
            handle.remove()


def wrapped(patcher: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a pass with the wrappers of a patcher, as the host's sampler gives them."""
    from comfy.patcher_extension import merge_nested_dicts

    return merge_nested_dicts(options, {"wrappers": patcher.wrappers})


def text(seed: int = 5) -> Any:
    """A conditioning of the smallest UNet."""
    return [[torch.randn(1, WORDS, 24, generator=torch.Generator().manual_seed(seed)), {}]]


def latents(side: int = 8, count: int = 1) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(5)
    return {"samples": torch.randn(count, 4, side, side, generator=draw)}


def sampled(
    host: Host,
    on: Patched,
    given: Any = None,
    positive: Any = None,
    *,
    steps: int = 2,
    cfg: float = 3.0,
    sampler: str = "euler",
) -> Tensor:
    """What the host's sampler makes of latents with a text: of these, where no others are given."""
    with torch.inference_mode():
        (made,) = host.nodes.KSampler().sample(
            *(on.model, 3, steps, cfg, sampler, "simple"),
            *(positive or text(), text(6), given or latents(), 0.6),
        )
    return made["samples"].clone()
