"""Which modules of a model a network adapts, and what it says of those that it leaves alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from networks import ALL, Model, loss, made, small_unet, state
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.modules.presets import PRESETS


@pytest.fixture
def model() -> Model:
    return Model()


def test_diffusers_loads_what_was_trained_on_its_unet(tmp_path: Path) -> None:
    unet = small_unet()
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 16))
    network = made(unet, preset="attn-mlp", alpha=8)
    trained = unet(*inputs).sample.detach()
    file = tmp_path / "unet.safetensors"
    network.save_weights(file, "diffusers")
    network.restore()
    unet.load_lora_adapter(safetensors.torch.load_file(file), prefix="unet")
    assert (unet(*inputs).sample - trained).abs().max() < 1e-5


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
    """Counted by hand: a block has 448 + 448 trained values, 192 in modulation and 8 in its norm; the layers
    before both blocks have 32 + 64, and the one after them 32."""
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


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(4, 4)


class SelfAttention(Mixer):
    pass


class AttentionModel(nn.Module):
    """The name of the model's own class says nothing about its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mixed, self.other = Mixer(), SelfAttention(), Mixer()


def test_an_attention_is_told_by_its_name_or_by_its_class() -> None:
    network = lyc.create_lycoris(AttentionModel(), preset="attn-only", rank=2)
    assert set(network.members) == {"attn.to_q", "mixed.to_q"}


def test_an_override_without_a_rank_keeps_the_general_one(model: Model) -> None:
    """A rank above what a module can use is lowered, as without the override."""
    network = made(model, include=ALL, rank=64, overrides={"*": {"bias": True}})
    assert network.members["head"].layer.rank == 8
    assert any(": rank 8, the most that [8, 24] can use, in place of 64" in note for note in network.notes)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"exclude": "*"}, "expected at least one that is left by preset full, exclude *)"),
    "pattern": ({"include": "attn*"}, "matches none of the modules"),
    "override": ({"overrides": {"attn": {}}}, "matches none of the chosen modules"),
    "regex": ({"include": "/(/"}, "not a regular expression"),
    "preset": ({"preset": "attention"}, "an unknown preset"),
    "algorithm": ({"algorithm": "locon"}, "an unknown algorithm"),
    "tlora": ({"algorithm": "tlora"}, "can go on from a file of it, given as weights"),
    "lycoris": ({"linear_dim": 4}, "Here it is called rank"),
    "algo": ({"algo": "loha"}, "Here it is called algorithm"),
    "in override": ({"overrides": {"head": {"dim": 4}}}, "Here it is called rank"),
    "typo": ({"conv_rnk": 4}, "Is it conv_rank?"),
    "rank": ({"rank": 0}, "a whole number above 0"),
    "rank above": ({"overrides": {"head": {"rank": 9}}}, "at most 8"),
    "factor": ({"algorithm": "lokr", "factor": 7}, "the factor divides no dimension (found factor 7"),
    "factor of one": (
        {"algorithm": "lokr", "factor": 4, "overrides": {"head": {"factor": 5}}},
        "head: the factor divides no dimension (found factor 5 for [8, 24]",
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
    "complex": ({"include": "waves"}, "waves cannot be adapted: its weight is complex"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, model: Model) -> None:
    model.other = nn.ConvTranspose1d(2, 2, 1)
    model.waves = nn.Linear(2, 2, dtype=torch.complex64)
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


def test_a_weight_that_nobody_chose_stays_as_it_is() -> None:
    """A language model's output layer shares the embedding's weight: merging would change both."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24}
    net = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True)).eval()
    ids = torch.arange(6)[None]
    network = made(net)
    assert "lm_head" not in network.members
    assert "lm_head is left alone unless it is named: it shares its weight with model.embed" in network.report
    found = net(ids).logits
    network.merge_to()
    assert (net(ids).logits - found).abs().max() < 1e-5
    named = made(net, include="lm_head")
    assert "lm_head shares its weight with model.embed_tokens" in named.report
    with pytest.raises(lyc.LycorisError, match=r"lm_head: two modules share a weight"):
        named.merge_to()
    assert named.applied


def test_a_weight_that_is_the_first_rows_of_another_is_a_weight_of_its_own() -> None:
    net = nn.ModuleDict({"qkv": nn.Linear(8, 24, bias=False), "q": nn.Linear(8, 8, bias=False)})
    qkv = net["qkv"].weight
    net["q"].weight = nn.Parameter(qkv.data[:8])
    network = lyc.create_lycoris(net, rank=2, seed=0)
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    before = qkv.detach().clone()
    network.merge_to()
    # Each layer adds rank times 1, and the first rows have both.
    assert torch.allclose(qkv.detach() - before, torch.tensor([4.0] * 8 + [2.0] * 16)[:, None].expand(24, 8))


@pytest.mark.parametrize("hold", [lambda bias: bias, lambda bias: nn.Parameter(bias.data)])
def test_a_bias_of_two_modules_is_not_merged(hold: Any) -> None:
    """Each layer is for one module, and merging would give the changes of both to both."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    net[1].bias = hold(net[0].bias)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for chosen in ("*", "1"):
        network = lyc.create_lycoris(net, rank=2, include=chosen, bias=True)
        with pytest.raises(lyc.LycorisError, match=r"share a bias.*the bias of [01] too"):
            network.merge_to()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    # A layer that leaves the bias as it is may be merged.
    lyc.create_lycoris(net, rank=2).merge_to()


def test_a_lazy_module_and_a_weight_without_values_are_left_alone() -> None:
    """Before its first pass a lazy module's parameters can neither be adapted nor asked for their shape."""
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4), nn.Linear(4, 0))
    x = torch.ones(2, 3)
    found = lyc.probe(model[:2], [x], lambda module, batch: module(batch).square().mean())
    assert set(found.layers) == {"1"} and all(one.requires_grad for one in model.parameters())
    model[0] = nn.LazyLinear(4)
    network = made(model).apply_to()
    assert set(network.members) == {"1"}
    for words in (
        "0 is left alone: its shape is not known before",
        "2 is left alone: its weight has no values",
    ):
        assert words in network.report
    assert model(x).shape == (2, 0) and not any(one.requires_grad for one in model.parameters())
    network.restore()
    assert all(one.requires_grad for one in model.parameters())


class Strange(nn.Module):
    """Whatever a model may call `weight`: a number, a module, a tensor computed from others."""

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


def test_one_of_several_modules_of_one_weight_is_chosen_by_leaving_out_the_others() -> None:
    net = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abcd"})
    for name in "bc":
        net[name].weight = net["a"].weight
    with pytest.raises(lyc.LycorisError, match=r"b: one weight is chosen under two.*exclude=\['b', 'c'\]"):
        lyc.create_lycoris(net, rank=2)
    assert set(lyc.create_lycoris(net, rank=2, exclude=("b", "c")).members) == {"a", "d"}


def test_a_module_under_two_names_is_adapted_once() -> None:
    net = nn.Module()
    net.first = nn.Linear(4, 4)
    net.layers = nn.Sequential(net.first, nn.Tanh(), net.first, nn.Linear(4, 4))
    x = torch.randn(2, 4)
    network = made(net, include="*")
    assert set(network.members) == {"first", "layers.3"}
    changed = net.layers(x)
    network.merge_to()
    assert torch.allclose(net.layers(x), changed, atol=1e-5)
    assert set(lyc.create_lycoris(net, rank=2, include="layers.2").members) == {"layers.2"}


def test_modules_of_any_name() -> None:
    model = nn.Module()
    for name in ("values", "keys", "type", "update", "pop", "a/b"):
        setattr(model, name, nn.Linear(4, 4))
    model.a = nn.Module()
    model.a.b = nn.Linear(4, 4)
    network = lyc.create_lycoris(model, rank=2, seed=0)
    assert len(network.members) == 7 and len(list(network.parameters())) == 14
    assert len(network.state_dict()) == 14


@pytest.mark.parametrize(
    ("outputs", "rank", "size"), [(16, 16, 16), (4, 16, 4), (64, 16, 16), (12, 5, 4), (9, 4, 3), (16, 1, 2)]
)
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
    for outputs, rank in ((7, 4), (9, 1)):
        with pytest.raises(lyc.LayerError, match="no block divides"):
            lyc.create_lycoris(nn.Sequential(nn.Linear(8, outputs)), algorithm="oft", rank=rank)


def test_the_report_tells_of_modules_in_no_pass() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network = lyc.create_lycoris(model, rank=2).apply_to()
    assert "in no pass" not in network.report
    model[0](torch.randn(2, 4))
    assert "1 module that no pass has reached so far, such as 1:" in network.report
    model(torch.randn(2, 4))
    assert "in no pass" not in network.report
