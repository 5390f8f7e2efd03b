"""LoKr of diffusers, which it reads for Flux 2 and Z-Image alone.

diffusers itself loads the files that are written, and its own files are read. The references are the products
that it computes from its loaded layers, and Kronecker products in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_pipeline import Flux2LoraLoaderMixin, ZImageLoraLoaderMixin
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from peft import LoKrConfig, get_peft_model_state_dict
from peft.tuners.lokr.layer import LoKrLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from written import adapter as adapter_of
from written import changes as weight_changes
from written import close

import lycoris_ops as lyc
from lycoris_ops.names.layouts import Layers
from tests.harness.architecture_names import Rows, Shape, records

Tensors = dict[str, Tensor]
W = 48
"""The width of the small Z-Image. That of Flux 2 is 32."""


@dataclass(frozen=True)
class Model:
    """A small model, in ComfyUI's layout and as diffusers' class."""

    shapes: Mapping[str, Shape]
    """ComfyUI's layers."""
    names: Mapping[str, Rows]
    """diffusers' names, each with ComfyUI's layer and the rows of it, in their order."""
    loader: Any
    """The class of diffusers that loads files for the pipelines of the model."""
    cls: Any
    options: Mapping[str, Any]

    @property
    def keys(self) -> dict[str, tuple[int, ...]]:
        return {f"diffusion_model.{path}.weight": shape for path, shape in self.shapes.items()}

    def made(self) -> nn.Module:
        torch.manual_seed(0)
        return self.cls(**self.options)

    def places(self, name: str) -> tuple[str, list[tuple[int, int]]]:
        """The layer of ComfyUI's that a name of diffusers' means, and the rows of it."""
        rows = self.names[name]
        path = rows[0][0]
        return path, [part or (0, self.shapes[path][0]) for _, part in rows]


def recorded(name: str, *others: Any) -> Model:
    """The linear layers of a model in the record of names, and what diffusers calls those that it fuses."""
    record = records()[name]
    shapes = {path: shape for path, shape in record.layers.items() if len(shape) == 2 and "token" not in path}
    names = {key: rows for key, rows in record.diffusers.items() if rows[0][0] in shapes}
    for first, fused in (("attn.to_q", "attn.to_qkv"), ("attn.add_q_proj", "attn.to_added_qkv")):
        parts = {key: rows for key, rows in names.items() if key.endswith(first)}
        names |= {key.replace(first, fused): ((rows[0][0], None),) for key, rows in parts.items()}
    return Model(shapes, names, *others)


FLUX_2 = recorded(
    "Flux 2",
    Flux2LoraLoaderMixin,
    Flux2Transformer2DModel,
    {
        "in_channels": 4,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 20,
        "axes_dims_rope": (4, 4, 4, 4),
    },
)
Z_IMAGE = recorded(
    "Z-Image",
    ZImageLoraLoaderMixin,
    ZImageTransformer2DModel,
    {
        "in_channels": 4,
        "dim": 48,
        "n_layers": 2,
        "n_heads": 6,
        "n_kv_heads": 6,
        "cap_feat_dim": 20,
        "axes_dims": [4, 2, 2],
        "axes_lens": [30, 32, 32],
    },
)


def factors(shape: tuple[int, int], form: str) -> Tensors:
    """Random factors of a LoKr as PEFT makes them with `decompose_factor` 4, and an alpha where it counts."""
    # The one size here that 4 does not divide is odd, and has no other divisor below 4.
    rows, i = (4 if size % 4 == 0 else 1 for size in shape)
    k, j = shape[0] // rows, shape[1] // i
    # PEFT makes a factor low-rank where the rank is below half of its larger size.
    rank = 2 if form == "low" else 1
    low = {"lokr_w2_a": torch.randn(k, rank), "lokr_w2_b": torch.randn(rank, j), "alpha": torch.tensor(3.0)}
    first = {"lokr_w1": torch.randn(rows, i)}
    if form == "full":
        return {**first, "lokr_w2": torch.randn(k, j)}
    if form == "low":
        return {**first, **low}
    return {"lokr_w1_a": torch.randn(rows, rank), "lokr_w1_b": torch.randn(rank, i), **low}


def product(tensors: Tensors) -> Tensor:
    """LyCORIS' product in float64. The scale is alpha / r with the rank of w2, and 1 where w2 is full."""
    held = {suffix: tensor.double() for suffix, tensor in tensors.items()}
    w1 = held["lokr_w1"] if "lokr_w1" in held else held["lokr_w1_a"] @ held["lokr_w1_b"]
    w2 = held["lokr_w2"] if "lokr_w2" in held else held["lokr_w2_a"] @ held["lokr_w2_b"]
    scale = held["alpha"].item() / len(held["lokr_w2_b"]) if "lokr_w2_b" in held else 1.0
    return scale * torch.kron(w1, w2)


def random_adapter(
    folder: Path, model: Model, names: tuple[str, ...], form: str
) -> tuple[lyc.Adapter, dict[str, Tensor]]:
    """An adapter with a LoKr for each of diffusers' layers, and the changes of ComfyUI's weights.

    Layers that ComfyUI has, too, are under ComfyUI's names.
    """
    layers: dict[str, Tensors] = {}
    own: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}
    for name in names:
        path, ranges = model.places(name)
        rows = sum(stop - start for start, stop in ranges)
        tensors = factors((rows, model.shapes[path][1]), form)
        if rows == model.shapes[path][0]:
            layers[f"diffusion_model.{path}"], own[path] = tensors, product(tensors)
        else:
            layers[f"transformer.{name}"], parts[name] = tensors, product(tensors)
    return adapter_of(folder, layers), {**own, **on_the_host(model, parts)}


def written(adapter: lyc.Adapter, model: Model, folder: Path, **options: Any) -> lyc.Adapter:
    path = folder / "out" / "diffusers.safetensors"
    path.parent.mkdir(exist_ok=True)
    return lyc.load_adapter(lyc.save_adapter(adapter, path, "diffusers", model=model.keys, **options).path)


def loaded(model: Model, file: str | Tensors) -> dict[str, Tensor]:
    """The change of each layer of diffusers' model, after diffusers has loaded a file or tensors."""
    transformer = model.made()
    folder, name = (str(Path(file).parent), Path(file).name) if isinstance(file, str) else (file, None)
    state, metadata = model.loader.lora_state_dict(folder, weight_name=name, return_lora_metadata=True)
    assert all("lora" in key or "lokr" in key for key in state), "its pipelines refuse other keys"
    model.loader.load_lora_into_transformer(state, transformer, adapter_name="default", metadata=metadata)
    return changes(transformer)


def changes(transformer: nn.Module) -> dict[str, Tensor]:
    """What diffusers' model computes from its LoKr layers, each with tensors of its own."""
    transformer.double()
    adapted = {name: layer for name, layer in transformer.named_modules() if isinstance(layer, LoKrLayer)}
    return {name: layer.get_delta_weight("default").detach() for name, layer in adapted.items()}


def on_the_host(model: Model, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Changes by diffusers' names as changes of ComfyUI's weights."""
    total: dict[str, Tensor] = {}
    for name, change in found.items():
        path, ranges = model.places(name)
        weight = total.setdefault(path, torch.zeros(model.shapes[path], dtype=torch.float64))
        parts = change.split([stop - start for start, stop in ranges])
        for (start, stop), part in zip(ranges, parts, strict=True):
            weight[start:stop] += part
    return total


def applied(adapter: lyc.Adapter, model: Model) -> dict[str, Tensor]:
    """The changes of ComfyUI's weights that this library computes."""
    found = weight_changes(adapter, model.keys)
    return {key.removeprefix("diffusion_model.").removesuffix(".weight"): t for key, t in found.items()}


FUSED = (
    *("transformer_blocks.0.attn.to_qkv", "transformer_blocks.0.attn.to_added_qkv"),
    *("x_embedder", "norm_out.linear", "single_transformer_blocks.0.attn.to_qkv_mlp_proj"),
    "transformer_blocks.0.attn.to_out.0",
)
SPLIT = (
    *("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_v_proj"),
    *("transformer_blocks.0.ff.linear_in", "single_transformer_blocks.0.attn.to_out"),
    "transformer_blocks.0.attn.to_out.0",
)
IN_Z_IMAGE = (
    *("all_x_embedder.2-1", "cap_embedder.1", "layers.0.feed_forward.w1", "layers.0.adaLN_modulation.0"),
    *(f"layers.0.attention.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")),
)


@pytest.mark.parametrize("told", [True, False], ids=["metadata", "tensors alone"])
@pytest.mark.parametrize("form", ["full", "low", "both low"])
@pytest.mark.parametrize(
    ("model", "names"),
    [(FLUX_2, FUSED), (FLUX_2, SPLIT), (Z_IMAGE, IN_Z_IMAGE)],
    ids=["Flux 2, fused", "Flux 2, split", "Z-Image"],
)
def test_diffusers_loads_what_is_written(
    tmp_path: Path, model: Model, names: tuple[str, ...], form: str, told: bool
) -> None:
    """diffusers is given the file, with the configuration in its metadata, or only the tensors of it."""
    torch.manual_seed(0)
    adapter, wanted = random_adapter(tmp_path, model, names, form)
    file = written(adapter, model, tmp_path)
    found = loaded(model, file.path if told else load_file(file.path))
    assert found.keys() == set(names)
    close(on_the_host(model, found), wanted)
    close(applied(file, model), wanted)


@pytest.mark.parametrize("model", [FLUX_2, Z_IMAGE], ids=["Flux 2", "Z-Image"])
def test_every_name_of_lokr_is_a_layer_of_the_class(model: Model) -> None:
    """diffusers fuses the projections of Flux 2 itself, and cannot fuse those of Z-Image."""
    transformer: Any = model.made()
    if hasattr(transformer, "fuse_qkv_projections"):
        transformer.fuse_qkv_projections()
    layers = dict(transformer.named_modules())
    names = Layers(model.shapes).diffusers_lokr()
    ranges = [
        (place.path, place.rows or (0, model.shapes[place.path][0])) for ps in names.values() for place in ps
    ]
    rows = [(path, row) for path, (start, stop) in ranges for row in range(start, stop)]
    assert len(rows) == len(set(rows)) == sum(shape[0] for shape in model.shapes.values())
    for name, places in names.items():
        # The inner width of diffusers' time embedder is fixed, and larger than the small model's.
        if name.startswith("t_embedder"):
            continue
        shape = layers[name].weight.shape
        assert {model.shapes[place.path][1] for place in places} == {shape[1]}
        assert sum(stop - start for p in places for start, stop in [p.rows or (0, shape[0])]) == shape[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_scale_is_multiplied_into_w1_which_may_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    """alpha / r is 1.5 in one layer, which needs a digit more than the dtype has, and 0.5 in the other."""
    torch.manual_seed(0)
    made = {name: factors((W, W), "low") for name in ("layers.0.attention.to_q", "layers.0.attention.to_k")}
    made["layers.0.attention.to_k"]["alpha"] = torch.tensor(1.0)
    made = {n: {s: t if s == "alpha" else t.to(dtype) for s, t in ts.items()} for n, ts in made.items()}
    adapter = adapter_of(tmp_path, {f"transformer.{name}": tensors for name, tensors in made.items()})
    result = lyc.save_adapter(adapter, tmp_path / "out.safetensors", "diffusers", model=Z_IMAGE.keys)
    assert "alpha / rank multiplied into a factor of 2 layers" in result.changes
    assert "1 of these factors in float32, because their dtype cannot hold the product" in result.changes
    tensors = load_file(result.path)
    assert not any(key.endswith("alpha") for key in tensors)
    wide = {key for key, tensor in tensors.items() if tensor.dtype != dtype}
    assert wide == {"transformer.layers.0.attention.to_q.lokr_w1"}
    close(loaded(Z_IMAGE, result.path), {name: product(tensors) for name, tensors in made.items()})
    narrow = written(adapter, Z_IMAGE, tmp_path, dtype=dtype)
    assert {tensor.dtype for tensor in load_file(narrow.path).values()} == {dtype}


def test_a_fused_layer_of_z_image_is_split_where_its_parts_are_products(tmp_path: Path) -> None:
    """diffusers cannot fuse this model's attention. Here w1 has whole rows for each of q, k and v."""
    torch.manual_seed(0)
    tensors = {"lokr_w1": torch.randn(12, 4), "lokr_w2": torch.randn(12, 12)}
    file = written(
        adapter_of(tmp_path, {"diffusion_model.layers.0.attention.qkv": tensors}), Z_IMAGE, tmp_path
    )
    found = loaded(Z_IMAGE, file.path)
    assert found.keys() == {f"layers.0.attention.to_{part}" for part in "qkv"}
    close(on_the_host(Z_IMAGE, found), {"layers.0.attention.qkv": product(tensors)})


LOW = factors((W, W), "low")
DORA = {**LOW, "dora_scale": torch.ones(W, 1)}
LORA = {"lora_up.weight": torch.ones(W, 2), "lora_down.weight": torch.ones(2, W)}
OTHER = replace(
    FLUX_2,
    shapes={
        **dict.fromkeys(("img_in", "vector_in.in_layer", "double_blocks.0.img_attn.proj"), (W, W)),
        "double_blocks.0.img_attn.qkv": (3 * W, W),
    },
)
"""A Flux 1, by the layers that show it."""


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        (
            Z_IMAGE,
            {"layers.0.attention.qkv": factors((3 * W, W), "full")},
            r"qkv: diffusers fuses or splits.*cut at these rows",
        ),
        (
            FLUX_2,
            {
                "double_blocks.0.img_attn.qkv": factors((96, 32), "full"),
                "transformer_blocks.0.attn.add_v_proj": factors((32, 32), "low"),
            },
            r"diffusers fuses or splits.*lokr",
        ),
        (Z_IMAGE, {"layers.0.attention.out": DORA}, "diffusers holds no dora_scale"),
        (
            Z_IMAGE,
            {"layers.0.attention.out": LOW, "context_refiner.0.attention.out": LORA},
            "diffusers needs one kind in a file",
        ),
        (
            Z_IMAGE,
            {
                "layers.0.attention.out": {"lokr_w1": torch.ones(2, 8), "lokr_w2": torch.ones(24, 6)},
                "context_refiner.0.attention.out": {
                    "lokr_w1": torch.ones(4, 8),
                    "lokr_w2": torch.ones(12, 6),
                },
            },
            "diffusers has no options",
        ),
        (
            OTHER,
            {"double_blocks.0.img_attn.proj": LOW},
            r"diffusers reads lokr for .* some models only .*Flux 2 or Z-Image",
        ),
    ],
    ids=["cut in a block", "fused and split", "DoRA", "LoRA beside it", "two factorizations", "Flux 1"],
)
def test_what_diffusers_cannot_hold_is_refused_by_name(
    tmp_path: Path, model: Model, layers: Mapping[str, Tensors], message: str
) -> None:
    adapter = adapter_of(tmp_path, {f"diffusion_model.{name}": tensors for name, tensors in layers.items()})
    with pytest.raises(lyc.LayerError, match=message) as caught:
        written(adapter, model, tmp_path)
    assert "comfy" in str(caught.value) and not (tmp_path / "out" / "diffusers.safetensors").exists()


def test_without_a_model_or_for_a_text_encoder_it_is_refused(tmp_path: Path) -> None:
    name = "layers.0.attention.to_k"
    with pytest.raises(lyc.LayerError, match=r"reads lokr for .*not known.*given as the model"):
        lyc.save_adapter(
            adapter_of(tmp_path, {f"transformer.{name}": LOW}), tmp_path / "no.safetensors", "diffusers"
        )
    path = "model.layers.0.self_attn.o_proj"
    keys = {**Z_IMAGE.keys, f"text_encoders.qwen3_4b.transformer.{path}.weight": (W, W)}
    adapter = adapter_of(tmp_path, {f"text_encoders.qwen3_4b.transformer.{path}": LOW})
    with pytest.raises(lyc.LayerError, match=r"reads lokr for .*transformers of some models"):
        lyc.save_adapter(adapter, tmp_path / "no.safetensors", "diffusers", model=keys)


# Files of diffusers.

CONFIGS: dict[str, dict[str, Any]] = {
    "low-rank": {"r": 2, "alpha": 3, "decompose_factor": 4},
    "both low-rank": {"r": 1, "alpha": 3, "decompose_factor": 4, "decompose_both": True},
    "full": {"r": 64, "alpha": 16, "decompose_factor": 4},
    "patterns": {"r": 2, "alpha": 3, "rank_pattern": {"to_out.0": 1}, "alpha_pattern": {"to_out.0": 5}},
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("model", "names"),
    [(FLUX_2, FUSED), (FLUX_2, SPLIT), (Z_IMAGE, IN_Z_IMAGE)],
    ids=["Flux 2, fused", "Flux 2, split", "Z-Image"],
)
def test_what_diffusers_saves_is_read(
    tmp_path: Path, model: Model, names: tuple[str, ...], config: str
) -> None:
    """The file of a model, whose names have no prefix, and that of a pipeline."""
    transformer: Any = model.made()
    if FUSED[0] in names:
        transformer.fuse_qkv_projections()
    transformer.add_adapter(
        LoKrConfig(target_modules=list(names), init_weights=False, **CONFIGS[config]), "default"
    )
    transformer.save_lora_adapter(tmp_path / "model")
    model.loader.save_lora_weights(
        tmp_path / "pipeline",
        transformer_lora_layers=get_peft_model_state_dict(transformer, adapter_name="default"),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )
    found = changes(transformer)
    assert found.keys() == set(names)
    for folder in ("model", "pipeline"):
        adapter = lyc.load_adapter(tmp_path / folder / "pytorch_lora_weights.safetensors")
        assert not adapter.unused_keys
        close(applied(adapter, model), on_the_host(model, found))
