from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lycoris_ops as lyc

SHAPES = {"q": (12, 18), "k": (8, 18), "up": (30, 12)}
RANK = 5


def model() -> nn.ModuleDict:
    layers = {name: nn.Linear(*reversed(shape)) for name, shape in SHAPES.items()}
    return nn.ModuleDict(layers).requires_grad_(False)


def adapted(base: nn.Module, **options: Any) -> Any:
    import peft

    config = peft.VeraConfig(r=RANK, target_modules=list(SHAPES), projection_prng_key=7, **options)
    with warnings.catch_warnings(action="ignore"):
        return peft.get_peft_model(base, config)


def written(folder: Path, **options: Any) -> Any:
    """A model of PEFT's with random vectors, in float64, whose file is in the folder."""
    found = adapted(model().double(), **options).double()
    for name, vector in found.named_parameters():
        if "vera_lambda" in name:
            vector.data.normal_()
    with warnings.catch_warnings(action="ignore"):
        found.save_pretrained(str(folder))
    return found


def change(found: Any, name: str) -> Tensor:
    return found.base_model.model[name].get_delta_weight("default")


def test_a_file_of_pefts_is_read_stacked_and_baked(tmp_path: Path) -> None:
    found = written(tmp_path)
    adapter = lyc.load_adapter(tmp_path)
    assert not adapter.unused_keys and not adapter.unreadable and not adapter.without_alpha
    assert {(layer.algorithm, layer.rank) for layer in adapter.layers.values()} == {("vera", RANK)}
    layers = {name: adapter.layers[f"base_model.model.{name}"] for name in SHAPES}
    for name, layer in layers.items():
        weight = found.base_model.model[name].get_base_layer().weight
        torch.testing.assert_close(layer.delta(weight), change(found, name))
        # Rows and columns of a change are those of the cut layer.
        torch.testing.assert_close(layer.rows((2, 5)).delta(weight[2:5]), change(found, name)[2:5])
        torch.testing.assert_close(layer.columns((3, 7)).delta(weight[:, 3:7]), change(found, name)[:, 3:7])
        torch.testing.assert_close(layer.multiplied(-0.3).delta(weight), -0.3 * change(found, name))
        torch.testing.assert_close(layer.shrunk(0.25, weight).delta(weight), 0.25 * change(found, name))
    # One tensor in memory for all layers.
    assert len({id(layer.tensors()["vera_a"]) for layer in layers.values()}) == 1
    assert len({id(layer.tensors()["vera_b"]) for layer in layers.values()}) == 1

    weights = {f"{name}.weight": torch.randn(shape).double() for name, shape in SHAPES.items()}
    save_file(weights, tmp_path / "model.safetensors")
    stack = lyc.Stack([lyc.Entry(adapter, 0.5), lyc.Entry(adapter, -1.5)])
    lyc.merge_checkpoint(tmp_path / "model.safetensors", stack, tmp_path / "baked.safetensors")
    baked = load_file(tmp_path / "baked.safetensors")
    for name in SHAPES:
        torch.testing.assert_close(baked[f"{name}.weight"], weights[f"{name}.weight"] - change(found, name))


def copied(found: Any) -> nn.ModuleDict:
    """A model with the weights of PEFT's, without its layers."""
    own = model().double()
    for name in SHAPES:
        own[name].load_state_dict(found.base_model.model[name].get_base_layer().state_dict())
    return own


def passed(m: Any, x: Tensor) -> Tensor:
    return m["k"](x).square().mean() + m["up"](m["q"](x)).square().mean()


def trained(m: Any, parameters: Any, x: Tensor) -> None:
    optimiser = torch.optim.SGD(parameters, 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        passed(m, x).backward()
        optimiser.step()


def test_training_is_pefts_from_a_file_and_from_a_fresh_start(tmp_path: Path) -> None:
    """The seed draws the shared tensors as PEFT's `projection_prng_key` does, for the largest layer."""
    found = written(tmp_path)
    fresh = adapted(model().double())
    x = torch.randn(4, 18).double()
    for theirs, start in (
        (found, {"weights": tmp_path}),
        (fresh, {"algorithm": "vera", "rank": RANK, "seed": 7}),
    ):
        own = copied(theirs)
        network = lyc.create_lycoris(own, **start)
        network.apply_to()
        assert sum(p.numel() for p in network.parameters()) == sum(o + RANK for o, _ in SHAPES.values())
        layers = [network.members[name].layer for name in SHAPES]
        assert len({layer.tensors()["vera_a"].data_ptr() for layer in layers}) == 1
        theirs.double()
        for field, shared in (("vera_a", theirs.base_model.vera_A), ("vera_b", theirs.base_model.vera_B)):
            assert torch.equal(layers[0].tensors()[field].double(), shared["default"])
        torch.testing.assert_close(passed(own, x), passed(theirs.base_model.model, x))
        trained(own, network.parameters(), x)
        trained(theirs.base_model.model, [p for p in theirs.parameters() if p.requires_grad], x)
        for name in SHAPES:
            now = network.members[name].layer.delta(own[name].weight)
            assert now.abs().max() > 0
            torch.testing.assert_close(now, change(theirs, name), rtol=1e-4, atol=1e-6)


def test_a_network_is_saved_as_pefts_file_or_as_lora(tmp_path: Path) -> None:
    import peft

    own = model()
    network = lyc.create_lycoris(own, algorithm="vera", rank=RANK, seed=3)
    for member in network.members.values():
        member.layer.tensors()["vera_lambda_b"].data.normal_()
    changes = {
        name: member.layer.delta(own[name].weight).detach() for name, member in network.members.items()
    }
    network.save_weights(tmp_path / "peft", dialect="peft")
    assert set(load_file(tmp_path / "peft" / "adapter_model.safetensors")) == {
        "base_model.vera_A",
        "base_model.vera_B",
        *(f"base_model.model.{name}.vera_lambda_{one}" for name in SHAPES for one in "bd"),
    }
    with warnings.catch_warnings(action="ignore"):
        theirs = peft.PeftModel.from_pretrained(model(), str(tmp_path / "peft"))
    again = lyc.load_adapter(tmp_path / "peft")
    for name, wanted in changes.items():
        torch.testing.assert_close(change(theirs, name), wanted)
        assert torch.equal(again.layers[f"base_model.model.{name}"].delta(own[name].weight), wanted)

    for dialect in ("comfy", "lycoris"):
        path = tmp_path / f"{dialect}.safetensors"
        network.save_weights(path, dialect=dialect)
        assert lyc.faults_in_comfy((one.layer for one in network.members.values()), dialect) == ()
        loras = lyc.load_adapter(path)
        assert {(layer.algorithm, layer.rank) for layer in loras.layers.values()} == {("lora", RANK)}
        met = lyc.create_lycoris(own, weights=path)
        for name, wanted in changes.items():
            torch.testing.assert_close(met.members[name].layer.delta(own[name].weight), wanted)

    with pytest.raises(lyc.LayerError, match=r"needs the number of inputs.*It can be written as peft"):
        lyc.save_adapter(again, tmp_path / "alone.safetensors", "lycoris")
    # PEFT makes A and B for the largest of the layers that it finds.
    with pytest.raises(lyc.LayerError, match=r"needs vera_B for 12 outputs.*found 30.*It can be written as"):
        network.save_weights(tmp_path / "part", dialect="peft", include=["q", "k"])
    with pytest.raises(lyc.LayerError, match=r"needs vera_A for 12 inputs.*found 18.*It can be written as"):
        network.save_weights(tmp_path / "part", dialect="peft", include=["up"])
    other = lyc.create_lycoris(own, algorithm="vera", rank=RANK, seed=4)
    layers = {f"base_model.model.{name}": member.layer for name, member in network.members.items()}
    layers["base_model.model.k"] = other.members["k"].layer
    mixed = lyc.Adapter.of(layers, name="mixed")
    with pytest.raises(lyc.LayerError, match="needs the same vera_A and vera_B in all layers"):
        lyc.save_adapter(mixed, tmp_path / "mixed", "peft")


def held(network: lyc.LycorisNetwork) -> dict[str, list[Tensor]]:
    """The shared tensors of all members, as layers and as buffers have them."""
    members = network.members.values()
    return {
        name: [t for one in members for t in (one.layer.tensors()[name], one.get_buffer(name))]
        for name in ("vera_a", "vera_b")
    }


@pytest.mark.parametrize("way", ["double", "half", "emptied", "copied", "loaded", "pickled"])
def test_what_is_shared_stays_one_tensor(way: str, tmp_path: Path) -> None:
    network = lyc.create_lycoris(model(), algorithm="vera", rank=RANK, seed=7)
    other = lyc.create_lycoris(model(), algorithm="vera", rank=RANK, seed=8)
    ways: dict[str, Callable[[], Any]] = {
        "double": network.double,
        "half": network.half,
        "emptied": lambda: network.to("meta").to_empty(device="cpu"),
        "copied": lambda: copy.deepcopy(network),
        "loaded": lambda: other.load_weights(network.to_adapter()),
        "pickled": lambda: pickle.loads(pickle.dumps(network)),
    }
    later = ways[way]() or other
    later.load_state_dict(network.state_dict())
    for name, tensors in held(later).items():
        assert len({id(tensor) for tensor in tensors}) == 1
        wanted = held(network)[name][0]
        assert way in ("emptied", "half") or torch.equal(tensors[0], wanted.to(tensors[0].dtype))
    assert len(list(later.buffers())) == 2
    # A shared tensor is not trained.
    assert sum(len(group["params"]) for group in later.parameter_groups()) == 2 * len(SHAPES)


def test_shared_tensors_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each layer: hundreds of them would fill the memory."""
    drawn: list[int] = []
    uniform = Tensor.uniform_

    def counted(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        drawn.append(tensor.numel())
        return uniform(tensor, *args, **options)

    base = model()
    monkeypatch.setattr(Tensor, "uniform_", counted)
    lyc.create_lycoris(base, algorithm="vera", rank=RANK, seed=7)
    assert sorted(drawn) == [RANK * 18, RANK * 30]


def test_a_narrow_file_keeps_one_tensor_for_all_layers(tmp_path: Path) -> None:
    written(tmp_path)
    lyc.save_adapter(lyc.load_adapter(tmp_path), tmp_path / "narrow", "peft", torch.bfloat16)
    tensors = load_file(tmp_path / "narrow" / "adapter_model.safetensors")
    assert len(tensors) == 2 + 2 * len(SHAPES) and {one.dtype for one in tensors.values()} == {torch.bfloat16}


def test_a_file_without_the_shared_tensors_says_what_to_do(tmp_path: Path) -> None:
    written(tmp_path, save_projection=False)
    adapter = lyc.load_adapter(tmp_path)
    assert not adapter.info
    with pytest.raises(lyc.LayerError, match=r"a file without vera_A and vera_B.*save_projection"):
        adapter.layer("base_model.model.q")


@pytest.mark.parametrize("name", ["default", "mine"])
def test_a_live_models_state_dict_is_read(tmp_path: Path, name: str) -> None:
    """Each layer of it has the shared tensors too, and its keys name the adapter."""
    found = written(tmp_path)
    state = {key: value for key, value in found.state_dict().items() if "vera_" in key}
    adapter = lyc.adapter_of_tensors(
        {key.replace("default", name): value for key, value in state.items()}, name="state"
    )
    assert not adapter.unused_keys and not adapter.unreadable
    torch.testing.assert_close(
        adapter.layers["base_model.model.q"].delta(torch.zeros(12, 18).double()), change(found, "q")
    )


def test_a_head_and_biases_beside_are_read(tmp_path: Path) -> None:
    """The name of the shared tensors begins the keys of all others, and takes none of them."""
    base = model()
    base["head"], base["norm"] = nn.Linear(12, 3), nn.LayerNorm(12)
    found = adapted(base, modules_to_save=["head"], bias="all")
    with warnings.catch_warnings(action="ignore"):
        found.save_pretrained(str(tmp_path))
    adapter = lyc.load_adapter(tmp_path)
    assert not adapter.unused_keys and not adapter.unreadable
    kinds = {name: info.algorithm.algorithm for name, info in adapter.info.items()}
    layers = {**dict.fromkeys(SHAPES, "vera"), "head": "full", "norm": "full"}
    assert kinds.items() >= {f"base_model.model.{name}": kind for name, kind in layers.items()}.items()


@pytest.mark.parametrize(
    ("key", "unreadable"),
    [
        ("base_model.model.other.stranger", set[str]()),
        ("base_model.stranger", set[str]()),
        ("base_model.alpha", {"base_model"}),
        ("base_model.model.q.stranger", {"base_model.model.q"}),
    ],
)
def test_an_unknown_key_beside_leaves_the_other_layers(
    tmp_path: Path, key: str, unreadable: set[str]
) -> None:
    """And what other layers read is not told to be read by nothing."""
    written(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    adapter = lyc.adapter_of_tensors({**tensors, key: torch.ones(1)}, name="x")
    assert set(adapter.unreadable) == unreadable
    layers = {f"base_model.model.{name}" for name in SHAPES}
    assert set(adapter.info) == layers - unreadable
    assert set(adapter.unused_keys) == {
        key,
        *(own for own in tensors if "vera_lambda" in own and own.rpartition(".")[0] in unreadable),
    }
