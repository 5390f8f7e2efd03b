"""Masks on the host's real models: where each layer acts in a pass, and what the report says of it.

A masked pass records the input and the output of every layer. The output is then compared with what the layer
alone and the unmasked bypass give for the same input.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hosting import Host, Patched, load, patcher, unload
from masking import (
    OF_KINDS,
    applied,
    half,
    latents,
    masked,
    once,
    one_adapter,
    passed,
    same,
    sampled,
    stack_for,
)
from torch import Tensor
from trainable import tiny

from tests.harness.inputs import WORDS

pytestmark = pytest.mark.host

FRAMES = 2


@dataclass(frozen=True)
class Wanted:
    """Where the layers of a model must act, found by the number of their tokens."""

    grids: tuple[tuple[int, ...], ...]
    """The grids of its levels, the finest first."""
    text: int = 0
    """How many tokens of a text stand before the places in some layers."""
    filled: int = 0
    """How many empty tokens, or tokens of a text, stand behind the places in some layers."""


DIFFERENT = (
    "SD1.5",
    "Flux 1",
    "Qwen-Image",
    "Wan 2.1 t2v",
    "LTX-2",
    "Stable Cascade C",
    "MiniMax-H3",
    "Lumina 2",
)
WANTED = {
    "SD1.5": Wanted(((8, 8), (4, 4), (2, 2))),
    "SDXL": Wanted(((8, 8), (4, 4), (2, 2))),
    "Flux 1": Wanted(((4, 4),), text=WORDS),
    "Flux 2": Wanted(((8, 8),), text=WORDS),
    "Chroma": Wanted(((4, 4),), text=WORDS),
    "Qwen-Image": Wanted(((1, 4, 4),)),
    "Wan 2.1 t2v": Wanted(((FRAMES, 4, 4),)),
    "Cosmos-Predict2": Wanted(((1, 4, 4),)),
    "Anima": Wanted(((1, 4, 4),)),
    "HunyuanVideo": Wanted(((FRAMES, 4, 4),), text=WORDS),
    "SD3.5": Wanted(((4, 4),)),
    "Lumina 2": Wanted(((4, 4),), text=WORDS),
    "Z-Image": Wanted(((4, 4),), text=32, filled=16),
    "AuraFlow": Wanted(((4, 4),), text=8 + WORDS),
    "HiDream": Wanted(((4, 4),), filled=3 * WORDS),
    "Krea 2": Wanted(((4, 4),), text=WORDS),
    "Kandinsky 5": Wanted(((1, 4, 4),)),
    "PixArt sigma": Wanted(((20, 20),)),
    "Mochi": Wanted(((FRAMES, 4, 4),)),
    "ERNIE-Image": Wanted(((8, 8),), filled=WORDS),
    "CogVideoX": Wanted(((FRAMES, 4, 4),), text=WORDS),
    "JoyImage": Wanted(((1, 4, 4),)),
    "Ideogram 4": Wanted(((8, 8),), text=WORDS),
    "LTX-Video": Wanted(((FRAMES, 4, 4),)),
    "LTX-2": Wanted(((FRAMES, 4, 4),)),
    "HunyuanDiT": Wanted(((4, 4),)),
    "Stable Cascade C": Wanted(((8, 8),), filled=WORDS + 4),
    "Stable Cascade B": Wanted(((16, 16), (8, 8), (4, 4), (2, 2)), filled=2),
    "Omnigen2": Wanted(((4, 4),), text=WORDS),
    "Boogu": Wanted(((4, 4),), text=WORDS),
    "Lens": Wanted(((8, 8),)),
    "Mage-Flow": Wanted(((8, 8),)),
    "HiDream-O1": Wanted(((2, 2),), text=WORDS),
    "MiniMax-H3": Wanted(((FRAMES, 2, 2),), text=WORDS + 12),
}


def inside(y: Tensor, wanted: Wanted, kernel: bool) -> Tensor | None:
    """Whether each value of an output is in the left half of the picture; None for no places."""
    if kernel:
        columns = torch.arange(y.shape[-1]) < y.shape[-1] / 2
        return columns.expand_as(y)
    for grid in wanted.grids:
        plane = (torch.arange(grid[-1]) < grid[-1] / 2).expand(*grid).flatten()
        before, after = (torch.zeros(count, dtype=torch.bool) for count in (wanted.text, wanted.filled))
        for row in (plane, torch.cat([plane, after]), torch.cat([before, plane, after])):
            # Some models have one sample, and no dimension for it.
            places = y.shape[1:-1] or y.shape[:1]
            if math.prod(places) == len(row):
                return row.view(*places, 1).expand_as(y)
    return None


def acting(
    host: Host,
    name: str,
    held: Wanted | Callable[[Tensor, bool], Any],
    kinds: tuple[str, ...] = OF_KINDS,
    inputs: Mapping[str, Any] = MappingProxyType({}),
    **more: Any,
) -> int:
    """Compare every layer of a masked pass with the layer alone and with its unmasked bypass, bit by bit.

    `held` says of an output which values are in the mask; None for an output at no place. `inputs` are those
    of the mask node, and `more` is given to the model. Returns how many layers with places the stack changes.
    """
    model = tiny(name)
    whole, bound = applied(host, model, stack_for(host, model, kinds), **inputs)
    assert not bound.model.patches and "its strength differs over places" in bound.report
    _, seen = passed(bound, name, **more)
    unload()
    plans = whole.model.get_injections("lycoris_bypass")[0].plans
    mine = bound.model.get_injections("lycoris_bypass")[0]
    count = 0
    for path, one in seen.items():
        with torch.inference_mode():
            own = one.module(same(one.x))
            if path not in mine.plans:
                assert torch.equal(one.y, own), f"{path} acts, and is at no place"
                continue
            hooks = host.ops.Bypass(one.module, plans[path]).attach()
            unmasked = one.module(same(one.x))
            hooks.remove()
        if mine.tokens[path] == "for places":
            first, second = one.y.chunk(2)
            assert torch.equal(first, own) and torch.equal(second, unmasked), path
            continue
        if mine.tokens[path] == "for places, in turn":
            # The first turn is the base's own. The test of the whole attention compares it.
            assert torch.equal(one.y, unmasked), path
            continue
        kernel = bool(mine.plans[path].geometry.kernel)
        within = inside(own, held, kernel) if isinstance(held, Wanted) else held(own, kernel)
        assert within is not None, f"{path} is at no place: {list(own.shape)}"
        assert torch.equal(one.y, torch.where(within, unmasked, own)), path
        count += not torch.equal(own, unmasked)
    return count


def _stacks() -> Iterator[Any]:
    """Stacks of one kind on the models that differ most, and one of all kinds in turn on each model."""
    for name in WANTED:
        if name in ("SD1.5", "SDXL", "Flux 1", "Qwen-Image", "Wan 2.1 t2v", "LTX-2"):
            yield from (pytest.param(name, (kind,), id=f"{name}-{kind}") for kind in OF_KINDS)
        yield pytest.param(name, OF_KINDS, id=f"{name}-mixed")


@pytest.mark.parametrize(("name", "kinds"), list(_stacks()))
def test_every_layer_acts_in_the_mask_alone(host: Host, name: str, kinds: tuple[str, ...]) -> None:
    """Outside the mask, outputs are the model's own in every bit; inside, those of the unmasked stack."""
    assert acting(host, name, WANTED[name], kinds) >= 8


@pytest.mark.parametrize("name", ["Wan 2.1 t2v", "HunyuanVideo", "LTX-Video", "LTX-2"])
def test_a_span_of_frames(host: Host, name: str) -> None:
    """All frames but the video's first, which is the first of the latent's two."""

    def held(y: Tensor, kernel: bool) -> Tensor:
        if kernel:
            return (torch.arange(FRAMES) > 0)[:, None, None].expand_as(y)
        text = y.shape[1] - FRAMES * 16
        return (torch.arange(y.shape[1]) >= text + 16)[None, :, None].expand_as(y)

    assert acting(host, name, held, inputs={"mask": None, "frames": "1-"}) > 8


@pytest.mark.parametrize("name", ["Flux 1", "Qwen-Image"])
def test_reference_pictures_stand_behind_the_places(host: Host, name: str) -> None:
    shape = (2, 4, 1, 4, 8) if name == "Qwen-Image" else (2, 4, 4, 8)
    references = [torch.randn(shape), torch.randn(shape)]
    assert acting(host, name, replace(WANTED[name], filled=16), ref_latents=references) > 8


def test_reference_pictures_stand_before_the_places(host: Host) -> None:
    """They stand behind the text in some layers. Other layers have no text."""

    def held(y: Tensor, kernel: bool) -> Tensor | None:
        found = (inside(y, replace(WANTED["Boogu"], text=count), kernel) for count in (16, 16 + WORDS))
        return next((one for one in found if one is not None), None)

    references = [torch.randn(2, 4, 4, 8), torch.randn(2, 4, 4, 8)]
    assert acting(host, "Boogu", held, ref_latents=references) > 8


@pytest.mark.parametrize(
    ("about", "kind", "tokens", "expected"),
    [
        pytest.param({"text": 5, "kept": 4, "later": 3}, "text, places", 14, ((2, 3), 5, 3), id="first-pass"),
        pytest.param({"text": 5, "kept": 4, "later": 3}, "text, places", 10, ((2, 3), 1, 3), id="kept"),
        pytest.param({"text": 5, "earlier": 4}, "places", 10, ((2, 3), 4, 0), id="references-before"),
        pytest.param({"text": 5, "earlier": 4}, "places", 6, ((2, 3), 0, 0), id="alone"),
        pytest.param({"text": 9, "size": (5, 7)}, "level, text", 15, ((2, 3), 0, 9), id="halved-down"),
        pytest.param({"text": 9, "size": (5, 7)}, "level, text", 21, ((3, 4), 0, 9), id="halved-up"),
    ],
)
def test_where_the_places_of_a_layer_are(
    host: Host, about: dict[str, Any], kind: str, tokens: int, expected: tuple[tuple[int, ...], int, int]
) -> None:
    passing = host.module("lycoris_nodes.apply.places").Passing
    given = {"pictures": (0,), "size": (64, 96), "patch": (1, 32, 32), "pace": 1, **about}
    found = passing(**given).places(kind, (1, tokens))
    assert (found.grid, found.before, found.after) == expected


@pytest.mark.parametrize("name", ["Wan 2.1 i2v", "Wan VACE", "Wan 2.2 5B"])
def test_relatives_have_their_places_too(host: Host, name: str) -> None:
    assert acting(host, name, WANTED["Wan 2.1 t2v"]) > 8


@pytest.mark.parametrize(
    # Each model in DIFFERENT has places of another kind.
    "name",
    [pytest.param(name, marks=() if name in DIFFERENT else pytest.mark.soak) for name in WANTED],
)
def test_complementary_masks_are_the_unmasked_stack(host: Host, name: str) -> None:
    """Both mask the same file. The layers at no place are whole in one of them, and left out of the other."""
    model = tiny(name)
    base = Patched(patcher(model), None)
    stack = stack_for(host, model, OF_KINDS)
    shares = torch.rand(1, 8, 8)
    both = masked(host, stack, mask=shares, text="whole") + masked(host, stack, mask=1 - shares)
    plain, _ = passed(base, name)
    wanted, _ = passed(host.apply(base, stack, mode="bypass", clip=False), name)
    unload()
    found, _ = passed(host.apply(base, both, clip=False), name)
    effect = (wanted - plain).norm()
    assert effect > 1e-3 * plain.norm()
    assert (found - wanted).norm() < 1e-2 * effect


@pytest.mark.parametrize("name", ["SD1.5", "Wan 2.1 i2v", "Cosmos-Predict2"])
def test_keys_are_masked_where_the_values_are_not_changed(host: Host, name: str) -> None:
    """Two complementary masks together give the unmasked stack."""
    model = tiny(name)
    base = Patched(patcher(model), None)
    (entry,) = stack_for(host, model, ("lora", "oft"))
    keys = {
        path: entry.adapter.layer(path)
        for path in entry.adapter.info
        if path.rpartition(".")[2] in ("to_k", "k", "k_proj")
    }
    stack = host.ops.Stack([host.ops.Entry(host.ops.Adapter.of(keys, name="keys"))])
    shares = torch.rand(1, 8, 8)
    both = masked(host, stack, mask=shares) + masked(host, stack, mask=1 - shares)
    plain, _ = passed(base, name)
    wanted, _ = passed(host.apply(base, stack, mode="bypass", clip=False), name)
    unload()
    found, _ = passed(host.apply(base, both, clip=False), name)
    effect = (wanted - plain).norm()
    # The effect is so small here that rounding alone is a hundredth of it on some processors.
    assert effect > 0 and (found - wanted).norm() < 5e-2 * effect


@pytest.mark.parametrize("name", ["SD1.5", "Wan 2.1 t2v"])
def test_a_cross_attention_is_one_for_each_mask_blended_by_place(host: Host, name: str) -> None:
    """Compared with torch's own attention on the keys and values that the layers gave."""
    model = tiny(name)
    base = Patched(patcher(model), None)
    left, right = stack_for(host, model, ("lora", "oft")), stack_for(host, model, ("loha",), seed=50)
    both = masked(host, left) + masked(host, right, mask=torch.rand(1, 8, 8))
    _, seen = passed(host.apply(base, both, clip=False), name)
    letters, out = (("to_q", "to_k", "to_v"), "to_out.0") if name == "SD1.5" else (("q", "k", "v"), "o")
    cross = "attn2" if name == "SD1.5" else "cross_attn"
    count = 0
    entries = [entry.mask for entry in both]
    for path in [path for path in seen if path.endswith(f"{cross}.{letters[0]}")]:
        parent = path.removesuffix(f".{letters[0]}")
        attention = model.get_submodule(parent)
        query, keys, values = (seen[f"{parent}.{letter}"].y for letter in letters)
        if name != "SD1.5":
            query, keys = attention.norm_q(query), attention.norm_k(keys)
        heads = getattr(attention, "heads", None) or attention.num_heads

        def split(x: Tensor, heads: int = heads) -> Tensor:
            return x.unflatten(-1, (heads, -1)).transpose(1, 2).double()

        made = [
            torch.nn.functional.scaled_dot_product_attention(split(query), split(key), split(value))
            .transpose(1, 2)
            .flatten(2)
            for key, value in zip(keys.chunk(3), values.chunk(3), strict=True)
        ]
        grid = next(grid for grid in WANTED[name].grids if math.prod(grid) == query.shape[1])
        shares = [mask.on(grid).flatten()[None, :, None].double() for mask in entries]
        wanted = made[0] + sum(share * (one - made[0]) for share, one in zip(shares, made[1:], strict=True))
        torch.testing.assert_close(seen[f"{parent}.{out}"].x.double(), wanted, rtol=1e-4, atol=1e-5)
        count += 1
    assert count >= 2


@pytest.mark.parametrize(
    ("name", "cross"),
    [("Kandinsky 5", "cross_attention"), ("PixArt sigma", "cross_attn"), ("HunyuanDiT", "attn2")],
)
def test_a_cross_attention_is_called_in_turn_where_it_takes_no_more_keys(
    host: Host, name: str, cross: str
) -> None:
    """In the mask its output is the unmasked stack's, outside the model's own, in every bit.

    Two complementary masks of one stack give the unmasked stack.
    """
    model = tiny(name)
    stack = stack_for(host, model, ("lora", "oft"), within=f".{cross}.")
    whole, bound = applied(host, model, stack)
    plans = whole.model.get_injections("lycoris_bypass")[0].plans
    wanted, _ = passed(whole, name)
    unload()
    load(bound.model)
    seen: dict[str, tuple[Any, ...]] = {}
    crosses = {path: one for path, one in model.named_modules() if path.endswith(f".{cross}")}
    handles = [
        one.register_forward_hook(
            lambda module, args, kwargs, y, path=path: seen.update({path: (module, args, kwargs, y)}),
            with_kwargs=True,
        )
        for path, one in crosses.items()
    ]
    once(bound, name)
    for handle in handles:
        handle.remove()
    unload()
    assert len(seen) >= 2
    for path, (attention, args, kwargs, y) in seen.items():
        with torch.inference_mode():
            own = attention(*args, **kwargs)
            layers = {one: plan for one, plan in plans.items() if one.startswith(f"{path}.")}
            hooks = [host.ops.Bypass(model.get_submodule(one), plan).attach() for one, plan in layers.items()]
            unmasked = attention(*args, **kwargs)
            for hook in hooks:
                hook.remove()
        own, unmasked, y = (one[0] if isinstance(one, tuple) else one for one in (own, unmasked, y))
        assert len(layers) >= 3 and not torch.equal(own, unmasked)
        within = inside(own, WANTED[name], False)
        assert within is not None and torch.equal(y, torch.where(within, unmasked, own)), path
    both = masked(host, stack) + masked(host, stack, mask=1 - half())
    found, _ = passed(host.apply(Patched(patcher(model), None), both, clip=False), name)
    unload()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_masks_in_the_hosts_sampler(host: Host, unet: Patched) -> None:
    """With guidance and several pictures: a full mask gives the whole stack, and an empty one none of it."""
    model = unet.model.model
    stack = stack_for(host, model, OF_KINDS)
    plain, whole = sampled(host, unet), sampled(host, host.apply(unet, stack, mode="bypass", clip=False))
    every = masked(host, stack, mask=torch.ones(1, 4, 4), text="whole")
    found = sampled(host, host.apply(unet, every, clip=False))
    assert (whole - plain).norm() > 0.01 * plain.norm()
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-3)
    none = masked(host, stack, mask=torch.zeros(1, 4, 4))
    torch.testing.assert_close(sampled(host, host.apply(unet, none, clip=False)), plain, rtol=0, atol=0)
    part = host.apply(unet, masked(host, stack), clip=False)
    same_noise = {"samples": latents()["samples"].expand(2, -1, -1, -1).clone(), "batch_index": [0, 0]}
    once, twice = sampled(host, part), sampled(host, part, same_noise)
    torch.testing.assert_close(twice, once.expand_as(twice), rtol=1e-3, atol=1e-3)
    left, right = once.chunk(2, -1)
    own_left, own_right = plain.chunk(2, -1)
    assert (left - own_left).norm() > (right - own_right).norm()
    # A second pass at another size takes the same mask.
    assert torch.isfinite(sampled(host, part, latents(side=12))).all()


def test_a_schedule_and_a_mask_are_multiplied(host: Host, unet: Patched) -> None:
    stack = masked(host, stack_for(host, unet.model.model, ("lora", "oft")))
    off, on = host.scheduled(stack, "constant 0"), host.scheduled(stack, "constant 1")
    plain, none, whole = (sampled(host, host.apply(unet, one, clip=False)) for one in (stack, off, on))
    assert torch.equal(whole, plain) and torch.equal(none, sampled(host, unet))


def test_masks_in_a_row_are_multiplied(host: Host, unet: Patched) -> None:
    stack = stack_for(host, unet.model.model, ("lora",))
    upper = half().transpose(1, 2)
    twice = masked(host, masked(host, stack), mask=upper)
    once = masked(host, stack, mask=half() * upper)
    one, other = (sampled(host, host.apply(unet, found, clip=False)) for found in (twice, once))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_edge_and_the_rest_of_a_mask(host: Host) -> None:
    stack = one_adapter(host)
    (entry,) = masked(host, stack, soft_edge=4, outside=0.5)
    row = entry.mask.on((64, 64))[3]
    assert row[0] == 1 and row[-1] == 0.5 and (row[:-1] >= row[1:]).all()
    assert torch.equal(row[:28], torch.ones(28)) and torch.equal(row[36:], torch.full((28,), 0.5))
    torch.testing.assert_close(row[28:36], 0.5 + 0.5 * torch.arange(8, 0, -1) / 9)
    # An edge far wider than the mask: outside, the mask goes on with the values at its border.
    (entry,) = masked(host, stack, soft_edge=4096)
    row = entry.mask.on((64, 64))[3]
    torch.testing.assert_close(row, (32 + 4096 - torch.arange(64)) / 8193)
    (entry,) = masked(host, stack, mask=None, frames="1-")
    assert entry.mask.on((3, 1, 1)).flatten().tolist() == [0, 1, 1]
    # A resized mask may have such values.
    (entry,) = masked(host, stack, mask=torch.tensor([[1.001, -0.001]]))
    assert entry.mask.on((1, 2)).tolist() == [[1, 0]]


def test_frames_that_older_hosts_do_not_count_are_as_in_this_one(host: Host) -> None:
    import comfy.latent_formats

    for name, frames in host.module("lycoris_nodes.host.families").PACES.items():
        assert getattr(getattr(comfy.latent_formats, name), "temporal_downscale_ratio", frames) == frames


# What cannot be masked.


def test_a_model_whose_places_are_not_known_is_left_whole(host: Host) -> None:
    model = tiny("PixelDiT")
    base = Patched(patcher(model), None)
    stack = stack_for(host, model, ("lora",))
    found = host.apply(base, masked(host, stack), clip=False)
    assert found.report.startswith(f"The mask has no effect on {len(found.patches)} layers.")
    assert "unmasked: its strength is the same at all places" in found.report
    assert not found.model.get_injections("lycoris_bypass")
    assert len(found.patches) == len(host.apply(base, stack, clip=False).patches)


def test_what_is_at_no_place_is_left_out_or_whole(host: Host, unet: Patched) -> None:
    stack = stack_for(host, unet.model.model, ("lora",))
    off = host.apply(unet, masked(host, stack), clip=False)
    whole = host.apply(unet, masked(host, stack, text="whole"), clip=False)
    told = [line for line in off.report.splitlines() if "left out: it acts on the text" in line]
    assert len(told) == 1 and "time_embed" in told[0] and "left out:" not in whole.report
    # The first line counts the layers that act: the bypassed ones.
    (acting,) = re.findall(r"Applied as asked: (\d+) layers", off.report)
    (left,) = re.findall(r"(\d+) left out: it acts on the text", off.report)
    (bypassed,) = re.findall(r"(\d+) layers bypassed", off.report)
    assert acting == bypassed and f"{int(left)} left out by the mask" in off.report
    plans = [one.model.get_injections("lycoris_bypass")[0].plans for one in (off, whole)]
    embedded = "diffusion_model.time_embed.0"
    assert embedded not in plans[0] and embedded not in plans[1] and f"{embedded}.weight" in whole.patches


def test_parts_that_another_node_makes_are_an_error(host: Host, unet: Patched) -> None:
    """Nothing says which part of the latent each one is."""
    stack = masked(host, stack_for(host, unet.model.model, ("lora",)))
    found = host.apply(unet, stack, clip=False)
    cut = found.model.clone()
    cut.set_model_unet_function_wrapper(
        lambda run, given: run(given["input"][..., :4], given["timestep"], **given["c"]).repeat(1, 1, 1, 2)
    )
    with pytest.raises(host.ops.LycorisError, match="samples in parts"):
        sampled(host, Patched(cut, None))
    # Afterwards the model is as it was.
    assert torch.isfinite(sampled(host, found)).all()


def test_a_cross_attention_that_others_replace_is_an_error(host: Host, unet: Patched) -> None:
    stack = masked(host, stack_for(host, unet.model.model, ("lora",)))
    found = host.apply(unet, stack, clip=False).model.clone()
    found.set_model_attn2_replace(lambda q, k, v, options: q, "input", 1)
    with pytest.raises(host.ops.LycorisError, match="IPAdapter"):
        sampled(host, Patched(found, None))


def with_other_tokens(on: Patched) -> Patched:
    """Flux with three more tokens of the picture in its blocks."""

    def longer(given: dict[str, Any]) -> dict[str, Any]:
        added = {key: torch.cat([given[key], given[key][:, :3]], 1) for key in ("img", "img_ids")}
        return {**given, **added}

    found = on.model.clone()
    found.set_model_patch(longer, "post_input")
    return Patched(found, None)


def test_layers_with_other_tokens_are_left_whole(host: Host) -> None:
    """They act everywhere, and all other layers only in the mask. With `strict` they are an error."""
    model = tiny("Flux 1")
    base = Patched(patcher(model), None)
    stack = stack_for(host, model, ("lora", "oft"))
    node = host.nodes.NODE_CLASS_MAPPINGS["LycorisApplyStack"]
    shown = node.execute(base.model, masked(host, stack))
    plans = host.apply(base, stack, mode="bypass", clip=False).model.get_injections("lycoris_bypass")[0].plans
    _, seen = passed(with_other_tokens(Patched(shown.args[0], None)), "Flux 1")
    unload()
    whole: list[str] = []
    for path, one in seen.items():
        hooks = host.ops.Bypass(one.module, plans[path]).attach()
        with torch.inference_mode():
            unmasked = one.module(same(one.x))
        hooks.remove()
        if torch.equal(one.y, unmasked):
            whole.append(path)
    (about,) = shown.ui["lycoris"]
    mine = shown.args[0].get_injections("lycoris_bypass")[0]
    assert about["note"].startswith(f"In the sampling the mask has no effect on {len(whole)} layers.")
    assert "unmasked: 19 tokens; expected 0 others, 4 x 4 places and 0 others" in about["note"]
    assert mine.tokens.keys() - {"diffusion_model.img_in"} == set(whole)
    bound = host.apply(base, masked(host, stack), clip=False, strict=True)
    with pytest.raises(host.ops.LycorisError, match=r"double_blocks.*19 tokens.*4 x 4 places"):
        passed(with_other_tokens(bound), "Flux 1")


def test_two_nodes_in_a_row_with_kinds_that_depend_on_the_weight(host: Host, unet: Patched) -> None:
    first = host.apply(unet, masked(host, stack_for(host, unet.model.model, ("lora",))), clip=False)
    with pytest.raises(host.ops.LycorisError, match="Join the two stacks"):
        host.apply(first, stack_for(host, unet.model.model, ("oft",)), mode="bypass", clip=False)


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        ({"mask": torch.full((1, 4, 4), math.nan)}, "values outside 0 to 1"),
        ({"mask": torch.full((1, 4, 4), 2.0)}, "from 2 to 2"),
        ({"mask": torch.rand(1, 2, 4, 4)}, "another shape"),
        ({"mask": None}, "neither a mask nor a span"),
        ({"frames": "5-2"}, "ends before it begins"),
        ({"frames": "many"}, "not understood"),
        ({"outside": math.inf}, "outside"),
        ({"text": "half"}, "none of its choices"),
    ],
)
def test_inputs_that_cannot_be_used(host: Host, inputs: dict[str, Any], found: str) -> None:
    with pytest.raises(host.ops.LycorisError, match=found):
        masked(host, host.ops.Stack(), **inputs)


def test_what_cannot_hold_a_mask_refuses_it(host: Host) -> None:
    stack = masked(host, one_adapter(host))
    with pytest.raises(host.ops.LycorisError, match="differs over places or pictures cannot be saved"):
        host.ops.weighted(stack.entries[0])
    with pytest.raises(host.ops.LycorisError, match="cannot hold a mask"):
        host.module("lycoris_nodes.stacks.lora_stack").to_lora_stack(stack)
