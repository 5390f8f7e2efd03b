"""Peculiarities of the files of single tools, and what they mean.

The reference is a closed form, in float64, of what the tool trained.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import rand
from models import flux
from torch import Tensor
from written import changes, close, read

import lycoris_ops as lyc

FLUX = flux(24)


def pair(out: int, inputs: int, rank: int, up: str, down: str) -> dict[str, Tensor]:
    """The factors of a LoRA under these two keys."""
    return {up: rand(out, rank), down: rand(rank, inputs)}


@pytest.mark.parametrize(
    ("name", "shares"),
    [("double_blocks_0_img_attn_qkv", (1, 1, 1)), ("single_blocks_0_linear1", (1, 1, 1, 4))],
)
def test_kohyas_split_qkv_is_as_strong_as_it_was_trained(
    tmp_path: Path, name: str, shares: tuple[int, ...]
) -> None:
    """kohya can train the parts of a fused layer on their own. It saves them as one layer.

    That layer has the ranks of all parts together, and the alpha of one part. Without a correction it would
    be weaker by the number of parts. The metadata say that the layer was split.
    """
    rank, alpha = 2, 1.0
    ups, downs = [rand(24 * share, rank) for share in shares], [rand(rank, 24) for _ in shares]
    trained = torch.cat([alpha / rank * up @ down for up, down in zip(ups, downs, strict=True)])
    tensors = {
        f"lora_unet_{name}.lora_up.weight": torch.block_diag(*ups),
        f"lora_unet_{name}.lora_down.weight": torch.cat(downs),
        f"lora_unet_{name}.alpha": torch.tensor(alpha),
    }
    metadata = {"ss_network_args": json.dumps({"split_qkv": "True"}), "ss_network_dim": str(rank)}
    (delta,) = changes(read(tmp_path, tensors, metadata=metadata), FLUX).values()
    close(delta, trained)
    (weaker,) = changes(read(tmp_path, tensors), FLUX).values()
    close(weaker, trained / len(shares))
    # An up factor that is not block-diagonal, as after resizing, makes an ordinary layer in spite of the
    # metadata.
    mixed = {**tensors, f"lora_unet_{name}.lora_up.weight": torch.block_diag(*ups) + 0.1}
    (ordinary,) = changes(read(tmp_path, mixed, metadata=metadata), FLUX).values()
    product = mixed[f"lora_unet_{name}.lora_up.weight"] @ torch.cat(downs)
    close(ordinary, alpha / (rank * len(shares)) * product)


def test_kohyas_oft_of_flux_rotates_each_part_of_the_rows(tmp_path: Path) -> None:
    """Each part of a fused weight has rotations of its own, and one alpha bounds the rotations of each part.

    The reference is the Cayley map of the blocks, scaled down to the bound.
    """
    blocks = [rand(4, 6, 6) for _ in range(3)] + [rand(4, 24, 24)]
    name = "oft_unet_single_blocks_0_linear1"
    tensors = {f"{name}.oft_blocks.{n}": part for n, part in enumerate(blocks)}
    tensors |= {
        # The bound is so small that the rotations of every part reach it.
        f"{name}.alpha": torch.tensor(1e-3),
        "oft_unet_double_blocks_0_img_attn_proj.oft_blocks.0": rand(4, 6, 6),
    }
    adapter = read(tmp_path, tensors)
    resolution = lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), FLUX)
    resolution.check(strict=True)
    key = "diffusion_model.single_blocks.0.linear1.weight"
    weight = torch.randn(FLUX[key], dtype=torch.float64)
    pairs = [(match.read(adapter), 1.0) for _, match in resolution.pairs()[key]]
    found = lyc.patch_(weight.clone(), pairs)
    first = 0
    for part in blocks:
        count, size = part.shape[:2]
        rows = weight[first : first + count * size].view(count, size, -1)
        skew = part.double() - part.double().mT
        skew *= min(1.0, 1e-3 * count * size / skew.norm().item())
        one = torch.eye(size, dtype=torch.float64)
        rotation = (one + skew) @ torch.linalg.inv(one - skew)
        close(found[first : first + count * size], (rotation.mT @ rows).reshape(count * size, -1))
        first += count * size
    assert first == len(weight)


def test_bfl_control_widens_the_input_sets_norms_and_changes_biases(tmp_path: Path) -> None:
    """Black Forest Labs' control files have a LoRA with a bias, for more inputs, and new values for norms."""
    shapes = {key: shape for key, shape in FLUX.items() if "txt" not in key and "modulation" not in key}
    tensors = {
        **pair(24, 12, 2, "img_in.lora_B.weight", "img_in.lora_A.weight"),
        "img_in.lora_B.bias": rand(24),
        "double_blocks.0.img_attn.norm.query_norm.scale": rand(6),
        "double_blocks.0.img_attn.norm.key_norm.scale": rand(6),
    }
    adapter = read(tmp_path, tensors)
    assert adapter.dialect == "bfl control"
    found = changes(adapter, shapes)
    product = tensors["img_in.lora_B.weight"] @ tensors["img_in.lora_A.weight"]
    assert found["diffusion_model.img_in.weight"].shape == (24, 12)
    close(found["diffusion_model.img_in.weight"], product)
    close(found["diffusion_model.img_in.bias"], tensors["img_in.lora_B.bias"])
    stack = lyc.Stack([lyc.Entry(adapter)])
    (match,) = [
        match
        for match in lyc.resolve(stack, shapes).entries[0].matches
        if match.key == "diffusion_model.double_blocks.0.img_attn.norm.key_norm.weight"
    ]
    patched = lyc.patch_(torch.randn(6, dtype=torch.float64), [(match.read(adapter), 1.0)])
    close(patched, tensors["double_blocks.0.img_attn.norm.key_norm.scale"])


def test_xlabs_and_uso_processors(tmp_path: Path) -> None:
    """Each processor is up @ down, on the rows of a layer.

    The processor `qkv` of a single block is for the first rows of linear1, and the others stay as they are.
    """
    names = {
        "double_blocks.0.processor.qkv_lora1": ("double_blocks.0.img_attn.qkv", (0, 72), 24),
        "double_blocks.0.processor.qkv_lora2": ("double_blocks.0.txt_attn.qkv", (0, 72), 24),
        "double_blocks.0.processor.proj_lora1": ("double_blocks.0.img_attn.proj", (0, 24), 24),
        "double_blocks.0.processor.proj_lora2": ("double_blocks.0.txt_attn.proj", (0, 24), 24),
        "single_blocks.0.processor.qkv_lora": ("single_blocks.0.linear1", (0, 72), 24),
        "single_blocks.0.processor.proj_lora": ("single_blocks.0.linear2", (0, 24), 120),
    }
    tensors: dict[str, Tensor] = {}
    for name, (_, rows, inputs) in names.items():
        tensors |= pair(rows[1], inputs, 2, f"{name}.up.weight", f"{name}.down.weight")
    adapter = read(tmp_path, tensors)
    assert adapter.dialect == "xlabs"
    found = changes(adapter, FLUX)
    for name, (path, rows, _) in names.items():
        delta = found[f"diffusion_model.{path}.weight"]
        close(delta[slice(*rows)], tensors[f"{name}.up.weight"] @ tensors[f"{name}.down.weight"])
        assert not delta[rows[1] :].any()


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("lora_unet_double_blocks_0_img_attn_proj", "lora_{}.weight"),
        ("lora_unet__double_blocks_0_img_attn_proj", "lora_{}.weight"),
        ("lora_unet_double_blocks_0_img_attn_proj_", "lora_{}.weight"),
        ("diffusion_model.double_blocks.0.img_attn.proj", "lora_{}.weight"),
        ("double_blocks.0.img_attn.proj", "lora_{}.weight"),
        ("base_model.model.double_blocks.0.img_attn.proj", "lora_{}.default.weight"),
        ("transformer.transformer_blocks.0.attn.to_out.0", "lora_{}.weight"),
        ("lora_transformer_transformer_blocks_0_attn_to_out_0", "lora_{}.weight"),
        ("lycoris_transformer_blocks_0_attn_to_out_0", "lora_{}.weight"),
        ("base_model.model.transformer_blocks.0.attn.to_out.0", "lora_{}.weight"),
        ("transformer.transformer_blocks.0.attn.to_out.0", "lora.{}.weight"),
        ("transformer.transformer_blocks.0.attn.to_out.0", "lora_{}"),
    ],
)
def test_one_layer_under_every_tools_name(tmp_path: Path, prefix: str, suffix: str) -> None:
    """Every name must change the same weight, by up @ down."""
    up, down = ("B", "A") if prefix.startswith(("transformer.", "base_model")) else ("up", "down")
    # diffusers' older files have kohya's words for the factors.
    if suffix == "lora.{}.weight":
        up, down = "up", "down"
    tensors = pair(24, 24, 2, f"{prefix}.{suffix.format(up)}", f"{prefix}.{suffix.format(down)}")
    found = changes(read(tmp_path, tensors), FLUX)
    first, second = tensors.values()
    close(found["diffusion_model.double_blocks.0.img_attn.proj.weight"], first @ second)


def test_the_change_of_a_modulation_parameter(tmp_path: Path) -> None:
    shapes = {
        "diffusion_model.blocks.0.modulation": (1, 6, 8),
        "diffusion_model.blocks.0.norm3.weight": (8,),
        "diffusion_model.blocks.0.norm3.bias": (8,),
    }
    tensors = {
        "diffusion_model.blocks.0.diff_m": rand(1, 6, 8),
        "diffusion_model.blocks.0.norm3.diff": rand(8),
        "diffusion_model.blocks.0.norm3.diff_b": rand(8),
    }
    found = changes(read(tmp_path, tensors), shapes)
    close(found["diffusion_model.blocks.0.modulation"], tensors["diffusion_model.blocks.0.diff_m"])
    close(found["diffusion_model.blocks.0.norm3.weight"], tensors["diffusion_model.blocks.0.norm3.diff"])
    close(found["diffusion_model.blocks.0.norm3.bias"], tensors["diffusion_model.blocks.0.norm3.diff_b"])


@pytest.mark.parametrize("suffix", ["lora_magnitude_vector", "lora_magnitude_vector.weight", "magnitude"])
def test_pefts_magnitude_is_for_outputs_whatever_its_shape(tmp_path: Path, suffix: str) -> None:
    """A magnitude of the shape (1, n, 1, 1) is for inputs in other tools' files, and for outputs in PEFT's.

    The reference is DoRA's definition: m * V / norm(V) with V = W + B A.
    """
    shapes = {"diffusion_model.a.weight": (6, 6, 1, 1)}
    tensors = pair(6, 6, 2, "diffusion_model.a.lora_B.weight", "diffusion_model.a.lora_A.weight")
    tensors[f"diffusion_model.a.{suffix}"] = magnitude = 1 + torch.rand(1, 6, 1, 1)
    adapter = read(tmp_path, tensors)
    weight = torch.randn(6, 6, 1, 1, dtype=torch.float64)
    found = weight + adapter.layers["diffusion_model.a"].delta(weight)
    first, second, _ = tensors.values()
    direction = weight.flatten(1) + first.double() @ second.double()
    wanted = magnitude.double().view(6, 1) * direction / direction.norm(dim=1, keepdim=True)
    close(found.flatten(1), wanted)
    assert lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), shapes).entries[0].count() == 1


def test_a_magnitude_whose_name_was_half_converted_is_joined_to_its_layer(tmp_path: Path) -> None:
    """The magnitude's key has a dot where the other keys of the layer have kohya's underscore."""
    tensors = pair(6, 6, 2, "lora_unet_a_to_q.lora_up.weight", "lora_unet_a_to_q.lora_down.weight")
    tensors["lora_unet_a.to_q.lora_magnitude_vector"] = torch.ones(6)
    adapter = read(tmp_path, tensors)
    assert set(adapter.info) == {"lora_unet_a_to_q"} and not adapter.unused_keys
    assert adapter.layers["lora_unet_a_to_q"].additive() is None


def test_onetrainers_scaled_oft(tmp_path: Path) -> None:
    """OneTrainer divides Q by 2 sqrt(b - 1), where b is the size of a block.

    The reference is the closed form of its series: I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4.
    """
    values = rand(3, 6)
    tensors = {"transformer.a.oft_R.weight": values, "transformer.a.oft_R.scaled_oft": torch.tensor(True)}
    adapter = read(tmp_path, tensors)
    weight = torch.randn(5, 12, dtype=torch.float64)
    rotations: list[Tensor] = []
    for row in values.double():
        upper = torch.zeros(4, 4, dtype=torch.float64)
        upper[tuple(torch.triu_indices(4, 4, 1))] = row
        skew = (upper - upper.mT) / (2 * math.sqrt(3))
        powers = [torch.linalg.matrix_power(skew, n) for n in range(5)]
        rotations.append(powers[0] + 2 * (powers[1] + powers[2] + powers[3]) + powers[4])
    wanted = weight @ torch.block_diag(*rotations).mT
    close(weight + adapter.layers["transformer.a"].delta(weight), wanted)


def test_bundled_embeddings_are_named_in_the_report_and_not_applied(tmp_path: Path) -> None:
    tensors = pair(24, 24, 2, "lora_unet_a.lora_up.weight", "lora_unet_a.lora_down.weight")
    tensors |= {
        "bundle_emb.my_word.string_to_param.*": rand(2, 8),
        "bundle_emb.other.clip_l": rand(1, 8),
        "bundle_emb.other.clip_g": rand(1, 8),
    }
    adapter = read(tmp_path, tensors)
    assert adapter.embeddings == ("my_word", "other") and not adapter.unused_keys
    report = lyc.describe(
        lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), {"diffusion_model.a.weight": (24, 24)})
    )
    assert "2 embeddings come with the file" in report and "my_word" in report


def tlora(folder: Path, args: dict[str, Any]) -> tuple[lyc.Layer, dict[str, Tensor]]:
    """A layer from a file whose metadata hold these network arguments, and its tensors by suffix."""
    tensors = {"q_layer.weight": rand(2, 8), "p_layer.weight": rand(6, 2), "lambda_layer": rand(1, 2)}
    named = {f"lycoris_a.{suffix}": tensor for suffix, tensor in tensors.items()}
    return read(folder, named, metadata={"ss_network_args": json.dumps(args)}).layers["lycoris_a"], tensors


@pytest.mark.parametrize("start", ["principal", "last"])
def test_tloras_start_comes_from_the_networks_arguments(tmp_path: Path, start: str) -> None:
    """The delta is P diag(l) Q minus the singular triples of the weight that the layer started from.

    The triples are the largest ones unless the arguments say otherwise.
    """
    args = {"algo": "tlora"} if start == "principal" else {"algo": "tlora", "sig_type": start}
    layer, tensors = tlora(tmp_path, args)
    weight = torch.randn(6, 8, dtype=torch.float64)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    kept = slice(0, 2) if start == "principal" else slice(4, 6)
    before = left[:, kept] @ torch.diag(values[kept]) @ right[kept]
    down, up, factors = (tensor.double() for tensor in tensors.values())
    close(layer.delta(weight), up @ torch.diag(factors[0]) @ down - before)


def test_a_tlora_of_a_random_start_is_an_error(tmp_path: Path) -> None:
    layer, _ = tlora(tmp_path, {"algo": "tlora", "use_data_init": "False"})
    with pytest.raises(lyc.LayerError, match="sig_type"):
        layer.delta(torch.randn(6, 8, dtype=torch.float64))


# Biases of LoRA's two linear layers, which some tools' own modules have.

BIASED = "diffusion_model.double_blocks.0.img_attn.proj"


@pytest.mark.parametrize(
    ("up", "down"),
    [
        ("lora_up", "lora_down"),
        ("lora_b", "lora_a"),
        ("lora.up", "lora.down"),
        ("lora.B", "lora.A"),
        ("lora_B", "lora_A"),
        ("lora_linear_layer.up", "lora_linear_layer.down"),
        ("lora_B.default", "lora_A.default"),
    ],
)
def test_the_bias_of_the_second_layer_changes_the_bias_and_that_of_the_first_is_refused(
    tmp_path: Path, up: str, down: str
) -> None:
    """y = B (A x + a) + b: b is read, and the message about a says where to put it."""
    tensors = pair(24, 24, 2, f"{BIASED}.{up}.weight", f"{BIASED}.{down}.weight")
    added = {**tensors, f"{BIASED}.{up}.bias": rand(24)}
    found = changes(read(tmp_path, added), {**FLUX, f"{BIASED}.bias": (24,)})
    close(found[f"{BIASED}.weight"], tensors[f"{BIASED}.{up}.weight"] @ tensors[f"{BIASED}.{down}.weight"])
    close(found[f"{BIASED}.bias"], added[f"{BIASED}.{up}.bias"])
    between = {f"{BIASED}.{down}.bias": rand(2), **pair(24, 24, 2, "x.lora_up.weight", "x.lora_down.weight")}
    adapter = read(tmp_path, {**added, **between})
    (why,) = adapter.unreadable.values()
    assert why.startswith(
        f"a lora with {down}.bias, which is not read: take it out, and add up @ {down}.bias"
    )
    with pytest.raises(lyc.LayerError, match="take it out, and add"):
        adapter.layer(BIASED)


def test_a_magnitude_of_pefts_that_is_not_for_the_outputs_is_refused_when_it_is_read(tmp_path: Path) -> None:
    """By its size it could be for the inputs, which PEFT has none for. The other layers stay usable."""
    name, other = "base_model.model.x", "base_model.model.y"
    tensors = {
        **pair(24, 12, 2, f"{name}.lora_B.weight", f"{name}.lora_A.weight"),
        f"{name}.lora_magnitude_vector": rand(12),
        **pair(24, 12, 2, f"{other}.lora_B.weight", f"{other}.lora_A.weight"),
        f"{other}.lora_magnitude_vector": rand(24),
    }
    adapter = read(tmp_path, tensors)
    assert adapter.layers[other].rank == 2
    with pytest.raises(lyc.LayerError, match=rf"{name}\.lora_magnitude_vector: .*each output.*\[12\].*24"):
        adapter.layer(name)
