"""Mixtures of experts: 3-D parameters of experts, and routers, as transformers has them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, MixtralConfig, MixtralForCausalLM
from written import patched

import lycoris_ops as lyc
from lycoris_ops.modules.sites import left_alone, select

EXPERTS = "model.layers.0.mlp.experts"
IDS = torch.arange(12).reshape(2, 6)
INCLUDE = ("*q_proj", "*experts*", "*.gate")
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]


def mixtral() -> Any:
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 32}
    heads: Any = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads)).eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(IDS).logits


def loss(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids).loss


def trained(network: lyc.LycorisNetwork, model: Any) -> None:
    optimiser = torch.optim.Adam(network.parameters(), 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        loss(model, IDS).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        optimiser.step()


def check_whole(network: lyc.LycorisNetwork, wanted: Tensor) -> None:
    """The output is that of a model whose weights are changed by each layer's delta."""
    model = mixtral()
    held = dict(model.named_parameters())
    with torch.no_grad():
        for path, member in network.members.items():
            number = member.site.expert
            key = path.removesuffix(f".expert{number}")
            weight = held[f"{key}.weight"] if number is None else held[key][number]
            weight += member.layer.delta(weight)
    assert torch.allclose(logits(model), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"algorithm": "lokr"}, {"algorithm": "oftv2"}, {"dora": "output"}], ids=str
)
def test_experts_and_routers_are_trained_saved_and_merged(options: Any, tmp_path: Path) -> None:
    model = mixtral()
    base = logits(model)
    network = lyc.create_lycoris(model, rank=2, include=INCLUDE, **options).apply_to()
    assert sum(member.site.kind == "expert" for member in network.members.values()) == 6
    assert torch.allclose(logits(model), base, atol=1e-6)
    trained(network, model)
    wanted = logits(model)
    assert (wanted - base).abs().max() > 1e-3
    check_whole(network, wanted)
    network.save_weights(tmp_path / "experts.safetensors")
    again = mixtral()
    lyc.create_lycoris(again, weights=tmp_path / "experts.safetensors").apply_to()
    assert torch.allclose(logits(again), wanted, atol=1e-6)
    network.restore()
    assert torch.equal(logits(model), base)
    network.merge_to()
    assert torch.allclose(logits(model), wanted, atol=1e-5)


def test_a_plan_gives_each_expert_a_size_of_its_own(tmp_path: Path) -> None:
    model = mixtral()
    probe = lyc.probe(model, [IDS], loss, include=INCLUDE)
    held = dict(model.named_parameters())
    loss(model, IDS).backward()
    for number in range(3):
        gradient = held[f"{EXPERTS}.down_proj"].grad[number]
        found = probe.layers[f"{EXPERTS}.down_proj.expert{number}"]
        assert found.energy == pytest.approx(float(gradient.square().sum()), rel=1e-4)
    plan = lyc.plan_ranks(probe, size=lyc.Budget(parameters=900))
    network = lyc.create_lycoris(model, plan=plan, seed=1).apply_to()
    trained(network, model)
    wanted = logits(model)
    # PEFT has one rank for all experts of a parameter: what is missing changes nothing.
    assert len({member.layer.rank for member in network.members.values()}) > 1
    network.save_weights(tmp_path / "planned", dialect="peft")
    adapted = peft.PeftModel.from_pretrained(mixtral(), str(tmp_path / "planned")).eval()
    assert torch.allclose(logits(adapted), wanted, atol=1e-5)


def test_a_router_has_the_name_of_its_module_in_files(tmp_path: Path) -> None:
    model = mixtral()
    network = lyc.create_lycoris(model, rank=2, include="*.gate").apply_to()
    trained(network, model)
    wanted = logits(model)
    network.save_weights(tmp_path / "router.safetensors")
    again = mixtral()
    found = patched(lyc.load_adapter(tmp_path / "router.safetensors"), dict(again.named_parameters()))
    assert len(found) == 1
    again.load_state_dict(found, strict=False)
    assert torch.allclose(logits(again), wanted, atol=1e-5)


def test_experts_that_are_added_for_peft_learn_there(tmp_path: Path) -> None:
    model = mixtral()
    lyc.create_lycoris(model, include="*down_proj.expert1").save_weights(tmp_path / "one", dialect="peft")
    base = logits(model)
    theirs: Any = peft.PeftModel.from_pretrained(model, str(tmp_path / "one"), is_trainable=True)
    assert torch.allclose(logits(theirs), base, atol=1e-6)
    loss(theirs, IDS).backward()
    (gradient,) = (value.grad for name, value in theirs.named_parameters() if ".lora_B." in name)
    # The columns of one expert are 3 apart.
    assert all(gradient[:, number::3].any() for number in range(3))


@pytest.mark.parametrize("parameters", [PARAMETERS, PARAMETERS[1:2]], ids=len)
def test_pefts_files_of_parameters_go_both_ways(parameters: list[str], tmp_path: Path) -> None:
    options: Any = {"rank_pattern": {"experts.gate_up_proj": 4}, "alpha_pattern": {"experts.down_proj": 5}}
    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["q_proj"],
        target_parameters=parameters,
        init_lora_weights=False,
        **options,
    )
    theirs: Any = peft.get_peft_model(mixtral(), config).eval()
    wanted = logits(theirs)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    adapter = lyc.load_adapter(tmp_path / "theirs")
    assert adapter.unused_keys == () and not adapter.unreadable
    model = mixtral()
    network = lyc.create_lycoris(model, weights=adapter).apply_to()
    assert torch.allclose(logits(model), wanted, atol=1e-5)
    network.save_weights(tmp_path / "ours", dialect="peft")
    lyc.save_adapter(adapter, tmp_path / "again", "peft")
    for name in ("ours", "again"):
        said = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert len(said["target_parameters"]) == len(parameters)
        adapted = peft.PeftModel.from_pretrained(mixtral(), str(tmp_path / name)).eval()
        assert torch.allclose(logits(adapted), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "targets",
    [
        # PEFT turns these into target_parameters down_proj and gate_up_proj, the latter of twice the rank.
        {"target_modules": ["q_proj", "w1", "w2", "w3", "gate"]},
        {"target_modules": ["q_proj"], "target_parameters": ["down_proj"], "rank_pattern": {"q_proj": 4}},
    ],
    ids=["converted", "one"],
)
def test_parameters_may_be_named_without_their_module(targets: Any, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, **targets)
    theirs: Any = peft.get_peft_model(mixtral(), config).eval()
    theirs.save_pretrained(str(tmp_path))
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "down_proj" in said["target_parameters"]
    model = mixtral()
    lyc.create_lycoris(model, weights=tmp_path).apply_to()
    assert torch.allclose(logits(model), logits(theirs), atol=1e-5)
    said["target_parameters"] += ["up_proj"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(lyc.FileFormatError, match=r"differ in the parameters.*such as \S+experts\.\w+_proj"):
        lyc.load_adapter(tmp_path)


@pytest.mark.parametrize("shape", [(), (4,), (4, 3, 2)], ids=str)
def test_factors_of_a_parameter_that_are_no_matrices_are_an_error_of_the_file(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=PARAMETERS[2:])
    peft.get_peft_model(mixtral(), config).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    held = load_file(file)
    key = next(key for key in held if key.endswith("gate.lora_A.weight"))
    save_file({**held, key: torch.ones(shape)}, file)
    with pytest.raises(lyc.FileFormatError, match=r"gate\.lora_A\.weight: .*not divide into whole experts"):
        lyc.load_adapter(tmp_path)


def test_a_module_that_is_called_like_an_expert_is_a_module(tmp_path: Path) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        inner = {name: nn.Linear(6, 4) for name in ("expert0", "weight")}
        return nn.ModuleDict({"mix": nn.ModuleDict(inner)})

    network = lyc.create_lycoris(model(), rank=2, overrides={"*weight": {"rank": 3}})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    network.save_weights(tmp_path / "out", dialect="peft")
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert "target_parameters" not in said
    again = lyc.create_lycoris(model(), weights=tmp_path / "out")
    theirs: Any = peft.PeftModel.from_pretrained(model(), str(tmp_path / "out"))
    x = torch.randn(5, 6)
    for name in ("expert0", "weight"):
        path = f"mix.{name}"
        assert again.members[path].layer.alpha == network.members[path].layer.alpha
        wanted = network.apply_to().module.get_submodule(path)(x)
        assert torch.allclose(theirs.base_model.model.get_submodule(path)(x), wanted, atol=1e-5)


class TopRouter(nn.Linear):
    """As that of Llama 4: a linear layer with a pass of its own."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = super().forward(x)
        return scores.sigmoid(), scores


def test_a_router_that_is_a_linear_layer_is_trained_as_one(tmp_path: Path) -> None:
    model = nn.ModuleDict({"router": TopRouter(8, 4)})
    (site,) = select(model, preset="full").values()
    assert (site.path, site.kind) == ("router", "linear")
    theirs, x = copy.deepcopy(model), torch.randn(5, 8)
    network = lyc.create_lycoris(model, rank=2).apply_to()
    torch.nn.init.normal_(network.members["router"].layer.tensors()["lora_up"])
    network.save_weights(tmp_path, dialect="peft")
    # As a layer of its own it would be added to what the router returns, which is a tuple.
    adapted: Any = peft.PeftModel.from_pretrained(theirs, str(tmp_path))
    found = adapted.base_model.model["router"](x)
    assert all(map(torch.allclose, found, model["router"](x)))


def test_layers_that_peft_takes_for_experts_are_written_on_their_weights(tmp_path: Path) -> None:
    sizes: Any = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32}
    heads: Any = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8}
    parts: Any = {"qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 4, "moe_intermediate_size": 8}
    experts: Any = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
    config = DeepseekV3Config(**sizes, **heads, **parts, **experts, first_k_dense_replace=1)

    def deepseek() -> Any:
        torch.manual_seed(0)
        return DeepseekV3ForCausalLM(config).eval()

    model = deepseek()
    options: Any = {"include": ["*q_a_proj", "*layers.0.mlp*", "*shared_experts*"]}
    base = logits(model)
    network = lyc.create_lycoris(model, rank=2, **options).apply_to()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    network.save_weights(tmp_path / "ours", dialect="peft")
    theirs = peft.PeftModel.from_pretrained(deepseek(), str(tmp_path / "ours")).eval()
    assert (logits(model) - base).abs().max() > 1e-2
    assert torch.allclose(logits(theirs), logits(model), atol=1e-5)
    again = deepseek()
    assert len(lyc.create_lycoris(again, weights=tmp_path / "ours").apply_to().members) == 8
    assert torch.allclose(logits(again), logits(model), atol=1e-6)
    # PEFT replaces the names of LoRA alone.
    other = lyc.create_lycoris(deepseek(), rank=2, algorithm="lokr", **options)
    other.save_weights(tmp_path / "lokr", dialect="peft")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_experts_with_scales_are_left_alone(dtype: torch.dtype) -> None:
    experts: Any = nn.Module()
    experts.num_experts = 2
    experts.up_proj = nn.Parameter(torch.zeros(2, 8, 8, dtype=dtype), requires_grad=False)
    if dtype == torch.bfloat16:
        experts.up_proj_scale_inv = nn.Parameter(torch.ones(2, 1, 1))
    assert "scales" in left_alone(nn.ModuleDict({"experts": experts}))["experts"]


@pytest.mark.parametrize("dialect", ["lycoris", "peft"])
def test_experts_and_routers_are_baked_into_a_file_of_3d_tensors(dialect: Any, tmp_path: Path) -> None:
    model = mixtral()
    base = {key: value.clone() for key, value in model.state_dict().items()}
    file, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    save_file(base, file)
    network = lyc.create_lycoris(model, rank=2, include=INCLUDE).apply_to()
    trained(network, model)
    path = tmp_path / ("adapter" if dialect == "peft" else "adapter.safetensors")
    network.save_weights(path, dialect=dialect)
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(path))])
    done = lyc.merge_checkpoint(
        tmp_path / "base.safetensors", stack, tmp_path / "out.safetensors", strict=True
    )
    assert done.merged == len(network.members) and done.copied == len(base) - 4
    merged = mixtral()
    merged.load_state_dict(load_file(out))
    assert torch.allclose(logits(merged), logits(model), atol=1e-5)


STORED = {
    "square": {f"{EXPERTS}.down_proj": torch.zeros(3, 16, 16)},
    "apart": {f"{EXPERTS}.{number}.down_proj.weight": torch.zeros(16, 16) for number in range(3)},
}


@pytest.mark.parametrize("form", STORED)
def test_an_expert_that_a_file_cannot_place_is_reported_with_the_reason(form: str, tmp_path: Path) -> None:
    """Its tensor may be (E, O, I) or (E, I, O), or each expert has a tensor of its own."""
    save_file({"norm": torch.ones(16, 16), **STORED[form]}, tmp_path / "base.safetensors")
    factors = {"lora_up.weight": torch.ones(16, 2), "lora_down.weight": torch.ones(2, 16)}
    layers = (f"{EXPERTS}.down_proj.expert1", "norm")
    held = {f"{layer}.{end}": value for layer in layers for end, value in factors.items()}
    stack = lyc.Stack([lyc.Entry(lyc.adapter_of_tensors(held, name="test"))])
    done = lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, tmp_path / "out.safetensors")
    assert done.merged == 1 and "it is for one expert" in lyc.describe(done.resolution)
    with pytest.raises(lyc.MatchError, match=r"expert1: .*it is for one expert"):
        lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, tmp_path / "out.safetensors", strict=True)


def test_what_peft_does_not_hold_of_experts_is_refused(tmp_path: Path) -> None:
    network = lyc.create_lycoris(mixtral(), algorithm="lokr", include="*experts*")
    with pytest.raises(lyc.LycorisError, match=r"PEFT has no layer of this kind for an expert"):
        network.save_weights(tmp_path / "out", dialect="peft")
    assert not (tmp_path / "out").exists()


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    """PEFT has one pair of factors for all experts of a parameter, and no way to leave one out."""
    kind = lyc.ALGORITHMS["lora"]
    layers = {
        f"base_model.model.{EXPERTS}.down_proj.expert{number}": kind.load(
            {"lora_up.weight": torch.ones(4, 2), "lora_down.weight": torch.ones(2, 6)}
        )
        for number in (0, 2)
    }
    adapter = lyc.Adapter.of(layers, name="two of three", on_parameters=layers)
    with pytest.raises(lyc.LayerError, match=r"^two of three: .*down_proj: peft needs .*none for 1"):
        lyc.save_adapter(adapter, tmp_path / "out", "peft")
