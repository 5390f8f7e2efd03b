"""Exported files: the host's own loaders load them, and they give the latent that was seen live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hosting import Host, Patched, calculated
from safetensors.torch import load_file

from tests.harness.assets import assets

Distance = Callable[[torch.Tensor, torch.Tensor], float]
pytestmark = pytest.mark.host
NEAR = 1e-3
"""The largest error of a latent, as a share of the effect of the adapters."""
BLEND = (("lora", 0.8, 0.7), ("loha", -0.5, 0.6), ("lokr", 1.2, -0.9))
"""(recipe, model strength, text-encoder strength) of a stack."""

PLACES = (
    *("diffusion_model.time_embed.", "diffusion_model.input_blocks.0.", "diffusion_model.input_blocks.1."),
    *("diffusion_model.input_blocks.2.", "diffusion_model.output_blocks.0.0.", "diffusion_model.out."),
    *("encoder.layers.0.", "encoder.layers.11.", "final_layer_norm.", "position_embedding."),
    "taesd_encoder.",
)
"""Where every kind of layer is, those that no adapter changes among them."""


@pytest.fixture
def few(host: Host) -> dict[str, torch.Tensor]:
    """The tensors of the base checkpoint at PLACES: a file of all of them would be ten times as large."""
    base = load_file(assets() / "checkpoints" / "base.safetensors")
    return {key: tensor for key, tensor in base.items() if any(place in key for place in PLACES)}


def test_in_the_files_own_dtype_it_gives_the_live_latent(
    host: Host, distance: Distance, exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With float16 weights, as on a GPU, the live model is rounded just as the file is."""
    import folder_paths
    from comfy.cli_args import args

    monkeypatch.setattr(args, "fp16_unet", True)
    stack = host.stack(*BLEND)
    path = exported("checkpoints/base.safetensors", stack)
    live = host.apply(host.checkpoint(), stack)
    key = "diffusion_model.input_blocks.0.0.weight"
    assert live.model.model_state_dict()[key].dtype == torch.float16
    folder_paths.add_model_folder_path("checkpoints", str(path.parent))
    # The host caches its lists of files.
    folder_paths.filename_list_cache.clear()
    error = distance(host.latent(host.checkpoint(path.name)), host.latent(live))
    print(f"{error:.2e} of the effect")
    assert error <= NEAR


def test_everything_else_is_byte_equal_and_merged_weights_one_rounding_away(
    host: Host,
    plain: Patched,
    exported: Callable[..., Path],
    few: dict[str, torch.Tensor],
    model_file: Callable[..., Path],
) -> None:
    """In float32, a merged weight is what the host's own call of the live patch gives.

    In float16, it is this value rounded once, but for ties.
    """
    stack = host.stack(*BLEND)
    live = host.apply(plain, stack)
    model_file("checkpoints/few.safetensors", few)
    own = load_file(exported("checkpoints/few.safetensors", stack))
    wide = load_file(exported("checkpoints/few.safetensors", stack, "float32"))
    assert set(own) == set(few) == set(wide)
    merged = 0
    for key, tensor in few.items():
        host_key = key.replace("model.diffusion_model.", "diffusion_model.").replace(
            "cond_stage_model.", "clip_l."
        )
        if host_key not in live.patches:
            assert own[key].dtype == tensor.dtype
            assert torch.equal(own[key].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))
            assert torch.equal(wide[key], tensor.float())
            continue
        merged += 1
        exact = calculated(live.patches, host_key, tensor.float())
        assert torch.equal(wide[key], exact)
        half_ulp = (exact.abs() * torch.finfo(torch.float16).eps / 2).clamp(min=2**-25)
        # Two sums in float32 that differ in the last bit may lie on both sides of a tie.
        assert ((own[key].float() - exact).abs() <= half_ulp + 2e-7 * exact.abs().max()).all()
        assert (own[key] != exact.half()).float().mean() < 1e-3
    assert len(few) - merged > 50 and merged > 30


@pytest.mark.parametrize(
    ("folder", "prefix", "part"),
    [
        ("diffusion_models", "model.diffusion_model.", "diffusion_model."),
        ("text_encoders", "cond_stage_model.transformer.", "clip_l.transformer."),
    ],
)
def test_a_part_in_a_file_of_its_own(
    host: Host,
    plain: Patched,
    exported: Callable[..., Path],
    few: dict[str, torch.Tensor],
    model_file: Callable[..., Path],
    folder: str,
    prefix: str,
    part: str,
) -> None:
    """The keys of the file have no prefix, and the adapter is for two parts of a model.

    This is how users of Flux, Wan and Qwen have their models.
    """
    alone = {key.removeprefix(prefix): tensor for key, tensor in few.items() if key.startswith(prefix)}
    model_file(f"{folder}/part.safetensors", alone)
    stack = host.stack(*BLEND)
    live = host.apply(plain, stack)
    own = load_file(exported(f"{folder}/part.safetensors", stack, "float32"))
    changed = 0
    for key, tensor in alone.items():
        wide, name = tensor.float(), f"{part}{key}"
        changed += name in live.patches
        exact = calculated(live.patches, name, wide) if name in live.patches else wide
        assert torch.equal(own[key], exact)
    assert changed > 10
