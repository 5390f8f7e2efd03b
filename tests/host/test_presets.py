"""What `attn-mlp` reaches in every architecture of the host."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from hosting import Host, Patched, calculated, needs, patcher
from torch import nn
from trainable import module, tiny

from tests.harness import dialects, encoder_names, zoo
from tests.harness.inputs import INPUTS

pytestmark = pytest.mark.host

LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
LEFT_OUT = {
    *("img_mod.lin", "txt_mod.lin", "modulation.lin", "img_mod.#", "txt_mod.#", "default_modulation.#"),
    *("modC.#", "modX.#", "modCX.#", "mod_x", "mod_y", "adaln_proj.linear", "adaln_modulation"),
    *("text_modulation.out_layer", "visual_modulation.out_layer"),
    *(f"adaln_modulation_{part}.#" for part in ("self_attn", "cross_attn", "mlp")),
    *("adaLN_modulation.#", "adaLN_modulation_img.#", "adaLN_modulation_txt.#"),
    *("adaLN_modulation_msa", "adaLN_modulation_mlp"),
    *("norm#.linear", "img_norm#.linear", "instruct_norm#.linear"),
    # From the sound, from the time, and of the numbers of frames.
    "injector_adain_layers.#.linear",
    *("emb_layers.#", "mapper", "mapper_sca", "mapper_crp", "time_pos_embed.#"),
    # What embeds positions and captions, and what makes the modulation of a whole model.
    *(
        f"{place}repo_layers.#.{part}_map"
        for place in ("", "noise_", "context_")
        for part in ("gate", "content", "final")
    ),
    "caption_projection.#.linear",
    *("distilled_guidance_layer.layers.#.in_layer", "distilled_guidance_layer.layers.#.out_layer"),
}
"""The ends of the paths of the linear layers in blocks that are not trained, with # for numbers."""

DEEPER = {
    "Wan VACE": {"vace_layers": 2},
    "Wan S2V": {"audio_inject_layers": [0, 1]},
    "WanDancer": {"audio_inject_layers": [0, 1]},
    "MiniMax-H3": {"token_refiner_num_layers": 2},
    "Boogu": {"num_layers": 4, "num_double_stream_layers": 2},
    "PiD": {"patch_depth": 4},
    "TripoSplat": {"num_refiner_blocks": 2},
}
"""Settings with which a model repeats what it has once in the zoo."""


def numberless(path: str) -> str:
    return re.sub(r"\d+", "#", path)


def in_blocks(model: nn.Module) -> set[str]:
    """The paths of the linear layers in what a model repeats.

    Repeated are the members of lists, with modules inside, whose paths differ from those of others of their
    class in numbers alone.
    """
    modules = dict(model.named_modules())
    members: dict[str, tuple[str, str]] = {}
    for path, inner in modules.items():
        holder = modules[path.rpartition(".")[0]] if path else None
        if isinstance(holder, LISTS) and not isinstance(inner, LISTS) and list(inner.children()):
            members[path] = numberless(path), type(inner).__name__
    times = Counter(members.values())
    return {
        f"{path}.{end}"
        for path, kind in members.items()
        if times[kind] > 1
        for end, inner in modules[path].named_modules()
        if isinstance(inner, nn.Linear)
    }


def is_left_out(path: str) -> bool:
    form = numberless(path)
    return any(form == end or form.endswith(f".{end}") for end in LEFT_OUT)


@pytest.mark.parametrize(
    ("part", "architecture"),
    [*(("model", name) for name in zoo.SPECIES), *(("encoders", name) for name in zoo.ENCODERS)],
)
def test_every_layer_of_a_repeated_block_is_trained_but_modulation_and_embedders(
    host: Host, part: str, architecture: str
) -> None:
    if part == "model":
        needs(architecture)
        deeper = DEEPER.get(architecture)
        model = zoo.make(architecture, changed=deeper) if deeper else dialects.model_of(architecture)
        model = model.diffusion_model
    else:
        model = encoder_names.encoders_of(architecture)
    layers = in_blocks(model)
    assert layers
    modules = importlib.import_module(f"{host.ops.__name__}.modules.sites")
    chosen = set(modules.select(model, preset="attn-mlp"))
    assert {path for path in layers - chosen if not is_left_out(path)} == set()
    assert {path for path in chosen if is_left_out(path)} == set()
    asked = importlib.import_module(f"{host.ops.__name__}.modules.presets").ModuleClasses(model)
    assert all(asked.aside(path) for path in layers - chosen)


@pytest.mark.parametrize("architecture", ["Flux 1", "Flux 2"])
def test_what_single_blocks_learn_is_the_same_from_a_file_of_every_dialect(
    host: Host, tmp_path: Path, architecture: str
) -> None:
    """Also where there is one single block. Its layers are no attention alone."""
    model, ops = tiny(architecture, depth_single_blocks=1), host.ops
    x, conds = INPUTS[architecture].make()
    sigma = torch.tensor([0.4, 0.7])[: len(x)]
    with module(host, "session").opened(patcher(model)) as opened:
        net = opened.adapted(rank=2, preset="attn-mlp", seed=0)
        options = ops.TrainOptions(steps=3, lr=1e-2, warmup=0, bar=False, picture=False)
        ops.train_network(
            net, [x], lambda _, batch: opened.prediction(batch, sigma, conds).square().mean(), options
        )
        learned = {
            f"diffusion_model.{path}.weight": member.layer.delta(member.site.module.weight).detach()
            for path, member in net.members.items()
        }
        for dialect in ("kohya", "comfy", "peft", "diffusers", "lycoris"):
            (tmp_path / dialect).mkdir()
            net.save_weights(tmp_path / dialect / "adapter_model.safetensors", dialect)
    attention = importlib.import_module(f"{ops.__name__}.modules.sites").select(model, preset="attn-only")
    assert attention and not any("single_blocks" in path for path in attention)
    assert all(learned[f"diffusion_model.single_blocks.0.linear{n}.weight"].any() for n in (1, 2))
    weights = model.state_dict()
    for folder in tmp_path.iterdir():
        stack = ops.Stack([ops.Entry(ops.load_adapter(folder / "adapter_model.safetensors"))])
        patches = host.apply(Patched(patcher(model), None), stack, strict=True, clip=False).patches
        assert patches.keys() == learned.keys()
        for key, change in learned.items():
            found = calculated(patches, key, weights[key]) - weights[key]
            assert (found - change).norm() <= 1e-4 * change.norm(), (folder.name, key)
