"""Strength grids in the host's sampler, and the picture that is made of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosting import Host, Patched
from masking import OF_KINDS, half, latents, masked, sampled, stack_for
from PIL import ImageFont
from torch import Tensor

pytestmark = pytest.mark.host

NEAR = 1e-4
"""How far a picture may be from that of its own run, as a share of the effect of the adapters."""


def grid(host: Host, stack: Any, values: str, **inputs: Any) -> tuple[Any, dict[str, Any], str]:
    return host.run("LycorisStrengthGrid", latents(), stack, values, **inputs)


@pytest.mark.parametrize(
    "kinds",
    [
        *(pytest.param((kind,), id=kind, marks=pytest.mark.soak) for kind in OF_KINDS),
        pytest.param(OF_KINDS, id="mixed"),
    ],
)
def test_each_picture_is_that_of_a_run_of_its_own(host: Host, unet: Patched, kinds: tuple[str, ...]) -> None:
    first = stack_for(host, unet.model.model, kinds)
    second = stack_for(host, unet.model.model, ("lora",), seed=70)
    both = first + second
    stack, pictures, labels = grid(
        host, both, "0, 0.4", row=1, second="strength", second_values="0, 0.7", which="2"
    )
    assert pictures["samples"].shape[0] == 4 and labels.count("\n") == 2
    found = sampled(host, host.apply(unet, stack, clip=False), pictures)
    plain = sampled(host, unet)
    assert (found[0] - plain[0]).norm() < NEAR * plain.norm()
    for place, (down, across) in enumerate([(0.0, 0.0), (0.0, 0.4), (0.7, 0.0), (0.7, 0.4)]):
        (one,), (two,) = first, second
        own = host.ops.Stack(
            [host.ops.Entry(one.adapter, across, one.strength), host.ops.Entry(two.adapter, down, 1.0)]
        )
        wanted = sampled(host, host.apply(unet, own, mode="bypass", clip=False))
        effect = max((wanted - plain).norm(), 0.01 * plain.norm())
        assert (found[place] - wanted[0]).norm() < NEAR * effect, place


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "ddim"])
def test_pictures_have_one_noise_in_each_step(host: Host, unet: Patched, sampler: str) -> None:
    """Also in a second pass over the pictures, which has lost the numbers that the host draws noise by."""
    whole = stack_for(host, unet.model.model, ("lora",), within="input_blocks")
    stack, pictures, _ = grid(host, whole, "0, 1")
    # ddim draws noise for what lies outside a noise mask.
    more = {"noise_mask": half()} if sampler == "ddim" else {}
    given, one = {"samples": pictures["samples"], **more}, {**latents(), **more}
    found = sampled(host, host.apply(unet, stack, clip=False), given, sampler=sampler)
    plain = sampled(host, unet, one, sampler=sampler)
    wanted = sampled(host, host.apply(unet, whole, mode="bypass", clip=False), one, sampler=sampler)
    for picture, own in zip(found, (plain, wanted), strict=True):
        assert (picture - own[0]).norm() < NEAR * (wanted - plain).norm()


def test_a_grid_in_a_mask_and_on_a_schedule(host: Host, unet: Patched) -> None:
    whole = stack_for(host, unet.model.model, ("lora", "oft"))
    stack, pictures, _ = grid(host, host.scheduled(masked(host, whole, mask=half()), "constant 0.5"), "0, 2")
    found = sampled(host, host.apply(unet, stack, clip=False), pictures)
    once = sampled(host, host.apply(unet, masked(host, whole, mask=half()), clip=False))
    plain = sampled(host, unet)
    assert (found[0] - plain[0]).norm() < NEAR * plain.norm()
    # So strong a stack makes rounding a hundred times larger.
    assert (found[1] - once[0]).norm() < 100 * NEAR * (once - plain).norm()


@pytest.mark.parametrize("both", [True, False], ids=["texts-together", "texts-apart"])
def test_a_grid_may_be_larger_than_the_memory(
    host: Host, unet: Patched, monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    """It is computed in parts, and the host is asked for room for as many pictures as there is."""
    import comfy.model_management

    stack, pictures, _ = grid(host, masked(host, stack_for(host, unet.model.model, OF_KINDS)), "0..2 in 5")
    on = host.apply(unet, stack, clip=False)
    plain, wanted = sampled(host, unet), sampled(host, on, pictures)
    seen: list[int] = []
    handle = unet.model.model.diffusion_model.register_forward_pre_hook(
        lambda _, args: seen.append(len(args[0]))
    )
    asked: list[int] = []
    needed = unet.model.model.memory_required

    def required(shape: Any, **more: Any) -> Any:
        asked.append(shape[0])
        return needed(shape, **more)

    if both:
        # Of two pictures with both of their texts.
        module = host.module("lycoris_nodes.apply.bypass")
        monkeypatch.setattr(module, "pictures_that_fit", lambda *_: 2)
        monkeypatch.setattr(module, "pictures_beside", lambda *_: 2)
        monkeypatch.setattr(unet.model.model, "memory_required", required)
    else:
        free = 1.5 * 2.4 * needed([1, 4, 8, 8])
        monkeypatch.setattr(
            comfy.model_management,
            "get_free_memory",
            lambda _=None, torch_free_too=False: (free, free) if torch_free_too else free,
        )
    found = sampled(host, on, pictures)
    handle.remove()
    assert {*seen} == ({4, 2} if both else {2, 1})
    assert not both or asked[:2] == [4, 2]
    effect = (wanted - plain).flatten(1).norm(dim=1).max()
    assert ((found - wanted).flatten(1).norm(dim=1) < 100 * NEAR * effect).all()


def test_another_number_of_pictures_is_an_error(host: Host, unet: Patched) -> None:
    stack, pictures, _ = grid(host, stack_for(host, unet.model.model, ("lora",)), "0..1 in 3")
    less = {"samples": pictures["samples"][:2]}
    with pytest.raises(host.ops.LycorisError, match=r"as many strengths as sampled pictures.*2 pictures.*3"):
        sampled(host, host.apply(unet, stack, clip=False), less)


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        ({"values": "many"}, "not understood"),
        ({"values": "0..1 in 300"}, "too many"),
        ({"row": 3}, "no such row"),
        ({"second": "strength"}, "`which` is empty"),
        ({"second": "strength", "which": "two"}, "not the number of a row"),
        ({"second": "file", "which": "1, 9"}, "no such row"),
        ({"second": "strength", "row": 1, "which": "1"}, "both axes are for the strength of one row"),
        ({"second": "file", "row": 1, "which": "1, 2"}, r"files to compare include the row.*`row` is 1"),
        ({"second": "blocks"}, "`which` is empty"),
        ({"second": "colour"}, "none of its choices"),
        ({"latent": {"samples": torch.zeros(2, 4, 8, 8)}}, "several latents"),
    ],
)
def test_inputs_that_make_no_grid(host: Host, unet: Patched, inputs: dict[str, Any], found: str) -> None:
    given = {"latent": latents(), "values": "0, 1", **inputs}
    with pytest.raises(host.ops.LycorisError, match=found):
        host.run("LycorisStrengthGrid", stack=stack_for(host, unet.model.model, ("lora",)), **given)


def labelled(host: Host, pictures: Tensor, labels: str) -> Tensor:
    return host.run("LycorisLabelGrid", pictures, labels)[0]


@pytest.mark.parametrize(("height", "width"), [(64, 48), (300, 512)])
def test_pictures_stand_at_their_places_below_their_names(host: Host, height: int, width: int) -> None:
    shades = torch.arange(1, 7) / 7
    pictures = shades[:, None, None, None].expand(6, height, width, 3)
    long = "a name that is much too long for a picture"
    (whole,) = labelled(host, pictures, f"\tone\ttwo\t{long}\nupper\n{long * 9}")
    top, side = whole.shape[0] - 2 * height, whole.shape[1] - 3 * width
    # No name makes its part much wider than a picture.
    assert top > 0 and 0 < side < 1.5 * width
    for place, shade in enumerate(shades):
        row, column = divmod(place, 3)
        cut = whole[top + row * height :, side + column * width :][:height, :width]
        assert (cut - shade).abs().max() < 0.003
    # Every name is written in black on white, in its own part.
    for column in range(3):
        assert whole[:top, side + column * width :][:, :width].min() < 0.2
    for row in range(2):
        assert whole[top + row * height :, :side][:height].min() < 0.2


def test_names_of_other_alphabets_are_drawn_by_a_font_that_has_them(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow's own font draws each of these letters as the same box."""
    charts = host.module("lycoris_ops.charts")
    tried: list[str] = []

    def load(name: str, pixels: float) -> Any:
        tried.append(name)
        raise OSError(name)

    monkeypatch.setattr(ImageFont, "truetype", load)
    charts._wide_font.cache_clear()
    charts._system_font.cache_clear()
    picture = torch.zeros(1, 64, 64, 3)
    assert torch.equal(labelled(host, picture, "\tab"), labelled(host, picture, "\tab")) and not tried
    labelled(host, picture, "\t\u6c34\u58a8")
    assert tried == [*charts.WIDE_FONTS]
    charts._wide_font.cache_clear()
    charts._system_font.cache_clear()


def test_labels_of_other_pictures_are_errors(host: Host) -> None:
    with pytest.raises(host.ops.LycorisError, match=r"3 pictures.*2: 2 columns by 1 rows"):
        labelled(host, torch.zeros(3, 8, 8, 3), "\ta\tb")
    for text in ("", "a\nb"):
        with pytest.raises(host.ops.LycorisError, match="name no columns"):
            labelled(host, torch.zeros(1, 8, 8, 3), text)
