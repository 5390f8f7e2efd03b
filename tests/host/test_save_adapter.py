"""Written adapters, read by the host's own loader, by PEFT and by diffusers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, Patched, calculated, loaded_by_the_host, needs
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.harness import dialects, in_diffusers, zoo
from tests.harness.assets import assets
from tests.harness.dialects import PEFT

pytestmark = pytest.mark.host

Shapes = Mapping[str, tuple[int, ...]]
ALIKE = ("SD2", "SD2.1 unCLIP", "SDXL refiner", "SSD-1B", "HunyuanDiT 1.0")
"""Architectures with the layers of another, in other sizes and numbers."""
DISTINCT = [name for name in in_diffusers.DIFFUSERS if name not in ALIKE]
UNETS = ("SD1.5", "SD2")
"""Architectures for which kohya-ss writes diffusers' names. For all others it writes the model's own
names."""


def effect(host: Host, adapter: Any, shapes: Shapes) -> dict[str, Tensor]:
    """The change of every weight of a model at strength 1, in float64."""
    ops = host.ops
    resolution = ops.resolve(ops.Stack([ops.Entry(adapter)]), shapes)
    resolution.check(strict=True)
    assert not resolution.entries[0].absent
    return {
        key: ops.patch_(
            torch.zeros(shapes[key], dtype=torch.float64),
            [(match.read(entry.adapter), match.strength) for entry, match in pairs],
        )
        for key, pairs in resolution.pairs().items()
    }


def assert_changes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Assert that the changes of weights are the wanted ones.

    Factors are small whole numbers, so that only a scale multiplied into a factor can have been rounded.
    """
    assert set(found) == set(wanted)
    for key, change in wanted.items():
        torch.testing.assert_close(found[key], change.double(), rtol=1e-6, atol=1e-6)


def source_of(
    host: Host, named: dialects.Names, tensors: tuple[str, ...], folder: Path
) -> tuple[Any, dict[str, Tensor]]:
    """An adapter from a file with these layers, and the exact change of each layer."""
    file, changes = dialects.adapter(named, tensors)
    save_file(file, folder / "source.safetensors")
    return host.ops.load_adapter(folder / "source.safetensors"), changes


def saved(host: Host, adapter: Any, path: Path, dialect: str, shapes: Shapes | None = None) -> Any:
    """The adapter after it has been written in a dialect and read back."""
    return host.ops.load_adapter(host.ops.save_adapter(adapter, path, dialect, model=shapes).path)


# Every architecture.


@pytest.mark.parametrize(
    ("architecture", "dialect"),
    [
        # In every run each architecture with one of the three.
        pytest.param(name, dialect, marks=() if (row + column) % 3 == 0 else pytest.mark.soak)
        for row, name in enumerate(DISTINCT)
        for column, dialect in enumerate(("diffusers", "peft", "lycoris"))
    ],
)
def test_all_of_diffusers_layers_go_to_the_models_own_names_and_back(
    host: Host, tmp_path: Path, architecture: str, dialect: str
) -> None:
    needs(architecture)
    named = dialects.names(architecture, "PEFT on diffusers")
    shapes = dialects.shapes_of(architecture)
    source, changes = source_of(host, named, PEFT, tmp_path)
    wanted = dialects.summed(named, changes, shapes)
    own = saved(host, source, tmp_path / "own.safetensors", "comfy", shapes)
    assert_changes(effect(host, own, shapes), wanted)
    path = tmp_path / (dialect if dialect == "peft" else f"{dialect}.safetensors")
    again = saved(host, own, path, dialect, shapes)
    paths = {name.removeprefix("base_model.model.") for name in named}
    if dialect == "lycoris":
        paths = {path.replace(".", "_") for path in paths}
    start = {"peft": "base_model.model.", "lycoris": "lycoris_"}.get(dialect)
    start = start or next(iter(again.info)).partition(".")[0] + "."
    assert {name.removeprefix(start) for name in again.info} == paths
    assert_changes(effect(host, again, shapes), wanted)


@pytest.mark.parametrize("architecture", zoo.SPECIES)
def test_the_models_own_layers_go_to_kohya_s_names_and_back(
    host: Host, tmp_path: Path, architecture: str
) -> None:
    needs(architecture)
    named = dialects.names(architecture, "ComfyUI")
    shapes = dialects.shapes_of(architecture)
    source, changes = source_of(host, named, PEFT, tmp_path)
    kohya = saved(host, source, tmp_path / "kohya.safetensors", "kohya", shapes)
    theirs = "kohya on diffusers" if architecture in UNETS else "kohya"
    expected = set(dialects.names(architecture, theirs))
    # kohya's prefix for the prior of Stable Cascade is another.
    if architecture.startswith("Stable Cascade"):
        expected = {name.replace("lora_unet_", "lora_prior_unet_") for name in expected}
    assert set(kohya.info) == expected
    # With other names the same code writes the same layers.
    if architecture not in DISTINCT:
        return
    wanted = dialects.summed(named, changes, shapes)
    # What files with the model's own names change is tested with architectures.
    if architecture in UNETS:
        assert_changes(effect(host, kohya, shapes), wanted)
    back = saved(host, kohya, tmp_path / "back.safetensors", "comfy", shapes)
    assert set(back.info) == set(named)
    assert_changes(effect(host, back, shapes), wanted)


@pytest.mark.parametrize(
    ("architecture", "told"),
    [
        # In every run each architecture in one of the two ways.
        pytest.param(name, told, marks=() if (row + told) % 2 == 0 else pytest.mark.soak)
        for row, name in enumerate(DISTINCT)
        for told in (False, True)
    ],
)
def test_diffusers_own_model_loads_it(host: Host, tmp_path: Path, architecture: str, told: bool) -> None:
    """diffusers loads a written file with its metadata, or only the tensors of it.

    The change is computed from the factors and the scale in diffusers' own layers.
    """
    needs(architecture)
    model: Any = in_diffusers.DIFFUSERS[architecture].make()
    if not hasattr(model, "load_lora_adapter"):
        pytest.skip(f"diffusers loads no adapter into a {type(model).__name__}")
    # Some sizes come out differently at the zoo's scale, or the zoo has cut the weight down.
    named = {
        name: where
        for name, where in dialects.names(architecture, "PEFT on diffusers").items()
        if model.get_submodule(name.removeprefix("base_model.model.")).weight.shape == where.shape
    }
    # With fewer layers the names were not matched right.
    assert len(named) > 5
    source, changes = source_of(
        host,
        {f"base_model.model.{n.removeprefix('base_model.model.')}": w for n, w in named.items()},
        PEFT,
        tmp_path,
    )
    path = tmp_path / "diffusers.safetensors"
    adapter = saved(host, source, path, "diffusers", dialects.shapes_of(architecture))
    prefix = next(iter(adapter.info)).partition(".")[0]
    file = {"pretrained_model_name_or_path_or_dict": str(tmp_path), "weight_name": path.name}
    given: dict[str, Any] = file if told else {"pretrained_model_name_or_path_or_dict": load_file(path)}
    model.load_lora_adapter(**given, prefix=prefix, adapter_name="ours")
    modules = dict(model.named_modules())
    for name, change in changes.items():
        layer = modules[name.removeprefix("base_model.model.")]
        a, b = (getattr(layer, f"lora_{x}")["ours"].weight.detach().double().flatten(1) for x in "AB")
        found = layer.scaling["ours"] * (b @ a)
        torch.testing.assert_close(found, change.flatten(1), rtol=1e-5, atol=1e-5)


# The host's own loader.


def change(patches: Mapping[str, Any], plain: Patched, key: str) -> Tensor:
    """The change that patches make to a weight of zeros."""
    shape = plain.patcher_of(key).model_state_dict()[key].shape
    return calculated(patches, key, torch.zeros(shape))


def full_file(path: Path) -> None:
    """Write full differences of three weights and of one bias."""
    generator = torch.Generator().manual_seed(0)
    names = {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (320, 320),
        "lora_unet_conv_in": (320, 4, 3, 3),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": (3072, 768),
    }
    tensors = {f"{name}.diff": torch.randn(shape, generator=generator) for name, shape in names.items()}
    save_file({**tensors, "lora_unet_conv_in.diff_b": torch.randn(320, generator=generator)}, path)


@pytest.mark.parametrize(
    ("kind", "dialect"),
    [
        *(("lora", dialect) for dialect in ("kohya", "comfy", "diffusers", "lycoris")),
        ("loha", "kohya"),
        ("lokr", "comfy"),
        ("full", "kohya"),
        ("full", "comfy"),
    ],
)
def test_the_hosts_own_loader_reads_all_of_it(
    host: Host, plain: Patched, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, dialect: str
) -> None:
    """The host's own loader must read every key of a written file.

    It must change weights as it does for the source file. Of many, every ninth is compared.
    """
    source = assets() / "loras" / f"{kind}.safetensors"
    if kind == "full":
        source = tmp_path / "full.safetensors"
        full_file(source)
    if dialect == "lycoris":
        unet = {key: t for key, t in load_file(source).items() if key.startswith("lora_unet_")}
        source = tmp_path / "unet.safetensors"
        save_file(unet, source)
    shapes = model_shapes(host, plain)
    path = tmp_path / "written.safetensors"
    host.ops.save_adapter(host.ops.load_adapter(source), path, dialect, model=shapes)
    with caplog.at_level(logging.WARNING):
        before, after = (loaded_by_the_host(plain, file).patches for file in (source, path))
    # The host logs keys that it does not know.
    assert "lora key not loaded" not in caplog.text and "ERROR" not in caplog.text
    assert set(before) == set(after) and before
    for key in sorted(before)[:: 9 if len(before) > 9 else 1]:
        reference = change(before, plain, key)
        assert reference.any()
        torch.testing.assert_close(change(after, plain, key), reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["Flux 1", "SD3", "Qwen-Image"])
@pytest.mark.parametrize("dialect", ["kohya", "comfy", "diffusers"])
def test_the_hosts_own_loader_reads_transformers(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str, dialect: str
) -> None:
    """Only layers that are in the host's own map of names are tested."""
    import comfy.lora

    needs(architecture)
    model = dialects.model_of(architecture)
    known = comfy.lora.model_lora_keys_unet(model, {})
    shapes = dialects.shapes_of(architecture)
    named = {
        name: where
        for name, where in dialects.names(architecture, "PEFT on diffusers").items()
        if f"transformer.{name.removeprefix('base_model.model.')}" in known
    }
    assert len(named) > 10
    source, changes = source_of(host, named, PEFT, tmp_path)
    path = saved(host, source, tmp_path / "written.safetensors", dialect, shapes).path
    state = model.state_dict()
    with caplog.at_level(logging.WARNING):
        patches = comfy.lora.load_lora(load_file(path), known)
    assert "lora key not loaded" not in caplog.text
    found: dict[str, Tensor] = {key: torch.zeros(value.shape).double() for key, value in state.items()}
    for meaning, patch in patches.items():
        key, *how = (meaning,) if isinstance(meaning, str) else meaning
        part = found[key]
        entry = [(1.0, patch, 1.0, how[0] if how else None, how[1] if len(how) > 1 else None)]
        found[key] = comfy.lora.calculate_weight(entry, part, key)
    wanted = dialects.summed(named, changes, shapes)
    for key, change in wanted.items():
        torch.testing.assert_close(found[key], change.double(), rtol=1e-5, atol=1e-5)


def model_shapes(host: Host, plain: Patched) -> dict[str, tuple[int, ...]]:
    states = (plain.model.model_state_dict(), plain.clip.patcher.model_state_dict())
    return {key: tuple(value.shape) for state in states for key, value in state.items()}


# The node.


@pytest.fixture
def node(host: Host) -> Callable[..., tuple[str, Path]]:
    """Run Save LoRA / LyCORIS, and return its report and the file that it wrote."""

    def run(
        stack: Any, dialect: str = "kohya", dtype: str = "as in the file", **options: Any
    ) -> tuple[str, Path]:
        prefix = options.pop("filename_prefix", "loras/written")
        (report,) = host.run("LycorisSaveAdapter", stack, dialect, dtype, prefix, **options)
        return report, host.written(report)

    return run


def test_the_node_writes_numbered_files_and_says_what_it_did(
    host: Host, plain: Patched, node: Callable[..., tuple[str, Path]]
) -> None:
    stack = host.stack(("lora", 1.0, 1.0))
    report, first = node(stack, "comfy", "float32", model=plain.model, clip=plain.clip)
    _, second = node(stack, "comfy", model=plain.model, clip=plain.clip)
    # Without where the output folder is on this machine.
    assert report.splitlines()[-1] == "output/loras/written_00001_.safetensors"
    assert (first.name, second.name) == ("written_00001_.safetensors", "written_00002_.safetensors")
    assert report.startswith("written_00001_.safetensors: 190 layers with the names of comfy")
    assert "names of kohya to comfy" in report and "factors in float32" in report
    live = host.apply(plain, stack)
    again = host.apply(plain, host.ops.Stack([host.ops.Entry(host.ops.load_adapter(first))]))
    assert set(again.patches) == set(live.patches)
    key = sorted(live.patches)[0]
    assert torch.equal(change(again.patches, plain, key), change(live.patches, plain, key))


@pytest.mark.parametrize("what", ["kohya", "peft", "checkpoint"])
def test_a_number_that_another_program_takes_meanwhile_is_not_written_over(
    host: Host,
    node: Callable[..., tuple[str, Path]],
    exported: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """The host counts files, and the number that it gives is free at that time only."""
    import folder_paths

    counted = folder_paths.get_save_image_path
    taken: list[Path] = []

    def count(prefix: str, output: str) -> tuple[str, str, int, str, str]:
        found = counted(prefix, output)
        ending = "/adapter_model.safetensors" if what == "peft" else ".safetensors"
        taken.append(Path(f"{found[0]}/{found[1]}_{found[2]:05}_{ending}"))
        taken[-1].parent.mkdir(parents=True, exist_ok=True)
        taken[-1].write_bytes(b"another's")
        return found

    monkeypatch.setattr(folder_paths, "get_save_image_path", count)
    stack = host.stack(("peft_unet_patterns" if what == "peft" else "lora", 1.0, 1.0))

    def write() -> Path:
        if what == "checkpoint":
            return exported("checkpoints/base.safetensors", stack)
        return node(stack, what, filename_prefix="loras/style-v1.5")[1]

    with pytest.raises(Exception, match="of that name already"):
        write()
    assert taken[0].read_bytes() == b"another's"
    monkeypatch.undo()
    path = write()
    name = "exported" if what == "checkpoint" else "style-v1.5"
    assert f"{name}_00002_" in str(path) and path.exists()


def test_the_node_writes_a_folder_for_peft(
    host: Host, plain: Patched, node: Callable[..., tuple[str, Path]]
) -> None:
    report, path = node(host.stack(("peft_unet_patterns", 1.0, 1.0)), "peft", filename_prefix="loras/p")
    folder = path.parent
    assert path.name == "adapter_model.safetensors" and folder.name == "p_00001_"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and set(config["rank_pattern"].values()) == {6}
    assert "p_00001_/adapter_model.safetensors" in report
    _, second = node(host.stack(("peft_unet_patterns", 1.0, 1.0)), "peft", filename_prefix="loras/p")
    assert second.parent.name == "p_00002_"


@pytest.mark.parametrize("recipe", ["lora", "lokr_full", "loha_tucker"])
def test_a_file_does_at_strength_1_what_the_weighted_entry_does(
    host: Host, plain: Patched, node: Callable[..., tuple[str, Path]], recipe: str
) -> None:
    stack = host.stack((recipe, 0.7, 0.3))
    (stack,) = host.run("LycorisWeightBlocks", stack, "mid = 0\nin = -0.5")
    with pytest.raises(Exception, match="depends on its place in the model"):
        node(stack)
    _, path = node(stack, model=plain.model, clip=plain.clip)
    live = host.apply(plain, stack)
    saved = host.apply(plain, host.ops.Stack([host.ops.Entry(host.ops.load_adapter(path))]))
    assert set(saved.patches) == set(live.patches)
    for key in sorted(live.patches)[::20]:
        found = change(saved.patches, plain, key)
        torch.testing.assert_close(found, change(live.patches, plain, key), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((), "a stack of 0: none.*stack of one"),
        ((("lora", 1.0, 1.0), ("loha", 1.0, 1.0)), r"a stack of 2: lora\.safetensors, loha\.safetensors"),
        ((("lora", 0.0, 0.0),), "nothing of the adapter is left"),
    ],
)
def test_the_node_refuses_what_a_file_cannot_say(
    host: Host, node: Callable[..., tuple[str, Path]], entries: Any, message: str
) -> None:
    with pytest.raises(Exception, match=message):
        node(host.stack(*entries))


def test_the_node_says_to_connect_a_model(host: Host, node: Callable[..., tuple[str, Path]]) -> None:
    with pytest.raises(Exception, match=r"without the model.*Give the model that the adapter is for"):
        node(host.stack(("lora", 1.0, 1.0)), "diffusers")
    with pytest.raises(Exception, match="leaves the output folder"):
        node(host.stack(("lora", 1.0, 1.0)), filename_prefix="../x")


def test_a_name_may_have_the_ending_of_its_file(host: Host) -> None:
    path = host.module("lycoris_nodes.host.files").output_path("ending/mine.safetensors", ".safetensors")
    assert path.name == "mine_00001_.safetensors"
    experts = host.module("lycoris_nodes.training.node.experts")
    assert experts.named_for("mine.safetensors", "high noise") == "mine_high_noise"
