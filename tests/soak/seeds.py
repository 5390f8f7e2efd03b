"""The valid files that the campaign starts from: every kind of layer in every dialect and container."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lycoris_ops as lyc
from tests.harness.diffusion import HEAD, flux_layout
from tests.ops.layers import KINDS, WEIGHTS, factors, home, rand

from .containers import apart, packed, pickled, read

CONFIG = "adapter_config.json"
PATHS = {weight: f"blocks.{number}.x" for number, weight in enumerate(WEIGHTS)}
"""The path in the model of each weight of `WEIGHTS`."""
MODEL: dict[str, tuple[int, ...]] = {
    f"diffusion_model.{path}.{leaf}": shape
    for weight, path in PATHS.items()
    for leaf, shape in (("weight", WEIGHTS[weight]), ("bias", WEIGHTS[weight][:1]))
}
"""The model that most files are for: a weight of each shape, with a bias beside it."""
WIDTH = 8
FLUX: dict[str, tuple[int, ...]] = {
    # As the host names the scales of norms in a loaded model.
    f"diffusion_model.{path.replace('norm.scale', 'norm.weight')}": init.shape
    for path, init in flux_layout(WIDTH).items()
}
"""A tiny Flux, for the dialects that only its adapters are written in."""
UNET: dict[str, tuple[int, ...]] = {
    f"down_blocks.0.attentions.0.transformer_blocks.0.attn1.{name}.weight": (8, 8)
    for name in ("to_q", "to_k", "to_v", "to_out.0")
}
"""The attention of a UNet with diffusers' names."""
MODELS = {"plain": MODEL, "flux": FLUX, "unet": UNET}

CONTAINERS: dict[str, tuple[str, Callable[[Mapping[str, Tensor]], bytes]]] = {
    "archive": (".pt", lambda tensors: pickled(dict(tensors))),
    "checkpoint": (".ckpt", lambda tensors: pickled({"state_dict": dict(tensors), "epoch": 3})),
}
"""The ending of each kind of pickle, and what writes it."""


@dataclass(frozen=True, eq=False)
class Seed:
    """A valid file."""

    name: str
    """Its kind, dialect and container, as `lora/kohya/safetensors`."""
    tensors: Mapping[str, Tensor]
    container: str = "safetensors"
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    config: Mapping[str, Any] | None = None
    """The table of the adapter_config.json beside it."""
    model: str = "plain"
    """The name in `MODELS` of the model that it is for."""

    @property
    def is_safetensors(self) -> bool:
        return self.container == "safetensors"

    @property
    def ending(self) -> str:
        return ".safetensors" if self.is_safetensors else CONTAINERS[self.container][0]

    @cached_property
    def blob(self) -> bytes:
        """The file's bytes."""
        if self.is_safetensors:
            return packed(self.tensors, self.metadata)
        return CONTAINERS[self.container][1](self.tensors)

    @cached_property
    def parts(self) -> tuple[dict[str, Any], bytes]:
        """The header, as a table, and the data of a safetensors file."""
        return apart(self.blob)


def weights_of(kind: str) -> list[str]:
    """The names of two weights that a kind fits, or of one where it fits no more."""
    if KINDS[kind].flat or KINDS[kind].linear:
        return [home(kind)]
    return ["conv2d", "conv1d"] if KINDS[kind].needs_kernel else ["linear", "conv2d"]


def _named(kind: str, form: Callable[[str], str]) -> dict[str, Tensor]:
    """The tensors of a kind's layers, one for each of its weights; `form` makes a layer's name of a path."""
    return {
        f"{form(PATHS[weight])}.{suffix}": tensor.contiguous()
        for weight in weights_of(kind)
        for suffix, tensor in factors(kind, weight).items()
    }


def _kohya(path: str) -> str:
    return "lora_unet_" + path.replace(".", "_")


def _network(kind: str) -> dict[str, str]:
    """What kohya's metadata say of a kind that cannot do without."""
    return {"ss_network_args": json.dumps({"algo": "tlora"})} if kind == "tlora" else {}


def _of_kinds(folder: Path) -> Iterator[Seed]:
    """Every kind in kohya's dialect, and as the library writes it in each of the others."""
    for kind in KINDS:
        torch.manual_seed(zlib.crc32(kind.encode()))
        metadata = {"ss_network_dim": "3", "modelspec.title": "ä title", **_network(kind)}
        first = Seed(f"{kind}/kohya/safetensors", _named(kind, _kohya), metadata=metadata)
        yield first
        (folder / f"{kind}.safetensors").write_bytes(first.blob)
        source = lyc.load_adapter(folder / f"{kind}.safetensors", cache=lyc.TensorCache(0))
        for dialect in ("comfy", "peft", "diffusers", "lycoris"):
            out = folder / f"{kind}-{dialect}"
            out.mkdir()
            path = out / "adapter_model.safetensors"
            try:
                lyc.save_adapter(source, path, dialect, model=MODEL)
            except lyc.LycorisError:
                # The dialect holds no such layers.
                continue
            header, _ = apart(path.read_bytes())
            beside = out / CONFIG
            yield Seed(
                f"{kind}/{dialect}/safetensors",
                read(path.read_bytes()),
                metadata=header.get("__metadata__", {}),
                config=json.loads(beside.read_text()) if beside.exists() else None,
            )


def _pair(out: int, inputs: int, up: str, down: str, rank: int = 2) -> dict[str, Tensor]:
    return {up: rand(out, rank), down: rand(rank, inputs)}


def _peculiar() -> Iterator[Seed]:
    """Files of single tools, whose layout no kind alone shows."""
    double, single = "double_blocks.0", "single_blocks.0"
    for name, form in {
        "onetrainer": ("lora_transformer_transformer_blocks_0_attn_to_out_0", "lora_{}.weight", "up", "down"),
        "bare": (f"{double}.img_attn.proj", "lora_{}.weight", "B", "A"),
        "peft live": (f"base_model.model.{double}.img_attn.proj", "lora_{}.default.weight", "B", "A"),
        "peft named": (f"base_model.model.{double}.img_attn.proj", "lora_{}.style.weight", "B", "A"),
        "processor": ("transformer.transformer_blocks.0.attn.to_out.0", "lora.{}.weight", "up", "down"),
        "mochi": ("transformer.transformer_blocks.0.attn.to_out.0", "lora_{}", "B", "A"),
        "underscored": ("lora_unet__double_blocks_0_img_attn_proj", "lora_{}.weight", "up", "down"),
        "split": ("transformer.transformer_blocks.0.attn.to_k", "lora_{}.weight", "B", "A"),
    }.items():
        path, suffix, up, down = form
        keys = (f"{path}.{suffix.format(side)}" for side in (up, down))
        yield Seed(f"lora/{name}/safetensors", _pair(WIDTH, WIDTH, *keys), model="flux")
    control = _pair(WIDTH, 128, "img_in.lora_B.weight", "img_in.lora_A.weight") | {
        "img_in.lora_B.bias": rand(WIDTH),
        f"{double}.img_attn.norm.query_norm.scale": rand(HEAD),
        f"{double}.img_attn.norm.key_norm.scale": rand(HEAD),
    }
    yield Seed("lora/bfl control/safetensors", control, model="flux")
    xlabs = {
        f"{double}.processor.qkv_lora1": (3 * WIDTH, WIDTH),
        f"{double}.processor.proj_lora2": (WIDTH, WIDTH),
        f"{single}.processor.qkv_lora": (3 * WIDTH, WIDTH),
    }
    tensors: dict[str, Tensor] = {}
    for name, (rows, columns) in xlabs.items():
        tensors |= _pair(rows, columns, f"{name}.up.weight", f"{name}.down.weight")
    yield Seed("lora/xlabs/safetensors", tensors, model="flux")
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{name}.lora_up.weight": torch.block_diag(*(rand(WIDTH, 2) for _ in range(3))),
        f"{name}.lora_down.weight": rand(6, WIDTH),
        f"{name}.alpha": torch.tensor(1.0),
    }
    metadata = {"ss_network_args": json.dumps({"split_qkv": "True"}), "ss_network_dim": "2"}
    yield Seed("lora/split qkv/safetensors", tensors, metadata=metadata, model="flux")
    name = "oft_unet_single_blocks_0_linear1"
    blocks = [rand(2, 4, 4) for _ in range(3)] + [rand(4, 8, 8)]
    tensors = {f"{name}.oft_blocks.{number}": part for number, part in enumerate(blocks)}
    yield Seed("oft/numbered/safetensors", {**tensors, f"{name}.alpha": torch.tensor(1e-3)}, model="flux")
    attention = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor"
    tensors = {}
    for name in ("to_q", "to_k", "to_v", "to_out"):
        place = f"{attention}.{name}_lora"
        tensors |= _pair(8, 8, f"{place}.up.weight", f"{place}.down.weight")
    yield Seed("lora/attention processors/safetensors", tensors, model="unet")
    # Parts that no kind of `KINDS` has.
    linear, norm = PATHS["linear"], PATHS["norm"]
    rows, columns = WEIGHTS["linear"]
    yield Seed(
        "embedding/peft/safetensors",
        {
            f"base_model.model.{linear}.lora_embedding_A": rand(2, rows),
            f"base_model.model.{linear}.lora_embedding_B": rand(columns, 2),
        },
        config={"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["x"]},
    )
    extras = factors("lora", "linear") | {"diff_b": rand(rows)}
    tensors = {f"{_kohya(linear)}.{suffix}": tensor for suffix, tensor in extras.items()}
    tensors |= {
        f"{_kohya(norm)}.w_norm": rand(*WEIGHTS["norm"]),
        f"{_kohya(norm)}.b_norm": rand(*WEIGHTS["norm"]),
        "bundle_emb.word.string_to_param.*": rand(2, 4),
    }
    yield Seed("mixed/kohya/safetensors", tensors)
    for kind, more, settings in (
        ("adalora", {"lora_E": rand(3, 1)}, {"peft_type": "ADALORA", "init_r": 12, "lora_alpha": 2, "r": 8}),
        ("pissa", {}, {"peft_type": "LORA", "r": 3, "lora_alpha": 2, "init_lora_weights": "pissa"}),
    ):
        suffixes = ("lora_A", "lora_B") if more else ("lora_A.weight", "lora_B.weight")
        pair = dict(zip(suffixes, (rand(3, columns), rand(rows, 3)), strict=True))
        tensors = {f"base_model.model.{linear}.{suffix}": tensor for suffix, tensor in (pair | more).items()}
        yield Seed(f"{kind}/peft/safetensors", tensors, config=settings)
    own = {"r": 3, "lora_alpha": 2, "rank_pattern": {"x": 3}, "alpha_pattern": {}, "peft_type": "LORA"}
    tensors = {
        f"transformer.{linear}.lora_A.weight": rand(3, columns),
        f"transformer.{linear}.lora_B.weight": rand(rows, 3),
        f"transformer.{linear}.lora_magnitude_vector": 1 + torch.rand(rows),
    }
    table = json.dumps({f"transformer.{key}": value for key, value in own.items()})
    yield Seed("dora/diffusers/safetensors", tensors, metadata={"lora_adapter_metadata": table})
    rotation = {
        f"base_model.model.{linear}.oft_R.weight": rand(9, 1),
        f"base_model.model.{PATHS['conv2d']}.oft_R.weight": rand(81, 1),
    }
    settings = {"peft_type": "OFT", "r": 0, "oft_block_size": 2, "coft": True, "eps": 1e-2}
    yield Seed("oftv2/peft old/safetensors", rotation, config=settings)
    scaled = {f"transformer.{linear}.oft_R.weight": rand(6, 3)}
    scaled[f"transformer.{linear}.oft_R.scaled_oft"] = torch.tensor(True)
    yield Seed("oftv2/onetrainer/safetensors", scaled)


def make(folder: Path) -> list[Seed]:
    """Every seed, the same ones at each call; `folder` is an empty one to work in."""
    found: list[Seed] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for seed in (*_of_kinds(folder), *_peculiar()):
            found.append(seed)
            # No pickle has metadata, without which a T-LoRA is of no use.
            found += [
                Seed(
                    f"{seed.name.removesuffix('safetensors')}{container}",
                    seed.tensors,
                    container,
                    config=seed.config,
                    model=seed.model,
                )
                for container in CONTAINERS
                if not seed.name.startswith("tlora")
            ]
    return found


def base_of(model: str) -> dict[str, Tensor]:
    """The weights of a model of `MODELS`, the same ones at each call, and tensors that no layer is for."""
    generator = torch.Generator().manual_seed(7)
    weights = {key: torch.randn(shape, generator=generator) for key, shape in MODELS[model].items()}
    return {**weights, "first_stage_model.ids": torch.arange(7)}
