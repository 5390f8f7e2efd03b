"""An adapter that is made in memory can do everything that one from a file can do."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import pickle
from pathlib import Path
from weakref import ref

import pytest
import torch
from layers import FEW, KINDS, WEIGHTS, base, load, rand
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lycoris_ops as lyc
from lycoris_ops.layers.same import difference
from lycoris_ops.report.summary import in_words

NAME = "lora_unet_input_blocks_1_1_proj_in"
KEY = "diffusion_model.input_blocks.1.1.proj_in.weight"
UNDER = [kind for kind, spec in KINDS.items() if not spec.flat and not spec.needs_kernel]
"""The kinds that fit a linear layer."""


def pair(folder: Path, layer: lyc.Layer, metadata: dict[str, str] | None = None) -> list[lyc.Adapter]:
    """An adapter with this layer that is made in memory, and one from a file with the same tensors."""
    # A file does not hold the start of a T-LoRA.
    options = {option: value for option in ("sig_type",) if (value := getattr(layer, option, None))}
    save_file({f"{NAME}.{key}": tensor for key, tensor in layer.dump().items()}, folder / "x.safetensors")
    made = lyc.Adapter.of({NAME: layer}, name="merged", metadata=metadata)
    return [made, lyc.load_adapter(folder / "x.safetensors", **options)]


@pytest.mark.parametrize(("kind", "weight"), FEW)
def test_its_layers_are_those_it_was_made_of(kind: str, weight: str) -> None:
    layer = load(kind, weight)
    adapter = lyc.Adapter.of({"a.b": layer}, name="made")
    assert difference(layer, adapter.layers["a.b"]) is None
    counts = layer.table.constrained_by_alpha or (layer.table.scaled_by_alpha and layer.rank is not None)
    assert (difference(layer, dataclasses.replace(layer, alpha=None)) is not None) == counts
    info = adapter.info["a.b"]
    assert info.algorithm is type(layer) and info.rank == layer.rank and info.fits(WEIGHTS[weight])
    assert (adapter.name, adapter.path, adapter.dialect) == ("made", "made", "bare")
    # `load` gives every layer an alpha of 2.
    assert adapter.alphas() == {"a.b": 2.0} and not adapter.unreadable and not adapter.unused_keys


@pytest.mark.parametrize("kind", UNDER)
def test_it_is_resolved_patched_bypassed_and_reported_as_a_file_is(tmp_path: Path, kind: str) -> None:
    """The adapter in memory and the adapter from a file give equal bits and equal reports.

    Compared are patched weights, weights of a kept plan, and the outputs of a bypass.
    """
    results: list[list[torch.Tensor]] = []
    words: list[str] = []
    module = torch.nn.Linear(18, 12, bias=False)
    x = torch.randn(5, 18)
    for adapter in pair(tmp_path, load(kind, "linear")):
        entry = lyc.Entry(adapter, 0.7)
        resolution = lyc.resolve(lyc.Stack([entry]), {KEY: (12, 18)})
        resolution.check(strict=True)
        pairs = resolution.pairs()[KEY]
        parts = [(match.read(adapter), match.strength) for _, match in pairs]
        patched = lyc.patch_(base("linear").float(), parts)
        plan = lyc.kept_plan((12, 18), pairs)
        assert lyc.kept_plan((12, 18), pairs) is plan
        kept = plan.apply_(base("linear").float(), plan.tensors, plan.strengths)
        geometry = lyc.geometry_of(module)
        assert not isinstance(geometry, str)
        hooks = lyc.Bypass(module, lyc.BypassPlan.build(geometry, parts)).attach()
        results.append([patched, kept, module(x).detach()])
        hooks.remove()
        words.append(lyc.describe(resolution).replace(f"\n{adapter.name}\n", "\n"))
        # The lines before this one hold the name and the size of the file.
        words.append(in_words(lyc.summary(adapter)).split("\n")[2])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert words[:2] == words[2:]


def test_it_is_baked_and_the_recipe_names_it(tmp_path: Path) -> None:
    save_file({KEY: base("linear").float()}, tmp_path / "base.safetensors")
    merged: list[torch.Tensor] = []
    for adapter in pair(tmp_path, load("loha", "linear")):
        out = tmp_path / f"{adapter.name}.out.safetensors"
        lyc.merge_checkpoint(tmp_path / "base.safetensors", lyc.Stack([lyc.Entry(adapter, 0.5)]), out)
        merged.append(load_file(out)[KEY])
    assert torch.equal(*merged) and not torch.equal(merged[0], base("linear").float())
    with safe_open(tmp_path / "merged.out.safetensors", "pt") as file:
        assert json.loads(file.metadata()["lycoris_recipe"])["adapters"][0]["file"] == "merged"


def test_what_its_metadata_says_of_alphas_is_not_applied_again() -> None:
    """With kohya's `split_qkv`, the alpha of a fused layer in a file is a third of the right one.

    A layer in memory has the right alpha already, so `split_qkv` is taken out of its metadata.
    """
    up = torch.block_diag(rand(4, 2), rand(4, 2), rand(4, 2))
    layer = lyc.ALGORITHMS["lora"].load(
        {"lora_up.weight": up, "lora_down.weight": rand(6, 5), "alpha": torch.tensor(6.0)}
    )
    metadata = {"ss_network_args": json.dumps({"split_qkv": "True", "conv_dim": "4"})}
    adapter = lyc.Adapter.of({"lora_unet_x_qkv": layer}, name="made", metadata=metadata)
    assert adapter.layers["lora_unet_x_qkv"].alpha == 6.0
    assert json.loads(adapter.metadata["ss_network_args"]) == {"conv_dim": "4"}


def test_its_tensors_require_no_gradients() -> None:
    """The tensors of a layer that learns are kept without gradients."""
    layer = load("lora", "linear")
    learning = layer.with_tensors({name: torch.nn.Parameter(t) for name, t in layer.tensors().items()})
    adapter = lyc.Adapter.of({NAME: learning}, name="made", dialect="trained")
    assert adapter.dialect == "trained"
    assert not any(tensor.requires_grad for tensor in adapter.layers[NAME].tensors().values())


def test_an_adapter_can_be_copied_and_sent_to_another_process(tmp_path: Path) -> None:
    """A cache has a lock, which cannot be copied: each process has caches of its own."""
    for adapter in pair(tmp_path, load("lora", "linear")):
        for twin in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(lyc.Stack([lyc.Entry(adapter)])))):
            twin = twin if isinstance(twin, lyc.Adapter) else twin.entries[0].adapter
            assert difference(adapter.layers[NAME], twin.layers[NAME]) is None
            assert twin.cache is adapter.cache
    assert copy.copy(lyc.TensorCache(7)).max_bytes == 7


def test_a_kept_plan_does_not_keep_its_adapter() -> None:
    """The cache may hold the plan after the adapter is gone."""
    cache = lyc.TensorCache(1 << 20)
    adapter = lyc.Adapter.of({NAME: load("lora", "linear")}, name="made")
    pairs = lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), {KEY: (12, 18)}).pairs()[KEY]
    assert lyc.kept_plan((12, 18), pairs, cache=cache) is lyc.kept_plan((12, 18), pairs, cache=cache)
    gone = ref(adapter)
    del adapter, pairs
    gc.collect()
    assert gone() is None and cache.nbytes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_its_errors_name_it(value: float) -> None:
    layer = load("lora", "linear")
    bad = dataclasses.replace(layer, lora_up=torch.full((12, 3), value))
    with pytest.raises(lyc.LayerError, match=r"^merged: x\.lora_up\.weight: .*NaN or infinity"):
        lyc.Adapter.of({"x": bad}, name="merged").layer("x")


def test_what_cannot_be_an_adapter_is_refused() -> None:
    with pytest.raises(lyc.LycorisError, match="nothing: an adapter has no layers"):
        lyc.Adapter.of({}, name="nothing")
    mixed = dataclasses.replace(
        load("lora", "linear"), lora_mid=torch.ones(3, 3, 1), lora_embedding_a=rand(3, 4)
    )
    with pytest.raises(lyc.LayerError, match="cut: x: a layer's tensors would be read"):
        lyc.Adapter.of({"x": mixed}, name="cut")
