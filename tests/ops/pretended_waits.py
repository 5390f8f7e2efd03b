"""What every kind waits for on a device that is not the CPU.

A wait is a place where the program needs a value from the device before it goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from layers import CASES, KINDS, WEIGHTS, load
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.bypass.rebuilt import Rebuilt
from lycoris_ops.errors import LycorisError
from lycoris_ops.patch import registry
from lycoris_ops.patch.paths import plain_torch
from lycoris_ops.ranks.sizes import Size
from lycoris_ops.reading.adapter import Adapter
from lycoris_ops.train.trainer import Trainer
from tests.harness.launches import Launches
from tests.harness.pretended import NAME

TRAINED: tuple[dict[str, Any], ...] = (
    {"algorithm": "lora"},
    *({"algorithm": "lora", "dora": axis} for axis in ("output", "input")),
    *({"algorithm": kind} for kind in ("loha", "lokr", "oft", "oftv2", "boft_peft", "ia3", "glora", "full")),
    {"algorithm": "oft", "constraint": 1e-3},
)


def found(run: Callable[[], object]) -> Launches:
    with Launches() as launches:
        run()
    return launches


def loss(module: nn.Module, batch: Any) -> Tensor:
    return (module(batch[0]) - batch[1]).square().mean()


def train(options: dict[str, Any], form: str) -> None:
    """One wait in a step, for the loss and the norm of the gradients."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)).to(NAME)
    network = lyc.create_lycoris(module, rank=4, seed=0, form=form, **options)  # pyright: ignore[reportArgumentType]
    trainer = Trainer(network, loss, lyc.TrainOptions(steps=2, lr=0.01, bar=False, picture=False))
    batch = (torch.randn(4, 8).to(NAME), torch.randn(4, 8).to(NAME))
    trainer.step(batch)
    launches = found(lambda: trainer.step(batch))
    assert len(launches.waits) == 1, (options, form, launches.waits)
    assert not launches.wide, (options, form, launches.wide)
    network.restore()


def layers() -> list[tuple[str, lyc.Layer]]:
    """A layer of each kind for a linear weight, on the device."""
    made: list[tuple[str, lyc.Layer]] = []
    for kind in KINDS:
        try:
            layer = load(kind, "linear")
        except LycorisError:
            # This kind is for convolutions or norms alone.
            continue
        if "bias_indices" in layer.tensors():
            # The device has no remainders of whole numbers.
            continue
        made.append((kind, layer.with_tensors({n: one.to(NAME) for n, one in layer.tensors().items()})))
    assert len(made) > 12
    return made


def patch(kind: str, layer: lyc.Layer) -> None:
    """A plan of changes that do not depend on the weight waits once as it is built, for how large they are.
    Other plans wait once as they are applied."""
    weight, plans = torch.randn(12, 18).to(NAME), list[lyc.PatchPlan]()
    pairs = [(layer, 1.0), (layer, 0.5)]
    built = found(lambda: plans.append(lyc.PatchPlan.build(weight.shape, weight.device, pairs)))
    (plan,) = plans
    applied = found(lambda: plan.apply_(weight, plan.tensors, plan.strengths))
    additive = layer.additive() is not None
    assert len(built.waits) <= additive, (kind, built.waits)
    if kind not in DECOMPOSED:
        assert len(applied.waits) <= (not additive), (kind, applied.waits)
        assert not built.wide and not applied.wide, (kind, built.wide, applied.wide)


def merge() -> None:
    """One wait for the layers of all weights, and one where their changes depend on the weights."""
    for options in TRAINED:
        module = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))).to(NAME)
        network = lyc.create_lycoris(module, **{"rank": 2, "seed": 0, **options})
        merged = found(network.merge_to)
        assert len(merged.waits) == 1 and not merged.wide, (options, merged.waits, merged.wide)
    # A sum that was left out at first is computed again, with the error that it gives.
    network = lyc.create_lycoris(nn.Sequential(nn.Linear(8, 8)).to(NAME), algorithm="ia3")
    for value in network.parameters():
        nn.init.constant_(value, math.inf)
    try:
        network.merge_to()
    except LycorisError as error:
        assert "0: the change of a layer overflows" in str(error), error
    else:
        raise AssertionError("nothing was raised")


def mixed() -> None:
    """Plans of both sorts of changes wait once in all. A weight that would overflow is left as it was, and
    the error names the layer; one whose large sum fits is patched."""

    def work(*sizes: float) -> list[tuple[lyc.PatchPlan, Tensor, str]]:
        made: list[tuple[lyc.PatchPlan, Tensor, str]] = []
        torch.manual_seed(0)
        up, down = torch.randn(8, 2).to(NAME), torch.randn(2, 8).to(NAME)
        low = lyc.ALGORITHMS["lora"].load({"lora_up.weight": up, "lora_down.weight": down})
        for n, size in enumerate(sizes):
            scale = torch.full((8, 1), size).to(NAME)
            scaled = lyc.ALGORITHMS["ia3"].load({"weight": scale, "on_input": torch.tensor(0)})
            parts = [
                (lyc.Part(low, file="low", key="a"), 0.5),
                (lyc.Part(scaled, file="ia", key=f"{n}"), 1.0),
            ]
            weight = torch.ones(8, 8, dtype=torch.float16, device=NAME)
            made.append((lyc.PatchPlan.build(weight.shape, NAME, parts), weight, f"w{n}"))
        return made

    safe = work(1.5, 2.0, 3.0)
    applied = found(lambda: lyc.PatchPlan.apply_all(safe))
    assert len(applied.waits) == 1, applied.waits
    # A quarter of the largest float16 is 16376.
    large = work(1.5, 3e4)
    lyc.PatchPlan.apply_all(large)
    assert float(large[1][1].cpu().float().min()) > 2.9e4
    bad = work(1.5, 1e6, 2.0)
    try:
        lyc.PatchPlan.apply_all(bad)
    except LycorisError as error:
        assert (error.file, error.key, error.weight) == ("ia", "1", "w1"), error
    else:
        raise AssertionError("nothing was raised")
    assert torch.equal(bad[1][1].cpu(), torch.ones(8, 8, dtype=torch.float16))


def drawn(layers: int, *kinds: str) -> list[lyc.Adapter]:
    """An adapter of each kind, "lora" or "full", whose layers are on the CPU."""
    sizes = {"lora": {"lora_up.weight": (24, 4), "lora_down.weight": (4, 16)}, "full": {"diff": (24, 16)}}
    return [
        lyc.adapter_of_tensors(
            {f"{n}.{end}": torch.randn(size) for n in range(layers) for end, size in sizes[kind].items()},
            name=f"{place}",
        )
        for place, kind in enumerate(kinds)
    ]


def waits_of(run: Callable[[int], object]) -> int:
    """How often a run waits for each layer: for two layers it waits twice as often as for one."""
    one, two = (found(lambda count=count: run(count)) for count in (1, 2))
    assert not two.wide, two.wide
    assert len(two.waits) == 2 * len(one.waits), (one.waits, two.waits)
    return len(one.waits)


MERGED = {
    # LoRAs are fetched as their small cores, which are decomposed on the CPU, and so is the result.
    "lora": {
        # This one computes on the CPU.
        0: ("regression",),
        1: ("ties", "dare", "della", "breadcrumbs", "magnitude_prune", "nearswap", "sce"),
        2: ("sum", "average", "slerp", "karcher", "model_stock", "iso", "core_space", "tsv"),
        # The merge needs a decomposition of its own.
        3: ("knots",),
    },
    "full": {
        1: (
            *("ties", "dare", "della", "breadcrumbs", "magnitude_prune", "nearswap", "sce"),
            *("sum", "average", "regression", "core_space"),
        ),
        # The angles between the changes, or a decomposition.
        2: ("slerp", "karcher", "model_stock", "iso", "knots"),
        # Each change, and their vectors together.
        4: ("tsv",),
    },
}
"""For two adapters of each kind, the merge methods by how often a layer waits, its result included."""


def merges() -> None:
    for kind, methods in MERGED.items():
        known = {method: waits for waits, some in methods.items() for method in some}
        assert set(known) == set(lyc.merge_methods())

        def merged(count: int, method: str, kind: str = kind, **options: Any) -> object:
            pairs = [(one, 0.5) for one in drawn(count, kind, kind)]
            return lyc.merge_adapters(pairs, method, device=NAME, **options)

        for method, waits in known.items():
            assert waits_of(lambda count, method=method: merged(count, method)) == waits, (kind, method)
        # The norms of the changes, on the CPU for LoRAs, and of the result.
        limited = waits_of(lambda count: merged(count, "sum", norm_limit=0.5))
        assert limited == 4, limited


def extracts() -> None:
    """As a resize, and once as the weights are read. LoKr waits once more for what is noise."""

    def extracted(algorithm: str, count: int) -> object:
        before = {f"{n}.weight": torch.randn(24, 16) for n in range(count)}
        after = {key: one + torch.randn(24, 16) for key, one in before.items()}
        return lyc.extract_adapter(before, after, algorithm, lyc.Rank(2), device=NAME)

    for algorithm, waits in (("lora", 4), ("lokr", 7), ("full", 3)):
        assert waits_of(partial(extracted, algorithm)) == waits, algorithm


RESIZED: tuple[tuple[str, str, Size, int], ...] = (
    # The cores.
    ("lora", "lora", lyc.Rank(2), 2),
    # The energy too.
    ("full", "lora", lyc.Rank(2), 3),
    # The energy, the first factors of all splits, the energies and the cores of the second ones.
    ("lora", "lokr", lyc.Rank(2), 5),
    ("full", "lokr", lyc.Rank(2), 5),
    # They are measured, and then made.
    ("full", "auto", lyc.Ratio(2), 6),
)
"""How often a layer of a resize waits, by the kinds before and after."""


def resizes() -> None:
    def resized(kind: str, algorithm: str, size: Size, count: int) -> object:
        (one,) = drawn(count, kind)
        return lyc.resize_adapter(one, size, algorithm, device=NAME)

    for kind, algorithm, size, waits in RESIZED:
        assert waits_of(partial(resized, kind, algorithm, size)) == waits, (kind, algorithm)
    # A random basis is refined up to four times.
    values = torch.randn(200, 210)

    def refined(count: int) -> object:
        one = lyc.adapter_of_tensors({f"{n}.diff": values for n in range(count)}, name="wide")
        return lyc.resize_adapter(one, lyc.Rank(2), device=NAME)

    assert 4 <= waits_of(refined) <= 7


def resize_all(weight: str, algorithm: str, waits: int) -> None:
    """A file with a layer of each kind waits at most so often for each of them."""
    kinds = [kind for kind, own in CASES if own == weight]
    one = Adapter.of({f"{n}": load(kind, weight) for n, kind in enumerate(kinds)}, name="all")
    base = {f"{n}.weight": torch.randn(WEIGHTS[weight]) for n in range(len(kinds))}
    launches = found(
        lambda: lyc.resize_adapter(one, lyc.Rank(2), algorithm, base, tucker=algorithm == "lora", device=NAME)
    )
    assert len(launches.waits) <= waits * len(kinds), (weight, algorithm, launches.waits)
    assert not launches.wide, (weight, algorithm, launches.wide)


def compare_with_the_cpu() -> None:
    """What is computed in float32 there is near to what the CPU computes in float64, as a share of the
    changes that are merged: some methods keep only what these have in common."""
    torch.manual_seed(0)
    one, third, other = drawn(1, "lora", "lora", "full")
    zero = torch.zeros(24, 16)
    for pair in ((one, third), (one, other)):
        whole = sum(0.5 * two.layers["0"].delta(zero).norm() for two in pair)
        for method in lyc.merge_methods():
            here, there = (
                lyc.merge_adapters([(two, 0.5) for two in pair], method, device=device)
                for device in ("cpu", NAME)
            )
            made, wanted = there.layers["0"].delta(zero), here.layers["0"].delta(zero)
            assert (made - wanted).norm() <= 1e-5 * whole, method


def probed(layers: int, batches: int = 2) -> object:
    """The probe of a model of so many layers."""
    module = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers))).to(NAME)
    data = [torch.randn(4, 8).to(NAME) for _ in range(batches)]
    return lyc.probe(module, data, lambda model, batch: model(batch).square().mean())


def probe() -> None:
    """A layer waits for its energies, for the decompositions of LoRA and of LoKr's two factors, and for what
    is kept of them; a batch waits at most twice."""
    runs = [found(partial(probed, *sizes)) for sizes in ((1, 2), (2, 2), (1, 6))]
    assert not any(run.wide for run in runs)
    one, layer_more, batches_more = (len(run.waits) for run in runs)
    assert layer_more - one <= 6, (one, layer_more)
    assert batches_more - one <= 2 * 4, (one, batches_more)
    assert one <= 12, one


def bypass(kind: str, layer: lyc.Layer) -> None:
    """Two waits in the first pass, and none in those after it."""
    module, x = nn.Linear(18, 12).to(NAME).requires_grad_(False), torch.randn(4, 18).to(NAME)
    geometry = lyc.geometry_of(module)
    assert not isinstance(geometry, str)
    lyc.Bypass(module, lyc.BypassPlan.build(geometry, [(layer, 1.0), (layer, 0.5)])).attach()
    with torch.no_grad():
        first, second = found(lambda: module(x)), found(lambda: module(x))
    if kind not in DECOMPOSED:
        assert len(first.waits) <= 2, (kind, first.waits)
    assert not second.waits and not second.wide, (kind, second.waits, second.wide)


def rebuilt(kind: str, layer: lyc.Layer, strength: float) -> None:
    """One wait in the first pass of a frozen layer, and none in those after it."""
    module, x = nn.Linear(18, 12).to(NAME).requires_grad_(False), torch.randn(4, 18).to(NAME)
    Rebuilt(module, layer, strength).attach()
    with torch.no_grad():
        first, second = found(lambda: module(x)), found(lambda: module(x))
    if kind not in DECOMPOSED:
        assert len(first.waits) <= 1 and not second.waits, (kind, first.waits, second.waits)


DECOMPOSED = frozenset({"tlora"})
"""Kinds that decompose the weight itself."""


def check_waits() -> None:
    """Afterwards the process has no other path."""
    registry.PATHS = (replace(plain_torch.PATH, devices=(NAME,)),)
    for kind, layer in layers():
        patch(kind, layer)
        bypass(kind, layer)
        rebuilt(kind, layer, 1.0)
        rebuilt(kind, layer, 0.5)
    merge()
    mixed()
    merges()
    resizes()
    extracts()
    # All that LoRA, LoKr and full differences wait for; a Tucker core, and what is kept of it.
    resize_all("linear", "auto", 6)
    resize_all("linear", "same", 5)
    resize_all("conv2d", "lora", 5)
    probe()
    compare_with_the_cpu()
    for options in TRAINED:
        for form in ("auto", "bypass"):
            train(options, form)
