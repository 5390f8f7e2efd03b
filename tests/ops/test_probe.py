"""The probe: gradients of a model's weights, and what each kind of layer can gain from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS, declaring
from lycoris_ops.algorithms.fitting import Delta
from lycoris_ops.algorithms.planning import Planned
from lycoris_ops.bypass.geometry import Geometry, geometry_of
from lycoris_ops.changes.forms import Dense
from lycoris_ops.modules.sites import Site, select
from lycoris_ops.ranks import gradients
from lycoris_ops.ranks.offers import offers_of
from lycoris_ops.ranks.probe import FORM


class Net(nn.Module):
    """Every kind of layer. One is called twice, and its output is then changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6, padding_idx=3)
        self.norm = nn.LayerNorm(6)
        self.twice = nn.Linear(6, 6)
        self.one = nn.Conv1d(6, 8, 3, stride=2, padding=1, bias=False)
        self.two = nn.Conv2d(8, 8, (3, 2), padding="same", groups=2, padding_mode="circular")
        self.three = nn.Conv3d(4, 6, (1, 2, 3), dilation=(1, 1, 2), padding=(0, 1, 2))
        self.head = nn.Linear(6, 5)
        self.idle = nn.Linear(6, 5)

    def forward(self, words: Tensor) -> Tensor:
        x = self.norm(self.words(words))
        x = self.twice(functional.silu(self.twice(x)))
        x += 1
        x = self.one(x.transpose(1, 2))
        x = self.two(x.unflatten(2, (2, -1)))
        x = self.three(functional.silu(x).unflatten(1, (4, 2)))
        return self.head(x.flatten(2).mean(2))


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(module(batch[0]), batch[1])


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randint(0, 11, (4, 8), generator=generator), torch.randint(0, 5, (4,), generator=generator))
        for _ in range(count)
    ]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


EVERYTHING: Any = ("words", "norm", "twice", "one", "two", "three", "head", "idle")


def full_gradients(net: Net) -> dict[str, Tensor]:
    """The mean gradients of all weights by autograd, in float64."""
    twin = Net().double()
    twin.load_state_dict(net.state_dict())
    sum(loss(twin, batch) for batch in batches()).div(3).backward()
    found = dict(twin.named_modules())
    return {path: found[path].weight.grad for path in EVERYTHING if path != "idle"}


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_gradients_are_those_of_autograd_and_the_model_stays_as_it_was(net: Net, frozen: bool) -> None:
    net.requires_grad_(not frozen)
    net.norm.weight.grad = torch.ones(6)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    wanted = full_gradients(net)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    # A pass for each gradient gives the same as one pass for all.
    found = lyc.probe(net, batches(), loss, include=EVERYTHING, memory=1)
    again = lyc.probe(net, batches(), loss, include=EVERYTHING)
    for path, gradient in wanted.items():
        energy = float(gradient.square().sum())
        assert found.layers[path].energy == pytest.approx(energy, rel=1e-5), path
        assert again.layers[path].energy == pytest.approx(energy, rel=1e-5), path
        if gradient.ndim > 1:
            spectrum = torch.linalg.svdvals(gradient.flatten(1))
            torch.testing.assert_close(
                found.layers[path].spectrum.double(), spectrum, atol=1e-6 * spectrum[0].item(), rtol=1e-4
            )
    assert found.layers["idle"].energy == 0 and not found.layers["idle"].offers
    assert found.loss == pytest.approx(sum(loss(net, batch).item() for batch in batches()) / 3, rel=1e-5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad is not frozen for parameter in net.parameters())
    assert torch.equal(net.norm.weight.grad, torch.ones(6))
    assert [p for p in net.parameters() if p.grad is not None] == [net.norm.weight]
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("batched", [True, False], ids=["batch", "single"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same", "dilation": (2, 1)},
        {"padding": "same", "padding_mode": "reflect"},
        {"padding": "valid", "groups": 2, "stride": 2},
        {"padding": (0, 2), "stride": (2, 3)},
        {"padding": 1, "padding_mode": "circular", "groups": 2},
    ],
    ids=str,
)
def test_the_gradient_of_a_convolution_is_that_of_autograd(options: dict[str, Any], batched: bool) -> None:
    module = nn.Conv2d(4, 6, (2, 3), **options).double()
    geometry = geometry_of(module)
    assert isinstance(geometry, Geometry)
    x = torch.randn(*([3] if batched else []), 4, 7, 8, dtype=torch.float64)
    made = module(x)
    gradient = torch.randn_like(made)
    (wanted,) = torch.autograd.grad(made, module.weight, gradient)
    total = torch.ones_like(wanted)
    geometry.add_weight_gradient(total, geometry.padded(x), gradient)
    torch.testing.assert_close(total - 1, wanted)


def test_halves_of_the_batches_are_compared(net: Net) -> None:
    data = batches()
    chosen: dict[str, Any] = {"algorithms": "lora", "include": ("two", "head")}
    alike = lyc.probe(net, [data[0]] * 4, loss, **chosen)
    assert alike.agreement == pytest.approx(1)
    assert lyc.probe(net, data[:1], loss, **chosen).agreement is None
    weights = [net.get_submodule(path).weight for path in alike.layers]
    halves = [
        torch.autograd.grad(sum(loss(net, batch) for batch in data[first::2]), weights) for first in (0, 1)
    ]
    flat = [torch.cat([part.flatten() for part in half]) for half in halves]
    exact = float(functional.cosine_similarity(*flat, dim=0))
    found = lyc.probe(net, data, loss, **chosen)
    assert found.agreement == pytest.approx(exact, abs=0.15)
    chance = replace(found, agreement=0.1)
    words = "measured on 3 batches, whose halves agree by 10%: the gradient is mostly chance"
    assert words in str(lyc.plan_ranks(chance, size=lyc.Rank(1)))
    assert "mostly chance" not in str(lyc.plan_ranks(alike, size=lyc.Rank(1)))


def test_a_pass_holds_each_gradient_once(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean takes no memory beside the sum."""
    sums: list[Any] = []

    class Noted(gradients._Sum):
        def __init__(self, site: Site) -> None:
            super().__init__(site)
            sums.append(self)

    monkeypatch.setattr(gradients, "_Sum", Noted)
    found = gradients.summed(net, list(select(net, include="*").values()), batches(), loss, seed=0).gradients
    assert {one.site.path: one.gradient.data_ptr() for one in sums} == {
        path: one.data_ptr() for path, one in found.items()
    }


def test_as_many_batches_as_agree(net: Net) -> None:
    """Equal batches agree at once, also where each layer has a pass of its own; opposite ones never do."""
    data = batches()
    chosen: dict[str, Any] = {"algorithms": "lora", "include": ("twice", "head"), "least": 2}
    alike = [data[0]] * 12
    for memory in ("2GB", 1):
        found = lyc.probe(net, alike, loss, memory=memory, **chosen)
        assert found.batches == 2 and found.loss == pytest.approx(loss(net, data[0]).item())
    signs = [-1, 1] * 5

    def opposite(module: Any, sign: int) -> Tensor:
        return sign * loss(module, data[0])

    assert lyc.probe(net, signs, opposite, **chosen).batches == 10
    # Equal batches outweigh the first two, which are opposite, after 8 batches but not after 4.
    signs[2:] = [1] * 8
    assert lyc.probe(net, signs, opposite, **chosen).batches == 8


def gradient(values: Tensor, **options: Any) -> Delta:
    return Delta((Dense(values.flatten(1)),), tuple(values.shape), **options)


SHAPES = [(24, 36), (24, 12, 3), (12, 8, 3, 3), (12, 8, 1, 2, 3)]


@pytest.mark.parametrize("algorithm", ["lora", "lokr"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_start_changes_nothing_and_gains_what_was_offered(algorithm: str, shape: tuple[int, ...]) -> None:
    """The gain is the energy of the gradient of the trained tensors, by autograd through `delta`. The first
    step is the sum of its absolute values."""
    torch.manual_seed(3)
    values, weight = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    offers = offers_of([declaring(Planned)[algorithm]], gradient(values, largest=5))
    assert offers and all(offer.algorithm == algorithm for offer in offers)
    for offer in offers:
        for rank, gain, size, first in zip(
            offer.ranks, offer.kept, offer.parameters, offer.first_steps, strict=True
        ):
            layer = ALGORITHMS[algorithm].started(offer.start, shape, rank, 1.0, seed=0, factor=offer.factor)
            trained = {n: t for n, t in layer.tensors().items() if t.is_floating_point()}
            assert sum(tensor.numel() for tensor in trained.values()) == size
            leaves = {name: tensor.double().requires_grad_() for name, tensor in trained.items()}
            delta = layer.with_tensors(dict(leaves)).delta(weight)
            assert not delta.any()
            found = torch.autograd.grad((delta * values).sum(), list(leaves.values()), allow_unused=True)
            energy = sum(float(each.square().sum()) for each in found if each is not None)
            assert energy == pytest.approx(gain, rel=1e-4), (rank, offer.factor)
            sums = sum(float(each.abs().sum()) for each in found if each is not None)
            assert sums == pytest.approx(first, rel=1e-4), (rank, offer.factor)


def test_the_start_of_lokr_is_the_best_first_factor() -> None:
    """No first factor of norm 1 gives the second one a larger gradient."""
    values = torch.randn(12, 18)
    offer = next(
        o
        for o in offers_of([declaring(Planned)["lokr"]], gradient(values))
        if o.factor == 2 and o.ranks == (None,)
    )
    for _ in range(200):
        w1 = functional.normalize(offer.start["lokr_w1"] + torch.randn(2, 2) / 3, dim=None)  # type: ignore[arg-type]
        w1 = w1 / w1.norm()
        w2 = torch.zeros(6, 9, requires_grad=True)
        (torch.kron(w1, w2) * values).sum().backward()
        assert w2.grad is not None and float(w2.grad.square().sum()) <= offer.kept[0] * (1 + 1e-5)


def test_a_probe_is_kept_in_a_file(net: Net, tmp_path: Path) -> None:
    found = lyc.probe(net, batches(), loss, include=EVERYTHING)
    found.save(tmp_path / "probe.safetensors")
    read = lyc.Probe.load(tmp_path / "probe.safetensors")
    assert (read.loss, read.batches, read.energy) == (found.loss, found.batches, found.energy)
    assert read.agreement == found.agreement is not None
    assert list(read.layers) == list(found.layers) and read.algorithms == found.algorithms
    one, two = lyc.plan_ranks(found), lyc.plan_ranks(read)
    assert one == two and one.rows
    for row in one:
        first, second = row.start(found), row.start(read)
        for name, tensor in first.tensors().items():
            assert torch.equal(tensor, second.tensors()[name])
    assert [(o.ranks, o.factor) for o in read.layers["head"].offers if o.algorithm == "lokr"]


def test_a_file_that_is_no_probe(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = str(tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(lyc.FileFormatError, match="not a probe"):
        lyc.Probe.load(path)
    save_file({"a": torch.zeros(1)}, path, {"lycoris_probed": '{"layers": 3}'})
    with pytest.raises(lyc.FileFormatError, match="damaged"):
        lyc.Probe.load(path)
    FORM.write(Path(path), {"loss": 1.0, "batches": 1, "agreement": None, "left_out": None})
    with pytest.raises(lyc.FileFormatError, match=r"damaged.*'layers'"):
        lyc.Probe.load(path)


def once() -> Iterator[tuple[Tensor, Tensor]]:
    yield from batches()


def broken(module: Net, batch: tuple[Tensor, Tensor]) -> Tensor:
    module.two.weight.data[0] = math.nan
    return loss(module, batch)


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "no scalar": ("not a scalar", {"loss": lambda module, batch: module(batch[0])}),
    "no tensor": ("not a scalar", {"loss": lambda module, batch: loss(module, batch).item()}),
    "no graph": ("no graph", {"loss": lambda module, batch: loss(module, batch).detach()}),
    "another graph": ("no graph", {"loss": lambda module, batch: torch.ones(2, requires_grad=True).sum()}),
    "nan": ("^two: the loss is not finite", {"loss": broken}),
    "batches that end": ("only once", {"batches": once(), "memory": 1}),
    "no batches": ("no batches", {"batches": []}),
    "an algorithm": ("no such algorithm", {"algorithms": "dora"}),
    "a kind of no plan": ("found loha; expected lokr or lora", {"algorithms": ("lora", "loha")}),
    "a rank": ("highest rank", {"largest": 0}),
    "memory": ("number of bytes", {"memory": "much"}),
    "halves": ("two halves need two batches", {"least": 1}),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_use_is_an_error_and_the_model_stays_as_it_was(net: Net, case: str) -> None:
    message, given = WRONG[case]
    arguments: dict[str, Any] = {"batches": batches(), "loss": loss, "include": EVERYTHING, **given}
    run: Callable[..., Any] = lyc.probe
    with pytest.raises(lyc.PlanError, match=message):
        run(net, **arguments)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


class Linear4bit(nn.Module):
    """A linear layer that holds its weight packed, as quantisers do."""

    in_features, out_features = 6, 5

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randint(0, 255, (15, 1), dtype=torch.uint8), requires_grad=False)
        self.bias = None

    def values(self) -> Tensor:
        packed = self.weight.flatten()
        return (torch.stack([packed & 15, packed >> 4], 1).reshape(5, 6).float() - 7.5) / 8

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.values().to(x.dtype))


def test_inference_mode_changes_nothing(net: Net) -> None:
    seen = batches()
    expected = lyc.probe(net, seen, loss)
    with torch.inference_mode():
        found = lyc.probe(net, seen, loss)
    for path, layer in expected.layers.items():
        assert torch.equal(layer.spectrum, found.layers[path].spectrum)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "recomputed"])
def test_packed_weights_under_autocast_and_checkpointing(checkpointed: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), Linear4bit()), torch.randn(7, 4)
    weight = net[2].values().requires_grad_()

    def by_hand(module: Any, batch: Tensor) -> Tensor:
        return functional.linear(module[:2](batch), weight).square().mean()

    def packed(module: Any, batch: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = checkpoint(module, batch, use_reentrant=False) if checkpointed else module(batch)
        return y.float().square().mean()

    by_hand(net, x).backward()
    found = lyc.probe(net, [x], packed, include="2").layers["2"]
    assert weight.grad is not None
    torch.testing.assert_close(found.spectrum, torch.linalg.svdvals(weight.grad), rtol=0.02, atol=1e-3)
    assert {offer.algorithm for offer in found.offers} == {"lokr", "lora"}


def test_torchs_own_attention() -> None:
    """It hands the weights of its projections to a function, so that no pass of theirs is seen."""
    torch.manual_seed(0)
    net, x = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), torch.randn(3, 5, 8)

    def spread(module: Any, batch: Tensor) -> Tensor:
        return module(batch)[:, 0].square().sum()

    spread(net, x).backward()
    wanted = {name: p.grad.square().sum().item() for name, p in net.named_parameters() if p.grad is not None}
    found = lyc.probe(net, [x], spread, include=("self_attn", "linear1"))
    assert found.layers["self_attn.in_proj_weight"].energy == pytest.approx(
        wanted["self_attn.in_proj_weight"]
    )
    assert found.layers["self_attn.out_proj"].energy == pytest.approx(wanted["self_attn.out_proj.weight"])
    plan = lyc.plan_ranks(found, size=lyc.Rank(2))
    before = net(x)
    lyc.create_lycoris(net, plan=plan).apply_to()
    assert len(plan) == 3
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)


class Running(nn.Module):
    """A class with statistics of its own, which change in each pass in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean = 0.9 * self.running_mean + 0.1 * x.detach().mean(0)
        return x - self.running_mean


def with_statistics() -> nn.Module:
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), Running(), normed, nn.Linear(6, 3))


def raced(net: nn.Module, plan: lyc.Plan, data: Any) -> None:
    """A race on a model, with two heats."""
    entrant = lyc.Entrant("one", lambda: lyc.create_lycoris(net, plan=plan, seed=0), 1e-3)
    found = lyc.race([entrant], data, data[:1], loss, lyc.TrainOptions(steps=24), steps=24, share=1)
    assert len(found.heats) == 2


def test_running_statistics_stay_and_are_used() -> None:
    torch.manual_seed(0)
    net = with_statistics()
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    data = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(2)]
    found = lyc.probe(net, data, loss, include=("0", "4"))
    plan = lyc.plan_ranks(found, size=lyc.Rank(1), algorithms="lora")
    raced(net, plan, data)
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(module.training for module in net.modules())
    # The probe uses the statistics as evaluation does. So does the training that follows.
    assert found.loss == pytest.approx(lyc.probe(net.eval(), data, loss, include=("0", "4")).loss)


def test_weights_that_are_loaded_within_each_pass(net: Net) -> None:
    accelerate = pytest.importorskip("accelerate")
    chosen = tuple(path for path in EVERYTHING if path != "norm")
    wanted = lyc.probe(net, batches(), loss, include=chosen, seed=1)
    accelerate.cpu_offload(net, execution_device="cpu")
    assert net.head.weight.is_meta
    found = lyc.probe(net, batches(), loss, include=chosen, seed=1)
    assert found.loss == pytest.approx(wanted.loss) and found.agreement == pytest.approx(wanted.agreement)
    for path, layer in wanted.layers.items():
        assert found.layers[path].energy == pytest.approx(layer.energy, rel=1e-4), path
    assert all(parameter.requires_grad for parameter in net.parameters())
    bypassed = replace(found, layers={p: layer for p, layer in found.layers.items() if p != "words"})
    plan = lyc.plan_ranks(bypassed, size=lyc.Rank(1), algorithms="lora")
    raced(net, plan, batches())
    unseen: list[int] = []

    def counted(module: nn.Module, batch: Any) -> Tensor:
        unseen.append(1)
        return loss(module, batch)

    with pytest.raises(lyc.PlanError, match="norm: the gradient of an offloaded weight"):
        lyc.probe(net, batches(), counted, include=EVERYTHING, memory=1)
    with pytest.raises(lyc.PlanError, match="0: the values of a weight are not in memory"):
        lyc.probe(nn.Sequential(nn.Linear(2, 2, device="meta")), [1], counted)
    assert not unseen
