"""Strengths that differ over places and samples.

A masked bypass is compared with the module alone and with the unmasked bypass, bit by bit where the mask is 0
or 1, and elsewhere with y + sum of m (y' - y) in float64.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from bypass_cases import FACTS, MODULES, Case, hook, layer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import lycoris_ops as lyc
from lycoris_ops import Crop, Places, Where, parse_spans

GRID = (4, 6)
PLACED = {
    "linear": Case((12, 18), leading=(2, 3 + 24 + 2)),
    "conv2d": MODULES["conv2d"],
    "conv2d-strided": MODULES["conv2d-strided"],
    "conv2d-1x1": MODULES["conv2d-1x1"],
    "conv2d-groups": MODULES["conv2d-groups"],
    "conv3d": MODULES["conv3d"],
}
"""Modules on a plane, or on frames of planes. The linear layer has 3 tokens before its plane and 2 after."""
PAIRS = [(kind, name) for kind, name in FACTS if name in PLACED]
STACKS = {
    **{kind: (kind,) for kind in ("lora", "loha", "lokr-full-low", "oft", "lora-dora-out", "ia3")},
    "loras": ("lora", "lora"),
    "mixed": ("lora", "oft", "lora-dora-out", "loha"),
}


def places(case: Case) -> Places:
    samples = case.leading[0] if case.leading else 1
    grid = () if len(case.shape) > 2 else GRID
    return Places(tuple(range(samples)), grid, *((3, 2) if grid else ()))


def halves(**options: Any) -> lyc.Mask:
    """A mask of 1 in the left half and 0 in the right one. No grid has its size."""
    weights = torch.zeros(1, 8, 12)
    weights[..., :6] = 1
    return lyc.Mask(weights, **options)


def soft() -> lyc.Mask:
    return lyc.Mask(torch.rand(1, 8, 12))


def slot(layer: lyc.Layer, where: Where | None, strength: float = 0.5) -> lyc.Slot:
    return lyc.Slot(lyc.Part(layer), strength, where=where)


def run(
    module: nn.Module, x: Tensor, where: Places, *layers: tuple[Any, float, lyc.Mask | Where | None]
) -> Tensor:
    """The module's output with these layers beside it, each acting where its mask says."""
    found = lyc.geometry_of(module)
    assert not isinstance(found, str)
    given = [
        slot(one, Where(mask) if isinstance(mask, lyc.Mask) else mask, strength)
        for one, strength, mask in layers
    ]
    hooks = hook(module, lyc.BypassPlan.build(found, given))
    hooks.places = where
    try:
        return module(x)
    finally:
        hooks.remove()


def spread(mask: lyc.Mask, case: Case, y: Tensor) -> Tensor:
    """The factor of each value of y, by the definition of a mask."""
    if len(case.shape) == 2:
        before, after = (torch.full((count,), mask.at_no_place) for count in (3, 2))
        row = torch.cat([before, mask.on(GRID).flatten(), after])
        return row.to(y.dtype)[None, :, None].expand_as(y)
    return mask.on(y.shape[2 - len(case.shape) :]).to(y.dtype).expand_as(y)


def built(kinds: tuple[str, ...], case: Case) -> list[lyc.Layer]:
    return [layer(kind, case) for kind in kinds]


def _in_dtypes() -> Iterator[tuple[str, str, torch.dtype]]:
    """Each kind on each module in float32, and two of every five pairs in a narrow dtype too."""
    for number, (kind, name) in enumerate(PAIRS):
        yield kind, name, torch.float32
        if number % 5 < 2:
            yield kind, name, (torch.bfloat16, torch.float16)[number % 5]


@pytest.mark.parametrize(("kind", "name", "dtype"), list(_in_dtypes()))
def test_outside_it_is_the_module_and_inside_the_unmasked_bypass_bit_by_bit(
    kind: str, name: str, dtype: torch.dtype
) -> None:
    case = PLACED[name]
    module, x, where = case.module(dtype), case.input(dtype), places(case)
    one, mask = layer(kind, case), halves()
    base, whole = module(x), run(module, x, where, (one, 0.7, None))
    found, inside = run(module, x, where, (one, 0.7, mask)), spread(mask, case, base)
    assert not torch.equal(base, whole)
    sharp = (inside == 0) | (inside == 1)
    assert (inside == 0).any() and (inside == 1).any()
    assert torch.equal(found[sharp], torch.where(inside == 1, whole, base)[sharp])


@pytest.mark.parametrize("right_strength", [0.6, 0.9])
@pytest.mark.parametrize("name", ["linear", "conv2d"])
@pytest.mark.parametrize("kinds", STACKS.values(), ids=STACKS)
def test_two_halves_are_each_as_its_own_stack_alone(
    kinds: tuple[str, ...], name: str, right_strength: float
) -> None:
    """Two stacks of one kind, and of several kinds, for two people in two halves."""
    case = PLACED[name]
    module, x, where = case.module(torch.float32), case.input(torch.float32), places(case)
    left, right = built(kinds, case), built(kinds[::-1], case)
    one = halves()
    other = lyc.Mask(1 - one.weights)
    alone = {
        mask: run(module, x, where, *((layer, strength, None) for layer in layers))
        for mask, strength, layers in ((one, 0.6, left), (other, right_strength, right))
    }
    turns = [
        given
        for first, second in zip(left, right, strict=True)
        for given in ((first, 0.6, one), (second, right_strength, other))
    ]
    found = run(module, x, where, *turns)
    base = module(x)
    wanted = base.clone()
    for mask, whole in alone.items():
        wanted = torch.where(spread(mask, case, base) == 1, whole, wanted)
    both = torch.stack([spread(mask, case, base) for mask in alone])
    sharp = ((both == 0) | (both == 1)).all(0)
    # Layers of both stacks share a product, and how its sums are rounded is up to the processor.
    assert sharp.any() and (found[sharp] - wanted[sharp]).abs().max() < 1e-6


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_between_it_is_the_blend(kind: str, name: str) -> None:
    """Soft masks that overlap, beside a layer without a mask, against the sum of the differences."""
    case = PLACED[name]
    module, x, where = case.module(), case.input(), places(case)
    layers = [layer(kind, case), layer(kind, case), layer("lora", case)]
    masks = [soft(), soft(), None]
    base = module(x)
    wanted = base.clone()
    for one, mask in zip(layers, masks, strict=True):
        whole = run(module, x, where, (one, -0.7, None))
        wanted += (whole - base) * (1.0 if mask is None else spread(mask, case, base))
    found = run(module, x, where, *((one, -0.7, mask) for one, mask in zip(layers, masks, strict=True)))
    assert ((found - wanted).abs().max() / wanted.abs().max()) < 1e-6


@pytest.mark.parametrize("kinds", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_complementary_masks_make_the_unmasked_stack(name: str, kinds: tuple[str, ...]) -> None:
    case = PLACED[name]
    module, x, where = case.module(torch.float32), case.input(torch.float32), places(case)
    one = soft()
    masks = (lyc.Mask(one.weights, text=True), lyc.Mask(1 - one.weights))
    layers = built(kinds, case)
    whole = run(module, x, where, *((layer, 0.5, None) for layer in layers))
    found = run(module, x, where, *((layer, 0.5, mask) for mask in masks for layer in layers))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "conv2d"])
@pytest.mark.parametrize("kinds", STACKS.values(), ids=STACKS)
def test_each_picture_has_the_strength_of_its_factor(name: str, kinds: tuple[str, ...]) -> None:
    """Four samples of two pictures, as with classifier-free guidance, against runs at these strengths."""
    case = PLACED[name]
    case = Case(case.shape, case.options, leading=(4, *case.leading[1:]))
    module, x = case.module(), case.input()
    factors, pictures = (0.0, 0.3), (0, 1, 0, 1)
    where = Places(pictures, GRID if name == "linear" else (), *((3, 2) if name == "linear" else ()))
    layers = built(kinds, case)
    found = run(module, x, where, *((layer, 2.0, Where(factors=factors)) for layer in layers))
    base = module(x)
    for number, picture in enumerate(pictures):
        wanted = run(module, x, where, *((layer, 2 * factors[picture], None) for layer in layers))[number]
        # Several operators on one weight add their changes, as they do at one strength.
        torch.testing.assert_close(found[number].float(), wanted.float(), rtol=1e-4, atol=1e-5)
        assert picture or torch.equal(found[number], base[number])


@pytest.mark.parametrize("name", ["linear", "conv2d"])
@pytest.mark.parametrize("kinds", STACKS.values(), ids=STACKS)
def test_a_mask_is_whole_where_no_place_is_known(kinds: tuple[str, ...], name: str) -> None:
    """Whatever the number of tokens is, and with the factor of each picture."""
    case = PLACED[name]
    module, x = case.module(torch.float32), case.input(torch.float32)
    samples = case.leading[0] if case.leading else 1
    where, layers, mask = Places(tuple(range(samples)), everywhere=True), built(kinds, case), halves()
    found = run(module, x, where, *((layer, 0.6, mask) for layer in layers))
    assert torch.equal(found, run(module, x, where, *((layer, 0.6, None) for layer in layers)))
    factors = tuple(0.3 * number for number in range(samples))
    by_picture, alone = (
        run(module, x, where, *((layer, 0.6, Where(one, factors)) for layer in layers))
        for one in (mask, None)
    )
    assert torch.equal(by_picture, alone) and (samples == 1 or not torch.equal(by_picture, found))


@pytest.mark.parametrize("kind", ["lora", "lokr-full-low", "lora-dora-out", "oft"])
def test_gradients_flow_through_masks(kind: str) -> None:
    case = PLACED["linear"]
    module, x, where = case.module(), case.input().requires_grad_(), places(case)
    one, mask = layer(kind, case), soft()
    assert torch.autograd.gradcheck(lambda x: run(module, x, where, (one, 0.5, mask)), (x,), fast_mode=True)
    # A layer that learns is masked at strength 1 too.
    wanted = run(module, x, where, (one, 1.0, mask))
    for tensor in one.tensors().values():
        tensor.requires_grad_(tensor.is_floating_point())
    torch.testing.assert_close(run(module, x, where, (one, 1.0, mask)), wanted)


def test_places_apart_are_outputs_of_their_own() -> None:
    """A layer that makes keys or values of a text gives them once for each mask."""
    for kind in ("lora", "loha", "lora-dora-out", "oft"):
        case = Case((12, 18), leading=(2, 5))
        module, x = case.module(torch.float32), case.input(torch.float32)
        one, two, plain = layer(kind, case), layer(kind, case), layer("lora", case)
        masks = tuple(Where(halves()) for _ in range(3))
        plan = lyc.BypassPlan.build(lyc.geometry_of(module), [slot(one, masks[0]), slot(two, masks[2])])
        hooks = hook(module, plan)
        hooks.apart = masks
        found = module(x).chunk(4)
        hooks.remove()
        base = module(x)
        none = Places((0, 1))
        wanted = [base, run(module, x, none, (one, 0.5, None)), base, run(module, x, none, (two, 0.5, None))]
        assert all(torch.equal(*both) for both in zip(found, wanted, strict=True))
        # A layer without a mask acts in all of them.
        beside = lyc.BypassPlan.build(lyc.geometry_of(module), [slot(one, masks[0]), (plain, 0.5)])
        hooks = hook(module, beside)
        hooks.apart = masks[:1]
        first, second = module(x).chunk(2)
        hooks.remove()
        both = run(module, x, none, (one, 0.5, None), (plain, 0.5, None))
        torch.testing.assert_close(first, run(module, x, none, (plain, 0.5, None)))
        torch.testing.assert_close(second, both, rtol=1e-4, atol=1e-5)


# Masks on grids.


def test_a_mask_is_the_mean_of_what_a_place_covers() -> None:
    weights = torch.rand(1, 12, 18)
    mask = lyc.Mask(weights)
    torch.testing.assert_close(mask.on((4, 6))[2, 3], weights[0, 6:9, 9:12].mean())
    assert torch.equal(mask.on((12, 18)), weights[0])
    assert lyc.Mask(torch.ones(1, 5, 7)).on((4, 6)).eq(1).all()
    assert lyc.Mask(torch.ones(1, 2, 2)).on((9, 7)).eq(1).all()


def test_outside_and_masks_within_masks() -> None:
    mask = halves(outside=0.25)
    assert mask.on(GRID).unique().tolist() == [0.25, 1.0]
    inner = lyc.Mask(torch.full((1, 1, 1), 0.5), text=True)
    both = lyc.Mask(mask.weights, outside=0.25, within=inner)
    assert both.on(GRID).unique().tolist() == [0.125, 0.5]
    assert (inner.at_no_place, both.at_no_place) == (1.0, 0.0)


def test_frames_of_a_video_are_gathered_into_those_of_its_latent() -> None:
    """Nine frames of a video are three of its latent: the first alone, then four and four."""
    frames = torch.arange(9.0)[:, None, None] / 8
    found = lyc.Mask(frames).on((3, 1, 1), 4).flatten()
    torch.testing.assert_close(found, torch.tensor([0.0, 2.5 / 8, 6.5 / 8]))
    assert lyc.Mask(frames[:3]).on((3, 1, 1), 4).flatten().tolist() == [0.0, 0.125, 0.25]
    spans = lyc.Mask(torch.ones(1, 1, 1), parse_spans("0-2, 7-")).on((3, 1, 1), 4).flatten()
    assert spans.tolist() == [1.0, 0.5, 0.5]
    turns = 17 * lyc.Mask(torch.arange(18.0)[:, None, None] / 17).on((6, 1, 1), (1, 4, 4, 4, 4)).flatten()
    torch.testing.assert_close(turns, torch.tensor([0, 2.5, 6.5, 10.5, 14.5, 17]))
    assert parse_spans(" 3 , 5-6\n8-") == ((3, 3), (5, 6), (8, None)) and parse_spans("") == ()


def test_a_part_of_a_picture_has_its_part_of_the_mask() -> None:
    inner = lyc.Mask(torch.rand(1, 6, 6))
    mask = lyc.Mask(torch.rand(1, 12, 18), outside=0.25, within=inner)
    whole = mask.on((12, 18))
    crop = Crop((12, 18), (range(2, 8), range(4, 16)))
    torch.testing.assert_close(mask.on((6, 12), crop=crop), whole[2:8, 4:16])
    halved = lyc.Mask(mask.weights).on((3, 6), crop=crop)
    torch.testing.assert_close(halved[1, 2], mask.weights[0, 4:6, 8:10].mean())
    # Frames of the latent, in any order.
    frames = lyc.Mask(torch.arange(9.0)[:, None, None] / 8)
    shown = frames.on((2, 1, 1), 4, Crop((3, 1, 1), ((2, 0), range(1), range(1))))
    torch.testing.assert_close(shown.flatten(), torch.tensor([6.5 / 8, 0.0]))


def test_each_sample_has_its_own_part() -> None:
    crops = tuple(Crop((4, 6), (range(4), columns)) for columns in (range(3), range(3, 6)))
    left = torch.zeros(1, 4, 6)
    left[..., :3] = 1
    found = Where(lyc.Mask(left)).over(
        Places((0, 0), (4, 3), 1, 2, crops=crops), (4, 3), torch.float32, torch.device("cpu")
    )
    assert torch.equal(found, torch.tensor([[0.0] + [1.0] * 12 + [0.0] * 2, [0.0] * 15]))


def test_a_stack_with_masks() -> None:
    tensors = {"lora_up.weight": torch.ones(2, 1), "lora_down.weight": torch.ones(1, 2)}
    named = {f"lora_unet_a.{end}": values for end, values in tensors.items()}
    adapter = lyc.adapter_of_tensors(named, name="a")
    stack = lyc.Stack([lyc.Entry(adapter), lyc.Entry(adapter, 0.5)])
    one, two = halves(), soft()
    once = stack.with_mask(one)
    assert [entry.mask for entry in once] == [one, one]
    first, second = once.with_mask(two)
    assert first.mask is second.mask and first.mask is not None and first.mask.within is one
    with pytest.raises(lyc.LycorisError, match="differs over places"):
        once.check_constant("be saved")


# Bad input.


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        (torch.rand(4, 4), r"another shape.*\[4, 4\]"),
        (torch.rand(0, 4, 4), r"another shape.*\[0, 4, 4\]"),
        (torch.full((1, 2, 2), math.nan), "values outside 0 to 1"),
        (torch.tensor([[[-0.5, 2.0]]]), "from -0.5 to 2"),
    ],
)
def test_masks_that_are_none(weights: Tensor, found: str) -> None:
    with pytest.raises(lyc.LycorisError, match=found):
        lyc.Mask(weights)


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (lambda: Where(factors=(1.0, math.nan)), "finite number"),
        (lambda: Places(()), "no numbers of pictures"),
        (lambda: Places((0, -1)), "no numbers of pictures"),
        (lambda: Places((0,), (0, 4)), "impossible size"),
        (lambda: Places((0,), (4, 4), before=-1), "impossible size"),
        (lambda: Places((0,), (2, 4, 4), pace=0), "impossible size"),
        (
            lambda: Places((0,), (4, 4), crops=(Crop((8, 4), (range(4), range(4))),) * 2),
            "not as many crops as samples",
        ),
        (lambda: Crop((8, 4), (range(4), range(0))), r"leaves nothing.*\[4, 0\]"),
        (lambda: Crop((8, 4), (range(4),)), "leaves nothing"),
    ],
)
def test_places_and_factors_that_are_none(made: Callable[[], object], found: str) -> None:
    with pytest.raises(lyc.LycorisError, match=found):
        made()


@pytest.mark.parametrize("text", ["a", "3-1", "-4", "1.5", "0-16 40"])
def test_spans_that_are_none(text: str) -> None:
    with pytest.raises(lyc.LycorisError, match="span of frames"):
        parse_spans(text)


def test_frames_that_do_not_agree() -> None:
    with pytest.raises(lyc.LycorisError, match=r"different numbers of frames.*5.*9 for the video, or 3"):
        lyc.Mask(torch.ones(5, 1, 1)).on((3, 2, 2), 4)
    with pytest.raises(lyc.LycorisError, match=r"different numbers of frames"):
        lyc.Mask(torch.ones(5, 1, 1)).on((2, 2))
    with pytest.raises(lyc.LycorisError, match=r"after the last frame.*9.*up to 8"):
        lyc.Mask(torch.ones(1, 1, 1), ((9, None),)).on((3, 2, 2), 4)
    with pytest.raises(lyc.LycorisError, match="no plane"):
        lyc.Mask(torch.ones(1, 1, 1)).on((3,))


def test_tokens_and_pictures_that_do_not_agree() -> None:
    case = PLACED["linear"]
    module, x = case.module(), case.input()
    one = layer("lora", case)
    with pytest.raises(lyc.LycorisError, match="no places are set"):
        run(module, x, None, (one, 1.0, halves()))  # pyright: ignore[reportArgumentType]
    with pytest.raises(lyc.LycorisError, match=r"different number of tokens.*58 tokens.*24 for each of 2"):
        run(module, x, Places((0, 1), GRID), (one, 1.0, halves()))
    with pytest.raises(lyc.LycorisError, match=r"as many strengths as sampled pictures.*2 pictures.*3"):
        run(module, x, places(case), (one, 1.0, Where(factors=(1.0, 2.0, 3.0))))


def test_a_mask_cannot_stand_between_two_stages() -> None:
    case = PLACED["linear"]
    geometry = lyc.geometry_of(case.module())
    assert not isinstance(geometry, str)
    first = lyc.BypassPlan.build(geometry, [slot(layer("lora", case), Where(halves()))])
    with pytest.raises(lyc.LayerError, match="Join the two stacks"):
        first.then(lyc.BypassPlan.build(geometry, [(layer("oft", case), 1.0)]))
    assert not first.then(lyc.BypassPlan.build(geometry, [(layer("loha", case), 1.0)])).formed


@pytest.mark.parametrize(("name", "further"), [("linear", 0), ("conv2d-1x1", 2)])
def test_rotated_inputs_take_no_further_pass_of_a_linear_layer(name: str, further: int) -> None:
    """They are blended in the input. A convolution runs once more for each mask."""
    case = PLACED[name]
    module, x = case.module(), case.input()
    calls: list[None] = []
    own = type(module).forward

    class Counted(type(module)):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(None)
            return own(self, x)

    Counted.__name__ = type(module).__name__
    module.__class__ = Counted
    masks = (halves(), soft())
    run(module, x, places(case), *((layer("oftv2", case), 1.0, mask) for mask in masks))
    assert len(calls) == 1 + further


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_several_masks_of_low_rank_layers_take_no_further_products(name: str) -> None:
    case = PLACED[name]
    module, x = case.module(), case.input()

    def products(*wheres: lyc.Mask | Where | None) -> int:
        with profile(activities=[ProfilerActivity.CPU]) as found:
            run(module, x, places(case), *((layer("lora", case), 0.5, where) for where in wheres))
        return sum(
            event.name in ("aten::convolution", "aten::addmm_", "aten::baddbmm_", "aten::mm")
            for event in found.events() or ()
        )

    unmasked = products(None, None)
    assert unmasked > 1
    assert products(halves(), soft()) == products(None, halves()) == unmasked


@pytest.mark.parametrize("kind", ["lora-dora-out", "oft", "oftv2"])
def test_a_masked_change_is_added_without_a_second_output(kind: str) -> None:
    """The change itself has the factors: nothing is computed beside the mask and blended."""
    case = PLACED["linear"]
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run(case.module(), case.input(), places(case), (layer(kind, case), 0.5, halves()))
    names = [event.name for event in found.events() or ()]
    # The one makes the factors of the mask.
    assert "aten::linear" in names and names.count("aten::lerp") == 1


@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_a_masked_plan_is_freed_with_its_hook(kind: str) -> None:
    """A cycle would keep its tensors until Python collects garbage, which no full device asks for."""
    case = PLACED["linear"]
    found = lyc.geometry_of(module := case.module())
    assert not isinstance(found, str)
    hooks = hook(module, lyc.BypassPlan.build(found, [slot(layer(kind, case), Where(halves()))]))
    hooks.places = places(case)
    module(case.input())
    bound = weakref.ref(hooks._bound)
    gc.collect()
    gc.disable()
    try:
        hooks.remove()
        del hooks
        assert bound() is None
    finally:
        gc.enable()
