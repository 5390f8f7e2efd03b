"""Files of one model of diffusers, whose keys begin with `unet.` or `transformer.` or with neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from networks import move, small_unet
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import lycoris_ops as lyc

ADAPTED = ["to_q", "to_out.0", "conv1", "proj_mlp"]
LORA = peft.LoraConfig(r=2, lora_alpha=3, target_modules=ADAPTED, init_lora_weights=False)


def made(part: str) -> Any:
    if part == "unet":
        return small_unet()
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    ).eval()


@torch.no_grad()
def output(part: str, model: Any) -> Tensor:
    drawn = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=drawn)

    if part == "unet":
        return model(noise(1, 4, 8, 8), 10, noise(1, 4, 16), return_dict=False)[0]
    places = {"img_ids": torch.arange(18.0).reshape(6, 3), "txt_ids": torch.zeros(5, 3)}
    time = torch.tensor([0.5])
    return model(noise(1, 6, 4), noise(1, 5, 8), noise(1, 8), time, **places, return_dict=False)[0]


@pytest.mark.parametrize("part", ["unet", "transformer"])
def test_the_prefix_of_a_pipeline_is_found_in_reading_and_writing(part: str, tmp_path: Path) -> None:
    """A file that diffusers wrote for the model alone is written for diffusers and PEFT, and they load it."""
    theirs = made(part)
    theirs.add_adapter(LORA)
    wanted = output(part, theirs)
    assert (wanted - output(part, made(part))).abs().max() > 1e-3
    theirs.save_lora_adapter(str(tmp_path / "theirs"))
    bare = {key: tuple(value.shape) for key, value in made(part).state_dict().items()}
    prefixed = {f"{part}.{key}": shape for key, shape in bare.items()}
    model = made(part)
    source = lyc.load_adapter(tmp_path / "theirs")
    network = lyc.create_lycoris(model, weights=source).apply_to()
    assert torch.allclose(output(part, model), wanted, atol=1e-5)
    for name, adapter, shapes in (
        ("network", network.to_adapter(), network.shapes()),
        ("bare", source, bare),
        ("prefixed", source, prefixed),
    ):
        out = tmp_path / f"{name}.safetensors"
        lyc.save_adapter(adapter, out, "diffusers", model=shapes)
        read = made(part)
        read.load_lora_adapter(str(tmp_path), weight_name=out.name, prefix=part)
        assert torch.allclose(output(part, read), wanted, atol=1e-5)
        lyc.save_adapter(adapter, tmp_path / name, "peft", model=shapes)
        adapted = peft.PeftModel.from_pretrained(made(part), str(tmp_path / name)).eval()
        assert torch.allclose(output(part, adapted), wanted, atol=1e-5)
        adapted.save_pretrained(str(tmp_path / "again"))
        model = made(part)
        lyc.create_lycoris(model, weights=tmp_path / "again").apply_to()
        assert torch.allclose(output(part, model), wanted, atol=1e-5)
        # From PEFT's folder to diffusers' file.
        lyc.save_adapter(lyc.load_adapter(tmp_path / name), out, "diffusers", model=bare)
        assert all(layer.startswith(f"{part}.") for layer in lyc.load_adapter(out).info)
    for dialect in ("kohya", "comfy", "lycoris"):
        network.save_weights(tmp_path / f"{dialect}.safetensors", dialect)
        again = lyc.load_adapter(tmp_path / f"{dialect}.safetensors")
        model = made(part)
        lyc.create_lycoris(model, weights=again).apply_to()
        assert torch.allclose(output(part, model), wanted, atol=1e-5)


def test_a_language_model_whose_keys_begin_with_transformer_keeps_its_names(tmp_path: Path) -> None:
    """GPT-2's own paths begin with `transformer`, and PEFT's names keep that."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16))
    network = lyc.create_lycoris(model, rank=2, include="*c_attn")
    network.save_weights(tmp_path / "out", dialect="peft")
    assert list(lyc.load_adapter(tmp_path / "out").info) == ["base_model.model.transformer.h.0.attn.c_attn"]


def encoder(kind: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "projection_dim": 16, "num_hidden_layers": 1}
    return kind(CLIPTextConfig(**sizes, num_attention_heads=2, vocab_size=40)).eval()


def components(part: str) -> dict[str, Any]:
    encoders = {"text_encoder": encoder(CLIPTextModel)}
    if part == "unet":
        encoders["text_encoder_2"] = encoder(CLIPTextModelWithProjection)
    return {part: made(part), **encoders}


@torch.no_grad()
def outputs(part: str, models: Any) -> list[Tensor]:
    ids = torch.arange(1, 8)[None]
    return [output(part, models[part]), *(models[one](ids)[0] for one in models if one != part)]


class OfUnet(DiffusionPipeline, StableDiffusionXLLoraLoaderMixin):
    def __init__(self, unet: Any, text_encoder: Any, text_encoder_2: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, text_encoder=text_encoder, text_encoder_2=text_encoder_2)


class OfTransformer(DiffusionPipeline, FluxLoraLoaderMixin):
    def __init__(self, transformer: Any, text_encoder: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, text_encoder=text_encoder)


PIPELINES: dict[str, Any] = {"unet": OfUnet, "transformer": OfTransformer}


@pytest.mark.parametrize("part", ["unet", "transformer"])
def test_a_pipeline_reads_one_file_of_joined_networks(part: str, tmp_path: Path) -> None:
    models = components(part)
    bare = outputs(part, models)
    network = lyc.join_networks(
        {name: lyc.create_lycoris(model, rank=2, seed=0) for name, model in models.items()}
    ).apply_to()
    move(network)
    wanted = outputs(part, models)
    network.save_weights(tmp_path / "all.safetensors", "diffusers")
    pipeline: Any = PIPELINES[part](**components(part))
    pipeline.load_lora_weights(str(tmp_path), weight_name="all.safetensors")
    for found, one, base in zip(outputs(part, pipeline.components), wanted, bare, strict=True):
        assert torch.allclose(found, one, atol=1e-5) and not torch.allclose(one, base, atol=1e-3)
    with pytest.raises(lyc.LycorisError, match="PEFT's folder is for one model"):
        network.save_weights(tmp_path / "no", "peft")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    network.load_weights(tmp_path / "all.safetensors")
    assert all(map(torch.equal, outputs(part, models), wanted))


@pytest.mark.parametrize("name", ["", "unet.inner"])
def test_a_name_that_cannot_begin_a_path_is_refused_in_joining(name: str) -> None:
    with pytest.raises(lyc.LycorisError, match=r"cannot begin the names of layers"):
        lyc.join_networks({name: lyc.create_lycoris(made("transformer"), rank=2)})
