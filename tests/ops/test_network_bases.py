"""Networks beside models of every sort: transposed, packed, narrow, sharded, compiled, and unusual ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ALL, CASES, Model, loss, made, move
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional
from torch.utils._pytree import tree_map_only

import lycoris_ops as lyc
from lycoris_ops.train.member import read_weight
from tools import bases


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
    assert {member.form for member in network.members.values()} == {form}
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
            f"{path}.weight": member.site.module.weight + member.layer.delta(read_weight(member.site)).T
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
        # Square weights too: their shape does not say which way round they are stored.
        (found,) = lyc.resolve(lyc.Stack([lyc.Entry(lyc.load_adapter(path))]), shapes).entries
        assert not found.matches and len(found.unmatched) == 8
        assert all("stored transposed" in one.reason for one in found.unmatched)
    other = lyc.create_lycoris(gpt2, algorithm="lokr", preset="attn-mlp", rank=2)
    with pytest.raises(lyc.LycorisError, match=r"c_attn: PEFT has no layer.*found a lokr layer"):
        other.save_weights(tmp_path / "other", "peft")


@pytest.mark.parametrize(
    ("module", "algorithm", "other"),
    [
        (nn.Embedding(10, 8), "oftv2", "lora"),
        (nn.Embedding(10, 8), "lokr", "full"),
        (nn.Conv2d(8, 8, 3, groups=4), "lora", "loha"),
        (nn.Conv3d(4, 8, 3), "loha", "lora"),
    ],
    ids=str,
)
def test_what_peft_would_not_load_is_not_written_for_it(
    module: nn.Module, algorithm: str, other: str, tmp_path: Path
) -> None:
    import peft

    model = nn.ModuleDict({"x": module})
    with pytest.raises(lyc.LycorisError, match=rf"x: PEFT has no layer of this kind.*expected.*{other}"):
        made(model, algorithm=algorithm, include="x").save_weights(tmp_path / "refused", "peft")
    network = made(model, algorithm=other, include="x")
    network.save_weights(tmp_path / "held", "peft")
    network.restore()
    peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "held")


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
        # Without gradients torch computes attention by another function.
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


def test_a_network_beside_a_convolution_keeps_no_graph_of_a_pass() -> None:
    network = made(nn.Sequential(nn.Conv2d(6, 8, 3)), dora="output", form="bypass")
    loss(network.module(torch.randn(1, 6, 5, 5))).backward()
    # A tensor of a graph cannot be copied.
    copy.deepcopy(network.module)


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
    """The weights are on another device than the input, as in a host that moves them for each pass."""
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


@pytest.mark.parametrize("form", ["bypass", "rebuilt"])
@pytest.mark.parametrize("algorithm", ["lora", "loha", "oftv2"])
def test_starts_as_the_model_under_autocast(algorithm: str, form: str) -> None:
    """DoRA takes norms of the weight itself, not of a rounded one. The backward pass is not in autocast."""
    model = nn.Sequential(nn.Linear(64, 64))
    x = torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(x)
        dora = None if algorithm == "oftv2" else "output"
        network = made(model, moved=False, algorithm=algorithm, dora=dora, form=form)
        found = model(x)
    assert torch.equal(found, wanted)
    loss(found.float()).backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("recording", [True, False])
@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "glora", "full", "oft"])
@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["linear", "conv"])
def test_beside_the_output_under_autocast(kernel: tuple[int, ...], algorithm: str, recording: bool) -> None:
    """The input is in float32, as after a norm, and the output of the layer itself is narrower."""
    layer = nn.Conv2d(64, 64, 3, padding=1) if kernel else nn.Linear(64, 64)
    x = torch.randn(5, 64, *(6 for _ in kernel))
    network = made(nn.Sequential(layer), algorithm=algorithm, form="bypass")
    move(network, 0.4)
    wanted, bare = network.module(x), layer.forward(x)
    with torch.set_grad_enabled(recording), torch.autocast("cpu", torch.bfloat16):
        found = network.module(x)
    assert found.dtype == torch.bfloat16
    assert (found - wanted).norm() <= 0.01 * wanted.norm()
    assert (wanted - bare).norm() > 0.1 * wanted.norm()


@pytest.mark.parametrize(
    ("case", "dynamic"),
    [
        # By itself torch takes the sizes for dynamic from the second one on.
        ("dora-output", None),
        *(
            pytest.param(case, True, marks=pytest.mark.soak)
            for case in ("lora", "lokr", "oft", "dora-output")
        ),
    ],
)
def test_compiles_without_a_break(case: str, dynamic: bool | None) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    # The linear layer is bypassed, and the norm gets a changed weight.
    network = made(model, include="*", **CASES[case], overrides={"0": {**CASES[case], "form": "bypass"}})
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    for count in (3, 5):
        x = torch.randn(count, 8)
        outputs, grads = [], []
        # The compiled one first, before an uncompiled pass has left anything to be used again.
        for run in (compiled, model):
            network.zero_grad()
            outputs.append(run(x))
            loss(outputs[-1]).backward()
            grads.append([parameter.grad.clone() for parameter in network.parameters()])
        assert (outputs[0] - outputs[1]).abs().max() < 1e-6
        assert all((one - two).abs().max() < 1e-6 for one, two in zip(*grads, strict=True))
        optimiser.step()


@pytest.mark.parametrize("case", ["dora-output", "dora-input", "oftv2"])
def test_compiled_passes_without_gradients(case: str) -> None:
    """While the network learns, and of a network that is frozen in place, with other values in between."""
    model = nn.Sequential(nn.Linear(8, 8))
    network = made(model, **CASES[case], form="bypass")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
        network.requires_grad_(False)
        before = compiled(x)
        for value in network.parameters():
            value.mul_(1.5)
        assert torch.equal(compiled(x), model(x)) and not torch.equal(before, model(x))


@pytest.mark.parametrize(
    ("case", "form", "grads", "backend", "graphs"),
    [
        # With both hooks: few tokens are bypassed, and many are not.
        ("lora", "auto", False, "eager", 1),
        ("lora", "auto", True, "eager", 3),
        ("lokr", "bypass", False, "aot_eager", 1),
        ("oft", "bypass", False, "eager", 1),
        ("dora-output", "bypass", False, "eager", 1),
        ("loha", "rebuilt", False, "eager", 4),
        ("ia3", "rebuilt", True, "eager", 3),
        *(
            pytest.param(case, form, grads, backend, None, marks=pytest.mark.soak)
            for case in ("lora", "loha", "lokr", "dora-output", "dora-input", "oft", "oftv2", "boft", "ia3")
            for form in ("auto", "bypass", "rebuilt")
            for grads in (False, True)
            for backend in ("eager", "aot_eager")
        ),
    ],
)
def test_strengths_act_in_the_next_compiled_pass(
    case: str, form: str, grads: bool, backend: str, graphs: int | None
) -> None:
    """Compared with passes of another copy: a plain pass of the compiled one would set its hooks."""
    models = [nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    one, other = networks = [made(model, **CASES[case], form=form) for model in models]
    other.load_state_dict(one.state_dict())
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(models[0], backend=backend, fullgraph=True)
    x = torch.randn(3, 16)
    found: list[Tensor] = []

    def check() -> None:
        found.append(compiled(x))
        assert (found[-1] - models[1](x)).abs().max() < 1e-6

    with torch.set_grad_enabled(grads):
        check()
        with one.off(), other.off():
            check()
        for strength in (1.0, 0.5, 0.7, 1.3):
            for network in networks:
                network.set_multiplier(strength)
            check()
        with one.at(0.2), other.at(0.2):
            check()
        check()
    assert graphs in (None, counters["stats"]["unique_graphs"])
    assert len({tuple(each.flatten().tolist()) for each in found}) == 6


def test_a_layer_acts_again_after_passes_that_module_dropout_left_out() -> None:
    """Its draws break the graph, so the module's pass is a graph of its own."""
    model = nn.Sequential(nn.Linear(8, 8))
    network = made(model, form="rebuilt", module_dropout=1e-9)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(3, 8)
    with torch.no_grad():
        wanted = compiled(x)
        with network.off():
            assert torch.equal(compiled(x), model(x))
        found = compiled(x)
        network.set_multiplier(0.5)
        assert torch.equal(found, wanted) and not torch.equal(compiled(x), wanted)


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_bases_in_narrow_dtypes_are_bypassed(dtype: torch.dtype, algorithm: str) -> None:
    torch.manual_seed(0)
    base = bases.Cast(32, 32)
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
    """Outputs and gradients equal those of a model with the same values in float32."""
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


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("package", ["nf4", "int8", "torchao"])
def test_packed_bases_are_bypassed(package: str, algorithm: str, tmp_path: Path) -> None:
    base, x = bases.packed(package), torch.randn(5, 32)
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


@pytest.mark.parametrize("package", ["nf4", "int8", "torchao"])
def test_a_magnitude_of_a_packed_weight(package: str) -> None:
    """DoRA reads the weight by the package's own function, before and after the first pass."""
    base, x = bases.packed(package), torch.randn(5, 32)
    network = lyc.create_lycoris(base, rank=4, dora="output", seed=1)
    plain = base(x).detach()
    network.apply_to()
    assert (base(x) - plain).abs().max() < 1e-5
    move(network)
    (member,) = network.members.values()
    # The values that the module itself multiplies by: its outputs for the unit vectors.
    network.restore()
    weight = (base(torch.eye(32)) - base(torch.zeros(1, 32))).T.detach()
    network.apply_to()
    wanted = plain + x @ member.layer.delta(weight).T
    # Int8 layers round their inputs as well.
    assert (base(x) - wanted).abs().max() < (0.05 if package == "int8" else 1e-4)


class Coded(Tensor):
    """Values whose product is computed from codes alone, without a graph."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        plain = tree_map_only(Coded, lambda value: value.as_subclass(Tensor), given)
        if func is not functional.linear:
            return super().__torch_function__(func, types, args, kwargs)
        with torch.no_grad():
            return func(*plain[0], **plain[1])

    def dequantize(self, dtype: Any = None) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor)


def coded(layer: nn.Linear) -> nn.Linear:
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Coded), requires_grad=False)
    return layer


def torchao_coded(layer: nn.Linear) -> nn.Linear:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    return layer


@pytest.mark.parametrize("coding", [coded, torchao_coded])
@pytest.mark.parametrize("include", ["*", "0"], ids=["adapted", "beside an adapted one"])
def test_a_layer_that_lets_no_gradient_through_is_refused_in_the_backward_pass(
    include: str, coding: Callable[[nn.Linear], nn.Linear]
) -> None:
    """With what goes past the layer, the first layer would learn from a gradient that is not the loss's."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), coding(nn.Linear(32, 32))

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return y + self.second(y)

    torch.manual_seed(0)
    model, x = Residual(), torch.randn(5, 32)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    network = made(model, include=include.replace("0", "first"))
    # A pass alone is not a training.
    output = model(x)
    model(x.requires_grad_())
    with pytest.raises(lyc.TrainError, match=r"second: this layer lets no gradient through.*Int8WeightOnly"):
        loss(output).backward()
    network.restore()
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    # Nothing is missing where nothing before it learns, nor with the weight's own values in its place.
    for options in ({"include": "second"}, {"form": "rebuilt"}):
        network = made(model, **options)
        loss(model(x.detach())).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        network.restore()


def test_sequences_of_several_lengths_in_torchs_own_encoder() -> None:
    """Without gradients, padded sequences go through its layers as one nested tensor."""
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


class Fused(nn.Conv2d):
    """A convolution and what follows it in one module, under the name of torch's class."""

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
    """It reads the weights of the layers inside, as torchvision's class of this name does."""

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
    move(network, 0.3)
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


def test_weights_that_are_not_there_and_a_bias_that_is_computed() -> None:
    x = torch.randn(2, 4)
    for options in ({"algorithm": "full"}, {"algorithm": "oft", "rank": 2, "form": "bypass"}):
        model = nn.Sequential(nn.Linear(4, 4))
        lyc.create_lycoris(model, **options).apply_to()
        model.to("meta")
        with pytest.raises(lyc.LycorisError, match="not in memory"):
            model(x)
    # Its magnitude would be without values too, whatever is loaded later.
    with pytest.raises(lyc.LycorisError, match="0: a layer needs the values of its weight"):
        lyc.create_lycoris(nn.Sequential(nn.Linear(4, 4, device="meta")), rank=2, dora="output")

    class Double(nn.Module):
        def forward(self, bias: Tensor) -> Tensor:
            return 2 * bias

    model = nn.Sequential(nn.Linear(4, 4))
    nn.utils.parametrize.register_parametrization(model[0], "bias", Double())
    network = lyc.create_lycoris(model, rank=2, bias=True)
    assert "diff_b" not in dict(network.members["0"].named_parameters())


def test_a_model_of_peft_is_adapted_as_its_base_is(tmp_path: Path) -> None:
    """A network beside PEFT's adapter has the base model's names, so its file applies to the base too."""
    import peft

    torch.manual_seed(0)
    base = Model()
    chosen = ["words", "conv", "blocks.0", "blocks.1"]
    kinds = (
        peft.LoraConfig(target_modules=chosen, modules_to_save=["head"]),
        peft.LoHaConfig(target_modules=chosen[1:]),
        peft.IA3Config(target_modules=["blocks.0"], feedforward_modules=[]),
    )
    # No kind of layer can adapt this parameter, and the report says so.
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


def test_a_model_in_wrappers_of_torch_has_the_names_and_starts_of_its_own_modules() -> None:
    """Files of the network then fit the model without them."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    base, checkpointed = Model(), Model()
    checkpointed.blocks[0] = checkpoint_wrapper(checkpointed.blocks[0])
    wanted = lyc.create_lycoris(base, include="*", seed=1)
    compiled: Any = torch.compile(base)
    for wrapped in (compiled, checkpointed):
        network = lyc.create_lycoris(wrapped, include="*", seed=1)
        assert list(network.members) == list(wanted.members)
        for ours, theirs in zip(network.parameters(), wanted.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_the_page_of_bases_is_what_is_found() -> None:
    """Every kind on every sort of weight, in every form, is right or refused: see `tools.bases`."""
    assert bases.PAGE.read_text(encoding="utf-8") == bases.page(bases.everything())
