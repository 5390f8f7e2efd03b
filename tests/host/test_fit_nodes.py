"""Resize / Convert LoRA and Extract LoRA / LyCORIS, in the real host."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, Patched, calculated, model_of
from kinds import kinds
from safetensors.torch import load_file, save_file

from tests.harness.assets import assets

pytestmark = pytest.mark.host


def saved(host: Host, stack: object, plain: Patched, dialect: str = "kohya") -> Path:
    (report,) = host.run(
        "LycorisSaveAdapter",
        stack,
        dialect,
        "as in the file",
        "loras/fitted",
        model=plain.model,
        clip=plain.clip,
    )
    return host.written(report)


def change(patches: dict[str, Any], key: str, weight: torch.Tensor) -> torch.Tensor:
    """The change of a weight that the patches of a model make."""
    return calculated(patches, key, weight) - weight


@pytest.fixture
def part_of(lora_file: Callable[[str, Any], str]) -> Callable[[str], str]:
    """Write those layers of a recipe's file that are in the middle of the UNet, in its input or first in the
    text encoder; the name of the file."""

    def write(recipe: str) -> str:
        every = load_file(assets() / "loras" / f"{recipe}.safetensors")
        kept = {key: every[key] for key in every if re.search(PART, key)}
        return lora_file(f"few_{recipe}.safetensors", lambda path: save_file(kept, path))

    return write


PART = "_mid_block_|_conv_in|_encoder_layers_0_"


def test_a_lokr_becomes_a_lora_file_that_the_hosts_own_loader_applies(
    host: Host,
    plain: Patched,
    distance: Callable[[torch.Tensor, torch.Tensor], float],
    part_of: Callable[[str], str],
) -> None:
    stack = host.stack((part_of("lokr"), 1.0, 1.0))
    made, report = host.run("LycorisResizeAdapter", stack, "rank 4096", "lora")
    assert "25 lora" in report and "from lokr 4" in report and "  error 0.00%" in report, report
    path = saved(host, made, plain)
    loras = host.base / "models" / "loras" / path.name
    path.replace(loras)
    model, clip = host.nodes.LoraLoader().load_lora(plain.model, plain.clip, loras.name, 1.0, 1.0)
    found = host.latent(Patched(model, clip))
    assert distance(found, host.latent(host.apply(plain, stack))) < 0.01


def test_what_depends_on_the_weight_is_converted_with_the_model_and_refused_without(
    host: Host, plain: Patched, lora_file: Callable[[str, Any], str]
) -> None:
    shapes = {key: tuple(value.shape) for key, value in plain.model.model_state_dict().items()}
    layers = {
        "input_blocks.1.1.proj_in": "lora-dora-out",
        "middle_block.1.transformer_blocks.0.attn1.to_q": "oft",
        "middle_block.1.transformer_blocks.0.attn1.to_k": "ia3",
    }
    tensors = {
        f"diffusion_model.{path}.{suffix}": tensor
        for path, kind in layers.items()
        for suffix, tensor in kinds(shapes[f"diffusion_model.{path}.weight"])[kind].items()
    }
    stack = host.stack((lora_file("dependent.safetensors", lambda path: save_file(tensors, path)), 0.5, 0.5))
    with pytest.raises(
        host.ops.LycorisError, match=r"needs the base model.*Give the model that the adapters are for"
    ):
        host.run("LycorisResizeAdapter", stack, "rank 4", "lora")
    made, report = host.run("LycorisResizeAdapter", stack, "rank 4096", "lora", plain.model, dtype="float32")
    assert [entry.strength for entry in made] == [0.5] and "3 lora" in report
    pair = host.ops.Stack(replace(entry, low_noise=entry.adapter) for entry in stack)
    with pytest.raises(host.ops.LycorisError, match=r"pair.*model of each.*Split into two rows"):
        host.run("LycorisResizeAdapter", pair, "rank 4", "lora", plain.model)
    wanted, found = host.apply(plain, stack).patches, host.apply(plain, made).patches
    assert set(wanted) == set(found) == {f"diffusion_model.{path}.weight" for path in layers}
    for key in wanted:
        # The model that is in memory may have the patches of an earlier test on it.
        weight = plain.model.get_key_patches()[key][0][0].float()
        ours, theirs = (change(patches, key, weight) for patches in (found, wanted))
        assert (ours - theirs).norm() < 1e-4 * theirs.norm(), key


def test_what_is_patched_on_a_model_is_extracted_from_it(
    host: Host, plain: Patched, part_of: Callable[[str], str]
) -> None:
    """The base is a file, and the tuned model is one with a LoRA of rank 4 merged into it."""
    stack = host.stack((part_of("lora"), 1.0, 1.0))
    tuned = host.apply(plain, stack)
    made, report = host.run(
        "LycorisExtractAdapter",
        "the connected model",
        "checkpoints/base.safetensors",
        "rank 8",
        "lora",
        strict=False,
        tuned_model=tuned.model,
        tuned_clip=tuned.clip,
    )
    assert "lora (rank 4)" in report and "error 0." in report
    assert [entry.adapter.name for entry in made.entries] == ["extracted"]
    found = host.apply(plain, made).patches
    assert set(found) == set(tuned.patches)
    for key in sorted(found)[::4]:
        zero = torch.zeros(plain.patcher_of(key).model_state_dict()[key].shape)
        ours, theirs = (change(patches, key, zero) for patches in (found, tuned.patches))
        assert (ours - theirs).norm() < 2e-3 * theirs.norm(), key


def test_a_weight_has_the_grain_of_its_dtype_until_it_is_patched(host: Host) -> None:
    held = model_of(layer=torch.nn.Linear(4, 4, bias=False).half()).model
    key, weights = "diffusion_model.layer.weight", host.module("lycoris_nodes.host.weights")
    assert weights.connected_weights(held, None).grain(key) == torch.float16
    held.add_patches({key: (torch.ones(4, 4),)})
    assert weights.connected_weights(held, None).grain(key) == torch.float32


def test_files_are_named_or_models_connected(
    host: Host, plain: Patched, small_models: tuple[str, str]
) -> None:
    options = {"size": "rank 4", "algorithm": "lora", "strict": False}
    base, _ = small_models
    for inputs, message in (
        ({"tuned_file": base, "base_file": "the connected model"}, "found neither"),
        ({"tuned_file": base, "base_file": base, "base_model": plain.model}, "found both"),
        ({"tuned_file": base, "base_file": base}, "nothing is left of the changes"),
        ({"tuned_file": base, "base_file": base, "size": "large"}, "size cannot be understood"),
    ):
        with pytest.raises(host.ops.LycorisError, match=message):
            host.run("LycorisExtractAdapter", **{**options, **inputs})


def test_a_mixed_stack_merged_into_one_file_gives_its_latent(
    host: Host,
    plain: Patched,
    distance: Callable[[torch.Tensor, torch.Tensor], float],
    part_of: Callable[[str], str],
) -> None:
    stack = host.stack((part_of("lora"), 0.6, 0.3), (part_of("loha"), 0.5, 0.5), (part_of("lokr"), -0.4, 0.4))
    weighted = host.run("LycorisWeightBlocks", stack, "in.* = 0.5")[0]
    with pytest.raises(host.ops.LycorisError, match="block rules need the model"):
        host.run("LycorisMergeAdapters", {"method": "sum"}, weighted)
    merged, report = host.run(
        "LycorisMergeAdapters", {"method": "sum"}, weighted, model=plain.model, clip=plain.clip
    )
    (entry,) = merged
    assert (entry.strength, entry.rules) == (1.0, None) and "merged by sum" in report, report
    wanted = host.latent(host.apply(plain, weighted))
    assert distance(host.latent(host.apply(plain, merged)), wanted) < 0.01
    path = saved(host, merged, plain, "comfy")
    loras = host.base / "models" / "loras" / path.name
    path.replace(loras)
    again = host.apply(plain, host.run("LycorisLoadAdapter", loras.name, 1.0, 1.0)[0])
    assert distance(host.latent(again), wanted) < 0.01


@pytest.fixture
def few(host: Host, part_of: Callable[[str], str]) -> Any:
    """A stack of a LoRA and a LoHa of a few layers, whose changes in full take no time."""
    return host.stack((part_of("lora"), 0.6, 0.6), (part_of("loha"), 0.5, 0.5))


MUTED = {
    "LycorisMergeAdapters": "Nothing was merged: no stack arrived",
    "LycorisResizeAdapter": "Nothing was resized: no stack arrived",
    "LycorisInspect": "there is nothing to inspect.*no stack.*muted",
    "LycorisApplyStack": "Nothing was changed: no stack arrived",
    "LycorisSaveAdapter": "Nothing was saved: no stack arrived",
    "LycorisSaveCheckpoint": "Nothing was saved: no stack arrived",
    "LycorisToLoraStack": "Nothing was handed on: no stack arrived",
}
"""What nodes say to whom the host gives no stack, as it does where the node before them is muted."""
UNSAID = (
    "LycorisLoadAdapter",
    "LycorisAdapterRows",
    "LycorisFromLoraStack",
    "LycorisBlockInfo",
    "LycorisJudge",
    "LycorisSlider",
    "LycorisTrain",
)
"""Nodes that do their work without a stack."""
HANDING = (
    "LycorisWeightBlocks",
    "LycorisSchedule",
    "LycorisCombineStacks",
    "LycorisMask",
    "LycorisStrengthGrid",
)
"""Nodes that hand on an empty stack, of which the next node says that it is empty."""


def test_every_node_says_plainly_that_no_stack_arrived(host: Host, plain: Patched) -> None:
    others = {
        "LycorisApplyStack": {"model": plain.model},
        "LycorisSaveCheckpoint": {"base": "checkpoints/base.safetensors"},
        "LycorisMergeAdapters": {"method": {"method": "sum"}},
        "LycorisSchedule": {"curve": "constant"},
        "LycorisMask": {"mask": torch.ones(1, 8, 8)},
        "LycorisStrengthGrid": {"latent": {"samples": torch.zeros(1, 4, 8, 8)}, "values": "0, 1"},
    }
    package = host.pack.__name__
    taking = {
        name
        for name, node in host.nodes.NODE_CLASS_MAPPINGS.items()
        if node.__module__.startswith(package) and "LYCORIS_STACK,LORA_STACK" in str(node.INPUT_TYPES())
    }
    assert taking == {*MUTED, *UNSAID, *HANDING}
    for name, said in MUTED.items():
        node = host.nodes.NODE_CLASS_MAPPINGS[name]
        try:
            found = node.execute(**others.get(name, {}))
        except host.ops.LycorisError as error:
            assert re.search(said, str(error)), (name, error)
        else:
            assert re.search(said, found.args[-1]), (name, found.args[-1])
            assert found.ui["lycoris"][0]["state"] == "nothing", name
    for name in HANDING:
        assert len(host.run(name, **others.get(name, {}))[0]) == 0, name


def test_a_loss_is_no_success_and_a_small_layer_stays(host: Host) -> None:
    """With the settings of a new node a LoKr stays what it is, and a rank that makes it larger is told."""
    node = host.nodes.NODE_CLASS_MAPPINGS["LycorisResizeAdapter"]
    stack = host.stack(("lokr", 1.0, 1.0))
    for inputs, state, first in (
        ({}, "nothing", r"0\.37 MB: stays as it was, nothing smaller keeps as much\."),
        ({"size": "rank 2"}, "partly", r"0\.37 → \d\.\d\d MB: larger, and loses \d\d %\."),
    ):
        found = node.execute(stack=stack, **inputs)
        assert found.ui["lycoris"][0]["state"] == state
        assert re.match(first, found.args[-1]) and re.match(first, found.ui["text"][0])
        kept = found.args[0].entries[0].adapter
        assert (kept.size <= stack.entries[0].adapter.size) == (state == "nothing")


def test_a_merge_that_would_be_larger_leaves_the_files_unless_a_size_is_asked_for(host: Host) -> None:
    node = host.nodes.NODE_CLASS_MAPPINGS["LycorisMergeAdapters"]
    stack = host.stack(("lokr", 0.6, 0.6), ("lokr_tucker", 0.5, 0.5))
    found = node.execute({"method": "sum"}, stack, "auto")
    assert found.args[0] is stack and found.ui["lycoris"][0]["state"] == "partly"
    first = r"Not merged, the adapters stay as they were: \S+ → \S+ MB: larger, (and )?loses "
    assert re.match(first, found.ui["text"][0]), found.ui["text"][0]
    asked = node.execute({"method": "sum"}, stack, "rank 2")
    assert len(asked.args[0]) == 1


def test_nodes_that_make_a_report_run_alone(host: Host) -> None:
    for name in ("Apply", "Merge", "Resize", "Extract", "Inspect"):
        found = [
            kind for key, kind in host.nodes.NODE_CLASS_MAPPINGS.items() if key.startswith(f"Lycoris{name}")
        ]
        assert [kind.OUTPUT_NODE for kind in found] == [True], name
    made = host.nodes.NODE_CLASS_MAPPINGS["LycorisExtractAdapter"].execute(
        "the connected model", "the connected model", "auto", "lora", False
    )
    assert made.args[0] is None and made.ui["lycoris"][0]["state"] == "nothing"


def test_a_merge_as_in_the_files_has_their_dtype(host: Host, few: Any) -> None:
    assert {tensor.dtype for entry in few for tensor in entry.adapter.file.tensors.values()} == {"F16"}
    (merged, _) = host.run("LycorisMergeAdapters", {"method": "sum"}, few, dtype="as in the file")
    (entry,) = merged
    factors = (t for layer in entry.adapter.layers.values() for t in layer.tensors().values())
    assert {tensor.dtype for tensor in factors} == {torch.float16}


def test_methods_sizes_and_parts_of_the_merge_node(host: Host, few: Any) -> None:
    made, report = host.run(
        "LycorisMergeAdapters", {"method": "ties", "density": 0.3}, few, "rank 2", dtype="float16"
    )
    layers = made.entries[0].adapter.layers
    assert len(layers) == len(few.entries[0].adapter.layers) and "error" in report
    assert {layer.rank for layer in layers.values()} <= {1, 2, None}
    parts, _ = host.run("LycorisMergeAdapters", {"method": "tsv", "result": "one adapter each"}, few)
    assert [entry.strength for entry in parts] == [0.6, 0.5]
    with pytest.raises(host.ops.LycorisError, match=r"largest_rank.*parts are exact.*4.*expected 0"):
        host.run("LycorisMergeAdapters", {"method": "tsv", "result": "one adapter each"}, few, largest_rank=4)
    with pytest.raises(host.ops.LycorisError, match="out of range"):
        host.run("LycorisMergeAdapters", {"method": "ties", "density": 2.0}, few)


@pytest.fixture
def small_models(model_file: Callable[..., Path]) -> tuple[str, str]:
    """The names of files of a few weights of the base model, and of the same weights changed."""
    every = load_file(assets() / "checkpoints" / "base.safetensors")
    base = {key: value for key, value in every.items() if ".middle_block.1." in key}
    tuned = {key: value + 0.01 * torch.randn_like(value) for key, value in base.items()}
    files = (
        model_file(f"checkpoints/{n}.safetensors", tensors) for n, tensors in (("b", base), ("t", tuned))
    )
    one, other = (f"checkpoints/{file.name}" for file in files)
    return one, other


def test_apply_is_interrupted_between_two_weights(
    host: Host, plain: Patched, few: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    read: list[str] = []
    layer = host.ops.Adapter.layer

    def interrupting(self: Any, name: str, **options: Any) -> Any:
        read.append(name)
        comfy.model_management.interrupt_current_processing()
        return layer(self, name, **options)

    with monkeypatch.context() as patched:
        patched.setattr(host.ops.Adapter, "layer", interrupting)
        try:
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                host.apply(plain, few)
        finally:
            comfy.model_management.interrupt_current_processing(False)
    # Of the weight that was begun, in both adapters.
    assert len(set(read)) == 1
    assert host.apply(plain, few).patches


@pytest.mark.parametrize(
    "node",
    ["merge", "merge to a size", "merge into parts", "inspect", "resize", "resize to a share", "extract"],
)
def test_after_an_interrupt_no_further_layer_is_begun(
    host: Host, few: Any, small_models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    """The interrupt comes with the third progress. Nothing is written, and the next run works."""
    import comfy.model_management
    import comfy.utils

    small_base, small_tuned = small_models
    runs: dict[str, Callable[[], Any]] = {
        "merge": lambda: host.run("LycorisMergeAdapters", {"method": "sum"}, few),
        "merge to a size": lambda: host.run("LycorisMergeAdapters", {"method": "sum"}, few, "rank 2"),
        "merge into parts": lambda: host.run(
            "LycorisMergeAdapters", {"method": "tsv", "result": "one adapter each"}, few
        ),
        "inspect": lambda: host.run("LycorisInspect", few),
        "resize": lambda: host.run("LycorisResizeAdapter", few, "rank 2", "lora"),
        "resize to a share": lambda: host.run("LycorisResizeAdapter", few, "90%", "lora"),
        "extract": lambda: host.run(
            "LycorisExtractAdapter", small_tuned, small_base, "rank 4", "lora", strict=False
        ),
    }
    begun: list[str] = []
    told: list[int] = []

    def spy(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def read(self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
            layer = key.removesuffix(".weight").removesuffix(".bias")
            if len(told) >= 3 and layer not in begun:
                begun.append(layer)
            return original(self, key, *args, **kwargs)

        monkeypatch.setattr(owner, name, read)

    weights = importlib.import_module(f"{host.ops.__name__}.files.weights")
    spy(host.ops.Adapter, "layer")
    spy(weights.FileWeights, "read")

    def update(self: Any, value: int, *args: Any) -> None:
        told.append(value)
        if len(told) == 3:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", update)
    files = set(host.base.rglob("*"))
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            runs[node]()
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert len(told) == 3 and len(begun) <= 1, begun
    assert set(host.base.rglob("*")) == files
    assert runs[node]() and len(told) > 6


def test_a_stack_is_inspected_with_and_without_its_model(
    host: Host, plain: Patched, few: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ComfyUI does not bring it.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    picture, report = host.run("LycorisInspect", few)
    assert picture.shape[0] == 1 and picture.shape[3] == 3 and min(picture.shape[1:3]) > 300
    assert "cosine" in report and "effective rank" in report and "of the weights" not in report
    _, report = host.run("LycorisInspect", few, model=plain.model, clip=plain.clip)
    assert "of the weights" in report and "mid" in report, report
