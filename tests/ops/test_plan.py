"""Plans: the division of a size among layers, and what can be done with the result."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS, declaring
from lycoris_ops.algorithms.planning import Planned
from lycoris_ops.changes.forms import Dense
from lycoris_ops.ranks.allocate import NOTHING, Candidate, allocate, within
from lycoris_ops.ranks.offers import Gradient, offers_of
from lycoris_ops.ranks.probe import Probed


def random_candidates(random: np.random.Generator) -> list[Candidate]:
    choices = [Candidate(int(random.integers(1, 30)), float(random.exponential())) for _ in range(5)]
    return [NOTHING, *choices]


def test_allocation_is_near_the_best_of_all() -> None:
    """Against every combination of choices of any sizes. Nothing that gains and would fit is left."""
    random = np.random.default_rng(0)
    ratios: list[float] = []
    for _ in range(60):
        candidates = {str(layer): random_candidates(random) for layer in range(4)}
        most = int(random.integers(10, 60))
        chosen = allocate(candidates, within(most))
        assert sum(one.cost for one in chosen.values()) <= most
        room = most - sum(one.cost for one in chosen.values())
        for path, each in candidates.items():
            taken = chosen[path]
            assert not any(one.gain > taken.gain and one.cost - taken.cost <= room for one in each)
        gain = sum(one.gain for one in chosen.values())
        best = max(
            sum(one.gain for one in each)
            for each in itertools.product(*candidates.values())
            if sum(one.cost for one in each) <= most
        )
        assert gain <= best + 1e-9
        ratios.append(gain / best)
    assert np.mean(ratios) > 0.97


def test_a_step_that_does_not_fit_leaves_its_room_to_smaller_ones() -> None:
    """The large step of `a` goes past the smaller candidate, which is not on its hull."""
    small, large = Candidate(3, 2.0), Candidate(10, 20.0)
    candidates = {"a": [NOTHING, small, large], "b": [NOTHING, Candidate(4, 12.0)]}
    assert allocate(candidates, within(13)) == {"a": small, "b": candidates["b"][1]}
    assert allocate(candidates, within(14))["a"] == large


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 4))


def loss(module: Any, batch: Tensor) -> Tensor:
    return module(batch).square().mean()


@pytest.fixture(scope="module")
def probe() -> lyc.Probe:
    return lyc.probe(model(), torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(1)), loss)


SIZES: dict[str, Any] = {
    "rank": lyc.Rank(3),
    "energy": lyc.Energy(0.8),
    "ratio": lyc.Ratio(4),
    "budget": lyc.Budget(parameters=400),
    "bytes": lyc.Budget("1KB", dtype=torch.float32),
    "auto": "auto",
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithms", ["auto", "all", ("lora", "lokr")], ids=str)
def test_plans_keep_to_their_size_and_start_from_the_base(
    probe: lyc.Probe, size: str, algorithms: Any
) -> None:
    plan = lyc.plan_ranks(probe, size=SIZES[size], algorithms=algorithms, scale=0.5)
    full = 16 * 32 + 32 * 24 + 24 * 4
    assert plan.full == full and 0 < len(plan) <= 3
    assert {row.path for row in plan} | set(plan.left_out) == {"0", "2", "4"}
    most = {"ratio": full / 4, "budget": 400, "bytes": 250}.get(size, math.inf)
    assert plan.parameters <= most
    assert size != "bytes" or plan.nbytes <= 1000
    if size == "energy":
        assert plan.gain >= 0.8 * (1 - 1e-6)
    sites = dict(model().named_modules())
    for row in plan:
        layer = row.start(probe)
        held = {
            suffix: tensor.numel()
            for suffix, tensor in layer.dump().items()
            if suffix not in layer.table.numbers
        }
        assert sum(held.values()) == row.parameters
        assert not layer.delta(sites[row.path].weight.detach()).any()
        if row.algorithm == "lora":
            assert row.alpha == 0.5 * (row.rank or 0) == layer.alpha
            assert size != "rank" or row.rank == 3
        assert row.lr == 1


def test_energy_takes_the_fewest_parameters(probe: lyc.Probe) -> None:
    """With one rank less of the widest layer, no plan gains the share."""
    plan = lyc.plan_ranks(probe, size=lyc.Energy(0.8))
    less = lyc.plan_ranks(probe, size=lyc.Budget(parameters=plan.parameters - (32 + 24)))
    assert less.gain < 0.8 <= plan.gain


def test_auto_stops_where_parameters_gain_less_than_those_of_the_weights(probe: lyc.Probe) -> None:
    plan = lyc.plan_ranks(probe)
    spectra = {path: layer.spectrum.double().square() for path, layer in probe.layers.items()}
    for path, layer in probe.layers.items():
        slope = probe.energy / plan.full * sum(layer.shape)
        kept = int((spectra[path] > slope).sum())
        assert kept == next((row.rank for row in plan if row.path == path), 0)


def test_a_budget_goes_where_the_first_step_gains_most(probe: lyc.Probe) -> None:
    """Against every combination of ranks."""
    offers = {path: next(o for o in probe.layers[path].offers if o.algorithm == "lora") for path in "024"}
    plan = lyc.plan_ranks(probe, size=lyc.Budget(parameters=500))
    kept = {path: next((row.rank or 0 for row in plan if row.path == path), 0) for path in offers}
    ranks = [range(len(offer.ranks) + 1) for offer in offers.values()]

    def worth(chosen: Iterable[int]) -> float:
        steps = zip(offers.values(), chosen, strict=True)
        return sum(offer.first_steps[rank - 1] for offer, rank in steps if rank)

    best = max(
        worth(each)
        for each in itertools.product(*ranks)
        if sum(r * sum(probe.layers[path].shape) for path, r in zip(offers, each, strict=True)) <= 500
    )
    assert worth(kept.values()) == pytest.approx(best, rel=0.01)


def measured(gradients: Mapping[str, Tensor]) -> lyc.Probe:
    """A probe that found these gradients."""
    layers: dict[str, Probed] = {}
    for path, values in gradients.items():
        shape = tuple(values.shape)
        gradient = Gradient((Dense(values),), shape)
        offers = offers_of([declaring(Planned)["lora"]], gradient)
        layers[path] = Probed(shape, "linear", gradient.energy, gradient.spectrum, offers)
    return lyc.Probe(layers, loss=1.0, batches=8)


@pytest.fixture(scope="module")
def costly() -> lyc.Probe:
    """Most of the energy is one component of a layer, a rank of which takes as much as 20 of the others."""
    draw = torch.Generator().manual_seed(0)
    up, down = (torch.nn.functional.normalize(torch.randn(n, generator=draw), dim=0) for n in (4, 1276))
    others = {f"cheap.{n}": torch.randn(32, 32, generator=draw) / 100 for n in range(4)}
    return measured({"costly": torch.outer(up, down), **others})


def test_a_plan_that_captures_no_more_than_one_rank_everywhere_is_uniform(costly: lyc.Probe) -> None:
    one = 1280 + 4 * 64
    plan = lyc.plan_ranks(costly, size=lyc.Budget(parameters=one))
    assert [(row.path, row.rank) for row in plan] == [(path, 1) for path in costly.layers]
    assert plan.refused is not None and plan.refused < 0.5 < plan.gain == pytest.approx(plan.uniform)
    assert plan.verdict().startswith("5 layers of rank 1, uniform: 1,536 parameters")
    words = "uniform, and started as without a plan: the size divided among the layers captures"
    assert f"{words} {plan.refused:.1%}" in str(plan).splitlines()
    # As without a plan, also when it comes back from its text.
    read = lyc.Plan.of_json(plan.json(), probe=costly)
    assert read == plan and read.probe is costly
    cheap = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
    net = nn.ModuleDict({"costly": nn.Linear(1276, 4), "cheap": cheap})
    planned = lyc.create_lycoris(net, seed=3, plan=read).members
    fresh = lyc.create_lycoris(net, seed=3, rank=1, preset="full").members
    assert planned.keys() == fresh.keys() == costly.layers.keys()
    for path, member in planned.items():
        other = fresh[path].layer.tensors()
        assert all(torch.equal(tensor, other[name]) for name, tensor in member.layer.tensors().items())


def test_what_a_uniform_rank_leaves_is_given_out(costly: lyc.Probe) -> None:
    plan = lyc.plan_ranks(costly, size=lyc.Budget(parameters=1280 + 7 * 64))
    assert plan.refused is not None and [row.rank for row in plan].count(2) == 3 and plan["costly"].rank == 1
    assert plan.verdict().startswith("5 layers of rank 1 to 2, uniform")
    # A size below rank 1 cannot be uniform.
    small = lyc.plan_ranks(costly, size=lyc.Budget(parameters=1280 + 3 * 64))
    assert small.refused is None and small.origin is costly
    # What was asked for stays: a rank, other kinds, a share of the energy.
    assert lyc.plan_ranks(costly, size=lyc.Rank(1)).refused is None
    assert lyc.plan_ranks(costly, size=lyc.Energy(0.9)).refused is None


def test_the_text_says_what_a_uniform_rank_would_capture(probe: lyc.Probe) -> None:
    """By closed form: between rank 2 and 3 as far as the parameters are."""
    plan = lyc.plan_ranks(probe, size=lyc.Budget(parameters=330))
    squares = [layer.spectrum.double().square() for layer in probe.layers.values()]
    two, three = (sum(float(each[:rank].sum()) for each in squares) for rank in (2, 3))
    one = sum(sum(layer.shape) for layer in probe.layers.values())
    share = (two + (three - two) * (plan.parameters - 2 * one) / one) / probe.energy
    assert one == 132 and plan.uniform == pytest.approx(share, rel=1e-5) and plan.gain > share
    words = f"captures {plan.gain:.1%} of the gradient's energy; a uniform rank of this size {share:.1%}"
    assert words in str(plan).splitlines()
    assert "measured on 2 batches, whose halves agree by" in str(plan)
    assert lyc.Plan.of_json(plan.json()).uniform is None
    assert lyc.plan_ranks(probe, size=lyc.Ratio(4), algorithms="lokr").uniform is None


def test_a_rank_is_everywhere_though_few_batches_reach_few_directions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))
    probe = lyc.probe(model, [torch.randn(2, 32)], lambda model, batch: model(batch).square().mean())
    assert [row.rank for row in lyc.plan_ranks(probe, size=lyc.Rank(16))] == [16, 16]


def test_bounds_of_ranks(probe: lyc.Probe) -> None:
    plan = lyc.plan_ranks(probe, size=lyc.Energy(0.5), r_min=2, r_max=3)
    assert len(plan) == 3 and {row.rank for row in plan} <= {2, 3}


def test_a_plan_is_edited_and_kept(probe: lyc.Probe) -> None:
    plan = lyc.plan_ranks(probe, size=lyc.Rank(2))
    wider = plan.with_row("2", rank=5)
    assert wider["2"].parameters == 5 * (32 + 24) and wider["2"].alpha == 5 and plan["2"].rank == 2
    assert (wider["2"].gain or 0) > (plan["2"].gain or 0)
    assert [row.path for row in wider] == ["0", "2", "4"]
    other = wider.with_row("0", algorithm="lokr", rank=None, factor=4)
    assert other["0"].parameters == 16 + 32 and other["0"].lr == 1
    fewer = other.without("4")
    assert fewer.left_out == ("4",) and fewer.with_row("4", rank=1)["4"].parameters == 28
    read = lyc.Plan.of_json(fewer.json(), probe=probe)
    assert read == fewer and read.probe is probe
    text = str(fewer)
    assert "lokr 4" in text and "2 layers, 328 parameters" in text and "1 layer left out: 4" in text
    unknown = lyc.Plan.of_json(plan.json()).with_row("0", rank=1)
    assert unknown["0"].gain is None and unknown["0"].parameters == 48


def test_layers_that_are_left_out_are_told_in_few_words() -> None:
    rows = tuple(
        lyc.PlanRow(path, "lora", (8, 8), 1, 1.0, 16) for path in ("blocks.0.qkv", "blocks.1.up", "head")
    )
    out = ("blocks.1.qkv", "blocks.2.qkv", "blocks.0.down", "blocks.1.down", "blocks.2.up", "tail")
    words = "2 of 3 blocks.*.qkv, all 2 blocks.*.down, blocks.2.up, tail"
    assert str(lyc.Plan(rows, out)).endswith(f"6 layers left out: {words}")


def test_no_layer_takes_more_numbers_than_its_weight_has(probe: lyc.Probe) -> None:
    plan = lyc.plan_ranks(probe, size=lyc.Budget("50MB"))
    assert len(plan) == 3 and all(row.parameters <= math.prod(row.shape) for row in plan)
    assert plan.parameters < plan.full


def test_auto_takes_what_the_probe_has() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 16)
    probe = lyc.probe(
        model, [torch.randn(4, 16)], lambda model, batch: model(batch).square().mean(), algorithms="lokr"
    )
    assert [row.algorithm for row in lyc.plan_ranks(probe, size=lyc.Ratio(2))] == ["lokr"]


def test_a_plan_is_drawn(probe: lyc.Probe, tmp_path: Path) -> None:
    plan = lyc.plan_ranks(probe, size=lyc.Rank(2), algorithms="all")
    lyc.draw_plan(plan, tmp_path / "plan.png")
    assert "rank 2" in lyc.plan_picture(plan).svg() and lyc.plan_picture(plan).verdict == plan.verdict()
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def edited(probe: lyc.Probe, **values: Any) -> lyc.Plan:
    """A plan of rank 2 everywhere whose first row was edited in its text."""
    text = json.loads(lyc.plan_ranks(probe, size=lyc.Rank(2)).json())
    text["rows"][0].update(values)
    return lyc.Plan.of_json(json.dumps(text))


def test_an_edited_text_is_counted_anew(probe: lyc.Probe) -> None:
    plan = edited(probe, rank=3)
    other = plan.with_row(plan.rows[0].path, algorithm="lokr", factor=2, rank=None)
    assert other.rows[0].factor == 2
    # The factor goes with the kind that has one.
    assert other.with_row(plan.rows[0].path, algorithm="lora", rank=3).rows[0].factor is None
    first = plan.rows[0]
    assert (
        first.rank == 3
        and first.gain is None
        and first.parameters == 3 * (first.shape[0] + math.prod(first.shape[1:]))
    )


def test_a_plan_of_an_earlier_version_is_read(probe: lyc.Probe) -> None:
    """It tells for each row what the file holds, and its rows of other kinds start as without a plan."""
    assert edited(probe, stored=None) == lyc.plan_ranks(probe, size=lyc.Rank(2))
    plan = edited(probe, algorithm="loha", stored=None)
    first = plan.rows[0]
    assert first.parameters == 2 * 2 * sum(first.shape)
    usual = ALGORITHMS["loha"].init(first.shape, 2, 2.0, seed=3).tensors()
    assert all(
        torch.equal(value, usual[name]) for name, value in first.start(probe, seed=3).tensors().items()
    )


WRONG: dict[str, tuple[str, Callable[[lyc.Probe], Any]]] = {
    "rank 0": ("whole number from 1", lambda probe: lyc.Rank(0)),
    "a share": ("above 0 and at most 1", lambda probe: lyc.Energy(90)),
    "a ratio": ("number from 1", lambda probe: lyc.Ratio(0.5)),
    "two budgets": ("in bytes or in parameters", lambda probe: lyc.Budget("1MB", parameters=3)),
    "a unit": ("number of bytes", lambda probe: lyc.Budget("1 furlong")),
    "nothing": ("too small for a parameter", lambda probe: lyc.Budget("1B")),
    "no byte": (r"found 0\)", lambda probe: lyc.Budget(0)),
    "a number": (r"Rank\(16\)$", lambda probe: lyc.plan_ranks(probe, size=16)),  # type: ignore[arg-type]
    "too little": (
        "below the smallest plan.*expected at least 28.*Ask for more or",
        lambda probe: lyc.plan_ranks(probe, size=lyc.Budget(parameters=27)),
    ),
    "too little for all": (
        "expected at least 132.*Lower r_min",
        lambda probe: lyc.plan_ranks(probe, size=lyc.Budget(parameters=131), r_min=1),
    ),
    "too much": (
        "no plan can gain that much",
        lambda probe: lyc.plan_ranks(probe, size=lyc.Energy(1.0), r_max=1),
    ),
    "an algorithm": ("no such algorithm", lambda probe: lyc.plan_ranks(probe, algorithms=["lora", "oft"])),
    "a kind of no plan": (
        "found loha; expected lokr or lora",
        lambda probe: lyc.plan_ranks(probe, algorithms="loha"),
    ),
    "a kind that is gone": (
        r"no such algorithm \(found lora_fa; .*Is it lora\?",
        lambda probe: edited(probe, algorithm="lora_fa", stored=96),
    ),
    "bounds": ("in these bounds", lambda probe: lyc.plan_ranks(probe, r_min=3, r_max=2)),
    "no rank at all": ("and 1 <= r_max", lambda probe: lyc.plan_ranks(probe, r_max=0)),
    "a layer": ("no such layer", lambda probe: lyc.plan_ranks(probe).without("9")),
    "a value": ("no such value", lambda probe: lyc.plan_ranks(probe).with_row("0", dim=4)),
    "a rank and bounds": (
        "the rank is not within the bounds",
        lambda probe: lyc.plan_ranks(probe, size=lyc.Rank(4), r_max=1),
    ),
    "a rank below": ("at least 5", lambda probe: lyc.plan_ranks(probe, size=lyc.Rank(4), r_min=5)),
    "a rank above": (
        "the layer cannot have this rank",
        lambda probe: lyc.plan_ranks(probe).with_row("0", rank=1000),
    ),
    "no rank": (
        "the layer cannot have this rank",
        lambda probe: lyc.plan_ranks(probe).with_row("0", rank=None),
    ),
    "no factor": ("this kind has no factor", lambda probe: lyc.plan_ranks(probe).with_row("0", factor=2)),
    "a factor": ("the factor divides no dimension", lambda probe: edited(probe, algorithm="lokr", factor=0)),
    "edited": ("the layer cannot have this rank", lambda probe: edited(probe, rank=1000)),
    "a scale": ("alpha is not a finite number, 0 or more", lambda probe: edited(probe, alpha=-1)),
    "no rate": ("lr is not a finite number, 0 or more", lambda probe: edited(probe, lr=None)),
    "a gain": ("gain is not a finite number, 0 or more", lambda probe: edited(probe, gain="1")),
    "a path": ("a row has no path of a layer", lambda probe: edited(probe, path=3)),
    "a form": (
        "a plan of another version",
        lambda probe: lyc.Plan.of_json(lyc.plan_ranks(probe).json().replace('"form": 1', '"form": 2')),
    ),
    "json": ("not a plan.*nothing called", lambda probe: lyc.Plan.of_json('{"rows": [{"path": 1}]}')),
    "no json": ("not a plan", lambda probe: lyc.Plan.of_json("rank 4")),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_use_is_an_error(probe: lyc.Probe, case: str) -> None:
    message, use = WRONG[case]
    with pytest.raises(lyc.PlanError, match=message):
        use(probe)


def test_a_plan_is_for_one_model(probe: lyc.Probe) -> None:
    from lycoris_ops.modules.sites import select

    plan = lyc.plan_ranks(probe)
    plan.check_model(select(model()))
    probe.check_model(select(model()))
    with pytest.raises(lyc.PlanError, match="for another model"):
        plan.check_model(select(nn.Sequential(nn.Linear(16, 31))))
    with pytest.raises(lyc.PlanError, match="2 of 3 layers that the model does not have"):
        probe.check_model(select(nn.Sequential(nn.Linear(16, 32))))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (" Auto", "auto"),
        ("50MB", lyc.Budget("50MB")),
        ("48.5 MiB", lyc.Budget("48.5 MiB")),
        ("2_000_000 parameters", lyc.Budget(parameters=2_000_000)),
        ("60", lyc.Budget(parameters=60)),
        ("Rank 16", lyc.Rank(16)),
        ("90 %", lyc.Energy(0.9)),
        ("1/100", lyc.Ratio(100)),
    ],
)
def test_sizes_of_texts(text: str, size: Any) -> None:
    found: Any = lyc.parse_size(text)
    assert getattr(found, "most", found) == getattr(size, "most", size) and type(found) is type(size)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "large",
        "16%%",
        "1.2.3%",
        "2/100",
        "rank 0",
        "0%",
        "101%",
        "5 pounds",
        "-3",
        "9" * 5000,
        f"{'9' * 400}MB",
    ],
)
def test_texts_that_are_no_size(text: str) -> None:
    with pytest.raises(lyc.PlanError) as raised:
        lyc.parse_size(text)
    # As the person wrote it, and with other texts rather than values of Python.
    assert raised.value.got == text and "rank 16" in str(raised.value)


@pytest.mark.parametrize("options", [{}, {"dora": "output"}], ids=["plain", "dora"])
def test_a_network_follows_a_plan_and_starts_from_the_gradient(probe: lyc.Probe, options: Any) -> None:
    kinds = ("lora", "lokr")
    plan = lyc.plan_ranks(probe, size=lyc.Rank(2), algorithms=kinds, scale=0.5).with_row(
        "2", algorithm="loha"
    )
    plan = plan.with_row("4", algorithm="lokr", rank=None, factor=2, lr=10.0)
    net, x = model(), torch.randn(5, 16)
    before = net(x)
    network = lyc.create_lycoris(net, plan=plan, seed=1, **options)
    network.apply_to()
    # DoRA divides by norms that it multiplies by again.
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-6 if options else 0)
    assert {path: one.layer.algorithm for path, one in network.members.items()} == {
        "0": "lora",
        "2": "loha",
        "4": "lokr",
    }
    groups = network.parameter_groups(1e-3)
    assert sorted(group["lr"] for group in groups)[-1] == pytest.approx(1e-2)
    down = network.members["0"].layer.tensors()["lora_down"]
    torch.testing.assert_close(down.abs(), probe.start_of("0", "lora", None, 2)["lora_down"][:2].abs())
    network.restore()
    with pytest.raises(lyc.PlanError, match="for another model"):
        lyc.create_lycoris(nn.Sequential(nn.Linear(16, 16)), plan=plan)
    with pytest.raises(lyc.LycorisError, match="which modules are adapted"):
        lyc.create_lycoris(net, plan=plan, include="0")
