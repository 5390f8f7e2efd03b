"""Masks together with ControlNets, regions, inpainting, second passes and other nodes; and bad input."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
import torch
from hosting import LORA, Host, Patched, patcher, unload
from masking import OF_KINDS, half, latents, masked, passed, sampled, stack_for, text
from torch import Tensor
from trainable import tiny

from tests.harness.inputs import WORDS

pytestmark = pytest.mark.host

Given = tuple[dict[str, Any], Any]
"""Latents, and a positive conditioning."""


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def control_net(model: Any) -> Any:
    """A ControlNet of the host for a tiny UNet, with random weights."""
    import comfy.controlnet
    import comfy.ops
    from comfy.cldm.cldm import ControlNet

    known = inspect.signature(ControlNet.__init__).parameters
    config = {name: value for name, value in model.model_config.unet_config.items() if name in known}
    net = ControlNet(**{**config, "hint_channels": 3, "operations": comfy.ops.disable_weight_init})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw()))
    return comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))


def with_control(host: Host, model: Any) -> Given:
    hint = torch.rand(1, 64, 64, 3, generator=draw())
    positive, _ = host.nodes.ControlNetApplyAdvanced().apply_controlnet(
        text(), text(6), control_net(model), hint, 1.0, 0.0, 1.0
    )
    return latents(), positive


def with_regions(host: Host, model: Any) -> Given:
    """Two texts, each in a half of its own. The pass has both as samples of one batch."""
    sides = (half()[:, ::8, ::8], 1 - half()[:, ::8, ::8])
    regions = [
        host.nodes.ConditioningSetMask().append(text(seed), side, "default", 1.0)[0]
        for seed, side in zip((5, 9), sides, strict=True)
    ]
    return latents(), regions[0] + regions[1]


def with_inpainting(host: Host, model: Any) -> Given:
    return host.nodes.SetLatentNoiseMask().set_mask(latents(), 1 - half())[0], text()


def in_a_batch(host: Host, model: Any) -> Given:
    return latents(count=3), text()


def larger(host: Host, model: Any) -> Given:
    """A second pass, at another size."""
    return host.nodes.LatentUpscale().upscale(latents(), "bilinear", 96, 64, "disabled")[0], text()


@pytest.mark.parametrize("condition", [with_control, with_regions, with_inpainting, in_a_batch, larger])
def test_masks_hold_beside_other_conditions(
    host: Host, unet: Patched, condition: Callable[[Host, Any], Given]
) -> None:
    """A full mask gives the whole stack, an empty one none of it, and a mask of one half acts most there."""
    model = unet.model.model
    stack = stack_for(host, model, OF_KINDS)

    def found(stack: Any, **inputs: Any) -> Tensor:
        on = unet if stack is None else host.apply(unet, stack, clip=False, **inputs)
        return sampled(host, on, *condition(host, model))

    plain, whole = found(None), found(stack, mode="bypass")
    effect = whole - plain
    assert effect.norm() > 0.003 * plain.norm()
    every = found(masked(host, stack, mask=torch.ones(1, 4, 4), text="whole"))
    assert (every - whole).norm() < 1e-2 * effect.norm()
    none = found(masked(host, stack, mask=torch.zeros(1, 4, 4)))
    torch.testing.assert_close(none, plain, rtol=0, atol=0)
    changed = (found(masked(host, stack, mask=1 - half())) - plain).abs()
    left, right = changed.chunk(2, -1)
    assert right.mean() > left.mean()


def test_an_area_has_its_part_of_the_mask(host: Host, unet: Patched) -> None:
    """Two areas of one size are samples of one pass, and see different parts of the latent."""
    stack = stack_for(host, unet.model.model, OF_KINDS)
    areas = [host.nodes.ConditioningSetArea().append(text(x), 32, 64, x, 0, 1.0)[0] for x in (0, 32)]

    def found(mask: Tensor) -> Tensor:
        on = host.apply(unet, masked(host, stack, mask=mask), clip=False)
        return sampled(host, on, latents(), areas[0] + areas[1], cfg=1.0, steps=1)

    none, every = found(torch.zeros(1, 4, 4)), found(torch.ones(1, 4, 4))
    assert not torch.allclose(none, every, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found(half()), torch.cat([every[..., :4], none[..., 4:]], -1))


def test_a_context_window_has_its_frames_of_the_mask(host: Host) -> None:
    """Two windows of three latent frames each. The mask covers the first window."""
    import comfy.latent_formats

    extras = pytest.importorskip("comfy_extras.nodes_context_windows")
    model = tiny("Wan 2.1 t2v")
    # The latent format that the host gives Wan has sixteen channels.
    model.latent_format = comfy.latent_formats.LatentFormat()
    model.latent_format.temporal_downscale_ratio = 4
    base = Patched(patcher(model), None)
    stack = stack_for(host, model, OF_KINDS)
    clip = {"samples": torch.randn(1, 4, 6, 8, 8, generator=draw())}
    texts = [[torch.randn(1, WORDS, 20, generator=draw()), {}]]
    execute = extras.ContextWindowsManualNode.execute
    leads = "causal_window_fix" in inspect.signature(execute).parameters

    def found(frames: str, lead: bool = False) -> Tensor:
        on = host.apply(base, masked(host, stack, mask=None, frames=frames), clip=False).model
        led = {"causal_window_fix": lead} if leads else {}
        windows = execute(on, 3, 0, "standard_static", 1, False, "flat", 2, False, **led)
        return sampled(host, Patched(windows.args[0], None), clip, texts, cfg=1.0, steps=1)

    every, none, first = found("0-"), found("20"), found("0-8")
    none[:, :, 3:] = found("0")[:, :, 3:]
    assert not torch.allclose(none, every, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(first, torch.cat([every[:, :, :3], none[:, :, 3:]], 2))
    if not leads:
        return
    # The second window is computed with the last frame of the first one before it.
    led = found("0-8", lead=True)
    torch.testing.assert_close(led[:, :, :3], every[:, :, :3])
    assert not torch.allclose(led[:, :, 3:], found("0", lead=True)[:, :, 3:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (
            {"mask": torch.ones(3, 4, 4)},
            r"different numbers of frames.*3.*1, 5 for the video, or 2 for its latent",
        ),
        ({"mask": None, "frames": "0-1, 7-"}, r"begins after the last frame.*7.*up to 4: 5 frames"),
    ],
    ids=["batch", "span"],
)
def test_frames_that_are_not_there_are_an_error_and_change_nothing(
    host: Host, inputs: dict[str, Any], found: str
) -> None:
    model = tiny("Wan 2.1 t2v")
    base = Patched(patcher(model), None)
    stack = stack_for(host, model, ("lora",))
    plain, _ = passed(base, "Wan 2.1 t2v")
    bound = host.apply(base, masked(host, stack, **inputs), clip=False)
    with pytest.raises(host.ops.LycorisError, match=found):
        passed(bound, "Wan 2.1 t2v")
    unload()
    again, _ = passed(base, "Wan 2.1 t2v")
    assert torch.equal(again, plain)


def prompt_with(changed: str, side: int, **settings: Any) -> dict[str, Any]:
    """A prompt that samples with a masked stack, on a model whose tokens another node changes."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    return {
        "base": node("CheckpointLoaderSimple", ckpt_name="base.safetensors"),
        "lora": node("LycorisLoadAdapter", file=LORA, strength_model=1.0, strength_clip=0.0),
        "plane": node("SolidMask", value=1.0, width=64, height=64),
        "mask": node(
            "LycorisMask", stack=["lora", 0], mask=["plane", 0], soft_edge=0, outside=0.0, text="off"
        ),
        "apply": node(
            "LycorisApplyStack",
            model=["base", 0],
            stack=["mask", 0],
            mode="merge",
            strict=False,
            expert="auto",
        ),
        "changed": node(changed, model=["apply", 0], **settings),
        "text": node("CLIPTextEncode", clip=["base", 1], text="a cat"),
        "empty": node("EmptyLatentImage", width=side, height=side, batch_size=2),
        "sampler": node(
            "KSampler",
            model=["changed", 0],
            positive=["text", 0],
            negative=["text", 0],
            latent_image=["empty", 0],
            sampler_name="euler",
            scheduler="normal",
            seed=3,
            steps=1,
            cfg=2.0,
            denoise=1.0,
        ),
        "saved": node("SaveLatent", samples=["sampler", 0], filename_prefix="latents/masked"),
    }


@pytest.fixture
def noted(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, Any]], str]]:
    """A function that runs a prompt as the host does, and returns the note on the layers left whole.

    The page gets the note while the model samples, and the host keeps it.
    """
    import execution
    from server import PromptServer

    server = PromptServer.instance
    sent: list[tuple[str, Any]] = []
    monkeypatch.setattr(server, "client_id", None, raising=False)
    monkeypatch.setattr(server, "last_node_id", None, raising=False)
    monkeypatch.setattr(server, "send_sync", lambda event, data, *_: sent.append((event, data)))
    sizes = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
    run = execution.PromptExecutor(server, cache_args=sizes)

    def note(prompt: dict[str, Any]) -> str:
        sent.clear()
        number = str(uuid4())
        monkeypatch.setattr(server.prompt_queue, "currently_running", {0: (0, number, prompt)})
        run.execute(prompt, number, {"client_id": "page"}, ["apply", "saved"])
        assert run.success, run.status_messages
        (about,) = run.history_result["outputs"]["apply"]["lycoris"]
        found = [data for event, data in sent if event == "lycoris.noted"]
        assert [(data["node"], data["output"]["lycoris"][0]) for data in found] == [("apply", about)]
        return about.get("note", "")

    yield note
    unload()


def test_the_report_says_which_layers_a_sampling_left_whole(noted: Callable[[dict[str, Any]], str]) -> None:
    """A sampling that leaves none whole removes the note. So does a prompt without the node that sampled."""
    notes: list[str] = []
    for number, (sampler, ratio) in enumerate(
        (("sampler", 0.5), ("sampler", 0.0), ("sampler", 0.5), ("new", 0.0))
    ):
        prompt = prompt_with("TomePatchModel", 64, ratio=ratio)
        prompt["saved"]["inputs"]["samples"] = [sampler, 0]
        prompt[sampler] = prompt.pop("sampler")
        prompt[sampler]["inputs"]["seed"] = number
        notes.append(noted(prompt))
    assert notes[0] == notes[2] and notes[1] == notes[3] == ""
    first, why, *_ = notes[0].splitlines()
    assert re.fullmatch(r"In the sampling the mask has no effect on \d+ layers\.", first)
    assert re.search(
        r"unmasked: 32 tokens; expected the places of 8 x 8 halved several times \(.*attn1\.to_q", why
    )


def test_tiles_of_the_picture_are_no_places(noted: Callable[[dict[str, Any]], str]) -> None:
    """HyperTile cuts only the queries of self-attention, into more and smaller pictures."""
    said = noted(
        prompt_with("HyperTile", 256, tile_size=1, swap_size=4, max_depth=2, scale_depth=False)
    ).splitlines()
    named = [line for line in said if "unmasked" in line]
    assert named and all(
        re.search(r" unmasked: \d+ samples; expected 4 \(.*attn1\.to_", one) for one in named
    )


def test_the_masks_of_a_stack_are_shown(host: Host) -> None:
    """The mask node shows its mask, with frames too. The report of the Apply node shows all masks."""
    (entry,) = host.stack(("lora", 1.0, 1.0))
    stack, picture = host.run("LycorisMask", host.ops.Stack([entry]), mask=half())
    assert picture.shape[0] == 1 and picture.shape[-1] == 3
    # The left half of the picture is drawn in the first colour, and the rest is paper.
    wide = picture.shape[2]
    row = picture[0, 60]
    assert (row[wide // 4] != 1).any() and (row[3 * wide // 4] == 1).all()
    drawing = host.ops.mask_picture(stack + host.ops.Stack([entry])).svg()
    assert drawing.count("<polygon") == 3 and ">lora<" in drawing and ">everywhere: lora<" in drawing
    spans = host.run("LycorisMask", host.ops.Stack([entry]), frames="0-16, 40-")[0]
    assert (
        "frame 0" in host.ops.mask_picture(spans).svg()
        and host.ops.mask_picture(host.ops.Stack([entry])) is None
    )
    assert host.run("LycorisMask", host.ops.Stack(), mask=half())[1].shape[0] == 1
    # Some packs give a mask as booleans.
    assert torch.equal(host.run("LycorisMask", host.ops.Stack([entry]), mask=half() > 0.5)[1], picture)
