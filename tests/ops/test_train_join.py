"""Networks of several models, trained as one."""

from __future__ import annotations

from pathlib import Path
from time import process_time
from typing import Any

import pytest
import torch
from torch import nn

import lycoris_ops as lyc


class Pair(nn.Module):
    """A text encoder and a model that takes what it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoders = nn.ModuleDict(
            {"clip_l": nn.ModuleDict({"transformer": nn.Sequential(nn.Linear(6, 5), nn.Tanh())})}
        )
        self.diffusion_model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        encoders: nn.Module = self.text_encoders["clip_l"]["transformer"]  # type: ignore[index]
        return self.diffusion_model(encoders(x))


def both(pair: Pair) -> lyc.LycorisNetwork:
    model = lyc.create_lycoris(pair.diffusion_model, rank=2, seed=1, prefix="diffusion_model.")
    encoder = lyc.create_lycoris(pair.text_encoders, algorithm="lokr", rank=2, seed=1, prefix="", lr=0.25)
    return lyc.join_networks({"diffusion_model": model, "text_encoders": encoder})


def test_each_part_has_its_rate_and_its_names_and_the_file_gives_the_trained_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pair = Pair()
    x, wanted = torch.randn(8, 6), torch.randn(8, 3)
    net = both(pair)
    path = tmp_path / "both.safetensors"
    options = lyc.TrainOptions(steps=20, lr=0.05, output=path, dialect="comfy", bar=False, picture=False)
    result = lyc.train_network(
        net, [(x, wanted)], lambda _, batch: (pair(batch[0]) - batch[1]).square().mean(), options
    )
    losses = [loss for _, loss in result.history.losses]
    assert losses[-1] < 0.9 * losses[0] and not result.idle
    rates = {group["name"]: group["lr"] for group in net.parameter_groups(0.05)}
    assert {name.split()[2]: rate for name, rate in rates.items()} == {"1": 0.05, "0.25": 0.0125}
    trained = pair(x)
    net.restore()
    assert (pair(x) - trained).norm() > 0.01
    adapter = lyc.load_adapter(path)
    assert set(adapter.layers) == {
        "diffusion_model.0",
        "diffusion_model.1",
        "text_encoders.clip_l.transformer.0",
    }
    again = lyc.create_lycoris(pair, weights=path, prefix="")
    again.apply_to()
    torch.testing.assert_close(pair(x), trained)


def test_networks_of_different_strengths_are_not_joined() -> None:
    pair = Pair()
    first = lyc.create_lycoris(pair.diffusion_model, multiplier=0.5)
    second = lyc.create_lycoris(pair.text_encoders)
    with pytest.raises(lyc.LycorisError, match=r"different strengths.*0\.5, 1"):
        lyc.join_networks({"a": first, "b": second})
    with pytest.raises(lyc.LycorisError, match="no networks"):
        lyc.join_networks({})


def test_a_state_knows_its_data_though_they_were_computed_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pictures, texts = [torch.randn(4, 8, 8) for _ in range(3)], ["a cat", "a dog", "a cow"]

    def data(pictures: list[torch.Tensor], texts: list[str]) -> dict[str, list[Any]]:
        found = {
            "latents": lyc.sketches([one] for one in pictures),
            "captions": lyc.sketches(zip(texts, pictures, strict=False)),
        }
        return {name: rows for name, rows in found.items() if rows}

    def trainer(data: dict[str, Any]) -> lyc.Trainer:
        module = nn.Sequential(nn.Linear(3, 3))
        with torch.no_grad():
            module[0].weight.fill_(0.5)
            module[0].bias.zero_()
        net = lyc.create_lycoris(module, rank=1, seed=0)
        options = lyc.TrainOptions(steps=2, data=data)
        return lyc.Trainer(net, lambda made, x: made(x).square().mean(), options)

    first = trainer(data(pictures, texts))
    first.step(torch.ones(1, 3))
    path = tmp_path / "run.state.safetensors"
    first.save_state(path)
    # As another run of an encoder in half precision makes them.
    again = trainer(data([one.half().float() for one in pictures], texts))
    again.load_state(path)
    assert again.done == 1
    flipped = [pictures[0], pictures[1].flip(-1), pictures[2]]
    more, fewer = [*pictures, torch.randn(4, 8, 8)], pictures[1:]
    for other, changed in (
        (data(pictures[::-1], texts[::-1]), {}),
        (data(flipped, texts), {"latents": "1 new, 1 gone, 3 in all"}),
        (data(pictures, ["a cat", "a dog", "a sow"]), {"captions": "changed for 1 of 3"}),
        (data(pictures, [texts[1], texts[0], texts[2]]), {"captions": "changed for 2 of 3"}),
        (data(more, [*texts, "a bee"]), {"latents": "1 new, 4 in all"}),
        (data(fewer, texts[1:]), {"latents": "1 gone, 2 in all"}),
        (data(pictures, []), {"captions": "changed for 3 of 3"}),
    ):
        going = trainer(other)
        going.load_state(path)
        assert going.done == 1 and going.changed == changed
    # A state of a training that said nothing of its data.
    unmarked = trainer({})
    unmarked.step(torch.ones(1, 3))
    going = trainer(data(pictures, texts))
    going.load_state_dict(unmarked.state_dict())
    assert not going.changed


def test_many_samples_in_another_order_are_compared_quickly() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = [[64.0, 1.0, *torch.randn(4, generator=draw).tolist()] for _ in range(5000)]
    rows += rows[:50]
    shuffled = [rows[index] for index in torch.randperm(len(rows), generator=draw).tolist()]
    began = process_time()
    assert not lyc.data_changes({"latents": rows}, {"latents": shuffled})
    changed = lyc.data_changes({"latents": rows}, {"latents": [*shuffled[1:], [64.0, 1.0, 9, 9, 9, 9]]})
    assert changed == {"latents": "1 new, 1 gone, 5050 in all"}
    print(process_time() - began)


def test_new_held_out_data_begin_a_new_comparison(tmp_path: Path) -> None:
    """Losses on other held-out data cannot be compared: the best step counts from the resume on."""
    module = nn.Sequential(nn.Linear(3, 3))
    net = lyc.create_lycoris(module, rank=1, seed=0)
    x = torch.ones(1, 3)

    def run(held: float, steps: int, resume: Path | None = None) -> lyc.TrainResult:
        rows = {"latents": lyc.sketches([[x]]), "validation_latents": lyc.sketches([[x * held]])}
        options = lyc.TrainOptions(
            steps=steps, lr=0.1, validate_every=2, data=rows, output=tmp_path / "a.safetensors", bar=False,
            overwrite=True, rise=None,
        )  # fmt: skip
        return lyc.train_network(
            net, [x], lambda made, batch: made(batch).square().mean(), options,
            validation=[x * held], resume=resume,
        )  # fmt: skip

    first = run(0.01, 3)
    assert [step for step, _ in first.history.validation] == [0, 2, 3]
    second = run(1.0, 5, first.state and Path(first.state))
    # All earlier losses are a 10,000th, so each of them would stay the best.
    assert [step for step, _ in second.history.validation] == [3, 4, 5]
    assert second.saved > 3 and "in step 3" in str(second)
    assert "the data have changed: validation_latents: 1 new, 1 gone, 1 in all" in str(second)
    same = run(1.0, 6, second.state and Path(second.state))
    assert [step for step, _ in same.history.validation] == [3, 4, 5, 6]
    assert "have changed" not in str(same)


def test_gradients_are_scaled_where_a_model_computes_in_float16_by_itself() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4))
    net = lyc.create_lycoris(module, rank=2, seed=0)

    def loss(made: nn.Module, x: torch.Tensor) -> torch.Tensor:
        # Gradients that are too small for float16 are lost in the backward pass, unless they are scaled.
        return (made(x).half().float() * 1e-6).half().float().sum() * 1e-3

    steps = []
    for scaled in (None, True):
        trainer = lyc.Trainer(net, loss, lyc.TrainOptions(steps=1, scaled=scaled))
        steps.append(trainer.step(torch.ones(1, 4)).norm)
    assert steps[0] == 0 < steps[1]
