"""Layers whose weight the host uses without calling them, so that hooks on them would not run.

They must be merged in every mode, and the report must say so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hosting import Host, Patched, load, model_of, unload
from kinds import lora
from packed import quantised
from safetensors.torch import save_file
from torch import Tensor

pytestmark = pytest.mark.host

FC1, FC2 = "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"
HIDDEN = 128


def part_of_host(module: str, name: str) -> Any:
    """A class of the host, or a skipped test where this host has none of that name."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return pytest.skip(f"this host has no {module}.{name}")


def minimax_tensors() -> dict[str, Tensor]:
    """Random weights for a MiniMax-H3 of one block, in the host's own layout."""
    import comfy.ops

    model = part_of_host("comfy.ldm.minimax.model", "MiniMaxH3Model")(
        hidden_size=HIDDEN,
        num_layers=1,
        token_refiner_num_layers=1,
        num_attention_heads=1,
        attention_head_dim=128,
        ffn_hidden_size=HIDDEN,
        text_dim=64,
        timestep_input_dim=32,
        time_embed_hidden_size=64,
        time_embed_dim=64,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    torch.manual_seed(1)
    return {
        key: torch.ones(tensor.shape)
        if "norm" in key
        else torch.randn(tensor.shape) / max(1, tensor.shape[-1]) ** 0.5
        for key, tensor in model.state_dict().items()
    }


@pytest.fixture
def minimax(host: Host) -> Iterator[Callable[[str], Patched]]:
    """Load a MiniMax-H3 of one block whose MLP is plain, or in a quantised format."""
    path = host.base / "models" / "diffusion_models" / "minimax.safetensors"

    def load(form: str) -> Patched:
        tensors = minimax_tensors()
        if form != "plain":
            for layer in (FC1, FC2):
                tensors |= quantised(host, form, tensors.pop(f"{layer}.weight"), f"{layer}.weight")
        save_file(tensors, path)
        return host.unet(path.name)

    yield load
    unload()


@pytest.fixture
def stack(stack_of: Callable[..., Any]) -> Any:
    """A stack with a LoRA for both layers of the MLP."""
    torch.manual_seed(2)
    return stack_of({FC1: lora((2 * HIDDEN, HIDDEN)), FC2: lora((HIDDEN, HIDDEN))}, 3.0)


def outputs(patched: Patched) -> Tensor:
    """What the model makes of fixed latents of a video and a sound, and of a fixed text."""
    generator = torch.Generator().manual_seed(3)
    sizes = ((1, 24, 1, 4, 4), (1, 32, 2, 8), (1, 5, 64))
    video, audio, text = (torch.randn(*size, generator=generator) for size in sizes)
    load(patched.model)
    model = patched.model.model.diffusion_model
    with torch.inference_mode():
        text = model.preprocess_text_embeds(text)
        made = model([video, audio], torch.tensor([500.0]), text)
    return torch.cat([part.float().flatten() for part in made])


@pytest.mark.parametrize(("form", "merged"), [("int8 by rows", True), ("int8", True), ("plain", False)])
def test_what_the_fused_call_of_minimax_gets_is_merged_if_it_is_int8(
    host: Host, minimax: Callable[[str], Patched], stack: Any, form: str, merged: bool
) -> None:
    model = minimax(form)
    base, wanted = outputs(model), outputs(host.apply(model, stack))
    bypassed = host.apply(model, stack, mode="bypass")
    keys = {f"diffusion_model.{FC2}.weight"} if merged else set()
    assert set(bypassed.patches) == keys
    reason = f"1 merged: its model multiplies by the weight without calling the layer (diffusion_model.{FC2})"
    assert (reason in bypassed.report) is merged
    effect = (wanted - base).norm()
    assert effect > 0.02 * base.norm()
    error = ((outputs(bypassed) - wanted).norm() / effect).item()
    print(f"{form}: {error:.1e} of the effect")
    assert error < (0.1 if merged else 1e-3)


def test_hooks_on_it_do_not_run(host: Host, minimax: Callable[[str], Patched]) -> None:
    """What the rule is there for: if the host calls the layer one day, the rule can go."""
    model = minimax("int8")
    called: list[str] = []
    handles = [
        model.model.get_model_object(f"diffusion_model.{layer}").register_forward_hook(
            lambda *_, layer=layer: called.append(layer)
        )
        for layer in (FC1, FC2)
    ]
    outputs(model)
    for handle in handles:
        handle.remove()
    assert called == [FC1]


@pytest.mark.parametrize(
    ("module", "name", "layer", "uncalled"),
    [
        # It updates its state by the weight of a convolution when it generates one token after the other.
        ("comfy.text_encoders.qwen35", "GatedDeltaNet", "conv1d", True),
        ("comfy.text_encoders.qwen35", "GatedDeltaNet", "in_proj_z", False),
        # It gets the weight from `cast_bias_weight`.
        ("comfy.ldm.minimax.audio_vae", "CausalAttention", "qkv", True),
        ("comfy.ldm.minimax.audio_vae", "CausalAttention", "proj", False),
        # The dtype or the presence of a weight is no use of it.
        ("comfy.ldm.cogvideo.model", "CogVideoXPatchEmbed", "proj", False),
        ("comfy.ldm.lumina.model", "SimpleMLPAdaLN", "cond_embed", False),
        # Only when the weights are made.
        ("comfy.ldm.anima.model", "Attention", "o_proj", False),
    ],
)
def test_what_the_classes_of_the_host_use_without_calling_it(
    host: Host, module: str, name: str, layer: str, uncalled: bool
) -> None:
    """The classes are those in which a search of the host's source finds the weight of a layer in use."""
    kind = part_of_host(module, name)
    parent = kind.__new__(kind)
    torch.nn.Module.__init__(parent)
    setattr(parent, layer, torch.nn.Linear(4, 4))
    rule = importlib.import_module(f"{host.pack.__name__}.lycoris_nodes.apply.uncalled").used_uncalled
    assert rule(model_of(x=parent).model, f"diffusion_model.x.{layer}") is uncalled
