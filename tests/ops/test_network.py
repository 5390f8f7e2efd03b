"""Networks beside a frozen model: what they compute and learn, how they come off again, and their files.

The reference for values and gradients is the network that lycoris-lora builds from the same file, in float64.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ALL, CASES, CONVOLUTIONS, RANK, Model, loss, made, move, state
from torch import Tensor, nn
from written import patched

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.train.optimisers import family_of, make_optimiser, tensors_of


@pytest.fixture
def model() -> Model:
    return Model()


BY_LYCORIS = ("lora", "loha", "lokr", "full", "dora-output", "tucker", "loha-tucker")
"""The cases whose files lycoris-lora can load and train with the same formula."""


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
    other_model = copy.deepcopy(Model(convolution))
    with torch.inference_mode():
        again = lyc.create_lycoris(other_model, **{"rank": RANK, "seed": 1, **options})
    for (name, one), other in zip(network.named_parameters(), again.parameters(), strict=True):
        assert not other.is_inference()
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


def test_a_small_lokr_is_rebuilt_for_a_few_hundred_tokens_and_a_large_one_is_not() -> None:
    limits = [
        member.bypass_up_to
        for width in (64, 1024)
        for member in made(nn.Sequential(nn.Linear(width, width)), algorithm="lokr", rank=99).members.values()
    ]
    assert 50 < limits[0] < 256 and limits[1] > 2048, limits


@pytest.mark.parametrize("options", [{"algorithm": "lora", "dora": "output"}, {"algorithm": "boft"}], ids=str)
def test_many_tokens_keep_less_by_a_rebuilt_weight(options: dict[str, Any]) -> None:
    """A bypass would keep an output of the module, or several, for the backward pass."""
    kept: dict[str, int] = {}
    for form in ("auto", "bypass"):
        model = nn.Sequential(nn.Linear(384, 384))
        network = made(model, rank=8, form=form, **options)
        if form == "auto":
            assert [member.form for member in network.members.values()] == [
                "bypass up to 2730 tokens, else rebuilt"
            ]
        held: dict[int, Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one: held.setdefault(one.untyped_storage().data_ptr(), one),  # noqa: B023
            lambda one: one,
        ):
            model(torch.randn(2800, 384, requires_grad=True))
        kept[form] = sum(one.untyped_storage().nbytes() for one in held.values())
    assert kept["auto"] < 0.9 * kept["bypass"], kept


@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["linear", "conv"])
def test_the_way_is_chosen_by_the_tokens_of_each_pass(kernel: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, 3, padding=1, stride=2) if kernel else nn.Linear(16, 16)
    model = nn.Sequential(layer).double()
    rank = 3 if kernel else 2
    network = made(model, algorithm="loha", rank=rank).double()
    (member,) = network.members.values()
    limit = int(member.bypass_up_to)
    hidden: list[bool] = []
    layer.register_forward_pre_hook(lambda module, args: hidden.append("weight" in vars(module)))
    assert f"loha {rank}, bypass up to {limit} tokens, else rebuilt" in network.report
    for tokens, rebuilt in ((limit, False), (limit + 1, True), (limit, False)):
        x = torch.randn(tokens, 16, *((2, 2) if kernel else ())).double().requires_grad_()
        network.zero_grad()
        hidden.clear()
        found = model(x)
        loss(found).backward()
        assert hidden == [rebuilt]
        weight = layer.weight + member.layer.delta(layer.weight)
        with network.off():
            wanted = torch.func.functional_call(layer, {"weight": weight}, (x.detach(),))
        grads = torch.autograd.grad(loss(wanted), list(network.parameters()))
        assert (found - wanted).abs().max() < 1e-12 * wanted.abs().max()
        for parameter, grad in zip(network.parameters(), grads, strict=True):
            assert (parameter.grad - grad).abs().max() < 1e-12 * grad.abs().max()


def test_a_pass_that_is_kept_sees_what_changes_between_passes() -> None:
    layer, x = nn.Linear(6, 5), torch.randn(3, 6)
    network = made(nn.Sequential(layer), algorithm="ia3")
    (member,) = network.members.values()

    def check(strength: float = 1.0) -> None:
        factor = 1 + strength * member.layer.tensors()["weight"].to(x.dtype)
        wanted = nn.functional.linear(x, layer.weight) * factor + layer.bias
        for _ in range(2):
            torch.testing.assert_close(layer(x), wanted)

    check()
    layer.bias = nn.Parameter(torch.randn(5), requires_grad=False)
    check()
    layer.bias.data = torch.randn(5)
    check()
    network.double()
    check()
    network.set_multiplier(0.5)
    check(0.5)


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
    model.load_state_dict(patched(lyc.load_adapter(file), model.state_dict()), strict=False)
    assert (model(ids) - trained).abs().max() < 1e-5


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


def test_what_the_layers_of_a_file_are_is_not_for_options_to_say() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    adapter = lyc.create_lycoris(model, include="0", rank=2, seed=0).to_adapter()
    for options in (
        {"overrides": {"0": {"alpha": 4}}},
        {"overrides": {"0": {"dora": "output"}}},
        {"tucker": True},
    ):
        with pytest.raises(lyc.LycorisError, match=r"a file already says.*Resize or convert"):
            lyc.create_lycoris(model, weights=adapter, **options)
    with pytest.raises(lyc.LycorisError, match=r"Set rank, preset back to the default"):
        lyc.create_lycoris(model, weights=adapter, rank=4, preset="full")
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
    move(start, 1.0)
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
        assert "go on as another kind" not in network.report
    else:
        assert f"1 layer goes on as another kind or at another rank, such as 0 ({words}" in network.report
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
    move(start, 0.3)
    before = {path: one.layer.delta(one.site.module.weight).detach() for path, one in start.members.items()}
    network = lyc.create_lycoris(model, weights=start.to_adapter(), overrides={"*": {"rank": rank}}, seed=0)
    assert {member.layer.rank for member in network.members.values()} == {rank}
    for path, member in network.members.items():
        found = member.layer.delta(member.site.module.weight).detach()
        assert 1 - (found - before[path]).square().sum() / before[path].square().sum() > kept


def test_a_layer_that_cannot_get_a_higher_rank_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    loha = lyc.create_lycoris(model, include="0", algorithm="loha", rank=2, seed=0)
    move(loha)
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


def test_several_networks_on_one_model(model: Model) -> None:
    ids, plain = model.ids(), model(model.ids())
    first = made(model, include=ALL)
    alone = model(ids).detach()
    second = made(model, include=ALL, algorithm="loha", seed=3)
    both = model(ids).detach()
    assert not torch.allclose(alone, both)
    # Switched, and unmerged: each is what it was, in any order, and nothing of the other remains.
    first.restore()
    other = model(ids).detach()
    second.restore()
    assert torch.equal(model(ids), plain)
    assert torch.equal(first.apply_to().module(ids), alone)
    second.apply_to()
    assert (model(ids) - both).abs().max() < 1e-6
    first.restore()
    assert torch.equal(model(ids), other)
    # Frozen for the second one still.
    assert not any(parameter.requires_grad for parameter in model.parameters())
    # As `fully_shard` does.
    model.head.weight = nn.Parameter(model.head.weight.detach(), requires_grad=False)
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
    move(other)
    with pytest.raises(lyc.LycorisError, match=r'head: another bypass.*form="rebuilt"'):
        other.apply_to()
    assert not other.applied and torch.equal(model(ids), before)


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
            mean = torch.stack([linear(x) for _ in range(1000)]).mean(0)
            network.eval()
            wanted = linear(x)
            with network.off():
                change = (wanted - linear(x)).norm()
        # Without the division by the share that is left it would be a fifth.
        assert (mean - wanted).norm() < 0.1 * change, name
        network.restore()


@pytest.mark.parametrize("older", [False, True])
def test_rank_dropout_of_glora_drops_whole_ranks(older: bool) -> None:
    """At rank 1 with a share of a half, each of the two products is left out or doubled: no input or output
    of it alone."""
    torch.manual_seed(0)
    linear = nn.Linear(12, 8)
    a1, a2, b1, b2 = torch.randn(12, 1), torch.randn(1, 12), torch.randn(8, 1), torch.randn(1, 12)
    multiplied, added = linear.weight.detach() @ a1 @ a2, b1 @ b2
    factors = (a2, a1, b2, b1) if older else (a1, a2, b1, b2)
    named = dict(zip(("a1", "a2", "b1", "b2"), factors, strict=True))
    file = {f"layer.{name}.weight": factor for name, factor in named.items()}
    adapter = lyc.adapter_of_tensors({**file, "layer.alpha": torch.tensor(1.0)}, name="glora")
    model = nn.ModuleDict({"layer": linear})
    network = lyc.create_lycoris(model, weights=adapter, rank_dropout=0.5)
    x = torch.randn(5, 12)
    plain = linear(x)
    network.apply_to()
    left = [x @ (p * multiplied + q * added).T for p in (0.0, 2.0) for q in (0.0, 2.0)]
    met: set[int] = set()
    for _ in range(40):
        change = linear(x) - plain
        (found,) = [n for n, one in enumerate(left) if torch.allclose(change, one, atol=1e-3)]
        met.add(found)
    assert met == {0, 1, 2, 3}


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
    scales = {name: sorted(kind.table.vectors & kind.tensors().keys()) for name, kind in made.items()}
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
    theirs = lyc.create_lycoris(model, weights=tmp_path / "theirs")
    assert theirs.members["norm"].layer.algorithm == "full"
    # What is set stays set when it is written again.
    theirs.save_weights(tmp_path / "again", "peft")
    assert lyc.load_adapter(tmp_path / "again").layer("base_model.model.norm").dump().keys() >= {"set_weight"}


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


def test_other_layers_of_the_same_modules_act_at_once(model: Model, tmp_path: Path) -> None:
    ids, file = model.ids(), tmp_path / "loha.safetensors"
    other = made(model, algorithm="loha", rank=3, include="head")
    other.set_multiplier(0.5)
    wanted = model(ids).detach()
    other.save_weights(file)
    other.restore()
    network = lyc.create_lycoris(model, include="head", multiplier=0.5, seed=0).apply_to()
    network.load_weights(file)
    assert network.members["head"].layer.rank == 3
    assert [name for name, _ in network.members["head"].named_parameters()] == [
        *other.members["head"].layer.tensors()
    ]
    assert torch.equal(model(ids), wanted)
    with network.off():
        assert torch.equal(model(ids), other.module(ids))


def test_a_file_of_other_layers_changes_nothing(model: Model, tmp_path: Path) -> None:
    made(model).save_weights(tmp_path / "all.safetensors")
    network = lyc.create_lycoris(model, include="head")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(lyc.MatchError, match="not have the same layers"):
        network.load_weights(tmp_path / "all.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    other = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(lyc.MatchError, match="no module for a layer"):
        lyc.create_lycoris(other, weights=tmp_path / "all.safetensors")
