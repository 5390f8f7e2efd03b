"""Whether the host's own loader does with each kind what the library says that it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import LORA, Host, Patched, needs
from safetensors.torch import load_file, save_file

import lycoris_ops as lyc
from lycoris_ops.algorithms.base import IGNORED
from tests.harness import dialects
from tests.harness.assets import assets
from tests.ops import layers

pytestmark = pytest.mark.host
NAME = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0"


def distance(layer: lyc.Layer, tensors: dict[str, torch.Tensor], weight: torch.Tensor) -> float:
    """How far the host's changes by these tensors are from the layer's changes, relative to the latter: the
    largest at strengths on both sides of 0."""
    import comfy.lora

    exact = layer.delta(weight.double()).float()
    patches = comfy.lora.load_lora(tensors, {"x": "x.weight"}, log_missing=False)

    def at(strength: float) -> float:
        changed = weight.clone()
        if patch := patches.get("x.weight"):
            changed = comfy.lora.calculate_weight([(strength, patch, 1.0, None, None)], changed, "x.weight")
        return ((changed - weight - strength * exact).norm() / exact.norm()).item() / abs(strength)

    return max(map(at, (1.0, 0.5, -1.0)))


def test_the_host_does_with_each_kind_what_is_said_of_it(host: Host) -> None:
    assert {spec.algorithm for spec in layers.KINDS.values()} == {
        name for name, kind in lyc.ALGORITHMS.items() if kind.table.variants
    }
    other: dict[tuple[str, str], list[float]] = {}
    for kind, name in layers.CASES:
        if name not in ("linear", "conv2d", "norm"):
            continue
        for alpha in (2.0, None):
            torch.manual_seed(0)
            layer = layers.load(kind, name, alpha=alpha)
            suffixes = layer.dump()
            found = distance(
                layer,
                {f"x.{suffix}": tensor for suffix, tensor in suffixes.items()},
                layers.base(name).float(),
            )
            said = layer.fault_in_comfy()
            if said is None:
                assert found < 1e-4, (kind, name, alpha, found)
            elif said == IGNORED:
                assert found == pytest.approx(1.0, abs=1e-6), (kind, name, alpha, found)
            else:
                other.setdefault((kind, said), []).append(found)
    # How large the difference is depends on the values.
    assert other and all(max(found) > 1e-4 for found in other.values()), other


def test_what_the_host_ignores_is_said_when_it_is_saved_and_handed_on(
    host: Host, plain: Patched, lora_file: Any
) -> None:
    shape = tuple(plain.model.model_state_dict()[f"{NAME}.weight"].shape)
    vector = {f"{NAME}.weight": torch.randn(shape[1]), f"{NAME}.on_input": torch.tensor(1)}
    stack = host.stack((lora_file("ignored.safetensors", lambda path: save_file(vector, path)), 1.0, 1.0))
    node = host.nodes.NODE_CLASS_MAPPINGS["LycorisSaveAdapter"]
    for dialect, state in (("comfy", "partly"), ("as in the file", "partly")):
        saved = node.execute(stack=stack, dialect=dialect, filename_prefix="loras/ignored", model=plain.model)
        assert "ComfyUI's own loader ignores it: 1 ia3 layer" in saved.args[-1]
        assert saved.ui["lycoris"][0]["state"] == state
    handed = host.nodes.NODE_CLASS_MAPPINGS["LycorisToLoraStack"].execute(stack=stack, model=plain.model)
    assert "ComfyUI's own loader ignores it: 1 ia3 layer" in handed.args[-1]
    assert handed.ui["lycoris"][0]["state"] == "partly"


def test_the_host_finds_no_layer_of_flux_under_pefts_names(host: Host, tmp_path: Path) -> None:
    import comfy.lora

    needs("Flux 1")
    model = dialects.model_of("Flux 1")
    key = "diffusion_model.double_blocks.0.img_attn.proj"
    shapes = dialects.shapes_of("Flux 1")
    layer = lyc.ALGORITHMS["lora"].init(shapes[f"{key}.weight"], 2, 2.0, seed=0)
    adapter = lyc.Adapter.of({key: layer}, name="one")
    known = comfy.lora.model_lora_keys_unet(model, {})
    for dialect, found in (("peft", 0), ("comfy", 1), ("kohya", 1), ("diffusers", 1)):
        out = tmp_path / dialect if dialect == "peft" else tmp_path / f"{dialect}.safetensors"
        result = lyc.save_adapter(adapter, out, dialect, model=shapes)  # type: ignore[arg-type]
        tensors = comfy.utils.load_torch_file(result.path, safe_load=True)
        assert len(comfy.lora.load_lora(tensors, known, log_missing=False)) == found
        assert bool(result.in_comfy) == (found == 0)


@pytest.mark.parametrize("mode", ["merge", "bypass"])
def test_the_metadata_of_files_is_kept_with_the_model_as_by_hosts_loaders_in_a_row(
    host: Host, plain: Patched, lora_file: Any, mode: str
) -> None:
    tensors = load_file(assets() / "loras" / LORA)
    files = {
        "plain.safetensors": None,
        "guided.safetensors": {"reference_downscale_factor": "2"},
        "other.safetensors": {"ss_network_dim": "4"},
    }
    for name, metadata in files.items():
        lora_file(name, lambda path, metadata=metadata: save_file(tensors, path, metadata))
    factor = host.nodes.NODE_CLASS_MAPPINGS.get("GetICLoRAParameters")
    for rows in (
        [("guided", 1.0, 1.0)],
        [("guided", 0.0, 0.5), ("plain", 1.0, 1.0)],
        [("guided", 1.0, 1.0), ("other", 1.0, 1.0)],
        [("guided", 1.0, 1.0), ("other", 0.0, 0.0)],
        [("plain", 1.0, 1.0)],
    ):
        wanted = plain
        for name, model, clip in rows:
            file = f"{name}.safetensors"
            wanted = Patched(*host.nodes.LoraLoader().load_lora(wanted.model, wanted.clip, file, model, clip))
        stack = host.stack(*((f"{name}.safetensors", *strengths) for name, *strengths in rows))
        got = host.apply(plain, stack, mode=mode)
        for one, other in ((got.model, wanted.model), (got.clip.patcher, wanted.clip.patcher)):
            assert one.get_attachment("lora_metadata") == other.get_attachment("lora_metadata"), rows
        if factor:
            assert factor.execute(got.model).args == factor.execute(wanted.model).args
