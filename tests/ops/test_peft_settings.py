"""What PEFT's configurations say beyond ranks and alphas, against the merge of PEFT itself in float64."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import EPS32, EPS64, fill, layer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from written import patched, read

import lycoris_ops as lyc
from lycoris_ops.names.dialects import WRITES, Asked
from lycoris_ops.peft.kinds import KINDS
from lycoris_ops.peft.unread import UNREAD

ROOT = "base_model.model."
CONFIG = "adapter_config.json"


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().double().clone() for name, tensor in model.named_parameters()}


def saved(
    folder: Path, model: nn.Module, config: Any, *, trained: bool = True
) -> tuple[lyc.Adapter, dict[str, Tensor], dict[str, Tensor]]:
    """A file that PEFT wrote, the parameters before, and those that PEFT's merge makes of them in float64."""
    import peft

    before = weights(model)
    adapted = peft.get_peft_model(model, config).eval()
    if trained:
        fill((one for one in adapted.parameters() if one.requires_grad), torch.float32)
    adapted.save_pretrained(str(folder))
    after = weights(adapted.double().merge_and_unload())
    return lyc.load_adapter(folder / "adapter_model.safetensors"), before, after


def applied(adapter: lyc.Adapter, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters with the adapter patched in."""
    return {**before, **patched(adapter, before)}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], eps: float) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        size = wanted[name].abs().max().item()
        assert (found[name] - wanted[name]).abs().max().item() <= eps * size, name


# Starts that shift the base weight.


def linears(**bias: bool) -> nn.ModuleDict:
    """Layers in float32, as PEFT asks of these starts."""
    parts = {
        "tall": layer((36, 20), dtype=torch.float32, **bias),
        "wide": layer((20, 36), dtype=torch.float32, **bias),
        # Of fewer rows than the rank.
        "low": layer((3, 20), dtype=torch.float32, **bias),
        "words": nn.Embedding(30, 12),
    }
    return nn.ModuleDict(parts).requires_grad_(False)


STARTS = {
    "pissa": {},
    "pissa-rs": {"init_lora_weights": "pissa", "use_rslora": True},
    "pissa-dora": {"init_lora_weights": "pissa", "use_dora": True},
    "olora": {"init_lora_weights": "olora"},
    "olora-patterns": {"init_lora_weights": "olora", "alpha_pattern": {"wide": 9.0}},
}


@pytest.mark.parametrize("name", STARTS)
def test_a_start_that_shifts_the_base_is_rebuilt_from_it(tmp_path: Path, name: str) -> None:
    """PEFT takes the start out of the base weight, so that untrained factors change nothing."""
    from peft import LoraConfig

    options: dict[str, Any] = {"init_lora_weights": "pissa", **STARTS[name]}
    targets = ["tall", "wide", "words"] + ([] if "dora" in name else ["low"])
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, **options)
    for trained in (False, True):
        torch.manual_seed(0)
        adapter, before, after = saved(tmp_path / str(trained), linears(), config, trained=trained)
        found = applied(adapter, before)
        # PEFT computes the start in float32.
        assert_same(found, after if trained else before, 64 * EPS32)
        assert trained == ((found["tall.weight"] - before["tall.weight"]).abs().max().item() > 0.1)


def test_a_file_that_was_converted_when_it_was_saved_is_like_any_other(tmp_path: Path) -> None:
    import peft

    torch.manual_seed(0)
    model = nn.ModuleDict({"tall": layer((36, 20), dtype=torch.float32)})
    before = weights(model)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["tall"], init_lora_weights="pissa")
    adapted = peft.get_peft_model(model, config).eval()
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(str(tmp_path / "start"))
    adapted.peft_config["default"].init_lora_weights = "pissa"
    fill((one for one in adapted.parameters() if one.requires_grad), torch.float32)
    adapted.save_pretrained(str(tmp_path), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    after = weights(adapted.double().merge_and_unload())
    adapter = lyc.load_adapter(tmp_path / "adapter_model.safetensors")
    assert adapter.layer(f"{ROOT}tall").rank == 8 and not adapter.layer(f"{ROOT}tall").reads_weight
    assert_same(applied(adapter, before), after, 64 * EPS32)


def test_a_start_is_kept_where_it_can_be_written_and_refused_elsewhere(tmp_path: Path) -> None:
    from peft import LoraConfig

    torch.manual_seed(0)
    model = nn.ModuleDict({"tall": layer((36, 20), dtype=torch.float32)})
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["tall"], init_lora_weights="olora")
    adapter, before, after = saved(tmp_path / "source", model, config)
    written = lyc.save_adapter(adapter, tmp_path / "again", "peft")
    assert json.loads((tmp_path / "again" / CONFIG).read_text())["init_lora_weights"] == "olora"
    assert_same(applied(lyc.load_adapter(written.path), before), after, 64 * EPS32)
    known = {"diffusion_model.tall.weight": (36, 20)}
    with pytest.raises(lyc.LayerError, match=r"holds no start.*written as peft"):
        lyc.save_adapter(adapter, tmp_path / "no.safetensors", "kohya", model=known)
    with pytest.raises(lyc.LayerError, match="OLoRA only at a scale of 1"):
        WRITES["diffusers"].tensors(adapter.layer(f"{ROOT}tall"), Asked("unet.tall"))
    save_file({name: one.float() for name, one in before.items()}, tmp_path / "base.safetensors")
    stack = lyc.Stack([lyc.Entry(adapter)])
    lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, tmp_path / "merged.safetensors")
    merged = {name: one.double() for name, one in load_file(tmp_path / "merged.safetensors").items()}
    assert_same(merged, after, 64 * EPS32)
    report = lyc.describe(lyc.resolve(stack, {"tall.weight": (36, 20)}))
    assert "1 layer was trained on a base minus its olora start" in report
    # Beside the weight the same change comes of the weight that the module has.
    module = nn.Linear(20, 36, bias=False).double().requires_grad_(False)
    module.weight.copy_(before["tall.weight"])
    plan = lyc.BypassPlan.build(lyc.geometry_of(module), [(adapter.layer(f"{ROOT}tall"), 1.0)])
    x = torch.randn(5, 20, dtype=torch.float64)
    lyc.Bypass(module, plan).attach()
    torch.testing.assert_close(module(x), x @ after["tall.weight"].T, rtol=1e-5, atol=1e-5)


def lora_file(folder: Path, config: dict[str, Any] | str) -> Path:
    """A LoRA layer in PEFT's form, with a configuration beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{ROOT}x.q.lora_A.weight": torch.ones(4, 18), f"{ROOT}x.q.lora_B.weight": torch.ones(12, 4)}
    save_file(tensors, folder / "adapter_model.safetensors")
    said = config if isinstance(config, str) else json.dumps({"r": 4, "lora_alpha": 8, **config})
    (folder / CONFIG).write_text(said)
    return folder / "adapter_model.safetensors"


@pytest.mark.parametrize("start", ["corda", "loftq", "lora_ga", "pissa_niter_4", "a newer one", 3])
def test_a_start_that_cannot_be_rebuilt_is_refused(tmp_path: Path, start: Any) -> None:
    with pytest.raises(
        lyc.FileFormatError, match=rf"{CONFIG}: init_lora_weights: .*{start}.*path_initial_model"
    ):
        lyc.load_adapter(lora_file(tmp_path, {"init_lora_weights": start}))


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_a_start_that_leaves_the_base_alone_needs_nothing(tmp_path: Path, start: Any) -> None:
    adapter = lyc.load_adapter(lora_file(tmp_path, {"init_lora_weights": start}))
    assert torch.equal(adapter.layer(f"{ROOT}x.q").delta(torch.randn(12, 18)), torch.full((12, 18), 8.0))


# Fields.


def peft_classes() -> dict[str, Any]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {kind.value: found for kind, found in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_pefts_is_known_or_without_effect_or_refused(kind: str) -> None:
    """A field of a new release of PEFT is in none of these, and fails this test."""
    config = KINDS[kind]
    known = {field.name for field in dataclasses.fields(config)} | {"lora_alpha", "init_r"}
    groups = config.without_effect | set(config.refused)
    assert not config.without_effect & set(config.refused), "a field is in both"
    fields = {field.name for field in dataclasses.fields(peft_classes()[kind])}
    assert not fields - known - groups
    # Nothing is named that PEFT does not have.
    every = {field.name for found in peft_classes().values() for field in dataclasses.fields(found)}
    assert not groups - every


def test_every_kind_of_pefts_is_read_or_named() -> None:
    from peft.utils import PeftType

    assert not KINDS.keys() & UNREAD.keys()
    assert {kind.value for kind in PeftType} == (set(KINDS) | set(UNREAD)) - {"KASA", "BONE"}
    for kind, found in UNREAD.items():
        try:
            module = importlib.import_module(f"peft.tuners.{kind.lower()}.layer")
        except ModuleNotFoundError:
            continue
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                assert set(getattr(value, "adapter_layer_names", ())) <= set(found.tensors), kind


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alora_invocation_tokens", [1, 2]),
        ("layer_replication", [[0, 4], [2, 5]]),
        ("use_qalora", True),
        ("use_bdlora", {}),
        ("arrow_config", {"top_k": 2}),
        ("kasa_config", {}),
        ("peft_type", "VBLORA"),
        ("peft_type", "NO_SUCH_KIND"),
    ],
)
def test_a_field_that_is_not_followed_is_refused_by_name(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(lyc.FileFormatError, match=rf"{CONFIG}: {field}: .*cannot be followed"):
        lyc.load_adapter(lora_file(tmp_path, {field: value}))


def test_a_field_that_is_not_known_is_refused_where_a_newer_release_switches_it_on(tmp_path: Path) -> None:
    known, newer = {"peft_version": "0.21.2"}, {"peft_version": "0.99.0.dev0"}
    for number, config in enumerate(
        [
            {**known, "made_by_another_tool": True},
            {"made_by_another_tool": True},
            {**newer, "use_new_thing": False, "new_size": 16, "new_names": [], "new_config": None},
        ]
    ):
        lyc.load_adapter(lora_file(tmp_path / str(number), config))
    for value in (True, {"size": 16}, ["q"]):
        with pytest.raises(lyc.FileFormatError, match=r"new_thing: .*newer release"):
            lyc.load_adapter(lora_file(tmp_path / "new", {**newer, "new_thing": value}))


# Values.

BAD = {
    "no rank": ("r", '{"r": 0, "lora_alpha": 8}'),
    "a rank that is not there": ("r", '{"lora_alpha": 4}'),
    "ranks of a pipeline's parts": ("r", '{"unet.r": 4, "unet.lora_alpha": 2}'),
    "no rank in a pattern": ("rank_pattern", '{"r": 4, "lora_alpha": 8, "rank_pattern": {"q": 0}}'),
    "a flag for a rank": ("r", '{"r": true, "lora_alpha": 8}'),
    "a broken rank": ("r", '{"r": 4.5, "lora_alpha": 8}'),
    "a long rank": ("r", '{"r": 1' + "0" * 4000 + ', "lora_alpha": 8}'),
    "no alpha": ("lora_alpha", '{"r": 4}'),
    "an infinite alpha": ("lora_alpha", '{"r": 4, "lora_alpha": 1e400}'),
    "a list for an alpha": ("lora_alpha", '{"r": 4, "lora_alpha": [8]}'),
    "a text for a flag": ("use_rslora", '{"r": 4, "lora_alpha": 8, "use_rslora": "no"}'),
    "a list for a table": ("rank_pattern", '{"r": 4, "lora_alpha": 8, "rank_pattern": [1]}'),
    "a text in a table": ("alpha_pattern", '{"r": 4, "lora_alpha": 8, "alpha_pattern": {"q": "x"}}'),
    "half of an expression": ("alpha_pattern", '{"r": 4, "lora_alpha": 8, "alpha_pattern": {"(": 3}}'),
    "a number for a kind": ("peft_type", '{"r": 4, "lora_alpha": 8, "peft_type": 3}'),
    "too many terms": (
        "num_cayley_neumann_terms",
        '{"peft_type": "OFT", "num_cayley_neumann_terms": 3000000}',
    ),
    "a negative number of terms": (
        "num_cayley_neumann_terms",
        '{"peft_type": "OFT", "num_cayley_neumann_terms": -1}',
    ),
    "no bound": ("eps", '{"peft_type": "OFT", "coft": true, "eps": 0}'),
    "numbers for names": ("feedforward_modules", '{"peft_type": "IA3", "feedforward_modules": [1]}'),
}


@pytest.mark.parametrize("case", BAD)
def test_a_value_that_a_field_cannot_have_is_refused_by_name(tmp_path: Path, case: str) -> None:
    field, config = BAD[case]
    with pytest.raises(lyc.FileFormatError, match=rf"{CONFIG}: {field}: .*found .*expected") as caught:
        lyc.load_adapter(lora_file(tmp_path, config))
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))


@pytest.mark.parametrize("text", ["[]", "3", "not json", "[" * 100_000, "", '{"r": 4,', "\0"])
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(lyc.FileFormatError, match=rf"{CONFIG}: .*cannot be followed"):
        lyc.load_adapter(lora_file(tmp_path, text))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": text})
    (tmp_path / CONFIG).unlink()
    with pytest.raises(lyc.FileFormatError, match=r"x\.safetensors.*cannot be followed"):
        lyc.load_adapter(tmp_path / "x.safetensors")


def test_bytes_that_are_no_text_are_read_as_far_as_they_matter(tmp_path: Path) -> None:
    """Fields without effect may hold what they will: a path in a tool's own encoding, half a surrogate."""
    path = lora_file(tmp_path, {})
    (tmp_path / CONFIG).write_bytes(b'{"r": 4, "lora_alpha": 8, "base_model_name_or_path": "mod\xe8le"}')
    assert lyc.load_adapter(path).alphas() == {f"{ROOT}x.q": 8.0}
    (tmp_path / CONFIG).write_text(r'{"r": 4, "lora_alpha": 9, "revision": "\ud800"}')
    assert lyc.load_adapter(path).alphas() == {f"{ROOT}x.q": 9.0}
    (tmp_path / CONFIG).write_text(r'{"r": 4, "lora_alpha": 9, "use_dora": false, "peft_type": "\ud800"}')
    with pytest.raises(lyc.FileFormatError) as caught:
        lyc.load_adapter(path)
    assert str(caught.value).encode()


# What PEFT trains beside factors of linear layers and convolutions.


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 4, dtype=torch.float64)
        self.norm = nn.LayerNorm(16, dtype=torch.float64)
        self.q = nn.Linear(16, 12, dtype=torch.float64)
        self.k = nn.Linear(16, 12, bias=False, dtype=torch.float64)
        self.conv = nn.Conv2d(16, 12, 3, dtype=torch.float64)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("options", [{}, {"lora_bias": True}], ids=str)
def test_biases_that_were_trained_are_set(tmp_path: Path, bias: Any, options: dict[str, Any]) -> None:
    """The file holds the values of the biases, `lora_bias` adds to them."""
    from peft import LoraConfig

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q", "conv"], bias=bias, **options)
    adapter, before, after = saved(tmp_path / "source", Attention(), config)
    assert not torch.equal(before["q.bias"], after["q.bias"])
    assert torch.equal(before["norm.bias"], after["norm.bias"]) == (bias == "lora_only")
    assert_same(applied(adapter, before), after, 64 * EPS32 if options else 64 * EPS64)
    written = lyc.save_adapter(adapter, tmp_path / "again", "peft")
    assert_same(applied(lyc.load_adapter(written.path), before), after, 64 * EPS32)
    known = {f"diffusion_model.{name}": tuple(one.shape) for name, one in before.items()}
    with pytest.raises(lyc.LayerError, match=r"values of a bias.*written as peft"):
        lyc.save_adapter(adapter, tmp_path / "no.safetensors", "kohya", model=known)
    with pytest.raises(lyc.LayerError, match="values of a bias"):
        WRITES["diffusers"].tensors(adapter.layer(f"{ROOT}q"), Asked("unet.q"))


def test_a_bias_is_set_by_strength_and_beside_the_module(tmp_path: Path) -> None:
    layer_ = lyc.ALGORITHMS["full"].load({"set_bias": torch.tensor([1.0, 2.0])})
    bias = torch.tensor([3.0, 6.0], dtype=torch.float64)
    change = layer_.change(torch.zeros(2, 3, dtype=torch.float64), bias)
    assert change.delta is None and torch.equal(change.bias, torch.tensor([-2.0, -4.0]).double())
    assert torch.equal(layer_.rows((1, 2)).set_bias, torch.tensor([2.0]))
    module = nn.Linear(3, 2).double().requires_grad_(False)
    adapter = lyc.Adapter.of({"layer": layer_}, name="x")
    resolution = lyc.resolve(
        lyc.Stack([lyc.Entry(adapter, 0.5)]), {"layer.weight": (2, 3), "layer.bias": (2,)}
    )
    ((_, (pair,)),) = resolution.pairs().items()
    plan = lyc.BypassPlan.build(lyc.geometry_of(module), [(pair[1].read(adapter), 0.5)])
    x = torch.randn(4, 3, dtype=torch.float64)
    wanted = nn.functional.linear(x, module.weight, (module.bias + torch.tensor([1.0, 2.0])) / 2)
    lyc.Bypass(module, plan).attach()
    torch.testing.assert_close(module(x), wanted)


def test_torchs_attention_is_read(tmp_path: Path) -> None:
    """PEFT adapts the fused input weight under the module's own name, and the output layer inside of it.

    It adds the change of the output layer twice, in its forward pass as in its merge.
    """
    from peft import LoraConfig

    torch.manual_seed(0)
    adapter, before, after = saved(
        tmp_path, Attention(), LoraConfig(r=4, lora_alpha=6, target_modules=["attn"])
    )
    assert not torch.equal(before["attn.in_proj_weight"], after["attn.in_proj_weight"])
    assert not torch.equal(before["attn.out_proj.weight"], after["attn.out_proj.weight"])
    assert_same(applied(adapter, before), after, 64 * EPS64)


@pytest.mark.parametrize("kept", [None, [3, 1]], ids=["whole", "pruned"])
@pytest.mark.parametrize("alpha", [6, 0])
def test_adalora_is_read(tmp_path: Path, kept: list[int] | None, alpha: int) -> None:
    """Three factors. The scale stays that of the first rank, whatever rank training leaves."""
    import peft

    torch.manual_seed(0)
    model = Attention()
    before = weights(model)
    config = peft.AdaLoraConfig(
        init_r=6, target_r=2, lora_alpha=alpha, target_modules=["q", "k", "conv"], total_step=10
    )
    adapted = peft.get_peft_model(model, config).eval()
    fill((one for name, one in adapted.named_parameters() if ".lora_" in name), torch.float32)
    if kept is not None:
        # As after training: k has lost all of its singular values.
        masks = {"q": kept, "k": [], "conv": [0, 2, 5]}
        pattern = {f"{name}.lora_E": [n in mask for n in range(6)] for name, mask in masks.items()}
        adapted.base_model.resize_modules_by_rank_pattern(
            {f"{name}.default": mask for name, mask in pattern.items()}, "default"
        )
        adapted.peft_config["default"].rank_pattern = pattern
    adapted.save_pretrained(str(tmp_path / "source"))
    after = weights(adapted.double().merge_and_unload())
    adapter = lyc.load_adapter(tmp_path / "source" / "adapter_model.safetensors")
    assert not adapter.unreadable and not adapter.unused_keys
    assert len(adapter.info) == (3 if kept is None else 2)
    assert_same(applied(adapter, before), after, 64 * EPS32)
    # No dialect has the third factor: it is multiplied into another.
    model_ = {f"diffusion_model.{name}": one for name, one in before.items()}
    known = {name: tuple(one.shape) for name, one in model_.items()}
    for dialect in ("kohya", "comfy", "peft"):
        (tmp_path / dialect).mkdir()
        path = tmp_path / dialect / "adapter_model.safetensors"
        written = lyc.save_adapter(adapter, path, dialect, model=known)
        found = applied(lyc.load_adapter(written.path), model_)
        assert_same(found, {f"diffusion_model.{name}": one for name, one in after.items()}, 64 * EPS32)
        # AdaLoRA has a matrix for a convolution, which PEFT's LoRA and most readers refuse.
        conv = {n: t.shape for n, t in load_file(written.path).items() if "conv" in n and ".lora_" in n}
        kernel = before["conv.weight"].shape[2:]
        assert sorted(shape[2:] for shape in conv.values()) == sorted([(1, 1), kernel])


def test_a_tuned_norm_is_read(tmp_path: Path) -> None:
    from peft import LNTuningConfig

    torch.manual_seed(0)
    adapter, before, after = saved(tmp_path / "source", Attention(), LNTuningConfig(target_modules=["norm"]))
    assert not torch.equal(before["norm.bias"], after["norm.bias"])
    assert_same(applied(adapter, before), after, 64 * EPS64)
    written = lyc.save_adapter(adapter, tmp_path / "again", "peft")
    assert_same(applied(lyc.load_adapter(written.path), before), after, 64 * EPS64)


def test_a_lora_of_a_grouped_convolution_leaves_the_other_layers_alone(tmp_path: Path) -> None:
    from peft import LoraConfig

    torch.manual_seed(0)
    parts = {"conv": layer((8, 6, 3), groups=2), "q": layer((6, 8))}
    with pytest.warns(UserWarning, match="Merging is not supported"):
        import peft

        adapted = peft.get_peft_model(nn.ModuleDict(parts), LoraConfig(r=4, target_modules=["conv", "q"]))
    adapted.save_pretrained(str(tmp_path))
    adapter = lyc.load_adapter(tmp_path / "adapter_model.safetensors")
    assert set(adapter.layers) == {f"{ROOT}q"} and f"{ROOT}conv" not in adapter.layers
    assert "grouped convolution" in adapter.unreadable[f"{ROOT}conv"]
    with pytest.raises(lyc.LayerError, match=r"conv: .*grouped convolution"):
        adapter.layer(f"{ROOT}conv")


# Kinds that are not read.

UNREAD_CONFIGS: dict[str, dict[str, Any]] = {
    "C3A": {"block_size": 4},
    "DELORA": {},
    "FOURIERFT": {"n_frequency": 10},
    "GLORA": {"r": 4},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "HIRA": {},
    "HRA": {"r": 4},
    "MISS": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 2},
    "VBLORA": {"num_vectors": 8, "vector_length": 4, "topk": 2},
}


@pytest.mark.parametrize("kind", UNREAD_CONFIGS)
def test_a_kind_that_is_not_read_is_called_by_its_name(tmp_path: Path, kind: str) -> None:
    import peft

    config = peft_classes()[kind](target_modules=["q"], **UNREAD_CONFIGS[kind])
    adapted = peft.get_peft_model(nn.ModuleDict({"q": layer((16, 16), dtype=torch.float32)}), config)
    adapted.save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_model.safetensors"
    name = UNREAD[kind].name
    with pytest.raises(lyc.FileFormatError, match=f"{name}, a kind of PEFT's that is not read"):
        lyc.load_adapter(path)
    # Without the configuration the tensors tell it.
    (tmp_path / CONFIG).unlink()
    with pytest.raises(lyc.FileFormatError, match=f"{name}, a kind of PEFT's that is not read"):
        lyc.load_adapter(path)


def test_a_prompt_is_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_file({"prompt_embeddings": torch.zeros(4, 8)}, path)
    with pytest.raises(lyc.FileFormatError, match="prompt tuning, a kind"):
        lyc.load_adapter(path)


def test_kasa_is_named_and_what_only_training_needs_is_left(tmp_path: Path) -> None:
    """A LoRA of PEFT's with one tensor more is KaSA's. VeLoRA's is for the backward pass alone."""
    from peft import LoraConfig, VeloraConfig

    torch.manual_seed(0)
    model = nn.ModuleDict({"q": layer((16, 16), dtype=torch.float32)})
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q"], velora_config=VeloraConfig(num_groups=4))
    adapter, before, after = saved(tmp_path / "velora", model, config)
    assert [key.rpartition(".")[2] for key in adapter.unused_keys] == ["lora_velora_embed"]
    assert_same(applied(adapter, before), after, 64 * EPS32)
    path = lora_file(tmp_path / "kasa", {})
    tensors = load_file(path)
    save_file({**tensors, f"{ROOT}x.q.lora_diag": torch.ones(4)}, path)
    assert lyc.load_adapter(path).unreadable[f"{ROOT}x.q"].startswith("KaSA, ")


def test_factors_of_a_convolution_are_not_written_without_what_they_scale(tmp_path: Path) -> None:
    """Without the configuration nobody knows whether they are for inputs or outputs: PEFT gets no guess."""
    source = read(tmp_path, {"base_model.model.conv.ia3_l": torch.rand(1, 4, 1, 1)})
    with pytest.raises(lyc.LayerError, match="for inputs or outputs"):
        lyc.save_adapter(source, tmp_path / "out", "peft")
