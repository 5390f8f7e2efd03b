"""Judge adapters at strengths: the halving against all losses, and the losses against merged weights."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor, nn
from train_task import batches, loss, model

import lycoris_ops as lyc
from lycoris_ops.train.judge import halved


def contenders(module: nn.Module, *scales: float) -> list[lyc.Contender]:
    """Adapters in one direction, which is that towards lower losses, each of another size."""
    probed = lyc.create_lycoris(module, rank=4, seed=0)
    lyc.train_network(
        probed, batches(4, 1), loss, lyc.TrainOptions(steps=30, lr=1e-2, bar=False, picture=False)
    )
    trained = [parameter.detach().clone() for parameter in probed.parameters()]
    probed.restore()

    def network(scale: float) -> lyc.LycorisNetwork:
        made = lyc.create_lycoris(module, rank=4, seed=0)
        with torch.no_grad():
            for parameter, value in zip(made.parameters(), trained, strict=True):
                parameter.copy_(value)
        # The change is multiplied, not its factors.
        inner = lyc.weighted(lyc.Entry(made.to_adapter(), strength=scale))
        return lyc.create_lycoris(module, weights=inner, seed=0)

    return [lyc.Contender(f"x {scale:g}", lambda scale=scale: network(scale)) for scale in scales]


def merged_loss(
    module: nn.Module, contender: lyc.Contender, strength: float, held: list[tuple[Tensor, Tensor]]
) -> float:
    """The mean loss with the change in the weights, in float64."""
    weights = {name: value.double() for name, value in module.state_dict().items()}
    for path, member in contender.make().members.items():
        weights[f"{path}.weight"] += strength * member.layer.delta(weights[f"{path}.weight"]).detach()
    plain = model().double()
    plain.load_state_dict(weights)
    with torch.no_grad():
        return sum(float(loss(plain, (x.double(), y.double()))) for x, y in held) / len(held)


def test_losses_are_those_of_merged_weights_and_the_least_is_named() -> None:
    module, held = model(), batches(12, 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    entered = contenders(module, 0.25, 1.0, 4.0)
    told: list[tuple[int, int]] = []
    found = lyc.judge(
        module, entered, (0.5, 1.0, 0.0), held, loss, share=1.0, told=lambda *both: told.append(both)
    )
    assert found.strengths == (0.5, 1.0) and found.spent == 1.0 and told[-1] == (7 * 12, 7 * 12)
    wanted = {
        (row, column): merged_loss(module, one, strength, held)
        for row, one in enumerate(entered)
        for column, strength in enumerate(found.strengths)
    }
    for place, value in wanted.items():
        assert found.loss(place) == pytest.approx(value, rel=1e-5)
    assert found.best == min(wanted, key=lambda place: wanted[place])
    assert found.loss(lyc.ALONE) == pytest.approx(merged_loss(module, entered[0], 0.0, held), rel=1e-5)
    # Differences and their errors, in float64.
    place = max(wanted, key=lambda place: wanted[place])
    pairs = torch.tensor([found.losses[place], found.losses[found.best]], dtype=torch.float64)
    difference = pairs[0] - pairs[1]
    assert found.behind(place) == pytest.approx((difference.mean().item(), difference.std().item() / 12**0.5))
    assert place not in found.alike and found.alike[0] == found.best
    assert {name: value.tolist() for name, value in module.state_dict().items()} == {
        name: value.tolist() for name, value in before.items()
    }


def test_halving_keeps_to_its_share_and_names_one_of_the_best() -> None:
    draw = random.Random(0)
    places = [lyc.ALONE, *((row, column) for row in range(6) for column in range(5))]
    hits = 0
    for _ in range(100):
        # Draws differ far more from each other than places do, as noise does.
        noise = [draw.gauss(0, 1) for _ in range(64)]
        means = {place: draw.gauss(0, 0.1) for place in places}
        table = {
            place: [means[place] + noise[k] + draw.gauss(0, 0.03) for k in range(64)] for place in places
        }
        found = halved(places, lambda place, numbers: [table[place][k] for k in numbers], 64, 0.2)  # noqa: B023
        assert sum(map(len, found.values())) <= 0.2 * 64 * len(places)
        counts = sorted((len(losses) for losses in found.values()), reverse=True)
        # The last two meet as many draws, and half of all drop out in the first round.
        assert counts[0] == counts[1] and counts[0] > 40 and counts[15] > counts[16] == counts[-1]
        best = min(places, key=lambda place: sum(table[place]))
        last = min(found, key=lambda place: (-len(found[place]), sum(found[place])))
        gap = sum(table[last]) - sum(table[best])
        hits += gap / 64 < 2 * 0.03 * 2**0.5 / 8
    assert hits >= 95


def test_what_is_not_finite_drops_out_and_nothing_to_judge_is_refused() -> None:
    module, held = model(), batches(4, 3)
    entered = contenders(module, 1.0)
    found = lyc.judge(module, entered, (1.0, 1e30), held, loss)
    assert found.best == (0, 0) and found.loss((0, 1)) == math.inf
    assert "inf" in str(found) and found.at_edge
    lyc.judgement_picture(found).svg()
    with pytest.raises(lyc.TrainError, match="finite"):
        lyc.judge(module, entered, (1e30,), held, loss)
    for bad in ({"strengths": (0.0,)}, {"batches": []}, {"share": 0.0}, {"contenders": []}):
        given = {"contenders": entered, "strengths": (1.0,), "batches": held, **bad}
        with pytest.raises(lyc.TrainError, match="nothing to judge"):
            lyc.judge(module, loss=loss, **given)


def test_the_verdict_says_where_nothing_helps() -> None:
    losses = {lyc.ALONE: [1.0, 2.0, 3.0], (0, 0): [1.1, 2.0, 3.2], (0, 1): [2.0, 3.0, 4.1]}
    found = lyc.Judgement(("one",), (0.5, 1.0), losses, 3)
    assert not found.helps and found.verdict().startswith("No adapter is better than the model alone")
    losses[0, 0] = [0.5, 1.6, 2.5]
    found = lyc.Judgement(("one",), (0.5, 1.0), losses, 3)
    assert found.helps
    assert found.verdict() == "Best is one at 0.5: held-out loss 1.533, 23% below the model alone"
    # A pair that dropped out is placed by the draws that both have.
    losses[0, 1] = [1.5]
    assert found.loss((0, 1)) == pytest.approx(1.533 + 1.0, abs=1e-3)
