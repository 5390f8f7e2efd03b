"""Seconds and memory on a card of 12 GB, computed from shapes: nothing is measured, and no card is needed.

`python -m benchmarks.card [--only MODEL ...]` prints the table of `docs/recipes.md`. ComfyUI's own classes
are made at full size on the device "meta", where tensors have shapes and no values. A network of the
family's usual rank acts on them, and a step of training and a pass run there. Counted are the bytes of all
tensors that are held at once, and the operations of all products. Attention counts as a fused kernel
computes it: no scores are kept, and the backward pass takes 2.5 times the operations. Seconds are
operations over `SPEED`.
"""

from __future__ import annotations

import argparse
import importlib
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.quality.tables import table
from benchmarks.train_memory import FLUX, SD15
from tests.harness import zoo
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process, loaded_pack

SPEED = 12.7e12
"""Operations a second: half of an RTX 3060's peak for products in half precision with sums in float32, which
is twice its 12.7e12 in float32."""
CARD, APART = 12 * 2**30, 1 * 2**30
"""The memory of the card, and what the driver, the screen and torch's own libraries take of it."""
STATE = 16
"""Bytes of a trained parameter: itself, its gradient and Adam's two moments, in float32."""
META = torch.device("meta")


@dataclass(frozen=True)
class Model:
    """A model at full size, with the shapes of one row of a step, and of the inputs of a pass that draws."""

    species: str
    settings: Mapping[str, Any]
    latent: tuple[int, ...]
    text: tuple[int, int]
    size: str
    more: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    constant: Mapping[str, Any] = field(default_factory=dict[str, Any])
    fp8: bool = False
    rows: int = 2
    """Rows of a pass that draws: 2 with a negative prompt."""
    steps: int = 20
    """Steps of drawing."""


WAN = {"out_dim": 16, "in_dim": 16, "freq_dim": 256, "text_dim": 4096}
Z_IMAGE = {
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_heads": 30,
    "n_kv_heads": 30,
    "multiple_of": 256,
    "cap_feat_dim": 2560,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "time_scale": 1000.0,
}
SDXL = {
    "model_channels": 320,
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_head_channels": 64,
}
MODELS = {
    "SD 1.5": Model(
        "SD1.5",
        {**SD15, "model_channels": 320, "context_dim": 768, "num_heads": 8, "num_head_channels": -1},
        (4, 64, 64),
        (77, 768),
        "512 x 512",
    ),
    "SDXL": Model("SDXL", SDXL, (4, 128, 128), (77, 2048), "1024 x 1024", {"y": (2816,)}),
    "Z-Image, fp8": Model(
        "Z-Image",
        Z_IMAGE,
        (16, 128, 128),
        (256, 2560),
        "1024 x 1024",
        constant={"num_tokens": 256},
        fp8=True,
    ),
    "Flux, fp8": Model(
        "Flux 1",
        {**FLUX, "hidden_size": 3072, "num_heads": 24, "context_in_dim": 4096, "vec_in_dim": 768},
        (16, 128, 128),
        (256, 4096),
        "1024 x 1024",
        {"y": (768,), "guidance": ()},
        fp8=True,
        rows=1,
    ),
    "Wan 2.1 1.3B": Model(
        "Wan 2.1 t2v",
        {**WAN, "dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
        (16, 9, 60, 104),
        (512, 4096),
        "832 x 480, 33 frames",
    ),
    "Wan 2.1 14B, fp8": Model(
        "Wan 2.1 t2v",
        {**WAN, "dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
        (16, 9, 60, 104),
        (512, 4096),
        "832 x 480, 33 frames",
        fp8=True,
    ),
}


class Held(TorchDispatchMode):
    """The most bytes of tensors without values that are held at once, beside those of a module."""

    def __init__(self, beside: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        # Views of weights are made too.
        self.known = {one.untyped_storage()._cdata for one in beside}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and one.device == META:
                self.add(one.untyped_storage())
        return made

    def add(self, storage: torch.UntypedStorage) -> None:
        mark = storage._cdata
        if mark not in self.known:
            self.known.add(mark)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.drop, mark, storage.nbytes())

    def drop(self, mark: int, size: int) -> None:
        self.known.discard(mark)
        self.now -= size


class Fused(torch.autograd.Function):
    """Attention as a fused kernel has it: its inputs, its output and a number for each row are kept."""

    operations = 0

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        Fused.operations += products(q, k, v)
        return out

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        q, k, v, *_ = ctx.saved_tensors
        Fused.operations += int(2.5 * products(q, k, v))
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def products(q: Tensor, k: Tensor, v: Tensor) -> int:
    return 2 * q.shape[:-1].numel() * k.shape[-2] * (k.shape[-1] + v.shape[-1])


def attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    return Fused.apply(q, k, v)  # pyright: ignore[reportReturnType]


def counted(work: Any, beside: Iterable[Tensor]) -> tuple[int, int]:
    """The most bytes that are held at once beside some tensors, and the operations."""
    held, counter, before = Held(beside), FlopCounterMode(display=False), Fused.operations
    with counter, held:
        work()
    return held.most, counter.get_total_flops() + Fused.operations - before


def run(model: Model, network: Any, rows: int, by_torch: Any) -> Tensor:
    def empty(*shape: int) -> Tensor:
        return torch.empty(rows, *shape, dtype=torch.bfloat16, device=META)

    more = {name: empty(*shape) for name, shape in model.more.items()}
    options = {"optimized_attention_override": by_torch}
    return network(
        empty(*model.latent),
        empty(),
        empty(*model.text),
        transformer_options=options,
        **more,
        **model.constant,
    )


def figures(pack: Any, title: str, model: Model) -> list[str]:
    def part(name: str) -> Any:
        return importlib.import_module(f"{pack.__name__}.lycoris_nodes.{name}")

    training, cures = part("host.training"), part("training.model.cures")
    host = zoo.bare(model.species, changed={**model.settings, "dtype": torch.bfloat16}, dtype=torch.bfloat16)
    network = host.diffusion_model.to(META)
    family = part("host.families").family_of(host)
    weights = sum(one.numel() for one in network.parameters())
    largest = max(one.numel() for one in network.parameters())
    # A quantised weight is turned into the dtype of the pass where it is used, one at a time.
    base = weights + 2 * largest if model.fp8 else 2 * weights
    with torch.no_grad():
        drawn, each = counted(
            lambda: run(model, network, model.rows, training.attention), network.parameters()
        )
    made = pack.lycoris_ops.create_lycoris(
        network, rank=family.rank, preset=family.preset, include=family.include, seed=0
    ).to(META)
    made.apply_to()
    adapter = sum(one.numel() for one in made.parameters())

    def step() -> None:
        kinds = cures.kinds_of(network)
        with (
            training.marked_training(),
            part("training.model.recompute").recomputed(network, lambda: lambda: cures.cured(kinds)),
            cures.reads_copied(network),
            cures.cured(kinds),
        ):
            run(model, network, 1, training.attention).float().square().mean().backward()

    kept, operations = counted(step, [*network.parameters(), *made.parameters()])
    # Gradients are among what is held and in `STATE`.
    trained = base + STATE * adapter + kept - 4 * adapter
    applied = base + drawn
    return [
        title,
        model.size,
        f"{weights / 1e9:.1f}",
        f"{family.rank}",
        f"{adapter / 1e6:.0f}",
        gb(kept - 4 * adapter),
        gb(trained) + fits(trained),
        f"{operations / SPEED:.1f}",
        gb(applied) + fits(applied),
        f"{each * model.steps / SPEED:.0f} ({model.steps} steps)",
    ]


def gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def fits(size: float) -> str:
    return "" if size <= CARD - APART else " (does not fit)"


HEAD = (
    "model",
    "size",
    "weights, billions",
    "rank",
    "trained, millions",
    "activations, GB",
    "training, GB",
    "a step, s",
    "drawing, GB",
    "a picture or clip, s",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    base = base_directory(ROOT / ".cache" / facts().host / "card", ROOT)
    boot_in_process(facts().comfyui, base)
    functional: Any = importlib.import_module("torch.nn.functional")
    functional.scaled_dot_product_attention = attention
    pack = loaded_pack(base)
    print(table(HEAD, [figures(pack, name, MODELS[name]) for name in parser.parse_args().only]))


if __name__ == "__main__":
    main()
