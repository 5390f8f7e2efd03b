"""Exported files: the host's own loaders load them, and they give the latent that was seen live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hosting import Host, Patched, calculated
from safetensors.torch import load_file, save_file

from tests.harness.assets import assets

Distance = Callable[[torch.Tensor, torch.Tensor], float]
pytestmark = pytest.mark.host
NEAR = 1e-3
"""The largest error of a latent, as a share of the effect of the adapters."""
BLEND = (("lora", 0.8, 0.7), ("loha", -0.5, 0.6), ("lokr", 1.2, -0.9))
"""(recipe, model strength, text-encoder strength) of a stack."""


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
    host: Host, plain: Patched, exported: Callable[..., Path]
) -> None:
    """In float32, a merged weight is what the host's own call of the live patch gives.

    In float16, it is this value rounded once, but for ties.
    """
    stack = host.stack(*BLEND)
    live = host.apply(plain, stack)
    base = load_file(assets() / "checkpoints" / "base.safetensors")
    own = load_file(exported("checkpoints/base.safetensors", stack))
    wide = load_file(exported("checkpoints/base.safetensors", stack, "float32"))
    assert list(own) == list(base) == list(wide)
    merged = 0
    for key, tensor in base.items():
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
    assert merged == len(live.patches)


@pytest.mark.parametrize(
    ("folder", "prefix", "part"),
    [
        ("diffusion_models", "model.diffusion_model.", "diffusion_model."),
        ("text_encoders", "cond_stage_model.transformer.", "clip_l.transformer."),
    ],
)
def test_a_part_in_a_file_of_its_own(
    host: Host, plain: Patched, exported: Callable[..., Path], folder: str, prefix: str, part: str
) -> None:
    """The keys of the file have no prefix, and the adapter is for two parts of a model.

    This is how users of Flux, Wan and Qwen have their models.
    """
    base = load_file(assets() / "checkpoints" / "base.safetensors")
    alone = {key.removeprefix(prefix): tensor for key, tensor in base.items() if key.startswith(prefix)}
    source = host.base / "models" / folder / "part.safetensors"
    save_file(alone, source)
    stack = host.stack(*BLEND)
    live = host.apply(plain, stack)
    own = load_file(exported(f"{folder}/part.safetensors", stack, "float32"))
    changed = {key for key, patch in live.patches.items() if key.startswith(part)}
    assert changed
    for key, tensor in alone.items():
        wide, name = tensor.float(), f"{part}{key}"
        exact = calculated(live.patches, name, wide) if name in live.patches else wide
        assert torch.equal(own[key], exact)
        changed.discard(name)
    assert not changed
