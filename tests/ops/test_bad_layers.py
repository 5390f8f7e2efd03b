"""Faulty layers and files: each raises an error that names the fault, or has its line in the report."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import KINDS, factors, lora
from safetensors.torch import save_file
from torch import Tensor, nn

import lycoris_ops as lyc

KEYS = {"diffusion_model.a.b.weight": (12, 18), "diffusion_model.a.c.weight": (12, 18)}
GOOD, NAME = "lora_unet_a_b", "lora_unet_a_c"


def written(path: Path, layer: dict[str, Tensor], name: str = NAME) -> Path:
    """A file of one good layer, and of the layer that is tested."""
    tensors = {f"{GOOD}.{key}": tensor for key, tensor in lora((12, 18), 2).items()}
    tensors |= {f"{name}.{key}": tensor for key, tensor in layer.items()}
    save_file(tensors, path / "x.safetensors")
    return path / "x.safetensors"


def report(path: Path) -> str:
    """The report of the file on a model of two weights, one for each of its layers."""
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(path))])
    resolution = lyc.resolve(stack, KEYS)
    resolution.check()
    return lyc.describe(resolution)


def without(layer: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in layer.items() if name != key}


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        ({**factors("lora", "linear"), **factors("loha", "linear")}, "two kinds at once, loha and lora"),
        ({**factors("lora", "linear"), "hada_w1_a": torch.zeros(12, 2)}, "two kinds at once, lora and loha"),
        (without(factors("lora", "linear"), "lora_up.weight"), "a lora layer without lora_up.weight"),
        (without(factors("lokr-full-low", "linear"), "lokr_w2_a"), "a lokr layer without lokr_w2"),
        ({"alpha": torch.tensor(1.0)}, "no algorithm reads the tensors alpha"),
        ({**factors("lora", "linear"), "new_thing": torch.zeros(1)}, "unknown tensors: new_thing"),
        (
            {**factors("oft", "linear"), "new_thing": torch.zeros(1)},
            "a boft or oft layer with unknown tensors: new_thing",
        ),
        (
            {"ia3_l": torch.zeros(12, 1), "on_input": torch.tensor(0)},
            "an ia3 layer with both ia3_l and on_in",
        ),
        ({"diff": torch.zeros(12, 18), "set_weight": torch.ones(12, 18)}, "with both diff and set_weight"),
        (
            {**factors("lokr-full-full", "linear"), "lokr_w1_a": torch.zeros(3, 2)},
            "a lokr layer with both lokr_w1, lokr_w2 and lokr_w1_a",
        ),
        ({"oft_blocks": torch.zeros(12, 12)}, "than the 4 of a boft layer or the 3 of an oft layer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_layer_that_cannot_be_read_is_reported_and_fails_strict(
    tmp_path: Path, layer: dict[str, Tensor], line: str
) -> None:
    path = written(tmp_path, layer)
    text = report(path)
    assert "applied 1 of 2 layers" in text and f"{NAME}: " in text and line in text
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(path))])
    with pytest.raises(lyc.MatchError, match=NAME):
        lyc.resolve(stack, KEYS).check(strict=True)


@pytest.mark.parametrize(
    ("kind", "key", "shape", "says"),
    [
        ("lora", "lora_up.weight", (12, 4), "ranks of lora_up.weight and lora_down.weight disagree"),
        ("loha", "hada_w2_a", (12, 4), "ranks of hada_w2_a and hada_w2_b disagree"),
        ("lora-tucker", "lora_mid.weight", (3, 4, 3, 3), "disagree"),
        ("glora", "a2.weight", (4, 18), "ranks of a GLoRA layer disagree"),
        ("glora", "b2.weight", (3, 17), "input sizes of a1.weight and b2.weight disagree"),
        ("glora-old", "b1.weight", (3, 17), "input sizes of a2.weight and b1.weight disagree"),
        ("oft", "oft_blocks", (3, 4, 5), "sides of oft_blocks"),
        ("oftv2", "oft_R.weight", (9, 2), "not triangles"),
        ("tlora", "lambda_layer", (1, 4), "ranks of lambda_layer and q_layer.weight disagree"),
        ("ia3", "on_input", (2,), "on_input is not a single number"),
        ("oftv2", "oft_R.scaled_oft", (2,), "oft_R.scaled_oft is not a single number"),
        ("lora-dora-out", "dora_scale", (11, 1), "neither the outputs nor the inputs"),
        ("lora-sparse", "bias_size", None, "sparse remainder is incomplete"),
        ("lora-sparse", "bias_size", (3,), "dimensions of bias_indices and bias_size disagree"),
        ("lora-sparse", "bias_values", (6,), "values of bias_indices and bias_values disagree"),
        ("lora-sparse", "bias_values", (5, 1), "bias_values has an unusable shape"),
        ("lora", "lora_up.weight", (12, 0), "lora_up.weight is empty"),
        ("boft", "oft_blocks", (2, 3, 4, 4), "2 stages of 3 blocks of 4 rows"),
        ("boft", "oft_blocks", (5, 2, 6, 6), "a multiple of 16 of them"),
        ("boft", "oft_blocks", (1, 12, 1, 1), "blocks of an even size"),
        ("boft-peft", "boft_R", (4, 3, 6, 6), "4 stages of 3 blocks of 6 inputs"),
        ("boft-peft", "boft_R", (2, 6, 3, 3), "blocks of an even size"),
        ("glora-core", "a1.weight", (18, 4, 1, 1), "ranks of a1.weight and a2.weight disagree"),
    ],
)
def test_tensors_that_contradict_each_other_name_file_layer_and_sizes(
    tmp_path: Path, kind: str, key: str, shape: tuple[int, ...] | None, says: str
) -> None:
    if kind == "glora-old":
        # In the older layout of GLoRA the two factors of each pair have each other's names.
        turned = str.maketrans("12", "21")
        layer = {name.translate(turned): part for name, part in factors("glora", "linear").items()}
    else:
        layer = factors(kind, "conv2d" if KINDS[kind].needs_kernel else "linear")
    layer = without(layer, key)
    path = written(tmp_path, layer if shape is None else {**layer, key: torch.zeros(shape)})
    with pytest.raises(lyc.LayerError) as caught:
        lyc.load_adapter(path)
    text = str(caught.value)
    assert str(path) in text and NAME in text and says in text


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ({"w_norm": torch.zeros(())}, r"w_norm has an unusable shape.*found \[\]; expected from 1 to 8"),
        ({"w_norm": torch.zeros(3, 4)}, "w_norm is not a vector"),
        ({"b_norm": torch.zeros(0)}, "b_norm is empty"),
        ({"diff": torch.zeros(())}, "diff has an unusable shape"),
        (
            {"diff": torch.zeros((12, 18, *[1] * 10))},
            "diff has an unusable shape.*12 dimensions.*from 1 to 8",
        ),
        ({"diff": torch.zeros(12, 18), "diff_b": torch.zeros(3, 4)}, "diff_b is not a vector"),
        ({"oft_R.weight": torch.zeros(15)}, r"oft_R.weight has an unusable shape.*\[15\]"),
        ({"oft_R.weight": torch.zeros(3, 15, 1)}, "oft_R.weight has an unusable shape.*2 dimensions"),
        ({"boft_R": torch.zeros(1, 3, 6, 6, 1), "boft_s": torch.ones(12)}, "boft_R has an unusable shape"),
        ({"boft_R": torch.zeros(1, 3, 6, 6), "boft_s": torch.ones(3, 4)}, "boft_s is not a vector"),
        ({"oft_blocks": torch.zeros(3, 4, 4), "rescale": torch.ones(3, 4)}, "rescale is not a vector"),
        ({"ia3_l": torch.ones(3, 4)}, "ia3_l is not a vector"),
        ({**factors("lora", "linear"), "dora_scale": torch.ones(3, 4)}, "dora_scale is not a vector"),
        ({**factors("tlora", "linear"), "p_layer.weight": torch.ones(12, 3, 2)}, "kernel sizes of p_layer"),
        ({**factors("loha", "linear"), "hada_w1_a": torch.ones(12, 3, 2)}, "kernel sizes of hada_w1_a"),
        (
            {
                **factors("loha", "linear"),
                "hada_w1_b": torch.ones(3, 6, 3),
                "hada_w2_b": torch.ones(3, 3, 6),
            },
            "kernels of hada_w1_b and hada_w2_b disagree",
        ),
        ({**factors("glora", "linear"), "a2.weight": torch.ones(3, 18, 2)}, "kernel sizes of a2.weight"),
        ({"oft_blocks": torch.zeros(15_000, 2, 2, 2)}, "15000 stages of 2 blocks.*fewer stages"),
        ({"boft_R": torch.zeros(15_000, 2, 2, 2), "boft_s": torch.ones(12)}, "15000 stages of 2 blocks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_shape_that_no_layer_has_is_refused_when_the_file_is_opened(
    tmp_path: Path, layer: dict[str, Tensor], says: str
) -> None:
    path = written(tmp_path, layer)
    with pytest.raises(lyc.LayerError, match=rf"^{path}: {NAME}: .*{says}"):
        lyc.load_adapter(path)


def tucker(kind: str, rank: int, size: int) -> dict[str, Tensor]:
    """A layer whose core has the ranks (rank, 1), for a weight of 1 or 4 outputs and `size` inputs."""
    core, inputs = torch.ones(rank, 1, 1, 1), torch.ones(1, size)
    if kind == "lora":
        wide = torch.ones(1, rank, 1, 1)
        return {"lora_up.weight": wide, "lora_mid.weight": core, "lora_down.weight": inputs[..., None, None]}
    if kind == "loha":
        pairs = {f"hada_w{n}_a": torch.ones(rank, 1) for n in (1, 2)}
        pairs |= {f"hada_w{n}_b": inputs.clone() for n in (1, 2)}
        return {**pairs, **{f"hada_t{n}": core.clone() for n in (1, 2)}}
    if kind == "lokr":
        return {
            "lokr_w1": torch.ones(1, 1),
            "lokr_t2": core,
            "lokr_w2_a": torch.ones(rank, 1),
            "lokr_w2_b": inputs,
        }
    sides = {"a1.weight": torch.ones(size, 1), "a2.weight": torch.ones(1, size)}
    return {**sides, "b1.weight": torch.ones(1, rank), "b2.weight": inputs, "bm.weight": core}


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "glora"])
def test_a_core_that_asks_for_far_more_than_its_file_and_weight_hold_is_refused(
    tmp_path: Path, kind: str
) -> None:
    """A file of 200 kB whose core makes 268 million values on the way to a change of 16 thousand."""
    size = 1 << 14
    path = written(tmp_path, tucker(kind, size, size))
    with pytest.raises(
        lyc.LayerError, match=rf"^{path}: {NAME}: .*far larger than its weight.*{size * size} "
    ):
        lyc.load_adapter(path)
    # A rank far above the number of outputs is strange, but does no harm.
    sound = lyc.load_adapter(written(tmp_path, tucker(kind, 512, 320))).layers[NAME]
    assert sound.delta(torch.zeros(1, 320, 1, 1)).isfinite().all()


def test_a_block_for_all_inputs_that_is_repeated_too_often_does_not_fit() -> None:
    """One block of 1024 x 1024, for a weight of a million inputs and one output: 4 GB in float32."""
    layer = lyc.ALGORITHMS["oftv2"].load({"oft_R.weight": torch.zeros(1, 1024 * 1023 // 2)})
    layer.check_fit((256, 1 << 20))
    with pytest.raises(lyc.LayerError, match=r"oftv2 layer needs products in between.*1073741824 values"):
        layer.check_fit((1, 1 << 20))


def test_a_weight_is_not_enlarged_without_bounds(tmp_path: Path) -> None:
    size = 1 << 14
    layer = {"lora_up.weight": torch.zeros(size, 1), "lora_down.weight": torch.zeros(1, size)}
    path = written(tmp_path, {**layer, "reshape_weight": torch.tensor([size, size])})
    with pytest.raises(
        lyc.LayerError, match=rf"^{path}: {NAME}: .*enlarges a weight too far.*at most 67108864"
    ):
        lyc.load_adapter(path)
    # As BFL's layers of control models, which have no such tensor.
    bfl = {"lora_A.weight": layer["lora_down.weight"], "lora_B.weight": layer["lora_up.weight"]}
    bfl["lora_B.bias"] = torch.zeros(size)
    save_file(
        {
            f"{name}.{key}": part.clone()
            for name in ("img_in", "double_blocks.0.img_attn.proj")
            for key, part in bfl.items()
        }
        | {"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(128)},
        tmp_path / "control.safetensors",
    )
    with pytest.raises(lyc.LayerError, match=r"img_in: .*enlarges a weight too far"):
        lyc.load_adapter(tmp_path / "control.safetensors")


def test_a_weight_without_dimensions_is_met_by_no_layer() -> None:
    for kind in ("lora", "oft", "oftv2", "glora", "ia3", "full"):
        with pytest.raises(lyc.LayerError, match=r"does not fit the weight.*expected \[\]"):
            lyc.ALGORITHMS[kind].load(factors(kind, "linear")).delta(torch.tensor(1.0))


SPARSE = {
    "lora_up.weight": torch.zeros(12, 2),
    "lora_down.weight": torch.zeros(2, 18),
    "bias_indices": torch.tensor([[0, 11], [3, 17]], dtype=torch.int16),
    "bias_values": torch.tensor([7.0, 8.0]),
    "bias_size": torch.tensor([12, 18], dtype=torch.int16),
}
"""A LoRA with two values beside the product, at [0, 3] and [11, 17] of a weight of 12 x 18."""


@pytest.mark.parametrize(
    ("layer", "key", "value", "says"),
    [
        (SPARSE, "bias_indices", [[0, 12], [3, 17]], r"1 of 2 places, such as \[12, 17\].*in \[12, 18\]"),
        (SPARSE, "bias_indices", [[0, 11], [-1, 17]], r"places, such as \[0, -1\]"),
        (SPARSE, "bias_size", [18, 12], r"bias_size is not the size.*\[18, 12\].*\[12, 18\]"),
        (SPARSE, "bias_size", [12, -18], "bias_size is not the size"),
        (SPARSE, "bias_size", [math.nan, 18], "bias_size is not the size"),
        (factors("ia3", "linear"), "on_input", 2, "on_input is neither 0 nor 1.*found 2"),
        (factors("ia3", "linear"), "on_input", math.nan, "on_input is neither 0 nor 1.*found nan"),
        (factors("lora", "linear"), "reshape_weight", [12, 20], r"reshape_weight.*\[12, 20\].*\[12, 18\]"),
        (factors("lora", "linear"), "reshape_weight", [6, 9], "reshape_weight is not the shape of the layer"),
        (factors("lora", "linear"), "reshape_weight", [math.nan, 18], "reshape_weight is not the shape"),
        (factors("lora", "linear"), "alpha", True, "alpha is not a single number.*bool"),
        (
            factors("lora", "linear"),
            "dora_scale",
            [[1]] * 12,
            "factor is not of a floating.*found torch.int64",
        ),
        (factors("loha", "linear"), "diff_b", [True] * 12, "factor is not of a floating.*found torch.bool"),
        (
            factors("loha", "linear"),
            "diff_b",
            [math.nan] * 12,
            "factor holds NaN or infinity.*12 of 12 values",
        ),
    ],
)
def test_values_that_cannot_be_right_are_an_error_when_the_layer_is_read(
    tmp_path: Path, layer: dict[str, Tensor], key: str, value: Any, says: str
) -> None:
    adapter = lyc.load_adapter(written(tmp_path, {**layer, key: torch.tensor(value)}))
    # An error about one tensor has its key.
    with pytest.raises(lyc.LayerError, match=rf"{adapter.path}: {NAME}(\.{key})?: .*{says}") as read:
        adapter.layer(NAME)
    # Nothing else is at fault when it is to be written: no dialect, and not how that divides the model.
    with pytest.raises(lyc.LayerError) as raised:
        lyc.save_adapter(adapter, tmp_path / "out.safetensors")
    assert str(raised.value) == str(read.value)
    if key == "alpha":
        with pytest.raises(lyc.LayerError, match=rf"{adapter.path}: {NAME}\.alpha: .*{says}"):
            adapter.alphas()


@pytest.mark.parametrize("key", ["alpha", "reshape_weight", "lora_up.weight", "diff_b"])
def test_complex_tensors_are_no_numbers_and_no_factors(key: str) -> None:
    """A pickle or a layer in memory may hold them; safetensors files do not."""
    made = {"reshape_weight": torch.tensor([12, 18]), "diff_b": torch.zeros(12)}
    tensors = {**factors("lora", "linear"), **made}
    says = "of a floating-point dtype" if key in ("lora_up.weight", "diff_b") else "of a numeric dtype"
    with pytest.raises(lyc.LayerError, match=rf"^{key}: .*{says}.*complex64"):
        lyc.ALGORITHMS["lora"].load({**tensors, key: tensors[key].to(torch.complex64)})


def test_a_reshape_weight_of_no_size_is_an_error(tmp_path: Path) -> None:
    for shape, says in (((0,), "is empty"), ((), "unusable shape"), ((2, 1), "unusable shape")):
        path = written(tmp_path, {**factors("lora", "linear"), "reshape_weight": torch.zeros(shape)})
        with pytest.raises(lyc.LayerError, match=f"reshape_weight {says}|reshape_weight has an {says}"):
            lyc.load_adapter(path)


def test_a_sparse_remainder_with_a_size_that_int16_does_not_hold(tmp_path: Path) -> None:
    """LyCORIS stores places and sizes as int16, in which 39999 and 40000 wrap around.

    They must be read as they were meant.
    """
    layer = {
        "lora_up.weight": torch.zeros(2, 1),
        "lora_down.weight": torch.zeros(1, 40000),
        "bias_indices": torch.tensor([[1], [39999]]).to(torch.int16),
        "bias_values": torch.tensor([7.0]),
        "bias_size": torch.tensor([2, 40000]).to(torch.int16),
    }
    delta = lyc.load_adapter(written(tmp_path, layer)).layers[NAME].delta(torch.zeros(2, 40000))
    assert delta[1, 39999] == 7.0 and delta.sum() == 7.0


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        ({"weight": torch.zeros(13), "on_input": torch.tensor(0)}, [13]),
        ({**factors("lora", "linear"), "dora_scale": torch.ones(6, 1)}, [12, 6, 3]),
        ({**factors("loha", "linear"), "dora_scale": torch.ones(1, 9)}, [12, 9, 2]),
    ],
    ids=["ia3", "dora-6", "dora-9"],
)
def test_a_count_that_meets_neither_outputs_nor_inputs_does_not_fit(
    tmp_path: Path, layer: dict[str, Tensor], found: list[int]
) -> None:
    """(IA)^3 has one factor, and DoRA one magnitude, for each output or for each input of the weight."""
    path = written(tmp_path, layer)
    with pytest.raises(lyc.MatchError) as caught:
        report(path)
    text = str(caught.value)
    assert str(path) in text and NAME in text
    assert f"found {found}; expected [12, 18]" in text


def test_a_shared_block_that_does_not_divide_the_inputs_does_not_fit(tmp_path: Path) -> None:
    # Ten values above the diagonal make a block of 5 x 5, and 18 inputs are no multiple of 5.
    path = written(tmp_path, {"oft_R.weight": torch.zeros(1, 10)})
    with pytest.raises(lyc.MatchError) as caught:
        report(path)
    found = r"found [*, *], the inputs a multiple of 5; expected [12, 18]"
    assert str(path) in str(caught.value) and NAME in str(caught.value) and found in str(caught.value)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr-full-low"])
def test_a_magnitude_of_the_inputs_may_have_its_kernel_folded_into_the_columns(
    tmp_path: Path, kind: str
) -> None:
    """The factors are flat, and dora_scale (1, I, 1, 1) tells how many inputs there are.

    By DoRA's definition the norm of each input of the changed weight is then its magnitude, here 1.
    """
    layer = {
        key: tensor.flatten(1) if tensor.ndim > 1 else tensor
        for key, tensor in factors(kind, "conv2d").items()
    }
    path = written(tmp_path, {**layer, "dora_scale": torch.ones(1, 18, 1, 1)})
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(path))])
    keys = {**KEYS, "diffusion_model.a.c.weight": (12, 18, 3, 3)}
    lyc.resolve(stack, keys).check(strict=True)
    weight = torch.randn(12, 18, 3, 3)
    delta = lyc.load_adapter(path).layers[NAME].delta(weight)
    norms = (weight + delta).transpose(0, 1).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(18))


@pytest.mark.parametrize(
    ("alpha", "line"),
    [
        (0.0, "alpha is 0 in 1 layer: no effect"),
        (-2.0, "alpha is negative in 1 layer,"),
        (3e30, "alpha is up to 1e+30 times the rank in 1 layer: the file may be damaged"),
    ],
)
def test_a_strange_alpha_is_applied_as_it_stands_and_reported(
    tmp_path: Path, alpha: float, line: str
) -> None:
    """The reference is the same layer, of rank 3, without alpha: its scale is 1."""
    path = written(tmp_path, factors("lora", "linear", alpha=alpha))
    assert line in report(path)
    model = nn.ModuleDict({"a": nn.ModuleDict({name: nn.Linear(18, 12) for name in ("b", "c")})})
    assert line in lyc.create_lycoris(model, weights=path).report
    layer = lyc.load_adapter(path).layers[NAME]
    plain = dataclasses.replace(layer, alpha=None)
    zero = torch.zeros(12, 18)
    torch.testing.assert_close(layer.delta(zero), alpha / 3 * plain.delta(zero), rtol=1e-4, atol=1e-5)


def test_an_alpha_that_has_no_part_is_not_reported(tmp_path: Path) -> None:
    """LoKr of two full factors has no scale, so its alpha does not matter."""
    assert "alpha is" not in report(written(tmp_path, factors("lokr-full-full", "linear", alpha=0.0)))


def test_an_alpha_of_one_element_is_a_number(tmp_path: Path) -> None:
    layer = {**factors("lora", "linear", alpha=None), "alpha": torch.tensor([2.0], dtype=torch.float16)}
    read = lyc.load_adapter(written(tmp_path, layer)).layers[NAME]
    assert read.alpha == 2.0
    with pytest.raises(lyc.LayerError, match=r"alpha is not a single number.*\[2\]"):
        lyc.load_adapter(written(tmp_path, {**layer, "alpha": torch.ones(2)}))


def test_dialects_may_be_mixed_in_one_file(tmp_path: Path) -> None:
    path = written(tmp_path, factors("loha", "linear"), "diffusion_model.a.c")
    adapter = lyc.load_adapter(path)
    assert adapter.dialect == "comfy+kohya"
    assert "applied 2 of 2 layers" in report(path)
    assert report(path).startswith("All of it was applied: 2 of 2 layers of 1 file.")


def test_one_layer_in_two_dialects_is_an_error_naming_both(tmp_path: Path) -> None:
    path = written(tmp_path, factors("loha", "linear"), "diffusion_model.a.b")
    with pytest.raises(lyc.MatchError, match="two layers of one adapter are for the same weight") as caught:
        report(path)
    assert GOOD in str(caught.value) and "diffusion_model.a.b" in str(caught.value)


def test_a_thousand_unknown_keys_leave_the_error_readable(tmp_path: Path) -> None:
    save_file({f"x.{n}.unheard_of": torch.zeros(1) for n in range(1000)}, tmp_path / "y.safetensors")
    with pytest.raises(lyc.FileFormatError, match="1000 other keys") as caught:
        lyc.load_adapter(tmp_path / "y.safetensors")
    assert len(str(caught.value)) < 600


def test_names_that_differ_only_in_case_are_two_names(tmp_path: Path) -> None:
    path = written(tmp_path, factors("lora", "linear"), "lora_unet_A_c")
    text = report(path)
    assert "applied 1 of 2 layers" in text and "nearest: diffusion_model.a.c" in text
    keys = {**KEYS, "diffusion_model.A.c.weight": (12, 18)}
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(path))])
    (resolution,) = lyc.resolve(stack, keys).entries
    assert {match.target.key for match in resolution.matches} == {
        "diffusion_model.a.b.weight",
        "diffusion_model.A.c.weight",
    }


def test_an_option_of_too_many_digits_is_an_error() -> None:
    """It is shown by its size."""
    with pytest.raises(lyc.LayerError, match="a number of 1329 bits; expected a number above 0"):
        lyc.ALGORITHMS["oftv2"].load({"oft_R.weight": torch.zeros(9, 1)}, {"constraint": 10**400})


def test_an_unknown_option_is_an_error_naming_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(lyc.LycorisError, match=r"sigtype.*sig_type"):
        lyc.load_adapter(written(tmp_path, factors("lora", "linear")), sigtype="last")


def test_a_tlora_that_started_from_no_known_triples_is_an_error_naming_those(tmp_path: Path) -> None:
    tensors = factors("tlora", "linear")
    base = torch.randn(12, 18)
    layer = lyc.ALGORITHMS["tlora"].load(tensors, {"sig_type": "random"})
    with pytest.raises(
        lyc.LayerError, match=r"random; expected sig_type = principal or last or middle.*rebuilt"
    ):
        layer.delta(base)
    with pytest.raises(lyc.LayerError, match="random"):
        lyc.patch_(base, [(layer, 1.0)])
    flat = {**tensors, "lambda_layer": tensors["lambda_layer"].flatten()}
    one, same = (lyc.ALGORITHMS["tlora"].load(each, {"sig_type": "last"}) for each in (tensors, flat))
    assert torch.equal(one.delta(base), same.delta(base))


def test_adalora_is_pruned_only_where_all_three_factors_are_empty(tmp_path: Path) -> None:
    name = "base_model.model.a.c"
    empty = {"lora_A": torch.zeros(0, 18), "lora_B": torch.zeros(12, 0), "lora_E": torch.zeros(0, 1)}
    adapter = lyc.load_adapter(written(tmp_path, empty, name))
    assert list(adapter.info) == [GOOD] and not adapter.unused_keys
    beside = empty | {"lora_A": torch.zeros(2, 18), "lora_B": torch.zeros(12, 2)}
    with pytest.raises(lyc.LayerError, match=rf"x\.safetensors.*{name}"):
        lyc.load_adapter(written(tmp_path, beside, name))
