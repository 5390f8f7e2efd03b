"""Bypass mode in the real host. The reference is merge mode.

Both modes must sample the same latents, and nodes of both modes must work in any order. When the model is
unloaded, nothing of a bypass may be left.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hosting import Host, Patched, load, model_of, unload
from kinds import KINDS, kinds, lora
from packed import LAYERS, PLAIN, door, float_unet, gguf_like, packed_unet
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from tests.harness.base import unet_layout

pytestmark = pytest.mark.host

NEAR = 1e-3
"""The largest error against merge mode, as a share of the effect. On the CPU up to 3e-5 was measured."""

BLOCK = "input_blocks.1.1.transformer_blocks.0"
CHANGED = (
    f"{BLOCK}.attn1.to_out.0",
    f"{BLOCK}.attn2.to_k",
    f"{BLOCK}.ff.net.0.proj",
    "input_blocks.1.0.emb_layers.1",
    "input_blocks.1.0.in_layers.2",
    "input_blocks.1.1.proj_in",
    "output_blocks.0.0.skip_connection",
)
"""The layers of the smallest UNet that the tests change: linear layers, and 3x3 and 1x1 convolutions."""
SHAPES = {name: init.shape for name, init in unet_layout((1,), 1).items()}
NORM = "input_blocks.1.0.out_layers.0"

Write = Callable[..., Any]


@pytest.fixture(scope="module")
def small(host: Host) -> Iterator[Patched]:
    """The smallest UNet, in plain floats."""
    path = host.base / "models" / "diffusion_models" / "for_bypass.safetensors"
    save_file(float_unet(), path)
    yield host.unet(path.name)
    path.unlink()


@pytest.fixture(scope="module")
def base(host: Host, small: Patched) -> Tensor:
    """The latent of the unpatched model."""
    return host.sampled(small.model)


@pytest.fixture(scope="module")
def before(small: Patched) -> dict[str, Tensor]:
    """The weights and biases that the tests change."""
    state = small.model.model.state_dict()
    keys = [f"diffusion_model.{layer}.{name}" for layer in (*CHANGED, NORM) for name in ("weight", "bias")]
    found = {key: state[key].clone() for key in keys if key in state}
    assert found
    return found


@pytest.fixture(autouse=True)
def nothing_left(small: Patched, before: dict[str, Tensor]) -> Iterator[None]:
    """After every test unloading must remove all hooks, and every weight must be as before."""
    unload()
    yield
    unload()
    assert hooks(small.model.model) == []
    after = small.model.model.state_dict()
    assert all(torch.equal(after[key], weight) for key, weight in before.items())


def of_kind(kind: str, layers: tuple[str, ...] = CHANGED) -> dict[str, dict[str, Tensor]]:
    """A layer of this kind for each of these layers of the UNet."""
    made = {layer: kinds(SHAPES[f"{layer}.weight"])[kind] for layer in layers}
    for layer, tensors in made.items():
        if f"{layer}.bias" not in SHAPES:
            tensors.pop("diff_b", None)
            tensors.pop("lora_B.bias", None)
    return made


def hooks(model: torch.nn.Module) -> list[str]:
    """The modules that have hooks, or a `forward` of their own.

    When the host's own bypass ends, it sets the class's `forward` on the module, which does not count.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        own: Any = vars(module).get("forward")
        replaced = own is not None and own.__func__ is not type(module).forward
        if module._forward_hooks or module._forward_pre_hooks or replaced:
            found.append(name)
    return found


def apart(found: Tensor, wanted: Tensor, base: Tensor) -> float:
    """The distance between `found` and `wanted`, as a share of the distance between `wanted` and `base`."""
    effect = (wanted - base).norm()
    assert torch.isfinite(found).all() and torch.isfinite(wanted).all()
    assert effect > 0.02 * base.norm(), "nothing changes, so nothing is compared"
    return ((found - wanted).norm() / effect).item()


def chain(host: Host, on: Patched, *steps: tuple[Any, str]) -> Patched:
    """Apply stacks one after the other, each in its mode."""
    for stack, mode in steps:
        on = host.apply(on, stack, mode=mode)
    return on


# The same samples as in merge mode.


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_samples_as_merged(
    host: Host, small: Patched, base: Tensor, stack_of: Write, kind: str
) -> None:
    stack = stack_of(of_kind(kind), 0.5)
    merged = host.sampled(host.apply(small, stack).model)
    bypassed = host.apply(small, stack, mode="bypass")
    assert not bypassed.patches and f"{len(CHANGED)} layers bypassed, 0 merged" in bypassed.report
    error = apart(host.sampled(bypassed.model), merged, base)
    print(f"{kind}: {error:.1e} of the effect")
    assert error < NEAR


# Several Apply nodes, one after the other.


@pytest.mark.parametrize(
    "pair", [("oft", "lora-dora-out"), ("lora-bias", "ia3"), ("full", "glora")], ids="-".join
)
def test_nodes_in_a_row_are_one_after_the_other_in_any_modes(
    host: Host, small: Patched, base: Tensor, stack_of: Write, pair: tuple[str, str]
) -> None:
    first, second = (stack_of(of_kind(kind), 0.5) for kind in pair)
    wanted = host.sampled(chain(host, small, (first, "merge"), (second, "merge")).model)
    other = host.sampled(chain(host, small, (second, "merge"), (first, "merge")).model)
    assert apart(other, wanted, base) > 10 * NEAR, "the order makes no difference, so nothing is shown"
    for modes in (("merge", "bypass"), ("bypass", "merge"), ("bypass", "bypass")):
        patched = chain(host, small, (first, modes[0]), (second, modes[1]))
        error = apart(host.sampled(patched.model), wanted, base)
        print(f"{', '.join(modes)}: {error:.1e} of the effect")
        assert error < NEAR, modes
        assert bool(patched.patches) is (modes[0] == "merge")
        if modes == ("bypass", "merge"):
            assert f"{len(CHANGED)} bypassed: an earlier node bypasses the layer" in patched.report


def test_what_only_adds_is_merged_as_asked_after_a_bypass(
    host: Host, small: Patched, base: Tensor, stack_of: Write
) -> None:
    """Neither stack depends on the weight, so the second can be merged although the first is bypassed."""
    first, second = (stack_of(of_kind(kind), 0.5) for kind in ("lora-bias", "full"))
    wanted = host.sampled(chain(host, small, (first, "merge"), (second, "merge")).model)
    patched = chain(host, small, (first, "bypass"), (second, "merge"))
    assert {f"diffusion_model.{layer}.weight" for layer in CHANGED} <= set(patched.patches)
    assert "Mode" not in patched.report
    assert apart(host.sampled(patched.model), wanted, base) < NEAR


def test_changed_stacks_and_clones_share_a_loaded_model(
    host: Host, small: Patched, base: Tensor, stack_of: Write
) -> None:
    """Every model must sample as if it were alone, whichever other model is loaded or deleted meanwhile."""
    one, other = stack_of(of_kind("lora-dora-out"), 0.5), stack_of(of_kind("oft"), 0.5)
    first = host.apply(small, one, mode="bypass")
    latents = host.sampled(first.model)
    changed = host.apply(small, other, mode="bypass")
    # `changed` was applied while the first was loaded, and a third merges the same stack meanwhile.
    assert not torch.equal(host.sampled(changed.model), latents)
    assert apart(host.sampled(changed.model), host.sampled(host.apply(small, other).model), base) < NEAR
    assert torch.equal(host.sampled(first.model), latents)
    clone = first.model.clone()
    assert torch.equal(host.sampled(first.model), latents)
    again = host.apply(first, other, mode="bypass")
    assert len(hooks(small.model.model)) == len(CHANGED)
    # Neither was loaded, so the hooks of the loaded model must stay.
    del clone, again
    gc.collect()
    assert len(hooks(small.model.model)) == len(CHANGED), "the loaded model lost its hooks with a clone"
    clone = first.model.clone()
    clone.model_state_dict()
    live = clone.get_model_object(f"diffusion_model.{CHANGED[0]}")
    assert len(hooks(small.model.model)) == len(CHANGED) and len(live._forward_hooks) == 1
    assert torch.equal(host.sampled(clone), latents)
    assert torch.equal(host.sampled(small.model), base)
    assert torch.equal(host.sampled(clone), latents)
    # With the last of its models the bypass must go.
    del clone, first
    gc.collect()
    assert hooks(small.model.model) == []
    assert torch.equal(host.sampled(small.model), base)


def test_weights_are_read_once_and_only_by_what_depends_on_them(
    host: Host, small: Patched, stack_of: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    reader, real = door(host).HostReader, door(host).HostReader.weight

    def weight(self: Any, module: Any, *rest: Any) -> Tensor:
        reads.append(type(module).__name__)
        return real(self, module, *rest)

    monkeypatch.setattr(reader, "weight", weight)
    host.sampled(host.apply(small, stack_of(of_kind("lora-bias")), mode="bypass").model)
    assert reads == []
    patched = host.apply(small, stack_of(of_kind("lora-dora-out"), 0.5), mode="bypass")
    # Applying a stack reads no weight: the model is not loaded yet.
    assert reads == []
    for _ in range(2):
        host.sampled(patched.model)
        patched.model.model_state_dict()
        host.apply(patched, stack_of(of_kind("lora-bias")))
        unload()
    # Unloading, another stack and another pass need no second reading.
    assert len(reads) == len(CHANGED)
    # Any new patch makes the host patch the model anew.
    merged = host.apply(patched, stack_of({NORM: {"w_norm": torch.ones(320)}}))
    host.sampled(merged.model)
    assert len(reads) == 2 * len(CHANGED), "its patches are others: the weights may be, too"


@pytest.mark.parametrize("ours_first", [True, False])
def test_the_hosts_own_bypass_on_the_same_layers(
    host: Host, small: Patched, base: Tensor, stack_of: Write, ours_first: bool
) -> None:
    """The host's own bypass adds to what the pack makes of the weight, whichever of the two comes first.

    The reference is the host's bypass on a model into which the pack's stack is merged.
    """
    import comfy.sd
    import comfy.utils

    stack_of({n: lora(SHAPES[f"{n}.weight"]) for n in CHANGED})
    tensors = comfy.utils.load_torch_file(str(host.base / "models/loras/stack_0.safetensors"))

    def theirs(model: Any) -> Any:
        return comfy.sd.load_bypass_lora_for_models(model, None, tensors, 0.3, 0.0)[0]

    for kind in ("lora", "lokr-dora-flat", "oft", "ia3"):
        made = {n: lora(SHAPES[f"{n}.weight"]) for n in CHANGED} if kind == "lora" else of_kind(kind)
        ours = stack_of(made, 0.5)
        wanted = host.sampled(theirs(host.apply(small, ours).model))
        if ours_first:
            both = theirs(host.apply(small, ours, mode="bypass").model)
        else:
            both = host.apply(Patched(theirs(small.model), None), ours, mode="bypass").model
        error = apart(host.sampled(both), wanted, host.sampled(theirs(small.model)))
        print(f"{kind}: {error:.1e} of the effect")
        assert error < NEAR
    loaded = theirs(small.model)
    host.sampled(loaded)
    # A clone with hooks of the pack is made and thrown away while the host's are attached.
    unused = host.apply(Patched(loaded, None), ours, mode="bypass")
    del unused, both
    gc.collect()
    assert len(hooks(small.model.model)) == len(CHANGED), "the host's bypass went with a clone of ours"
    assert torch.equal(host.sampled(small.model), base)
    assert hooks(small.model.model) == []


@pytest.mark.parametrize("kind", ["lora-dora-out", "oft", "ia3"])
def test_beside_the_hosts_lora_hooks_it_is_as_merged(
    host: Host, small: Patched, stack_of: Write, kind: str
) -> None:
    """Create Hook LoRA adds its change to the merged weight, for the conditionings that it is set for."""
    from comfy.hooks import set_hooks_for_conditioning

    stack_of({n: lora(SHAPES[f"{n}.weight"]) for n in CHANGED})
    create = host.nodes.NODE_CLASS_MAPPINGS["CreateHookLoraModelOnly"]().create_hook_model_only
    (hook,) = create("stack_0.safetensors", 0.5)
    ours = stack_of(of_kind(kind), 0.5)
    draw = torch.Generator().manual_seed(3)
    plain = [[torch.randn(1, 77, 768, generator=draw), {}]]
    hooked = set_hooks_for_conditioning(plain, hooks=hook)

    def sampled(model: Any) -> Tensor:
        """With the hook for one of the two conditionings, so that the host switches between them."""
        (empty,) = host.nodes.EmptyLatentImage().generate(64, 64)
        sample = host.nodes.KSampler().sample
        (found,) = sample(model, 7, 2, 2.0, "euler", "normal", hooked, plain, empty)
        return found["samples"].clone()

    merged, bypassed = (host.apply(small, ours, mode=mode).model for mode in ("merge", "bypass"))
    # The second time without the hook: nothing that was read beside it stays.
    for sample in (sampled, host.sampled):
        error = apart(sample(bypassed), sample(merged), sample(small.model))
        print(f"{kind}: {error:.1e} of the effect")
        assert error < NEAR


def test_in_low_vram_beside_what_the_host_merges_in_every_pass(
    host: Host, small: Patched, stack_of: Write
) -> None:
    """The host merges one stack in every pass, and another stack is bypassed.

    The output of each layer is compared with that of the exact weight, in float64.
    """
    first, second = stack_of(of_kind("full"), 0.5), stack_of(of_kind("lora-dora-out"), 0.5)
    patched = chain(host, small, (first, "merge"), (second, "bypass"))
    # One byte of memory: every weight is patched only when its layer is called.
    patched.model.patch_model(torch.device("cpu"), lowvram_model_memory=1)
    try:
        for layer in CHANGED:
            live = patched.model.get_model_object(f"diffusion_model.{layer}")
            assert [type(one).__name__ for one in live.weight_function] == ["LowVramPatch"]
            weight, bias = live.weight.detach().double(), live.bias
            for ((entry,),) in ((first,), (second,)):
                (made,) = (made for name, made in entry.adapter.layers.items() if name.endswith(layer))
                change = made.change(weight, None if bias is None else bias.double())
                weight = weight + 0.5 * change.delta
                if change.bias is not None and bias is not None:
                    bias = bias + 0.5 * change.bias
            x = torch.randn(2, weight.shape[1], *[8 for _ in weight.shape[2:]])
            run = functional.conv2d if weight.ndim == 4 else functional.linear
            bias = None if bias is None else bias.double()
            options = {"padding": live.padding} if weight.ndim == 4 else {}
            wanted = run(x.double(), weight, bias, **options)
            assert (live(x) - wanted).abs().max() < 1e-5 * wanted.abs().max(), layer
    finally:
        patched.model.unpatch_model()


# What cannot be bypassed, and what mode `auto` picks.


def test_what_cannot_be_bypassed_is_merged_and_reported(
    host: Host, small: Patched, base: Tensor, stack_of: Write
) -> None:
    layers = {**of_kind("lora-bias"), NORM: {"w_norm": torch.randn(320), "b_norm": torch.randn(320)}}
    patched = host.apply(small, stack_of(layers, 0.5), mode="bypass")
    assert set(patched.patches) == {f"diffusion_model.{NORM}.{name}" for name in ("weight", "bias")}
    assert f"Mode bypass: {len(CHANGED)} layers bypassed, 1 merged" in patched.report
    assert (
        f"1 merged: of class GroupNorm, not a linear layer or a convolution (diffusion_model.{NORM})"
        in patched.report
    )
    assert f"would leave the {len(CHANGED)} bypassed layers out" in patched.report
    assert "Save Merged Model writes" in patched.report
    merged = host.apply(small, stack_of(layers, 0.5))
    assert "Mode" not in merged.report
    assert apart(host.sampled(patched.model), host.sampled(merged.model), base) < NEAR


def test_a_layer_that_enlarges_its_weight_is_merged(host: Host, small: Patched, stack_of: Write) -> None:
    path = "input_blocks.0.0"
    larger = (320, 8, 3, 3)
    stack = stack_of({path: {**lora(larger), "reshape_weight": torch.tensor(larger)}})
    patched = host.apply(small, stack, mode="bypass")
    assert set(patched.patches) == {f"diffusion_model.{path}.weight"}
    assert "0 layers bypassed, 1 merged" in patched.report and "it enlarges its weight" in patched.report
    load(patched.model)
    assert patched.model.get_model_object(f"diffusion_model.{path}").weight.shape == larger
    unload()
    plain = stack_of({path: lora((320, 4, 3, 3))})
    after = host.apply(patched, plain, mode="bypass")
    assert "1 merged: an earlier node enlarges its weight" in after.report
    key = f"diffusion_model.{path}"
    first, second = (
        entry.adapter.layers[key].delta(torch.zeros(shape, dtype=torch.float64))
        for (entry,), shape in ((stack, larger), (plain, (320, 4, 3, 3)))
    )
    base = small.model.model_state_dict()[f"{key}.weight"].double()
    load(after.model)
    live = after.model.get_model_object(key).weight.detach().double()
    torch.testing.assert_close(live[:, :4], base + first[:, :4] + second, rtol=0, atol=2e-3)
    torch.testing.assert_close(live[:, 4:], first[:, 4:], rtol=0, atol=2e-3)
    unload()
    assert torch.equal(small.model.model_state_dict()[f"{key}.weight"].double(), base)
    with pytest.raises(
        host.ops.LycorisError, match=rf"{path}.*enlarges.*earlier node bypasses it.*{path} = 0"
    ):
        chain(host, small, (plain, "bypass"), (stack, "bypass"))


NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (NO_MEMORY, torch.cuda.OutOfMemoryError, r"diffusion_model\..*no memory to read.*MB"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
    ids=["no memory", "interrupt"],
)
def test_where_the_third_weight_cannot_be_read_no_hook_stays(
    host: Host,
    small: Patched,
    base: Tensor,
    stack_of: Write,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    kind: type[BaseException],
    words: str,
) -> None:
    patched = host.apply(small, stack_of(of_kind("lora-dora-out")), mode="bypass")
    real, calls = door(host).HostReader.weight, []

    def weight(self: Any, *rest: Any) -> Tensor:
        calls.append(rest)
        if len(calls) == 3:
            raise error
        return real(self, *rest)

    monkeypatch.setattr(door(host).HostReader, "weight", weight)
    with pytest.raises(kind, match=words):
        host.sampled(patched.model)
    assert len(calls) == 3 and hooks(small.model.model) == []
    monkeypatch.undo()
    assert torch.equal(host.sampled(small.model), base)
    assert not torch.equal(host.sampled(patched.model), base)


def test_parameters_of_their_own_and_embeddings_are_merged(host: Host, stack_of: Write) -> None:
    """Bypass needs a layer that multiplies by its weight when it is called.

    A bare parameter is no layer, an embedding does not multiply, and the head of a language model is not
    called.
    """
    import comfy.ops

    model = model_of(
        table=comfy.ops.manual_cast.Embedding(24, 16),
        pos_embed=torch.nn.Parameter(torch.zeros(24, 16)),
        lm_head=comfy.ops.manual_cast.Linear(16, 24),
    )
    layers = {"table": lora((24, 16)), "lm_head": lora((24, 16)), "pos_embed": {"diff": torch.ones(24, 16)}}
    patched = host.apply(model, stack_of(layers), mode="bypass")
    assert "0 layers bypassed, 3 merged" in patched.report and len(patched.patches) == 3
    for reason in (
        "of class Embedding, not a linear layer or a convolution (diffusion_model.table)",
        "its model multiplies by the weight without calling the layer (diffusion_model.lm_head)",
        "a parameter of its own, not the weight of a layer (diffusion_model.pos_embed)",
    ):
        assert f"1 merged: {reason}" in patched.report


@pytest.fixture(scope="module")
def packed(host: Host) -> Iterator[Patched]:
    """A model with one layer in each quantised format."""
    path = host.base / "models" / "diffusion_models" / "packed.safetensors"
    save_file(packed_unet(host), path)
    yield host.unet(path.name)
    path.unlink()


def with_exact_changes(host: Host, patched: Patched, stack: Any) -> Tensor:
    """The latent of the model with each layer's exact change added beside the layer.

    The change is computed from the unpacked weight, in float32.
    """
    handles: list[Any] = []
    (entry,) = stack
    for name, layer in entry.adapter.layers.items():
        module = patched.model.get_model_object(name)
        weight = module.weight.detach().to(torch.float32)
        weight = weight.dequantize() if hasattr(weight, "dequantize") else weight
        change = entry.strength * layer.delta(weight)

        def add(live: Any, args: tuple[Tensor], y: Tensor, change: Tensor = change) -> Tensor:
            if change.ndim == 4:
                return y + functional.conv2d(args[0], change, None, padding=live.padding)
            return y + functional.linear(args[0], change)

        handles.append(module.register_forward_hook(add))
    latent = host.sampled(patched.model)
    for handle in handles:
        handle.remove()
    return latent


@pytest.mark.parametrize(("kind", "bound"), [("lora", NEAR), ("lokr-dora-flat", 0.05)])
def test_on_quantised_layers_auto_adds_the_exact_change(
    host: Host, packed: Patched, stack_of: Write, kind: str, bound: float
) -> None:
    """A merge must be further from the exact change than bypass, because it rounds the sum to the format.

    DoRA also scales the outputs of a layer, and some formats have rounded its inputs. Its bound is wider.
    """
    layers = (*LAYERS.values(), *PLAIN)
    made = {n: lora(SHAPES[f"{n}.weight"]) for n in layers} if kind == "lora" else of_kind(kind, layers)
    stack = stack_of(made)
    patched = host.apply(packed, stack, mode="auto")
    assert set(patched.patches) == {f"diffusion_model.{layer}.weight" for layer in PLAIN}
    assert f"Mode auto: {len(LAYERS)} layers bypassed, {len(PLAIN)} merged" in patched.report
    nvfp4 = (
        f"kept as nvfp4, and a merge would round the sum to that format (diffusion_model.{LAYERS['nvfp4']})"
    )
    assert f"1 bypassed: {nvfp4}" in patched.report
    assert f"{len(PLAIN)} merged: kept as plain floats" in patched.report
    base = host.sampled(packed.model)
    exact = with_exact_changes(host, packed, stack)
    error = apart(host.sampled(patched.model), exact, base)
    merged = apart(host.sampled(host.apply(packed, stack).model), exact, base)
    print(f"{kind}: {error:.1e} of the effect; merged {merged:.1e}")
    assert error < bound < merged
    unload()
    assert hooks(packed.model.model) == []


def test_auto_bypasses_where_the_host_would_merge_in_every_pass(
    host: Host, stack_of: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card need not be there: the mode is chosen, and nothing is loaded."""
    import comfy.model_management as management
    import comfy.ops

    stack = stack_of({"x": lora((24, 16))})

    def report(device: str, total: int, state: Any) -> str:
        # Too little memory, or the user's setting of low VRAM.
        monkeypatch.setattr(management, "get_total_memory", lambda *_: total)
        monkeypatch.setattr(management, "vram_state", state)
        model = model_of(device, x=comfy.ops.manual_cast.Linear(16, 24))
        return host.apply(model, stack, mode="auto").report

    states = management.VRAMState
    for found in (report("cuda", 1 << 30, states.LOW_VRAM), report("cuda", 1000, states.NORMAL_VRAM)):
        assert "1 layer bypassed, 0 merged" in found and "would merge again in every step" in found
    for found in (report("cuda", 1 << 30, states.NORMAL_VRAM), report("cpu", 1000, states.LOW_VRAM)):
        assert "0 layers bypassed, 1 merged" in found and "kept as plain floats" in found


@pytest.mark.parametrize(
    "row",
    [("lora-bias",), ("lora-dora-out",), ("oft",), ("boft",), ("lora-dora-out", "oft", "lora-dora-out")],
    ids="-".join,
)
@pytest.mark.parametrize("mode", ["bypass", "auto"])
def test_a_layer_of_the_kind_of_ggufs_is_bypassed(
    host: Host, stack_of: Write, row: tuple[str, ...], mode: str
) -> None:
    """In each pass the weight is unpacked and changed by one node after the other. To merge is an error."""
    boft = {"oft_blocks": torch.randn(2, 6, 4, 4) / 4}
    packed_rows = torch.randint(0, 256, (24, 17), dtype=torch.uint8)
    layer, x = gguf_like(packed_rows), torch.randn(5, 16)
    before, patched, reports = layer(x), model_of(x=layer), []
    weight, bias = (packed_rows[:, 1:].double() - 128) / 256, layer.bias.double()
    for kind in row:
        stack = stack_of({"x": boft if kind == "boft" else kinds((24, 16))[kind]}, 0.5)
        patched = host.apply(patched, stack, mode=mode)
        assert not patched.patches
        reports.append(patched.report)
        (entry,) = stack
        ((_, made),) = entry.adapter.layers.items()
        change = made.change(weight, bias)
        weight = weight + 0.5 * change.delta
        if change.bias is not None:
            bias = bias + 0.5 * change.bias
    assert all("1 layer bypassed, 0 merged" in report for report in reports)
    said = "kept as GGUF Q4_K, and a merge would be added again in every step" in reports[0]
    assert said is (mode == "auto")
    wanted = functional.linear(x.double(), weight, bias)
    patched.model.patch_model(torch.device("cpu"))
    try:
        for _ in range(2):
            assert (layer(x) - wanted).abs().max() < 1e-5 * wanted.abs().max()
        assert (before - wanted).abs().max() > 1e-2 * wanted.abs().max()
    finally:
        patched.model.unpatch_model()
    assert torch.equal(layer(x), before) and hooks(patched.model.model) == []
    with pytest.raises(
        host.ops.LycorisError, match=r"diffusion_model\.x\.weight.*uint8.*GgufLikeTensor.*bypass"
    ):
        host.apply(model_of(x=layer), stack)


# Schedules.


# As the host runs nodes. Older hosts cannot round to float8 beside gradients.
@torch.no_grad()
def in_steps(host: Host, *phases: tuple[Any, int], of: int = 4, first: int = 0) -> Tensor:
    """A latent after `of` steps from step `first` on, of which each model makes its number of steps."""
    generator = torch.Generator().manual_seed(3)
    condition = [[torch.randn(1, 77, 768, generator=generator), {}]]
    (latent,) = host.nodes.EmptyLatentImage().generate(64, 64)
    at = first
    for number, (model, count) in enumerate(phases):
        (latent,) = host.nodes.KSamplerAdvanced().sample(
            model,
            "disable" if number else "enable",
            7,
            of,
            1.0,
            "euler",
            "normal",
            condition,
            condition,
            latent,
            at,
            at + count,
            "enable" if at + count < of else "disable",
        )
        at += count
    return latent["samples"].clone()


def test_a_schedule_is_followed_step_by_step_on_both_clocks(
    host: Host, small: Patched, stack_of: Write
) -> None:
    """A strength that jumps is as models of other strengths one after the other, each for its steps."""
    stack = stack_of(of_kind("lora-bias"), 0.5)
    merged, base = host.apply(small, stack).model, small.model
    plain = in_steps(host, (base, 4))
    wanted = in_steps(host, (merged, 2), (base, 2))
    early = host.apply(small, host.scheduled(stack, "off after 0.5", clock="steps")).model
    assert apart(in_steps(host, (early, 4)), wanted, plain) < NEAR
    # The four steps of this scheduler are at about 0, 0.26, 0.53 and 0.79 of the diffusion.
    by_diffusion = host.apply(small, host.scheduled(stack, "off after 0.5")).model
    assert apart(in_steps(host, (by_diffusion, 4)), wanted, plain) < NEAR
    # A run that begins in the middle: by its own steps the first half is on, by the diffusion nothing is.
    late = {"of": 8, "first": 4}
    assert torch.equal(in_steps(host, (by_diffusion, 4), **late), in_steps(host, (base, 4), **late))
    halves = in_steps(host, (merged, 2), (base, 2), **late)
    assert apart(in_steps(host, (early, 4), **late), halves, in_steps(host, (base, 4), **late)) < NEAR


def test_several_nodes_have_schedules_of_their_own(host: Host, small: Patched, stack_of: Write) -> None:
    """The first adapter goes off when the second one comes on."""
    one, other = stack_of(of_kind("lora-bias"), 0.5), stack_of(of_kind("oft"), 0.5)
    plain = in_steps(host, (small.model, 2), of=2)
    both = chain(
        host,
        small,
        (host.scheduled(one, "off after 0.5", clock="steps"), "merge"),
        (host.scheduled(other, "on after 0.5", clock="steps"), "merge"),
    )
    wanted = in_steps(host, (host.apply(small, one).model, 1), (host.apply(small, other).model, 1), of=2)
    assert apart(in_steps(host, (both.model, 2), of=2), wanted, plain) < NEAR
    assert torch.equal(in_steps(host, (small.model, 2), of=2), plain)


@pytest.fixture(params=["low VRAM", "float8", "quantised"])
def short(
    request: pytest.FixtureRequest,
    host: Host,
    small: Patched,
    monkeypatch: pytest.MonkeyPatch,
    packed: Patched,
) -> Iterator[Patched]:
    """A base that takes less memory: of low VRAM, cast to float8, or with a layer in every format."""
    import comfy.model_management as management

    unload()
    if request.param == "low VRAM":
        load: Any = management.LoadedModel.model_load
        # The host itself asks for a tenth of a byte where nothing is to be loaded in advance.
        monkeypatch.setattr(
            management.LoadedModel, "model_load", lambda one, _=0, **options: load(one, 0.1, **options)
        )
        yield small
        assert small.model.model.model_lowvram
    elif request.param == "float8":
        yield host.unet("for_bypass.safetensors", "fp8_e4m3fn")
    else:
        yield packed
    unload()


def test_two_schedules_with_block_rules_on_a_base_that_takes_less_memory(
    host: Host, short: Patched, stack_of: Write
) -> None:
    """Each step is that of two adapters without a schedule, at the strengths that the step has.

    Another stack is merged, in low VRAM in every pass.
    """
    on = host.apply(short, stack_of(of_kind("full"), 0.5))
    one, other = (stack_of(of_kind(kind, (*CHANGED, *LAYERS.values()))) for kind in ("lora-bias", "oft"))
    # The strengths at the four steps: of the first adapter, and of the second, which has two curves.
    rising, falling, late = (0.2, 0.6, 1.0, 0.4), (0.8, 0.8, 0.3, 0.3), (0.0, 0.0, 0.9, 0.9)

    def points(values: tuple[float, ...]) -> str:
        # Each value holds until shortly before the next step.
        return ", ".join(f"{at / 4}:{value}, {(at + 0.9) / 4}:{value}" for at, value in enumerate(values))

    def weighted(stack: Any, inputs: float, outputs: float) -> Any:
        rules = f"in.* = {0.5 * inputs}\nout.* = {0.7 * outputs}"
        return host.run("LycorisWeightBlocks", stack, rules)[0]

    def both(first: Any, second: Any) -> Any:
        return host.ops.Stack([*first, *second])

    def at(step: int) -> Any:
        """The model with what the step has, as if it were there in every step."""
        stack = both(weighted(one, *[rising[step]] * 2), weighted(other, falling[step], late[step]))
        return host.apply(on, stack, mode="bypass").model

    curves = points(rising), f"{points(falling)}\nout.* = {points(late)}"
    first, second = (
        host.scheduled(weighted(stack, 1, 1), curve, clock="steps")
        for stack, curve in zip((one, other), curves, strict=True)
    )
    found = host.apply(on, both(first, second))
    assert set(found.patches) == set(on.patches) and "its strength follows a schedule" in found.report
    base = in_steps(host, (on.model, 4))
    wanted = in_steps(host, *((at(step), 1) for step in range(4)))
    error = apart(in_steps(host, (found.model, 4)), wanted, base)
    print(f"{error:.1e} of the effect")
    assert error < NEAR
    assert apart(in_steps(host, (at(2), 4)), wanted, base) > 10 * NEAR, "one strength does for all steps"


def test_what_can_only_be_merged_takes_the_mean_of_its_schedule(
    host: Host, small: Patched, base: Tensor, stack_of: Write
) -> None:
    stack = stack_of({NORM: {"w_norm": torch.ones(320)}, **of_kind("lora-bias", CHANGED[:1])}, 1.0)
    found = host.apply(small, host.scheduled(stack, "linear 0 1"), strict=False)
    assert "the mean of its schedule" in found.report and "1 merged" in found.report
    # It refuses such a stack.
    assert "1 bypassed layer out" in found.report and "Save Merged Model" not in found.report
    halved = host.run("LycorisWeightBlocks", stack, f"diffusion_model.{NORM} = 0.5")[0]
    one_curve = host.scheduled(stack, f"1\ndiffusion_model.{NORM} = 0.5")
    made = host.sampled(host.apply(small, one_curve, strict=False).model)
    assert apart(made, host.sampled(host.apply(small, halved).model), base) < NEAR
    with pytest.raises(Exception, match="cannot follow a schedule, and strict is on"):
        host.apply(small, host.scheduled(stack, "linear 0 1"), strict=True)


def test_curves_of_the_host(host: Host, stack_of: Write) -> None:
    stack = stack_of(of_kind("lora-bias"), 1.0)
    points = [(0.0, 0.1), (0.3, 0.9), (0.8, 0.2), (1.0, 0.6)]
    for name in ("monotone_cubic", "linear"):
        try:
            from comfy_api.latest._input.curve_types import CurveInput
        except ImportError:
            wanted: Any = None
        else:
            wanted = CurveInput.from_raw({"points": points, "interpolation": name})
        for value in filter(None, ({"points": points, "interpolation": name}, wanted)):
            (entry,) = host.scheduled(stack, "", points=value)
            curve = entry.schedule.stages[0][0].timing.curve
            for time in (0.0, 0.1, 0.3, 0.55, 0.9, 1.0):
                if wanted is not None:
                    assert curve.at(time) == pytest.approx(wanted.interp(time), abs=1e-9)
    with pytest.raises(Exception, match="cannot be read"):
        host.scheduled(stack, "", points=3)
    with pytest.raises(host.ops.ScheduleError, match="there is no curve"):
        host.scheduled(stack, "# mid = linear\n")


def test_moments_are_the_hosts_own_percents(host: Host, small: Patched) -> None:
    """`percent_to_sigma` of what is found gives the sigma again, for samplings of every kind."""
    import comfy.model_sampling as kinds_of_sampling

    moment_of = host.module("lycoris_nodes.apply.bypass").moment_of
    made = [
        small.model.model.model_sampling,
        kinds_of_sampling.ModelSamplingDiscreteFlow(),
        kinds_of_sampling.ModelSamplingFlux(),
        kinds_of_sampling.ModelSamplingContinuousEDM(),
    ]
    for sampling in made:
        for percent in (0.01, 0.3, 0.5, 0.77, 0.99):
            sigma = float(sampling.percent_to_sigma(percent))
            assert moment_of(sampling, sigma, []).diffusion == pytest.approx(percent, abs=1e-4), type(
                sampling
            )
        assert moment_of(sampling, 1e12, []).diffusion == 0.0
    steps = [
        moment_of(made[0], sigma, [8.0, 4.0, 2.0, 0.0]).steps for sigma in (9.0, 8.0, 6.0, 4.0, 1.0, 0.0)
    ]
    assert steps == pytest.approx([0, 0, 1 / 6, 1 / 3, 5 / 6, 1])
