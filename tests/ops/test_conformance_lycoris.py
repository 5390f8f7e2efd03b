"""Every kind on every kind of layer, against the forward pass of the lycoris-lora package.

The package's merge is not used: `merge_to` and `get_diff_weight` of 4.1.3 apply alpha / rank twice for LoHa
and LoKr. Where the package is wrong or computes in float32 alone, a closed form in float64 says what the file
means.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import glora, glora_core
from oracle import EPS32, EPS64, SHAPES, affine, error, fill, layer, stored
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.algorithms import detect

# The package's fused kernels round to the precision of a GPU. It reads this once, when it is imported.
os.environ["LYCORIS_KERNEL_BACKEND"] = "torch"

# alpha / rank is not 1, so that a scale that is lost or applied twice shows.
RANK, ALPHA = 2, 3.0
# No dropout may have an effect outside of training.
DROPOUT = {"rank_dropout": 0.5, "module_dropout": 0.5}
FILES = (torch.float32, torch.bfloat16, torch.float16)

CONV = tuple(name for name, shape in SHAPES.items() if len(shape) > 2)
KERNEL = tuple(name for name in CONV if name != "conv2d-1x1")
POINT = ("linear", "linear-square", "conv2d-1x1")


@dataclass(frozen=True)
class Kind:
    """A class of lycoris-lora with its options, and the keys that it saves."""

    algorithm: str
    module: str
    """The path of the class below `lycoris.modules`."""
    keys: frozenset[str]
    """The suffixes of the tensors that the class saves."""
    options: dict[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = tuple(SHAPES)
    """The names in SHAPES of the weights that the class can adapt."""
    dora: bool = False
    """Whether the kind is also tested with DoRA."""
    eps: float = EPS64
    """A delta may be wrong by 16 times this, relative to the largest changed value."""
    rank: int = RANK
    alpha: float = ALPHA
    out: int | None = None
    """The number of outputs, if the kind does not fit the usual number."""
    told: dict[str, Any] = field(default_factory=dict)
    """Options for loading that the file does not hold."""

    @property
    def compute(self) -> torch.dtype:
        # The package's rotations fail in float64, which meets the float32 of its `.float().inverse()`.
        return torch.float32 if "oft" in self.algorithm else torch.float64


def product(algorithm: str, module: str, keys: set[str], cores: set[str], **options: Any) -> Kind:
    """LoRA or LoHa."""
    tucker = options.get("use_tucker", False)
    return Kind(
        algorithm,
        module,
        frozenset({"alpha", *keys, *(cores if tucker else ())}),
        options,
        KERNEL if tucker else tuple(SHAPES),
        dora=len(options) < 2,
        # A Tucker core is folded in float32 unless the file holds float64.
        eps=EPS32 if tucker else EPS64,
        # alpha is saved times sqrt(rank), which is a whole number here and rounds nothing.
        rank=4 if "rs_lora" in options else RANK,
    )


def lokr(*keys: str, rank: int = RANK, **options: Any) -> Kind:
    tucker = "lokr_t2" in keys
    layers = KERNEL if tucker else tuple(SHAPES)
    if rank > RANK:
        # The second factor of a square layer is long enough to be low-rank all the same.
        layers = tuple(name for name in layers if "square" not in name)
    return Kind(
        "lokr",
        "lokr.LokrModule",
        frozenset({"alpha", *keys}),
        options,
        layers,
        dora=True,
        eps=EPS32 if tucker else EPS64,
        rank=rank,
    )


def rotation(algorithm: str, module: str, **options: Any) -> Kind:
    keys = {"oft_blocks", "alpha", *(["rescale"] if options.get("rescaled") else [])}
    # A butterfly exists only where the outputs are an even number times a power of two.
    out = 32 if algorithm == "boft" else None
    return Kind(algorithm, module, frozenset(keys), options, eps=EPS32, rank=4, out=out)


def tlora(start: str) -> Kind:
    keys = frozenset({"q_layer.weight", "p_layer.weight", "lambda_layer", "alpha"})
    told = {"sig_type": start}
    # The package starts from a singular value decomposition in float32.
    return Kind("tlora", "tlora.TLoraModule", keys, told, POINT, eps=4 * EPS32, told=told)


LORA = ("lora", "locon.LoConModule", {"lora_up.weight", "lora_down.weight"}, {"lora_mid.weight"})
HALVES = {f"hada_w{n}_{side}" for n in (1, 2) for side in "ab"}
LOHA = ("loha", "loha.LohaModule", HALVES, {"hada_t1", "hada_t2"})
W1, W1_LOW = ("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")
W2, W2_LOW = ("lokr_w2",), ("lokr_w2_a", "lokr_w2_b")
T2 = ("lokr_t2", *W2_LOW)
OFT, BOFT = ("oft", "diag_oft.DiagOFTModule"), ("boft", "boft.ButterflyOFTModule")
GLORA = frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"})
IA3 = frozenset({"weight", "on_input"})

KINDS: dict[str, Kind] = {
    "lora": product(*LORA),
    "lora-tucker": product(*LORA, use_tucker=True),
    "lora-rs": product(*LORA, rs_lora=True),
    "lora-scalar": product(*LORA, use_scalar=True),
    "loha": product(*LOHA),
    "loha-tucker": product(*LOHA, use_tucker=True),
    "loha-rs": product(*LOHA, rs_lora=True),
    "loha-scalar": product(*LOHA, use_scalar=True),
    "lokr": lokr(*W1, *W2_LOW, factor=2),
    "lokr-tucker": lokr(*W1, *T2, factor=2, use_tucker=True),
    "lokr-full": lokr(*W1, *W2, factor=2, full_matrix=True),
    "lokr-both": lokr(*W1_LOW, *W2_LOW, decompose_both=True),
    "lokr-both-tucker": lokr(*W1_LOW, *T2, decompose_both=True, use_tucker=True),
    "lokr-first": lokr(*W1_LOW, *W2, rank=4, decompose_both=True, factor=18, unbalanced_factorization=True),
    "lokr-unbalanced": lokr(*W1, *W2_LOW, factor=4, unbalanced_factorization=True),
    "lokr-rs": lokr(*W1, *W2_LOW, rank=4, factor=2, rs_lora=True),
    "lokr-scalar": lokr(*W1, *W2_LOW, factor=2, use_scalar=True),
    "glora": Kind("glora", "glora.GLoRAModule", GLORA),
    "glora-scalar": Kind("glora", "glora.GLoRAModule", GLORA, {"use_scalar": True}),
    "ia3-out": Kind("ia3", "ia3.IA3Module", IA3, {"train_on_input": False}),
    "ia3-in": Kind("ia3", "ia3.IA3Module", IA3, {"train_on_input": True}),
    # A constraint of 1 is above the norm of these rotations, and one of 0.0625 is below it.
    "oft": rotation(*OFT),
    "oft-slack": rotation(*OFT, constraint=1.0),
    "oft-constrained": rotation(*OFT, constraint=0.0625),
    "oft-rescaled": rotation(*OFT, rescaled=True),
    "oft-rescaled-constrained": rotation(*OFT, rescaled=True, constraint=0.0625),
    "boft": rotation(*BOFT),
    "boft-slack": rotation(*BOFT, constraint=1.0),
    "boft-constrained": rotation(*BOFT, constraint=0.0625),
    "boft-rescaled": rotation(*BOFT, rescaled=True),
    "boft-rescaled-constrained": rotation(*BOFT, rescaled=True, constraint=0.0625),
    **{f"tlora-{start}": tlora(start) for start in ("principal", "middle", "last")},
}


def _cases() -> Iterator[tuple[str, str, str | None, torch.dtype]]:
    """Every kind on every layer that it is for.

    With DoRA, and in the narrower dtypes of files, a kind is on a few layers, and the next kind on the next
    ones. So every layer meets every dtype and both axes of DoRA.
    """
    for number, (kind, spec) in enumerate(KINDS.items()):
        in_turn = [spec.layers[(number + n) % len(spec.layers)] for n in range(4)]
        for weight in spec.layers:
            yield kind, weight, None, torch.float32
        if spec.dora:
            for weight in dict.fromkeys((spec.layers[0], *in_turn)):
                for axis in ("out", "in"):
                    yield kind, weight, axis, torch.float32
        for n, file in enumerate(FILES[1:]):
            yield kind, in_turn[n], None, file
            if spec.dora:
                yield kind, in_turn[n], ("out", "in")[(number + n) % 2], file


CASES = list(_cases())


@pytest.fixture(scope="module", autouse=True)
def small_collections() -> Iterator[None]:
    """Keep garbage collections short. The package starts one whenever a T-LoRA is made.

    Objects that the imports have left behind are frozen, so that collections pass over them.
    """
    gc.freeze()
    yield
    gc.unfreeze()


def module_class(path: str) -> Any:
    """A class of the package, by its path below `lycoris.modules`."""
    import lycoris.modules as modules

    name, _, cls = path.partition(".")
    return getattr(getattr(modules, name), cls)


def adapted(kind: str, weight: str, file: torch.dtype, axis: str | None = None) -> tuple[Any, Tensor]:
    """A module of the package with random values that the file's dtype holds, and its base's weight."""
    spec = KINDS[kind]
    out, *rest = SHAPES[weight]
    base = layer((spec.out or out, *rest), dtype=spec.compute)
    dora = {"weight_decompose": True, "wd_on_out": axis == "out"} if axis else {}
    cls = module_class(spec.module)
    made = cls("layer", base, 1.0, spec.rank, spec.alpha, **DROPOUT, **dora, **spec.options)
    made = made.to(spec.compute).eval().requires_grad_(False)
    fill(made.parameters(), file)
    if spec.options.get("use_scalar"):
        # The scalar is multiplied into a factor when that is saved; with a power of two nothing is rounded.
        made.scalar.fill_(2.0)
    return made, base.weight.double()  # type: ignore[operator]


@pytest.mark.parametrize(("kind", "weight", "axis", "file"), CASES)
def test_delta_is_what_lycoris_computes(kind: str, weight: str, axis: str | None, file: torch.dtype) -> None:
    """The delta of a loaded layer is the change of the weight that the package's forward pass shows."""
    spec = KINDS[kind]
    theirs, base = adapted(kind, weight, file, axis)
    changed, bias = affine(theirs.forward, tuple(base.shape), spec.compute)
    tensors = stored(theirs.state_dict(), file)
    assert tensors.keys() == spec.keys | ({"dora_scale"} if axis else set())
    algorithm = detect(tensors)
    assert algorithm is not None and algorithm.algorithm == spec.algorithm
    delta = algorithm.load(tensors, spec.told).delta(base)
    assert delta.dtype == torch.float64
    assert error(delta, changed - base, base) <= 16 * spec.eps
    # The base has no bias, and none may appear.
    assert not bias.any()


class Model(nn.Module):
    """One layer of each kind that `create_lycoris` looks for."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.linear = layer((32, 40), bias=bias, dtype=torch.float32)
        self.conv = layer((32, 20, 3, 3), bias=bias, dtype=torch.float32)
        self.norm = nn.LayerNorm(12)


FILE_ALGOS: dict[str, dict[str, Any]] = {
    "lora": {},
    "locon": {"use_tucker": True, "dora_wd": True},
    "loha": {"use_tucker": True, "dora_wd": True, "wd_on_output": False},
    "lokr": {"factor": 2, "dora_wd": True},
    "glora": {},
    "ia3": {},
    "diag-oft": {"rescaled": True, "constraint": 1},
    "boft": {"rescaled": True, "constraint": 0},
    "full": {},
}


@pytest.mark.parametrize(
    ("algo", "file"),
    [*((algo, None) for algo in FILE_ALGOS), *zip(FILE_ALGOS, FILES * 3, strict=True)],
)
def test_a_file_of_lycoris_is_read_whole(algo: str, file: torch.dtype | None, tmp_path: Path) -> None:
    """A file that the package writes by `save_weights` is read without any key left over.

    Its alphas and on_input flags may have the file's dtype or be whole numbers.
    """
    from lycoris import create_lycoris

    model = Model(bias=algo == "full").requires_grad_(False)
    weights = {name: value.clone() for name, value in model.named_parameters()}
    dim = 4 if "oft" in algo else RANK
    network = create_lycoris(model, 1.0, dim, ALPHA, algo=algo, train_norm=True, **FILE_ALGOS[algo])
    network.apply_to()
    network.eval().requires_grad_(False)
    fill((p for name, p in network.named_parameters() if p.numel()), file or torch.float32)
    path = tmp_path / "adapter.safetensors"
    network.save_weights(str(path), file, None)
    adapter = lyc.load_adapter(path)
    assert (dict(adapter.unreadable), adapter.unused_keys) == ({}, ())
    assert adapter.layers.keys() == {"lycoris_linear", "lycoris_conv", "lycoris_norm"}
    for theirs in network.loras:
        name = theirs.lora_name.removeprefix("lycoris_")
        base = weights[f"{name}.weight"].double()
        change = adapter.layers[theirs.lora_name].change(base)
        if name == "norm":
            assert torch.equal(change.delta, theirs.w_norm.double())
            assert torch.equal(change.bias.double(), theirs.b_norm.double())
            continue
        changed, bias = affine(theirs.forward, tuple(base.shape), torch.float32)
        # A full difference is rounded only when it is saved; the module goes on with the unrounded values.
        slack = torch.finfo(file).eps if algo == "full" and file else 32 * EPS32
        assert error(change.delta, changed - base, base) <= slack
        if algo == "full":
            base_bias = weights[f"{name}.bias"].double()
            assert error(change.bias.double(), bias - base_bias, base_bias) <= slack


# Closed forms in float64, for what the package itself does not make.


def glora_closed(weight: Tensor, tensors: dict[str, Tensor], rank: int, layout: str) -> Tensor:
    """Chavan et al. (2306.07967): s * (B + W A), with A = a1 a2 and B = b1 b2.

    In the older layout A is a2 a1, and B is b2 b1.
    """
    names = ("a1", "a2", "b1", "b2") if layout == "new" else ("a2", "a1", "b2", "b1")
    a_up, a_down, b_up, b_down = (tensors[f"{name}.weight"].double() for name in names)
    prompt = torch.einsum("oi...,ij->oj...", weight, a_up.flatten(1) @ a_down.flatten(1))
    if "bm.weight" in tensors:
        core = tensors["bm.weight"].double()
        added = torch.einsum("mn...,om,ni->oi...", core, b_up.flatten(1), b_down.flatten(1))
    else:
        added = (b_up.flatten(1) @ b_down.flatten(1)).reshape(weight.shape)
    return ALPHA / rank * (added + prompt)


GLORA_CASES = [
    (layout, core, weight)
    for layout, core in (("new", False), ("new", True), ("old", False))
    for weight in (KERNEL if core else SHAPES)
]


@pytest.mark.parametrize(("layout", "core", "weight"), GLORA_CASES)
def test_glora_is_the_closed_form(layout: str, core: bool, weight: str) -> None:
    base = layer(SHAPES[weight]).weight
    tensors = {**(glora_core if core else glora)(SHAPES[weight], 3), "alpha": torch.tensor(ALPHA)}
    if layout == "old":
        tensors = {name.translate(str.maketrans("12", "21")): part for name, part in tensors.items()}
    algorithm = detect(tensors)
    assert algorithm is not None and algorithm.algorithm == "glora"
    wanted = glora_closed(base, tensors, 3, layout)  # type: ignore[arg-type]
    delta = algorithm.load(tensors).delta(base)  # type: ignore[arg-type]
    assert error(delta, wanted, base) <= 16 * (EPS32 if core else EPS64)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", SHAPES)
@pytest.mark.parametrize("block", [1, 2])
def test_an_export_of_dylora_is_a_lora(weight: str, block: int) -> None:
    """The factors that DyLoRA exports are those of a LoRA. On a convolution its up factor is a matrix."""
    theirs, base = dylora(weight, block)
    tensors = stored(theirs.state_dict(), torch.float32)
    assert tensors.keys() == KINDS["lora"].keys
    assert tensors["lora_up.weight"].ndim == 2
    product = tensors["lora_up.weight"].double() @ tensors["lora_down.weight"].double().flatten(1)
    wanted = (ALPHA / 4 * product).reshape(base.shape)
    algorithm = detect(tensors)
    assert algorithm is not None and algorithm.algorithm == "lora"
    assert error(algorithm.load(tensors).delta(base), wanted, base) <= 16 * EPS64


def dylora(weight: str, block: int) -> tuple[Any, Tensor]:
    """A DyLoRA module of rank 4 of the package, and the weight of its base."""
    base = layer(SHAPES[weight])
    made = module_class("dylora.DyLoraModule")("layer", base, 1.0, 4, ALPHA, block_size=block)
    made = made.double().eval().requires_grad_(False)
    fill(made.parameters(), torch.float32)
    return made, base.weight  # type: ignore[return-value]


@torch.no_grad()
def test_a_rank_stabilised_full_lokr_is_read_as_lycoris_reads_it() -> None:
    """The layer was trained with a scale of sqrt(rank), which nothing in the file shows.

    The package computes with a scale of 1 when it loads the file, and so does the library.
    """
    cls, base = module_class("lokr.LokrModule"), layer(SHAPES["linear"])
    made = cls("layer", base, 1.0, 4, ALPHA, full_matrix=True, rs_lora=True).double().eval()
    fill(made.requires_grad_(False).parameters(), torch.float32)
    tensors = stored(made.state_dict(), torch.float32)
    again = cls.make_module_from_state_dict("layer", base, *(tensors.get(name) for name in cls.weight_list))
    trained, reloaded = (
        affine(module.double().forward, SHAPES["linear"])[0] - base.weight for module in (made, again)
    )
    torch.testing.assert_close(trained, math.sqrt(4) * reloaded)
    algorithm = detect(tensors)
    assert algorithm is not None
    delta = algorithm.load(tensors).delta(base.weight)  # type: ignore[arg-type]
    assert error(delta, reloaded, base.weight) <= 16 * EPS64  # type: ignore[arg-type]


@pytest.mark.parametrize("angle", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("key", ["oft_blocks", "boft_R"])
def test_a_small_rotation_loses_no_digits(key: str, angle: float) -> None:
    """A change far below its weight, in float32, is as exact as a large one."""
    draw = torch.Generator().manual_seed(0)
    blocks = angle * torch.randn(4, 4, 4, generator=draw)
    weight = torch.randn(16, 16, generator=draw)
    tensors = (
        {"oft_blocks": blocks} if key == "oft_blocks" else {key: blocks[None], "boft_s": torch.ones(16, 1)}
    )
    found = detect(tensors)
    assert found is not None
    skew = blocks.double() - blocks.double().transpose(1, 2)
    if key == "boft_R":
        skew = -skew / 2
    one = torch.eye(4, dtype=torch.float64)
    extra = torch.block_diag(*(2 * each @ torch.linalg.inv(one - each) for each in skew))
    # PEFT's rotates the inputs, and a weight has them in its columns.
    wanted = weight.double() @ extra.T if key == "boft_R" else extra.T @ weight.double()
    delta = found.load(tensors).delta(weight)
    assert float((delta.double() - wanted).norm() / wanted.norm()) <= 16 * EPS32
