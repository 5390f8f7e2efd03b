"""Train LyCORIS Slider in the real host, in this process, on tiny models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, patcher
from PIL import Image
from trainable import caption, fill, gradients, latent, module, run_node, tiny, unchanged

pytestmark = pytest.mark.host

RECIPES = {
    # Of a network that puts out noise, and of one that puts out a velocity.
    "SD1.5": (24, False),
    "Flux 1": (20, True),
}


@pytest.mark.parametrize("architecture", RECIPES)
@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_the_loss_of_a_guide_is_that_of_the_paper_on_what_the_network_puts_out(
    host: Host, architecture: str, strength: float
) -> None:
    training, losses = module(host, ""), module(host, "loss")
    width, _ = RECIPES[architecture]
    model, guidance = tiny(architecture), 1.7
    with training.opened(patcher(model)) as session:
        network = session.adapted(rank=2, preset="attn-mlp", seed=0).apply_to()
        fill(network)
        values = torch.randn(1, 4, 8, 8)
        given = training.Latent(values, (values.shape,))

        def said(seed: int) -> Any:
            draw = torch.Generator().manual_seed(seed)
            pooled = {"pooled_output": torch.randn(1, 12, generator=draw)}
            text = [[10 * torch.randn(1, 5, width, generator=draw), pooled]]
            return training.caption_of(model, text, given)

        what, less, more = said(1), said(2), said(3)
        outputs: list[torch.Tensor] = []
        model.diffusion_model.register_forward_hook(lambda *args: outputs.append(args[-1].detach()))

        def put_out(one: Any, at: float) -> torch.Tensor:
            """What the network puts out for a caption, with the adapter at a strength."""
            network.set_multiplier(at)
            torch.manual_seed(4)
            plain = losses.DiffusionLoss(session=session, times=training.Times())
            plain(session.network, [training.Sample(given, one)])
            return outputs.pop()

        with torch.no_grad():
            of_what, of_less, of_more = (put_out(one, 0.0) for one in (what, less, more))
            own = put_out(what, strength)
        # Gandikota et al., 2303.07345, equation 7, towards a caption, from another than the empty one.
        end = of_more if strength > 0 else of_less
        wanted = (own - (of_what + abs(strength) * guidance * (end - of_what))).square().mean()
        assert (of_more - of_less).norm() > 1e-3 * of_what.norm()
        guided = losses.DiffusionLoss(session=session, times=training.Times())
        guide = losses.Guide(less, more, guidance)
        network.set_multiplier(1.0)
        torch.manual_seed(4)
        found = guided(session.network, [training.Sample(given, what, strength=strength, guide=guide)])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)
        assert found.requires_grad


def test_a_checkpointed_block_runs_again_at_the_strength_of_its_first_run(host: Host) -> None:
    training, losses = module(host, ""), module(host, "loss")
    model, found = tiny("SD1.5"), list[list[torch.Tensor]]()
    for checkpointing in (False, True):
        torch.manual_seed(3)
        with training.opened(patcher(model), checkpointing=checkpointing) as session:
            network = session.adapted(rank=2, preset="attn-mlp", seed=0).apply_to()
            fill(network)
            loss = losses.DiffusionLoss(session=session, times=training.Times())
            shown = [training.Latent(values, (values.shape,)) for values in torch.randn(2, 1, 4, 8, 8)]
            said = training.caption_of(model, caption(1), shown[0])
            less, more = (
                training.Sample(one, said, strength=by) for one, by in zip(shown, (-1.0, 2.0), strict=True)
            )
            assert (session.blocks > 0) is checkpointing
            loss(session.network, [replace(less, others=(more,))]).backward()
            found.append(gradients(network))
    for plain, again in zip(*found, strict=True):
        assert (again - plain).norm() <= 1e-4 * plain.norm()


@pytest.mark.parametrize(
    ("checkpointing", "strengths", "degree"),
    # A parabola through three strengths is uncertain at 0.
    [(False, (-1.0, -0.5, 0.5, 1.0), 2), (True, (-1.0, 0.5, 1.5), 1)],
)
def test_opposed_pictures_pull_apart_what_the_network_puts_out(
    host: Host, checkpointing: bool, strengths: tuple[float, ...], degree: int
) -> None:
    training, losses = module(host, ""), module(host, "loss")
    model = tiny("SD1.5")
    with training.opened(patcher(model), checkpointing=checkpointing) as session:
        network = session.adapted(rank=2, preset="attn-mlp", seed=0).apply_to()
        fill(network)
        loss = losses.DiffusionLoss(session=session, times=training.Times())
        shown = [
            training.Latent(values, (values.shape,)) for values in torch.randn(len(strengths), 1, 4, 8, 8)
        ]
        said = training.caption_of(model, caption(1), shown[0])
        outputs: list[torch.Tensor] = []
        hook = model.diffusion_model.register_forward_hook(lambda *args: outputs.append(args[-1]))

        def put_out(one: Any, at: float) -> torch.Tensor:
            network.set_multiplier(at)
            torch.manual_seed(4)
            loss(session.network, [training.Sample(one, said)])
            # A pass that runs again in the backward pass has the strength of the first time.
            network.set_multiplier(1.0)
            return outputs.pop()

        found = [put_out(one, at) for one, at in zip(shown, strengths, strict=True)]
        alone = [put_out(one, 0.0).detach() for one in shown]
        torch.manual_seed(4)
        torch.rand(1)
        noise = torch.randn(1, 4, 8, 8)
        # What the network lacks at the pictures, as a curve over the strengths, without what it is at 0.
        lacks = torch.stack([noise - own for own in alone]).flatten(1)
        curve = torch.tensor([[at**power for power in range(degree + 1)] for at in strengths])
        shared = torch.linalg.lstsq(curve, lacks).solution[0].view_as(noise)
        # The farther a picture, the more it counts.
        counts = torch.tensor(strengths).square().view(-1, 1, 1, 1, 1)
        counts = counts / counts.mean()
        errors = counts * torch.stack([(one - noise + shared).square() for one in found])
        errors.mean().backward()
        before = gradients(network)
        row = [training.Sample(one, said, strength=by) for by, one in zip(strengths, shown, strict=True)]
        torch.manual_seed(4)
        together = loss(session.network, [replace(row[0], others=tuple(row[1:]))])
        together.backward()
        torch.testing.assert_close(together, errors.mean())
        for own, other in zip(gradients(network), before, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-7)
        # The part that is masked out is held to what the model alone puts out, which it is asked once.
        mask = (torch.arange(8) < 3).expand(1, 1, 8, 8).float()
        row = [replace(one, mask=mask) for one in row]
        outputs.clear()
        torch.manual_seed(4)
        held = replace(loss, masked_prior=0.5)(session.network, [replace(row[0], others=tuple(row[1:]))])
        assert len(outputs) == 2 * len(strengths)
        apart = counts * torch.stack([(one - own).square() for one, own in zip(found, alone, strict=True)])
        wanted = (mask * errors + 0.5 * (1 - mask) * apart).mean() / mask.mean()
        torch.testing.assert_close(held, wanted)
        hook.remove()


USUAL = {"steps": 6, "learning_rate": 2e-2, "rank": 4, "seed": 5}
FULL = {"layers": "own", "layers.preset": "full"}
EMPTY = [{"samples": torch.zeros((1, 4, 8, 8))}]


def slide(host: Host, folder: Path, model: Any, **inputs: Any) -> dict[str, Any]:
    known = {"model": model, "positive": [caption(0)], **USUAL, "preset": "full"}
    return run_node(host, "LycorisSlider", folder, **{**known, **inputs})


def test_opposed_pictures_are_learned_at_several_strengths(host: Host, tmp_path: Path) -> None:
    model = patcher(tiny("SD1.5"))
    pictures = [latent(seed) for seed in range(8)]
    with unchanged(model.model):
        made = slide(
            host, tmp_path, model, latents=pictures, strengths="-1, -0.5, 0.5, 1", steps=3, sample_every=3
        )
    assert made["path"].endswith("loras/slider_00001_.safetensors") and made["steps_done"] == 3
    assert (
        "data: 2 latents (8 x 8 x2), batches in an epoch: 2; each step trains at the strengths"
        in made["report"]
    )
    assert "cosine after a warm-up" in made["report"]
    # What was sampled on the way is there at each strength, side by side.
    (sample,) = tmp_path.glob("loras/*/sample-000003.png")
    with Image.open(sample) as picture:
        assert picture.width == 4 * picture.height


def told(host: Host, folder: Path, **values: Any) -> Any:
    """What the page is told of a stopped slider with these widgets."""
    import folder_paths

    page, schema = (host.module(f"lycoris_nodes.training.{name}") for name in ("node.told", "slider.schema"))
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(folder))
    try:
        asked = page.TrainingQuestion([], [], "1", "1", linked=[], values=values)
        return page.told(asked, schema.inputs()).stopped
    finally:
        folder_paths.set_output_directory(before)


def test_prompts_need_no_pictures_and_a_stopped_slider_goes_on(
    host: Host, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    import comfy.model_management

    model = patcher(tiny("SD1.5"))
    given = {
        "latents": EMPTY,
        # Several prompts, each with its own ends.
        "positive": [caption(0), caption(3)],
        "less": [caption(1)],
        "more": [caption(2), caption(4)],
        "pictures": 2,
        "guidance": 3.0,
        "algorithm": "lokr",
    }
    with unchanged(model.model):
        stop_after(100)
        whole = slide(host, tmp_path, model, **given, filename_prefix="loras/whole")
        stop_after(3)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            slide(host, tmp_path, model, **given)
        stop_after(100)
        assert told(host, tmp_path, guidance=3.0).differences != []
        stopped = told(
            host, tmp_path, **{**USUAL, **FULL, "pictures": 2, "guidance": 3.0, "algorithm": "lokr"}
        )
        assert stopped.step == 3 and stopped.differences == []
        made = slide(host, tmp_path, model, **given)
    assert (
        "data: 2 latents (8 x 8 x2), batches in an epoch: 2; each step trains at the strengths -1, 1"
        in made["report"]
    )
    assert "constant after a warm-up" in made["report"]
    # The pictures that the model samples, and all else, follow from the seed.
    assert "went on from step 3" in made["report"]
    assert all(torch.equal(made["lora"][key], value) for key, value in whole["lora"].items())


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"strengths": "0.5, 1"}, "both sides of 0"),
        ({"strengths": "-1, 1e9"}, "both sides of 0.*from -100 to 100"),
        ({"less": [caption(1)]}, "both of its ends"),
        ({"latents": [latent(0)]}, "each row needs a picture"),
        ({"latents": EMPTY}, "empty latent without prompts. Link `less` and `more`, or opposed"),
        ({"latents": [latent(0), latent(0)]}, "number 1 to 2: opposed pictures are the same"),
        ({"less": [caption(1)], "more": [caption(2), caption(1)]}, "more, number 2 of 2: both ends.* same"),
        ({"less": [caption(1)], "more": [caption(2)], "guidance": 0.0}, "guidance.*nothing to learn"),
        (
            {"less": [caption(1)], "more": [caption(2), caption(3)], "latents": EMPTY},
            r"^more: .*as many prompts as in `positive` \(found 2 and 1;",
        ),
        (
            {name: [caption(seed, 8, 9)] for seed, name in enumerate(("positive", "less", "more"))}
            | {"latents": EMPTY},
            "a caption does not have the model's width.*found 9",
        ),
    ],
    ids=[
        "strengths",
        "huge",
        "ends",
        "few",
        "empty",
        "one picture",
        "one prompt",
        "guidance",
        "prompts",
        "width",
    ],
)
def test_what_is_no_slider_says_why(
    host: Host, tmp_path: Path, tiny_unet: Any, given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(host.ops.LycorisError, match=problem):
        slide(host, tmp_path, tiny_unet, **{"latents": [latent(0), latent(1)], **given})


def test_the_host_queues_it_with_groups_of_settings(host: Host) -> None:
    import execution

    inputs = host.nodes.NODE_CLASS_MAPPINGS["LycorisSlider"].GET_SCHEMA().inputs
    widgets = {one.id: one.default for one in inputs if getattr(one, "default", None) is not None}
    groups = dict.fromkeys(("layers", "optimisation", "output"), "usual")
    links = {"model": ["1", 0], "latents": ["3", 0], "positive": ["2", 0]}
    prompt: dict[str, Any] = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "base.safetensors"}),
        "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
        "3": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "4": ("LycorisSlider", {**widgets, **groups, **links}),
    }
    nodes = {key: {"class_type": kind, "inputs": given} for key, (kind, given) in prompt.items()}
    _, _, outputs, found = asyncio.run(execution.validate_prompt("slider", nodes, None))
    assert outputs == ["4"] and found == {}
