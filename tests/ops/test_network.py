"""Networks beside a frozen model: what they compute and learn, how they come off again, and their files.

The reference for values and gradients is the network that lycoris-lora builds from the same file, in float64.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.bypass import Rebuilt
from lycoris_ops.modules.presets import PRESETS
from lycoris_ops.train.optimisers import family_of, make_optimiser, tensors_of
from lycoris_ops.train.settings import trainable

RANK = 4
CONVOLUTIONS = {"conv1d": (nn.Conv1d, 12), "conv2d": (nn.Conv2d, 6), "conv3d": (nn.Conv3d, 5)}


class Model(nn.Module):
    """An embedding, a convolution, a norm and linear layers, one of them twice in a pass."""

    def __init__(self, convolution: str = "conv1d") -> None:
        super().__init__()
        kind, self.places = CONVOLUTIONS[convolution]
        self.dimensions = int(convolution[4])
        self.words = nn.Embedding(16, 16)
        self.conv = kind(16, 24, 3, padding=1, stride=2)
        self.norm = nn.LayerNorm(24)
        self.blocks = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.head = nn.Linear(24, 8, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids).movedim(-1, 1)
        x = self.norm(self.conv(x).flatten(2).transpose(1, 2))
        for block in (*self.blocks, self.blocks[0]):
            x = x + functional.gelu(block(x))
        return self.head(x)

    def ids(self) -> Tensor:
        drawn = torch.Generator().manual_seed(5)
        return torch.randint(0, 16, (2, *(self.places,) * self.dimensions), generator=drawn)


ALL = ("words", "conv", "norm", "blocks", "head")
CASES: dict[str, dict[str, Any]] = {
    **{name: {"algorithm": name} for name in trainable() if name not in ("norm", "boft_peft")},
    "dora-output": {"dora": "output"},
    "dora-input": {"algorithm": "loha", "dora": "input"},
    "tucker": {"tucker": True},
    "loha-tucker": {"algorithm": "loha", "tucker": True, "form": "rebuilt"},
    "lokr-tucker": {"algorithm": "lokr", "tucker": True, "rank": 1, "factor": 2},
    "lokr-both": {"algorithm": "lokr", "decompose_both": True, "rank": 1},
    "rslora-bias": {"rslora": True, "bias": True, "alpha": 3.0},
}
BY_LYCORIS = ("lora", "loha", "lokr", "full", "dora-output", "tucker", "loha-tucker")
"""The cases whose files lycoris-lora can load and train with the same formula."""


def made(model: nn.Module, *, moved: bool = True, **options: Any) -> lyc.LycorisNetwork:
    """A network of rank 4, moved away from its start where wanted."""
    options = {"rank": RANK, "seed": 1, **options}
    network = lyc.create_lycoris(model, **options)
    if moved:
        drawn = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=drawn))
    return network.apply_to()


def loss(output: Tensor) -> Tensor:
    return (output - 1).square().mean()


def state(model: nn.Module) -> tuple[dict[str, Tensor], list[Any]]:
    """Everything of a model that a network could leave behind."""
    hooks = [
        (len(inner._forward_hooks), len(inner._forward_pre_hooks), sorted(vars(inner)))
        for inner in model.modules()
    ]
    return {k: v.clone() for k, v in model.state_dict().items()}, [
        hooks,
        [parameter.requires_grad for parameter in model.parameters()],
    ]


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("case", CASES)
def test_a_network_starts_at_nothing_learns_and_comes_off(case: str, convolution: str) -> None:
    torch.manual_seed(0)
    model = Model(convolution)
    model.head.requires_grad_(False)
    ids, plain, before = model.ids(), model(model.ids()), state(model)
    options = {"include": ALL, **CASES[case]}
    if options.get("algorithm") == "boft":
        options["rank"] = 6
    network = made(model, moved=False, **options)
    again = lyc.create_lycoris(copy.deepcopy(Model(convolution)), **{"rank": RANK, "seed": 1, **options})
    for (name, one), other in zip(network.named_parameters(), again.parameters(), strict=True):
        # A DoRA magnitude is read off the weight, which is another one in the second model.
        assert "dora" in name or torch.equal(one, other), name
    assert torch.equal(model(ids), plain)
    network.set_multiplier(0.7)
    optimiser = torch.optim.Adam(network.parameter_groups(lr=0.02))
    losses: list[float] = []
    for _ in range(3):
        optimiser.zero_grad()
        found = loss(model(ids))
        found.backward()
        losses.append(found.item())
        optimiser.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    with network.off():
        assert torch.equal(model(ids), plain)
    trained = model(ids).detach()
    network.restore()
    assert torch.equal(model(ids), plain)
    (values, rest), (values_before, rest_before) = state(model), before
    assert rest == rest_before
    assert all(torch.equal(value, values_before[key]) for key, value in values.items())
    network.merge_to()
    assert (model(ids) - trained).abs().max() < 1e-5


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("case", BY_LYCORIS)
def test_values_and_gradients_are_those_of_lycoris(case: str, convolution: str, tmp_path: Path) -> None:
    import lycoris

    torch.manual_seed(0)
    model = Model(convolution)
    file = tmp_path / "network.safetensors"
    network = made(model, exclude="head", **CASES[case])
    network.save_weights(file)
    theirs = Model(convolution)
    theirs.load_state_dict(model.state_dict())
    model.double(), theirs.double(), network.double()
    other, _ = lycoris.create_lycoris_from_weights(1.0, str(file), theirs)
    other.apply_to()
    other.double()
    ids = model.ids()
    ours, wanted = model(ids), theirs(ids)
    assert (ours - wanted).abs().max() < 1e-12 * wanted.abs().max()
    loss(ours).backward()
    loss(wanted).backward()
    reference = {f"{one.lora_name}.{name}": p for one in other.loras for name, p in one.named_parameters()}
    compared = 0
    for path, member in network.members.items():
        for suffix in member.layer.shapes.keys() - {"alpha"}:
            mine = getattr(member.layer, suffix.removesuffix(".weight").replace(".", "_").lower())
            key = f"lycoris_{path.replace('.', '_')}.{suffix}"
            key = next(
                name for name in (key, f"{key}.weight", f"{key[: -len('.diff')]}.weight") if name in reference
            )
            grad = reference[key].grad
            assert mine.grad is not None and grad is not None, key
            assert (mine.grad - grad.view_as(mine)).abs().max() <= 1e-10 * grad.abs().max(), key
            compared += 1
    assert compared == len(list(network.parameters()))
    other.restore()


@pytest.mark.parametrize("form", ["bypass", "rebuilt"])
@pytest.mark.parametrize("case", ["lora", "loha", "lokr", "dora-output", "oft", "ia3", "tucker"])
def test_bypass_and_rebuilt_weights_agree(case: str, form: str) -> None:
    torch.manual_seed(0)
    model = Model("conv2d").double()
    network = made(model, **CASES[case], form=form).double()
    found = model(model.ids())
    loss(found).backward()
    grads = [parameter.grad for parameter in network.parameters()]
    assert {member.form for member in network.members.values()} == {form}
    network.restore()
    # By torch's own products of the changed weights.
    changed = {
        f"{path}.weight": member.site.module.weight + member.layer.delta(member.site.module.weight)
        for path, member in network.members.items()
    }
    wanted = torch.func.functional_call(model, changed, (model.ids(),))
    assert (found - wanted).abs().max() < 1e-12
    for mine, grad in zip(grads, torch.autograd.grad(loss(wanted), list(network.parameters())), strict=True):
        assert mine is not None and (mine - grad).abs().max() < 1e-12


@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["linear", "conv"])
def test_the_way_is_chosen_by_the_tokens_of_each_pass(
    kernel: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden: list[str] = []
    hide = Rebuilt._hide
    monkeypatch.setattr(
        Rebuilt, "_hide", lambda hook, name, *rest: (hidden.append(name), hide(hook, name, *rest))
    )
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, 3, padding=1, stride=2) if kernel else nn.Linear(16, 16)
    model = nn.Sequential(layer).double()
    rank = 3 if kernel else 2
    network = made(model, algorithm="loha", rank=rank).double()
    (member,) = network.members.values()
    limit = int(member.bypass_up_to)
    assert f"loha {rank}, bypass up to {limit} tokens, else rebuilt" in network.report
    for tokens, rebuilt in ((limit, False), (limit + 1, True), (limit, False)):
        x = torch.randn(tokens, 16, *((2, 2) if kernel else ())).double().requires_grad_()
        network.zero_grad()
        hidden.clear()
        found = model(x)
        loss(found).backward()
        assert bool(hidden) == rebuilt
        weight = layer.weight + member.layer.delta(layer.weight)
        with network.off():
            wanted = torch.func.functional_call(layer, {"weight": weight}, (x.detach(),))
        grads = torch.autograd.grad(loss(wanted), list(network.parameters()))
        assert (found - wanted).abs().max() < 1e-12 * wanted.abs().max()
        for parameter, grad in zip(network.parameters(), grads, strict=True):
            assert (parameter.grad - grad).abs().max() < 1e-12 * grad.abs().max()


def mixed(model: nn.Module, **options: Any) -> lyc.LycorisNetwork:
    overrides = {
        "conv": {"algorithm": "loha", "rank": 2},
        "/norm/": {},
        "blocks.0": {"algorithm": "lokr", "factor": 4, "alpha": 2},
        "*1": {"dora": "output", "rank": 3, "alpha": 6.0},
    }
    return made(model, include=ALL, overrides=overrides, **options)


def test_algorithms_and_ranks_are_mixed(model: Model) -> None:
    network = mixed(model)
    found = {path: (one.layer.algorithm, one.layer.rank) for path, one in network.members.items()}
    assert found == {
        "words": ("lora", 4),
        "conv": ("loha", 2),
        "norm": ("norm", None),
        "blocks.0": ("lokr", None),
        "blocks.1": ("lora", 3),
        "head": ("lora", 4),
    }
    assert network.members["blocks.1"].layer.alpha == 6.0
    assert "1 linear: lokr, " in network.report and "6 modules adapted" in network.report


@pytest.mark.parametrize("dialect", ["lycoris", "kohya", "comfy"])
def test_files_go_on_where_the_network_was(dialect: Any, model: Model, tmp_path: Path) -> None:
    network = mixed(model)
    ids, file = model.ids(), tmp_path / "network.safetensors"
    trained = model(ids).detach()
    network.save_weights(file, dialect)
    network.restore()
    again = lyc.create_lycoris(model, weights=file).apply_to()
    assert torch.equal(model(ids), trained)
    for path, member in network.members.items():
        assert again.members[path].layer.alpha == member.layer.alpha
        assert again.members[path].layer.algorithm == member.layer.algorithm
    again.restore()
    fresh = mixed(model, moved=False)
    fresh.load_weights(file)
    assert torch.equal(model(ids), trained)
    fresh.restore()
    # The file patched into the base, as at inference.
    adapter = lyc.load_adapter(file)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key, pairs in lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), shapes).pairs().items():
        lyc.patch_(model.state_dict()[key], [(match.read(adapter), 1.0) for _, match in pairs])
    assert (model(ids) - trained).abs().max() < 1e-5


def test_going_on_from_what_lycoris_trained(model: Model, tmp_path: Path) -> None:
    import lycoris

    theirs = lycoris.create_lycoris(model, 1.0, linear_dim=3, linear_alpha=2.0, algo="loha")
    theirs.apply_to()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1)
    wanted = model(model.ids()).detach()
    theirs.save_weights(str(tmp_path / "theirs.safetensors"), None, {})
    theirs.restore()
    network = lyc.create_lycoris(model, weights=tmp_path / "theirs.safetensors").apply_to()
    assert (model(model.ids()) - wanted).abs().max() < 1e-5
    assert len(list(network.parameters())) == len(list(theirs.parameters()))


def test_the_part_that_peft_has_loads_in_peft(tmp_path: Path) -> None:
    import peft
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    bert = BertModel(BertConfig(**sizes, vocab_size=30)).eval()
    ids = torch.arange(14).view(2, 7)
    network = made(
        bert, preset="attn-mlp", overrides={"*attention*": {"algorithm": "lokr"}, "*.1.*": {"rslora": True}}
    ).eval()
    assert len(network.members) == 12
    with pytest.raises(lyc.LycorisError, match="peft"):
        # One PEFT file has one kind.
        network.save_weights(tmp_path / "both", "peft")
    parts = ["*.intermediate.*", "/layer.[01].output/"]
    network.save_weights(tmp_path / "mlp", "peft", include=parts)
    network.restore()
    part = lyc.create_lycoris(bert, weights=network.to_adapter(include=parts)).apply_to().eval()
    assert len(part.members) == 4
    trained = bert(ids).last_hidden_state.detach()
    part.restore()
    found = peft.PeftModel.from_pretrained(bert, tmp_path / "mlp").eval()(ids).last_hidden_state
    assert (found - trained).abs().max() < 1e-5


@pytest.fixture
def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPT2Model(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


@pytest.mark.parametrize("form", ["bypass", "rebuilt"])
@pytest.mark.parametrize(
    "options",
    [
        *({"algorithm": name} for name in ("lora", "loha", "lokr", "oft", "full")),
        {"dora": "output"},
        {"dora": "input"},
    ],
    ids=lambda options: next(iter(options.values())),
)
def test_weights_that_are_stored_transposed(gpt2: nn.Module, options: dict[str, Any], form: str) -> None:
    """GPT-2's layers compute x W + b: what a layer changes is W^T."""
    model = gpt2.double()
    network = made(model, form=form, preset="attn-mlp", **options).double().eval()
    assert {member.site.shape for member in network.members.values()} == {
        (96, 32),
        (32, 32),
        (128, 32),
        (32, 128),
    }
    assert "8 weights stored transposed, such as that of h.0.attn.c_attn" in network.report
    ids = torch.arange(14).view(2, 7)
    found = model(ids).last_hidden_state
    loss(found).backward()
    with network.off():
        weights = {
            f"{path}.weight": member.site.module.weight + member.layer.delta(member.read_weight()).T
            for path, member in network.members.items()
        }
        wanted = torch.func.functional_call(model, weights, (ids,)).last_hidden_state
    assert (found - wanted).abs().max() < 1e-12
    grads = torch.autograd.grad(loss(wanted), list(network.parameters()))
    for parameter, grad in zip(network.parameters(), grads, strict=True):
        assert parameter.grad is not None and (parameter.grad - grad).abs().max() < 1e-12
    network.merge_to()
    assert (model(ids).last_hidden_state - wanted).abs().max() < 1e-6


def test_a_plan_for_weights_that_are_stored_transposed(gpt2: nn.Module) -> None:
    batches = [torch.arange(14).view(2, 7), torch.arange(14, 28).view(2, 7)]

    def judged(model: nn.Module, ids: Tensor) -> Tensor:
        return loss(model(ids).last_hidden_state)

    probe = lyc.probe(gpt2, batches, judged, preset="attn-mlp", seed=0)
    torch.stack([judged(gpt2, ids) for ids in batches]).mean().backward()
    for path, layer in probe.layers.items():
        gradient = gpt2.get_submodule(path).weight.grad.T
        assert layer.shape == tuple(gradient.shape)
        assert layer.energy == pytest.approx(float(gradient.square().sum()), rel=1e-4)
    plan = lyc.plan_ranks(probe, size=lyc.Budget(parameters=1000))
    before = gpt2(batches[0]).last_hidden_state
    network = lyc.create_lycoris(gpt2, plan=plan, seed=0).apply_to()
    assert torch.equal(gpt2(batches[0]).last_hidden_state, before)
    judged(gpt2, batches[0]).backward()
    assert any(parameter.grad.any() for parameter in network.parameters())


def test_peft_loads_what_was_trained_on_gpt2(gpt2: nn.Module, tmp_path: Path) -> None:
    import peft

    ids = torch.arange(14).view(2, 7)
    network = made(gpt2, preset="attn-mlp", alpha=8.0).eval()
    trained = gpt2(ids).last_hidden_state.detach()
    network.save_weights(tmp_path / "gpt2", "peft")
    network.restore()
    again = lyc.create_lycoris(gpt2, weights=tmp_path / "gpt2").apply_to().eval()
    assert (gpt2(ids).last_hidden_state - trained).abs().max() < 1e-5
    again.restore()
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(gpt2), tmp_path / "gpt2").eval()
    assert (loaded(ids).last_hidden_state - trained).abs().max() < 1e-5
    # What PEFT writes says that the weights are transposed.
    loaded.save_pretrained(tmp_path / "theirs")
    assert '"fan_in_fan_out": true' in (tmp_path / "theirs/adapter_config.json").read_text()
    theirs = lyc.create_lycoris(gpt2, weights=tmp_path / "theirs").apply_to().eval()
    assert (gpt2(ids).last_hidden_state - trained).abs().max() < 1e-5
    theirs.restore()
    network.save_weights(tmp_path / "ours.safetensors")
    shapes = {key: tuple(value.shape) for key, value in gpt2.state_dict().items()}
    for path in (tmp_path / "ours.safetensors", tmp_path / "theirs", tmp_path / "gpt2"):
        # Square ones too: which way a weight lies, its shape does not say.
        (found,) = lyc.resolve(lyc.Stack([lyc.Entry(lyc.load_adapter(path))]), shapes).entries
        assert not found.matches and len(found.unmatched) == 8
        assert all("stored transposed" in one.reason for one in found.unmatched)
    other = lyc.create_lycoris(gpt2, algorithm="lokr", preset="attn-mlp", rank=2)
    with pytest.raises(lyc.LycorisError, match=r"c_attn: PEFT has no layer.*found a lokr layer"):
        other.save_weights(tmp_path / "other", "peft")


def test_diffusers_loads_what_was_trained_on_its_unet(tmp_path: Path) -> None:
    unet = small_unet().eval()
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 16))
    network = made(unet, preset="attn-mlp", alpha=8)
    trained = unet(*inputs).sample.detach()
    file = tmp_path / "unet.safetensors"
    network.save_weights(file, "diffusers")
    network.restore()
    unet.load_lora_adapter(safetensors.torch.load_file(file), prefix="unet")
    assert (unet(*inputs).sample - trained).abs().max() < 1e-5


def test_what_the_layers_of_a_file_are_is_not_for_options_to_say() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    adapter = lyc.create_lycoris(model, include="0", rank=2, seed=0).to_adapter()
    for options in (
        {"overrides": {"0": {"alpha": 4}}},
        {"overrides": {"0": {"dora": "output"}}},
        {"tucker": True},
    ):
        with pytest.raises(lyc.LycorisError, match=r"a file says itself.*Resize or convert"):
            lyc.create_lycoris(model, weights=adapter, **options)
    network = lyc.create_lycoris(model, weights=adapter, overrides={"0": {"lr": 0.5}}, rank_dropout=0.25)
    (member,) = network.members.values()
    assert (member.settings.lr, member.settings.rank_dropout, member.layer.rank) == (0.5, 0.25, 2)


@pytest.mark.parametrize(
    ("options", "words", "kept"),
    [
        ({"rank": 2}, "lora 4 to lora 2", None),
        ({"rank": 7}, "lora 4 to lora 7", 1.0),
        ({"rank": 99}, "lora 4 to lora 8", 1.0),
        ({"algorithm": "lokr", "factor": 4}, "lora 4 to lokr", None),
        ({"algorithm": "full"}, "lora 4 to full", 1.0),
        ({"rank": 4}, None, 1.0),
    ],
)
def test_layers_of_a_file_go_on_in_another_kind_or_at_another_rank(
    options: dict[str, Any], words: str | None, kept: float | None
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8))
    start = lyc.create_lycoris(model, include="*", rank=4, alpha=2, seed=0)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.normal_()
    adapter = start.to_adapter()
    before = {
        path: member.layer.delta(member.site.module.weight).detach() for path, member in start.members.items()
    }
    network = lyc.create_lycoris(model, weights=adapter, overrides={"0": options}, seed=0)
    first, second = network.members["0"].layer, network.members["1"].layer
    assert torch.equal(second.delta(model[1].weight), before["1"])
    found = first.delta(model[0].weight).detach()
    # The best of a lower rank by the singular values, in float64.
    values = torch.linalg.svdvals(before["0"].double()).square()
    share = 1 - float((found - before["0"]).double().square().sum() / values.sum())
    if options == {"rank": 2}:
        kept = float(values[:2].sum() / values.sum())
    if kept is not None:
        assert share == pytest.approx(kept, abs=1e-5)
    if first.algorithm == "lora":
        assert first.alpha == pytest.approx(first.rank / 2)
    if words is None:
        assert "go on in another kind" not in network.report
    else:
        assert f"1 layer goes on in another kind or at another rank, such as 0 ({words}" in network.report
        assert f"{share:.1%} of the energy of their change is kept" in network.report
    # All of it is trained.
    network.apply_to()
    model(torch.randn(3, 8)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("rank", "kept"), [(2, 0.5), (6, 1 - 1e-6)])
def test_layers_of_dora_go_on_at_another_rank(rank: int, kept: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.Linear(8, 12))
    start = lyc.create_lycoris(model, include="*", rank=4, dora="output", seed=0)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    before = {path: one.layer.delta(one.site.module.weight).detach() for path, one in start.members.items()}
    network = lyc.create_lycoris(model, weights=start.to_adapter(), overrides={"*": {"rank": rank}}, seed=0)
    assert {member.layer.rank for member in network.members.values()} == {rank}
    for path, member in network.members.items():
        found = member.layer.delta(member.site.module.weight).detach()
        assert 1 - (found - before[path]).square().sum() / before[path].square().sum() > kept


def test_a_layer_that_cannot_get_a_higher_rank_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    loha = lyc.create_lycoris(model, include="0", algorithm="loha", rank=2, seed=0)
    with torch.no_grad():
        for parameter in loha.parameters():
            parameter.fill_(0.1)
    adapter = loha.to_adapter()
    with pytest.raises(lyc.LayerError, match=r"0: .*higher rank.*loha 2, and rank 4.*at most 2"):
        lyc.create_lycoris(model, weights=adapter, overrides={"0": {"rank": 4}})
    adapter = lyc.create_lycoris(model, include="0", algorithm="full", seed=0).to_adapter()
    with pytest.raises(lyc.LayerError, match=r"0: .*without a rank.*full, and rank 4"):
        lyc.create_lycoris(model, weights=adapter, overrides={"0": {"rank": 4}})
    # What changes nothing begins anew.
    network = lyc.create_lycoris(
        model, weights=adapter, overrides={"0": {"algorithm": "lora", "rank": 4}}, seed=0
    )
    assert network.members["0"].layer.rank == 4


@pytest.mark.parametrize("dialect", ["lycoris", "comfy", "peft"])
def test_attention_that_hands_its_weights_to_a_function(dialect: Any, tmp_path: Path) -> None:
    """torch's own attention calls none of its projections."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(16, 2, batch_first=True)})
    attend = model["attn"]
    x = torch.randn(2, 5, 16)
    plain = attend(x, x, x)[0]
    network = made(model, preset="attn-only", bias=dialect != "peft")
    assert list(network.members) == ["attn.in_proj_weight", "attn.out_proj"]
    output = attend(x, x, x)[0]
    loss(output).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    with torch.no_grad():
        # Without gradients torch takes another way through it.
        assert (attend.eval()(x, x, x)[0] - output).abs().max() < 1e-6
    if dialect == "peft":
        with pytest.raises(lyc.LycorisError, match="or adds it twice"):
            network.save_weights(tmp_path / "attention", dialect)
        network.restore()
        network = made(model, include="attn.in_proj_weight")
        output = attend(x, x, x)[0].detach()
    network.save_weights(tmp_path / ("attention" + ".safetensors" * (dialect != "peft")), dialect)
    network.restore()
    if dialect == "peft":
        import peft

        found = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "attention"))
        assert (found.base_model.model["attn"](x, x, x)[0] - output).abs().max() < 1e-6
    assert torch.equal(attend.train()(x, x, x)[0], plain)
    written = next(tmp_path.rglob("*.safetensors"))
    again = lyc.create_lycoris(model, weights=written).apply_to()
    assert (attend(x, x, x)[0] - output).abs().max() < 1e-6
    again.restore()
    network.merge_to()
    assert (attend(x, x, x)[0] - output).abs().max() < 1e-6


def test_several_networks_on_one_model(model: Model) -> None:
    ids, plain = model.ids(), model(model.ids())
    first = made(model, include=ALL)
    alone = model(ids).detach()
    second = made(model, include=ALL, algorithm="loha", seed=3)
    both = model(ids).detach()
    assert not torch.allclose(alone, both)
    first.restore()
    # Frozen for the second one still.
    assert not any(parameter.requires_grad for parameter in model.parameters())
    second.restore()
    assert all(parameter.requires_grad for parameter in model.parameters())
    first.merge_to()
    second.apply_to()
    assert (model(ids) - both).abs().max() < 1e-5
    second.restore()
    assert not torch.equal(model(ids), plain)


def test_a_network_that_cannot_act_beside_another_does_not_act_at_all(model: Model) -> None:
    """DoRA reads the weight, and is on the last module: the modules before it come off again."""
    made(model, include="head", dora="output", form="bypass")
    ids = model.ids()
    before = model(ids)
    other = lyc.create_lycoris(model, rank=RANK, seed=1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    with pytest.raises(lyc.LycorisError, match=r'head: another bypass.*form="rebuilt"'):
        other.apply_to()
    assert not other.applied and torch.equal(model(ids), before)


class CastNorm(nn.LayerNorm):
    """A norm that moves and casts its weight to its input in each pass, as a host's layers do."""

    def forward(self, x: Tensor) -> Tensor:
        cast = [one.to(x.device, x.dtype) for one in (self.weight, self.bias)]
        return nn.functional.layer_norm(x, self.normalized_shape, *cast, self.eps)


def test_a_small_change_of_a_norm_in_a_narrow_dtype_is_kept() -> None:
    norm = nn.Sequential(CastNorm(8).to(torch.float8_e4m3fn))
    x = torch.randn(5, 8)
    plain = nn.functional.layer_norm(x, (8,))
    network = made(norm, include="*", form="bypass")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1e-4)
    assert (norm(x) - (1.0001 * plain + 1e-4)).abs().max() < 1e-6
    norm(x).square().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None and parameter.grad.abs().min() > 0


def test_a_changed_norm_is_formed_where_its_input_is() -> None:
    """The weights are on another device than the input, as those that a host moves for each pass."""
    norm = nn.Sequential(CastNorm(8))
    network = made(norm, include="*", form="bypass")
    seen: list[tuple[str, str]] = []
    kept = norm[0].register_forward_hook(
        lambda module, args, y: seen.append((module.weight.device.type, module.bias.device.type)),
        prepend=True,
    )
    norm(torch.zeros(5, 8, device="meta"))
    kept.remove()
    assert seen == [("meta", "meta")] and norm[0].weight.device.type == "cpu"
    network.restore()


def test_an_error_in_a_pass_shows_the_weights_again(model: Model) -> None:
    network = made(model, include=["norm", "words"])
    before = state(model)[1][0]

    class StopError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StopError

    handle = model.norm.register_forward_hook(stop)
    with pytest.raises(StopError):
        model(model.ids())
    handle.remove()
    assert state(model)[1][0] == before
    network.restore()


@pytest.mark.parametrize("case", ["lora", "loha", "lokr", "oft", "dora-output"])
def test_under_autocast_and_checkpointing(case: str) -> None:
    torch.manual_seed(0)
    model = Model("conv2d")
    network = made(model, include=ALL, **CASES[case], **({"rank_dropout": 0.3} if case == "lora" else {}))
    ids = model.ids()

    def run(compute: Any) -> list[Tensor]:
        network.zero_grad()
        torch.manual_seed(3)
        output = compute()
        loss(output.float()).backward()
        return [output.detach(), *(parameter.grad.clone() for parameter in network.parameters())]  # type: ignore[union-attr]

    plain = run(lambda: model(ids))
    again = run(lambda: torch.utils.checkpoint.checkpoint(model, ids, use_reentrant=False))
    assert all(torch.equal(one, two) for one, two in zip(plain, again, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        narrow = run(lambda: model(ids))
    assert narrow[0].dtype == torch.bfloat16
    assert all((a - b).norm() <= 0.03 * b.norm() for a, b in zip(narrow, plain, strict=True))


@pytest.mark.parametrize("recording", [True, False])
@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "glora", "full", "oft"])
@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["linear", "conv"])
def test_beside_the_output_under_autocast(kernel: tuple[int, ...], algorithm: str, recording: bool) -> None:
    """The input is in float32, as after a norm, and the output of the layer itself is narrower."""
    layer = nn.Conv2d(64, 64, 3, padding=1) if kernel else nn.Linear(64, 64)
    x = torch.randn(5, 64, *(6 for _ in kernel))
    network = made(nn.Sequential(layer), algorithm=algorithm, form="bypass")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.4)
    wanted, bare = network.module(x), layer.forward(x)
    with torch.set_grad_enabled(recording), torch.autocast("cpu", torch.bfloat16):
        found = network.module(x)
    assert found.dtype == torch.bfloat16
    assert (found - wanted).norm() <= 0.01 * wanted.norm()
    assert (wanted - bare).norm() > 0.1 * wanted.norm()


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("case", ["lora", "loha", "lokr", "oft", "dora-output"])
def test_compiles_without_a_break(case: str, dynamic: bool | None) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    # The linear layer beside its output, and the norm by its weight.
    network = made(model, include="*", **CASES[case], overrides={"0": {**CASES[case], "form": "bypass"}})
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    for count in (3, 5):
        x = torch.randn(count, 8)
        outputs, grads = [], []
        for run in (model, compiled):
            network.zero_grad()
            outputs.append(run(x))
            loss(outputs[-1]).backward()
            grads.append([parameter.grad.clone() for parameter in network.parameters()])
        assert (outputs[0] - outputs[1]).abs().max() < 1e-6
        assert all((one - two).abs().max() < 1e-6 for one, two in zip(*grads, strict=True))
        optimiser.step()


class Packed(nn.Linear):
    """A linear layer in float8, as ComfyUI's: the weight is widened in each pass."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


Packed.__name__ = "Linear"


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_bases_in_narrow_dtypes_are_bypassed(dtype: torch.dtype, algorithm: str) -> None:
    torch.manual_seed(0)
    base = Packed(32, 32)
    base.weight.data = base.weight.data.to(dtype)
    x = torch.randn(5, 32)
    plain = base(x)
    network = made(base, algorithm=algorithm)
    (member,) = network.members.values()
    wanted = plain + x @ member.layer.delta(torch.zeros(32, 32)).T
    assert member.form == "bypass"
    # The change keeps float32, however narrow the weight is.
    assert (base(x) - wanted).abs().max() < 1e-5


class Narrow(nn.Linear):
    """A linear layer that multiplies in a way of its own, and casts its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(2 * x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class NarrowWords(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.weight).float()


@pytest.mark.parametrize("algorithm", ["lora", "oft"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_rebuilt_weights_of_narrow_dtypes_are_as_wide_as_the_input(
    dtype: torch.dtype, algorithm: str
) -> None:
    """The gradients are those beside the same values in float32."""
    torch.manual_seed(0)
    base = nn.Sequential(NarrowWords(6, 16), Narrow(16, 16))
    for parameter in base.parameters():
        parameter.data = parameter.data.to(dtype).float()
    wide = copy.deepcopy(base)
    for parameter in base.parameters():
        parameter.data = parameter.data.to(dtype)
    found: list[list[Tensor]] = []
    for model in (base, wide):
        network = made(model, algorithm=algorithm, include=("0", "1"), bias=algorithm == "lora")
        assert {member.form for member in network.members.values()} == {"rebuilt"}
        output = model(torch.arange(6))
        loss(output).backward()
        found.append([output.detach(), *(one.grad for one in network.parameters() if one.grad is not None)])
    assert len(found[0]) > 2
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_two_values_in_one_are_packed() -> None:
    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("this torch has no such dtype")
    base = nn.Linear(16, 16, bias=False)
    base.weight = nn.Parameter(torch.zeros(16, 8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), False)
    with pytest.raises(lyc.LycorisError, match="packed"):
        lyc.create_lycoris(base, dora="output")
    network = lyc.create_lycoris(base, seed=0)
    assert [member.form for member in network.members.values()] == ["bypass"]
    with pytest.raises(lyc.LycorisError, match="cannot be changed in place"):
        network.merge_to()


def packed_base(package: str) -> nn.Module:
    """A model of one linear layer, whose weight a package has packed."""
    base = nn.Sequential(nn.Linear(32, 32))
    if package == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(base, Int8WeightOnlyConfig())
        return base
    import bitsandbytes

    kinds = {
        "nf4": lambda: bitsandbytes.nn.LinearNF4(32, 32, compute_dtype=torch.float32),
        "int8": lambda: bitsandbytes.nn.Linear8bitLt(32, 32, has_fp16_weights=False),
    }
    packed = nn.Sequential(kinds[package]())
    packed.load_state_dict(base.state_dict())
    return packed.to("cpu")


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("package", ["nf4", "int8", "torchao"])
def test_packed_bases_are_bypassed(package: str, algorithm: str, tmp_path: Path) -> None:
    base, x = packed_base(package), torch.randn(5, 32)
    plain = base(x).detach()
    network = made(base, algorithm=algorithm)
    (member,) = network.members.values()
    output = base(x)
    wanted = plain + x @ member.layer.delta(torch.zeros(32, 32)).T
    assert (output - wanted).abs().max() < 1e-5
    loss(output).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    network.save_weights(tmp_path / "packed.safetensors")
    again = lyc.create_lycoris(base, weights=tmp_path / "packed.safetensors").apply_to()
    network.restore()
    assert torch.equal(base(x), output)
    again.restore()
    assert torch.equal(base(x), plain)
    with pytest.raises(lyc.LycorisError, match="cannot be changed in place"):
        network.merge_to()


def test_a_magnitude_of_a_packed_weight() -> None:
    with pytest.raises(lyc.LycorisError, match="packed"):
        made(packed_base("nf4"), dora="output")
    # torchao's tensors can be unpacked.
    base, x = packed_base("torchao"), torch.randn(5, 32)
    plain = base(x).detach()
    made(base, dora="output", moved=False)
    assert (base(x) - plain).abs().max() < 1e-6


def test_dropouts_act_in_training_alone(model: Model) -> None:
    ids = model.ids()
    for name in ("input_dropout", "rank_dropout", "module_dropout"):
        network = made(model, preset="full", **{name: 0.5})
        drawn = {float(model(ids).sum().detach()) for _ in range(8)}
        assert len(drawn) > 1, name
        network.eval()
        assert torch.equal(model(ids), model(ids))
        network.restore()
    # On average the change is that without dropout.
    linear = nn.Linear(16, 16)
    x = torch.randn(3, 16)
    for name in ("input_dropout", "rank_dropout"):
        network = made(linear, rank=16, **{name: 0.2})
        with torch.no_grad():
            mean = torch.stack([linear(x) for _ in range(3000)]).mean(0)
            network.eval()
            wanted = linear(x)
            with network.off():
                change = (wanted - linear(x)).norm()
        assert (mean - wanted).norm() < 0.05 * change, name
        network.restore()


def test_learning_rates_decay_and_alpha(model: Model) -> None:
    network = made(model, include=ALL, overrides={"conv": {"algorithm": "lokr", "lr": 10.0}})
    groups = network.parameter_groups(lr=1e-3, lora_plus=4, weight_decay=0.1)
    rate = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    layers = {path: member.layer for path, member in network.members.items()}
    assert rate[id(layers["head"].lora_up)] == (4e-3, 0.1)
    assert rate[id(layers["head"].lora_down)] == (1e-3, 0.1)
    assert rate[id(layers["norm"].w_norm)] == (4e-3, 0.0)
    assert rate[id(layers["conv"].lokr_w1)] == (1e-2, 0.1)
    assert rate[id(layers["conv"].lokr_w2)] == (4e-2, 0.1)
    assert len(rate) == len(list(network.parameters()))
    alphas = {path: layer.alpha for path, layer in layers.items()}
    optimiser = torch.optim.SGD(groups)
    loss(model(model.ids())).backward()
    optimiser.step()
    assert {path: member.layer.alpha for path, member in network.members.items()} == alphas


@pytest.mark.parametrize("rank", [1, 2])
def test_factors_decay_and_vectors_do_not_whatever_their_sizes(rank: int) -> None:
    """A factor of rank 1, or of a layer of one output, has the shape of a vector."""
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    kinds: list[dict[str, Any]] = [{"algorithm": name} for name in ("lora", "loha", "lokr", "glora", "full")]
    for options in [*kinds, {"dora": "output"}, {"dora": "input"}]:
        network = lyc.create_lycoris(model, rank=rank, include=("*", "1"), bias=True, seed=0, **options)
        groups = network.parameter_groups(weight_decay=0.1)
        fixed = {id(one) for group in groups if not group["weight_decay"] for one in group["params"]}
        for name, parameter in network.named_parameters():
            field = name.rpartition(".")[2]
            vector = field in ("diff_b", "dora_scale", "w_norm", "b_norm")
            assert (id(parameter) in fixed) == vector, (options, name)
        muon = make_optimiser(family_of("muon"), groups, {})
        matrices, rest = ({id(one) for one in tensors_of(part.param_groups)} for part in muon.parts)
        assert fixed <= rest and not fixed & matrices


def test_the_scales_of_other_kinds_are_vectors() -> None:
    shape = (8, 6)
    made = {name: ALGORITHMS[name].init(shape, 2, 2.0, seed=0) for name in ("ia3", "boft_peft")}
    scales = {name: sorted(kind.vectors & kind.tensors().keys()) for name, kind in made.items()}
    assert scales == {"ia3": ["weight"], "boft_peft": ["boft_s"]}


@pytest.mark.parametrize("case", [*CASES, "norm"])
def test_norms_of_changes_are_limited(case: str) -> None:
    torch.manual_seed(0)
    model = Model("conv2d")
    options = dict(CASES.get(case, {"include": "norm"}))
    network = made(model, **{**options, "rank": 6 if case == "boft" else options.get("rank", RANK)})
    network.set_multiplier(0.5)

    def norms() -> list[float]:
        changes = (one.layer.delta(one.site.module.weight.detach()) for one in network.members.values())
        return [0.5 * float(change.detach().norm()) for change in changes]

    before = norms()
    limit = sorted(before)[len(before) // 2] * 0.7
    clipped = network.clip_weight_norm(limit)
    assert clipped == sum(norm > limit * (1 + 1e-6) for norm in before)
    for found, earlier in zip(norms(), before, strict=True):
        assert found <= limit * 1.001
        # What was within the limit stays as it is, and what was above comes to it.
        assert found == earlier if earlier <= limit else found > 0.9 * limit


def small_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
    )


def test_presets_choose_what_their_names_say() -> None:
    unet = small_unet()
    counts: dict[str, int] = {}
    for preset in PRESETS:
        chosen = lyc.create_lycoris(unet, preset=preset, rank=1, seed=0).members
        counts[preset] = len(chosen)
        attends = [path for path in chosen if ".attn" in path]
        if preset == "attn-only":
            assert len(attends) == len(chosen)
        if preset == "unet-convblock-only":
            assert not attends and any("resnets" in path for path in chosen)
    # Counted by hand: 4 transformers, each with 8 linear layers of attention, 2 of feed-forward and 2 others.
    assert counts == {
        "full": 83,
        "full-lin": 50,
        "attn-mlp": 40,
        "attn-only": 32,
        "unet-transformer-only": 48,
        "unet-convblock-only": 31,
        "ia3": 20,
    }


class Repeated(nn.Module):
    """What a single block of Flux has: two layers for attention and feed-forward together, and modulation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.linear1, self.linear2 = nn.Linear(8, 56), nn.Linear(56, 8)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(8, 24))

    def forward(self, x: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(x).chunk(3, dim=-1)
        return x + gate * self.linear2(self.linear1(self.norm(x) * (1 + scale) + shift))


def test_blocks_are_what_is_repeated_and_reports_say_what_share_is_left_out(tmp_path: Path) -> None:
    """Counted by hand: a block has 448 + 448 values in what is trained, 192 in modulation and 8 in its norm;
    what is before and behind both has 32 + 64 and 32."""
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8)), Repeated(), Repeated(), nn.Linear(8, 4)
    )
    share = "18% of the weights in blocks (modulation 18%, norms 1%), 23% of the model"
    network = lyc.create_lycoris(model, preset="attn-mlp", rank=2, seed=0)
    assert set(network.members) == {"1.linear1", "1.linear2", "2.linear1", "2.linear2"}
    assert f"\nleft out: {share}\n" in network.report
    x = torch.randn(3, 4)
    probe = lyc.probe(model, [x], lambda module, batch: loss(module(batch)), preset="attn-mlp")
    probe.save(tmp_path / "probe.safetensors")
    for each in (probe, lyc.Probe.load(tmp_path / "probe.safetensors")):
        assert f"not measured: {share}" in str(lyc.plan_ranks(each, size=lyc.Rank(2))).splitlines()
    with pytest.raises(lyc.LycorisError, match="nothing to adapt"):
        lyc.create_lycoris(nn.Sequential(*model[:2]), preset="attn-mlp")


def in_one_process(rank: int, world: int, port: int, out: str) -> None:
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    values = sharded(fully_shard)
    in_parts()
    if rank == 0:
        torch.save(values, out)
    distributed.destroy_process_group()


def sharded(shard: Any) -> list[Tensor]:
    """Output and gradients of a network on a base whose blocks are sharded by a function."""
    torch.manual_seed(0)
    base = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU()) for _ in range(2)))
    base.requires_grad_(False)
    network = made(
        base,
        include="*",
        algorithm="loha",
        overrides={"0.0": {"algorithm": "lora", "dora": "output"}},
    )
    for block in base:
        shard(block)
    shard(base)
    output = base(torch.linspace(-1, 1, 64).view(4, 16))
    loss(output).backward()
    return [output.detach(), *(parameter.grad for parameter in network.parameters())]  # type: ignore[list-item]


def in_parts() -> None:
    """Beside layers that processes compute in parts nothing is trained, and merging is exact."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import parallel

    ways = {
        "0": parallel.ColwiseParallel(),
        "1": parallel.SequenceParallel(),
        "2": parallel.RowwiseParallel(),
    }
    for sizes in ((2,), (2, 1), (1, 2)):
        torch.manual_seed(0)
        whole = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16)).requires_grad_(False)
        base = copy.deepcopy(whole)
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("data", "parts")[-len(sizes) :])
        parallel.parallelize_module(base, mesh["parts"], ways)
        if len(sizes) == 2:
            fully_shard(base, mesh=mesh["data"])
        options: Any = {"include": "*", "seed": 1, "dora": "output", "overrides": {"0": {"bias": True}}}
        one, two = (lyc.create_lycoris(module, rank=2, **options) for module in (whole, base))
        for mine, yours in zip(one.parameters(), two.parameters(), strict=True):
            yours.data.copy_(mine.data.add_(0.1))
        with pytest.raises(lyc.LycorisError, match=r"0\.weight: the processes compute this layer in parts"):
            lyc.train_network(two, [1], lambda *_: torch.zeros(()), lyc.TrainOptions(steps=1))
        one.merge_to()
        two.merge_to()
        for name, value in base.named_parameters():
            assert torch.equal(value.full_tensor(), whole.get_parameter(name)), (sizes, name)


def test_a_base_sharded_over_two_processes(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(in_one_process, (2, port, str(tmp_path / "out.pt")), 2)
    found = torch.load(tmp_path / "out.pt")
    for one, two in zip(found, sharded(lambda block: block), strict=True):
        assert (one - two).abs().max() < 1e-6


def test_an_override_without_a_rank_leaves_that_of_all(model: Model) -> None:
    """It is lowered to what a module can use, as it is without the override."""
    network = made(model, include=ALL, rank=64, overrides={"*": {"bias": True}})
    assert network.members["head"].layer.rank == 8
    assert any("head: rank 8 in place of 64" in note for note in network.notes)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"exclude": "*"}, "nothing to adapt in Model"),
    "pattern": ({"include": "attn*"}, "matches none of the modules"),
    "override": ({"overrides": {"attn": {}}}, "matches none of the chosen modules"),
    "regex": ({"include": "/(/"}, "not a regular expression"),
    "preset": ({"preset": "attention"}, "an unknown preset"),
    "algorithm": ({"algorithm": "locon"}, "an unknown algorithm"),
    "tlora": ({"algorithm": "tlora"}, "an unknown algorithm"),
    "lycoris": ({"linear_dim": 4}, "Here it is called rank"),
    "algo": ({"algo": "loha"}, "Here it is called algorithm"),
    "in override": ({"overrides": {"head": {"dim": 4}}}, "Here it is called rank"),
    "typo": ({"conv_rnk": 4}, "Is it conv_rank?"),
    "rank": ({"rank": 0}, "a whole number above 0"),
    "rank above": ({"overrides": {"head": {"rank": 9}}}, "at most 8"),
    "factor": ({"algorithm": "lokr", "factor": 7}, "a factor divides nothing (found factor 7"),
    "factor of one": (
        {"algorithm": "lokr", "factor": 4, "overrides": {"head": {"factor": 5}}},
        "head: a factor divides nothing (found factor 5 for [8, 24]",
    ),
    "dropout": ({"rank_dropout": 1.0}, "from 0 to below 1"),
    "dora": ({"algorithm": "oft", "dora": "output"}, "no DoRA magnitude"),
    "axis": ({"dora": True}, "'output' or 'input'"),
    "tucker": ({"algorithm": "oft", "tucker": True}, "has no tucker"),
    "rank of oft": ({"algorithm": "oft", "rank_dropout": 0.1}, "no rank to drop"),
    "input of oft": ({"algorithm": "oft", "input_dropout": 0.1}, "no input of its own"),
    "input of words": ({"include": "words", "input_dropout": 0.1}, "no input of its own"),
    "norm": ({"algorithm": "norm"}, "for norms"),
    "peft": ({"lora_dropout": 0.1}, "Here it is called input_dropout"),
    "not here": ({"use_scalar": True}, "Leave it out: every layer starts at a change of zero"),
    "own name": ({"includes": "*"}, "Is it include?"),
    "no options": ({"overrides": {"head": "loha"}}, "not a mapping (found 'loha'"),
    "no text": ({"include": [1]}, "a pattern is not a text"),
    "constraint": ({"constraint": 0.1}, "a lora layer has no constraint"),
    "rslora": ({"algorithm": "oft", "rslora": True}, "an oft layer has no rslora"),
    "strength": ({"multiplier": math.nan}, "a strength is not a finite number"),
    "refused": ({"include": "other"}, "other cannot be adapted: of class ConvTranspose1d"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, model: Model) -> None:
    model.other = nn.ConvTranspose1d(2, 2, 1)
    before = state(model)[1]
    options, message = BAD[case]
    with pytest.raises(lyc.LycorisError) as raised:
        lyc.create_lycoris(model, **options)
    assert message in str(raised.value)
    assert state(model)[1] == before


def test_a_factor_that_divides_some_layers_says_which_it_does_not() -> None:
    net = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 7))
    network = lyc.create_lycoris(net, algorithm="lokr", factor=3, seed=0)
    assert "1: a smaller factor than 3, which divides neither side of [7, 10]" in network.report
    assert {tuple(one.layer.extent) for one in network.members.values()} == {(10, 12), (7, 10)}


def test_models_of_torchvision() -> None:
    """Grouped convolutions beside batch norms, and torch's own attention."""
    torchvision = pytest.importorskip("torchvision")
    pictures, wanted = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    for net, count in (
        (torchvision.models.shufflenet_v2_x0_5(num_classes=2), 57),
        (torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=2), 6),
    ):
        net.eval()
        before, found = state(net), net(pictures)
        network = lyc.create_lycoris(net, preset="full", rank=2, seed=0).apply_to()
        assert torch.equal(net(pictures), found) and len(network.members) == count
        optimizer = torch.optim.AdamW(network.parameter_groups(1e-2))
        losses: list[float] = []
        for _ in range(6):
            one = functional.cross_entropy(net(pictures), wanted)
            optimizer.zero_grad()
            one.backward()
            optimizer.step()
            losses.append(one.item())
        assert losses[-1] < losses[0]
        network.restore()
        after = state(net)
        assert after[1] == before[1] and all(
            torch.equal(after[0][name], value) for name, value in before[0].items()
        )


def test_a_weight_under_two_names(model: Model) -> None:
    model.blocks[1].weight = model.blocks[0].weight
    with pytest.raises(lyc.LycorisError, match=r"blocks\.1: one weight is chosen under two names"):
        lyc.create_lycoris(model)
    assert "blocks.1" not in lyc.create_lycoris(model, exclude="blocks.1").members


def test_a_weight_that_nobody_chose_stays_as_it_is() -> None:
    """The output layer of a language model is its embedding: merged, its change would be one of that too."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24}
    net = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True)).eval()
    ids = torch.arange(6)[None]
    network = made(net)
    assert "lm_head" not in network.members
    assert "lm_head is left alone unless it is named: its weight is that of model.embed" in network.report
    found = net(ids).logits
    network.merge_to()
    assert (net(ids).logits - found).abs().max() < 1e-5
    named = made(net, include="lm_head")
    assert "lm_head has its weight from model.embed_tokens" in named.report
    with pytest.raises(lyc.LycorisError, match=r"lm_head: a weight is that of two modules"):
        named.merge_to()
    assert named.applied


class Strange(nn.Module):
    """What a model may call a weight: a number, a module, and a tensor that others are computed into."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = 0.5
        self.scale = nn.Parameter(torch.ones(2))
        self.inside = nn.ModuleDict({"weight": nn.Linear(4, 4)})
        self.new = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.old = nn.utils.weight_norm(nn.Linear(4, 4))
        self.lazy = nn.LazyLinear(4)
        self.sparse = nn.Embedding(4, 4, sparse=True)
        self.plain = nn.Linear(4, 4)


def test_whatever_a_model_calls_a_weight() -> None:
    network = lyc.create_lycoris(Strange(), include="*", rank=2)
    assert set(network.members) == {"inside.weight", "plain"}
    for path, why in {"new": "computed", "old": "computed", "lazy": "not known", "sparse": "sparse"}.items():
        assert [line for line in network.report.splitlines() if line.startswith(f"{path} is left alone")], why
        assert why in network.report


class Holder(nn.Module):
    """A block with parameters of its own beside layers, as vision models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.zeros(4))
        self.gain = nn.Parameter(torch.ones(4))
        self.inner = nn.Sequential(nn.Linear(4, 4))
        self.inner.scale = nn.Parameter(torch.ones(4))


def test_a_module_with_trained_ones_inside_is_not_said_to_be_left_alone() -> None:
    report = lyc.create_lycoris(Holder(), rank=2).report
    assert "places, gain of the model itself are left alone: of class Holder" in report
    assert "scale of inner is left alone: of class Sequential" in report
    other = lyc.create_lycoris(nn.Sequential(Holder(), nn.Linear(4, 4)), include="1", rank=2).report
    assert "0 is left alone: of class Holder" in other


def test_a_recipe_has_what_was_asked_for_and_what_came_of_it() -> None:
    net = lyc.create_lycoris(
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)),
        rank=3,
        input_dropout=0.1,
        overrides={"1": {"dora": "output", "lr": 2.0}},
    )
    first, second = net.recipe()["layers"].values()
    assert first["settings"] == {"rank": 3, "input_dropout": 0.1} and first["rank"] == 3
    assert second["settings"] == {"rank": 3, "input_dropout": 0.1, "dora": "output", "lr": 2.0}
    assert second["rank"] == 2


def test_sequences_of_several_lengths_in_torchs_own_encoder() -> None:
    """Padded ones go through its layers as a nested tensor, where no gradient is asked for."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    x, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    for options in ({}, {"dora": "output"}, {"algorithm": "oft"}, {"algorithm": "lokr"}):
        network = made(encoder, include="/linear/", form="bypass", **options).eval()
        found = []
        for nested in (True, False):
            encoder.enable_nested_tensor = nested
            with torch.no_grad():
                found.append(encoder(x, src_key_padding_mask=padding)[~padding])
        assert (found[0] - found[1]).abs().max() < 1e-6
        network.restore()


def test_embeddings_and_whole_modules_of_peft(model: Model, tmp_path: Path) -> None:
    """An embedding has names of its own there, and what PEFT saves beside its layers is told, not lost."""
    peft = pytest.importorskip("peft")
    network = made(model, include=("words", "head"))
    found = model(model.ids())
    network.save_weights(tmp_path / "out", "peft")
    network.restore()
    other = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "out")
    assert (other(model.ids()) - found).abs().max() < 1e-5
    # The folder, as PEFT itself takes it.
    again = lyc.create_lycoris(model, weights=tmp_path / "out").apply_to()
    assert (model(model.ids()) - found).abs().max() < 1e-5
    again.restore()
    config = peft.LoraConfig(r=2, target_modules=["head"], modules_to_save=["norm"])
    peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(tmp_path / "theirs")
    report = lyc.create_lycoris(model, weights=tmp_path / "theirs").report
    assert "2 keys of theirs" in report or "2 keys of adapter_model" in report, report


def test_a_kernel_of_one_value_has_no_core(tmp_path: Path) -> None:
    """lycoris-lora knows none there, and could not read the file."""
    import lycoris

    net = nn.Sequential(nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 3, padding=1))
    for algorithm in ("lora", "loha"):
        network = made(net, algorithm=algorithm, rank=2, tucker=True)
        found = net(torch.ones(1, 8, 5, 5))
        network.save_weights(tmp_path / "out.safetensors")
        network.restore()
        theirs, _ = lycoris.create_lycoris_from_weights(1.0, str(tmp_path / "out.safetensors"), net)
        theirs.apply_to()
        assert (net(torch.ones(1, 8, 5, 5)) - found).abs().max() < 1e-4
        theirs.restore()


def test_one_of_several_modules_of_one_weight_is_chosen_by_leaving_out_the_others() -> None:
    net = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abcd"})
    for name in "bc":
        net[name].weight = net["a"].weight
    with pytest.raises(lyc.LycorisError, match="one weight is chosen under two names"):
        lyc.create_lycoris(net, rank=2, exclude="b")
    assert set(lyc.create_lycoris(net, rank=2, exclude=("b", "c")).members) == {"a", "d"}


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
def test_a_copy_of_a_model_in_training_has_layers_of_its_own(algorithm: str) -> None:
    net, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(3, 8)
    network = made(net, algorithm=algorithm)
    found = net(x)
    for other, own in (copy.deepcopy((net, network)), pickle.loads(pickle.dumps((net, network)))):
        assert torch.equal(other(x), found)
        other(x).sum().backward()
        assert all(parameter.grad is not None for parameter in own.parameters())
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.zero_()
        assert torch.equal(other(x), nn.functional.linear(x, net[0].weight, net[0].bias))
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(net(x), found)


def test_a_file_of_other_layers_changes_nothing(model: Model, tmp_path: Path) -> None:
    made(model).save_weights(tmp_path / "all.safetensors")
    network = lyc.create_lycoris(model, include="head")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(lyc.MatchError, match="not the same layers"):
        network.load_weights(tmp_path / "all.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    other = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(lyc.MatchError, match="no module for a layer"):
        lyc.create_lycoris(other, weights=tmp_path / "all.safetensors")


def test_every_kind_says_what_training_needs() -> None:
    shape = (8, 8)
    for name in trainable():
        kind = ALGORITHMS[name]
        layer = kind.init(shape, 4, 4.0, seed=0)
        assert layer.exponents().keys() <= kind.factors()
        assert set(kind.downs) <= kind.factors()


class Fused(nn.Conv2d):
    """A convolution with what follows it in one module, and the name of torch's."""

    def __init__(self, *sizes: int, after: Any = None) -> None:
        super().__init__(*sizes)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.conv2d(x, self.weight, self.bias)
        return y if self.after is None else self.after(y)


Fused.__name__ = "Conv2d"


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x @ (0.25 * self.weight.T) + self.bias


class ShiftedWindowAttention(nn.Module):
    """Like torchvision's it reads the weights of the layers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.linear(x, self.qkv.weight, self.qkv.bias)[..., :8].tanh()
        return nn.functional.linear(inner, self.proj.weight, self.proj.bias)


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(need_weights=False, query=x, key=x, value=x)[0]


UNUSUAL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "activation": (lambda: Fused(3, 8, 3, after=nn.functional.relu), (2, 3, 6, 6), "rebuilt"),
    "norm inside": (lambda: Fused(3, 8, 3, after=nn.GroupNorm(2, 8)), (2, 3, 6, 6), "rebuilt"),
    "plain": (lambda: Fused(3, 64, 3), (2, 3, 6, 6), "bypass"),
    "own way": (lambda: Own(8, 12), (4, 8), "rebuilt"),
    "read by others": (ShiftedWindowAttention, (3, 8), "rebuilt"),
    "by keyword": (ByKeyword, (3, 2, 8), "rebuilt"),
}


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.parametrize("algorithm", ["lora", "oft"])
def test_modules_that_multiply_or_are_used_in_a_way_of_their_own(name: str, algorithm: str) -> None:
    make, shape, form = UNUSUAL[name]
    model = nn.Sequential(make()).eval()
    x = torch.randn(shape)
    before = model(x).detach()
    network = lyc.create_lycoris(model, algorithm=algorithm, rank=2, seed=0).apply_to()
    assert algorithm != "lora" or all(member.form.startswith(form) for member in network.members.values())
    torch.testing.assert_close(model(x), before)
    fill(network)
    found = model(x)
    assert not torch.allclose(found, before, rtol=1e-2)
    found.square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in network.parameters())
    network.restore()
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    network.apply_to().merge_to()
    torch.testing.assert_close(model(x), found.detach(), rtol=1e-4, atol=1e-5)
    if name == "read by others":
        probe = lyc.probe(model, [x], lambda module, x: module(x).square().sum())
        assert all(layer.energy > 0 for layer in probe.layers.values())


def fill(network: lyc.LycorisNetwork) -> None:
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.3 * torch.randn_like(value))


def test_modules_of_any_name() -> None:
    model = nn.Module()
    for name in ("values", "keys", "type", "update", "pop", "a/b"):
        setattr(model, name, nn.Linear(4, 4))
    model.a = nn.Module()
    model.a.b = nn.Linear(4, 4)
    network = lyc.create_lycoris(model, rank=2, seed=0)
    assert len(network.members) == 7 and len(list(network.parameters())) == 14
    assert len(network.state_dict()) == 14


@pytest.mark.parametrize(("outputs", "rank", "size"), [(16, 16, 16), (4, 16, 4), (64, 16, 16), (12, 5, 4)])
def test_blocks_of_oft_are_as_large_as_the_rank_allows(outputs: int, rank: int, size: int) -> None:
    model = nn.Sequential(nn.Linear(8, outputs))
    network = lyc.create_lycoris(model, algorithm="oft", rank=rank)
    assert network.members["0"].layer.oft_blocks.shape == (outputs // size, size, size)


def test_layers_that_a_kind_does_not_suit_are_left_out_unless_they_are_named() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 7))
    network = lyc.create_lycoris(model, algorithm="oft", rank=4)
    assert (
        list(network.members) == ["0"] and "1: left out, no block divides the outputs (7)" in network.report
    )
    for chosen in ({"include": "1"}, {"overrides": {"1": {"rank": 5}}}):
        with pytest.raises(lyc.LayerError, match="no block divides the outputs"):
            lyc.create_lycoris(model, algorithm="oft", rank=4, **chosen)
    with pytest.raises(lyc.LayerError, match="no block divides"):
        lyc.create_lycoris(nn.Sequential(nn.Linear(8, 7)), algorithm="oft", rank=4)


def test_the_report_tells_of_modules_in_no_pass() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network = lyc.create_lycoris(model, rank=2).apply_to()
    assert "in no pass" not in network.report
    model[0](torch.randn(2, 4))
    assert "1 module in no pass so far, such as 1:" in network.report
    model(torch.randn(2, 4))
    assert "in no pass" not in network.report


def test_weights_that_are_not_there_and_a_bias_that_is_computed() -> None:
    x = torch.randn(2, 4)
    for options in ({"algorithm": "full"}, {"algorithm": "oft", "rank": 2, "form": "bypass"}):
        model = nn.Sequential(nn.Linear(4, 4))
        lyc.create_lycoris(model, **options).apply_to()
        model.to("meta")
        with pytest.raises(lyc.LycorisError, match="not in memory"):
            model(x)

    class Double(nn.Module):
        def forward(self, bias: Tensor) -> Tensor:
            return 2 * bias

    model = nn.Sequential(nn.Linear(4, 4))
    nn.utils.parametrize.register_parametrization(model[0], "bias", Double())
    network = lyc.create_lycoris(model, rank=2, bias=True)
    assert "diff_b" not in dict(network.members["0"].named_parameters())


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def test_a_model_of_peft_is_adapted_as_its_base_is(tmp_path: Path) -> None:
    """Beside PEFT's adapter, by the names of the base model, to which the file applies too."""
    import peft

    torch.manual_seed(0)
    base = Model()
    chosen = ["words", "conv", "blocks.0", "blocks.1"]
    kinds = (
        peft.LoraConfig(target_modules=chosen, modules_to_save=["head"]),
        peft.LoHaConfig(target_modules=chosen[1:]),
        peft.IA3Config(target_modules=["blocks.0"], feedforward_modules=[]),
    )
    # No layer can be for it, and the report says so.
    base.blocks.gate = nn.Parameter(torch.ones(1))
    for config in kinds:
        wrapped = peft.get_peft_model(copy.deepcopy(base), config)
        plain = wrapped(base.ids()).detach()
        network = made(wrapped, include="*")
        copied = {"head"} if getattr(config, "modules_to_save", None) else set()
        paths = lyc.create_lycoris(base, include="*").members
        assert list(network.members) == [path for path in paths if path not in copied]
        assert all(path in network.report for path in (*copied, "gate of blocks"))
        output = wrapped(base.ids())
        assert (output - plain).abs().max() > 1e-3
        loss(output).backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
        network.save_weights(tmp_path / "beside.safetensors")
        network.restore()
        assert torch.equal(wrapped(base.ids()), plain)
        alone = copy.deepcopy(base)
        lyc.create_lycoris(alone, weights=tmp_path / "beside.safetensors").merge_to()
        torch.testing.assert_close(alone(base.ids()), output, rtol=1e-4, atol=1e-5)
