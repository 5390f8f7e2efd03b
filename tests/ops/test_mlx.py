"""mlx-lm's adapters, by the formulas of its own classes, and other files with lower-case factors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from written import change, read

import lycoris_ops as lyc
from lycoris_ops.files.cache import TensorCache

PATH = "model.layers.0.self_attn.q_proj"
SETTINGS = {"rank": 3, "scale": 20.0, "dropout": 0.0}
CONFIG = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": SETTINGS}


def factors(rows: int, columns: int, rank: int = 3) -> dict[str, Tensor]:
    return {f"{PATH}.lora_a": torch.randn(columns, rank), f"{PATH}.lora_b": torch.randn(rank, rows)}


def folder(path: Path, tensors: dict[str, Tensor], config: Any = CONFIG) -> Path:
    """A folder as mlx-lm writes it."""
    path = path / "trained"
    path.mkdir()
    held = {key: tensor.contiguous().numpy().tobytes() for key, tensor in tensors.items()}
    # Not by safetensors, which writes no metadata: MLX writes null.
    header: dict[str, Any] = {"__metadata__": None}
    at = 0
    for key, data in held.items():
        header[key] = {
            "dtype": "F32",
            "shape": list(tensors[key].shape),
            "data_offsets": [at, at + len(data)],
        }
        at += len(data)
    text = json.dumps(header).encode()
    (path / "adapters.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + b"".join(held.values())
    )
    if config is not None:
        (path / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize(("rows", "columns"), [(12, 18), (18, 18), (5, 3)])
def test_a_lora_of_mlx(tmp_path: Path, rows: int, columns: int) -> None:
    tensors = factors(rows, columns)
    adapter = lyc.load_adapter(folder(tmp_path, tensors))
    wanted = 20.0 * (tensors[f"{PATH}.lora_a"].double() @ tensors[f"{PATH}.lora_b"].double()).T
    torch.testing.assert_close(change(adapter.layers[PATH], (rows, columns)), wanted)
    assert (adapter.dialect, adapter.name) == ("mlx", "trained/adapters.safetensors")
    assert not adapter.unused_keys and not adapter.without_alpha
    assert adapter.alphas() == {PATH: 60.0} and adapter.info[PATH].rank == 3


def test_alphas_are_told_without_reading_a_factor(tmp_path: Path) -> None:
    cache = TensorCache(1 << 20)
    assert lyc.load_adapter(folder(tmp_path, factors(12, 18)), cache=cache).alphas() == {PATH: 60.0}
    assert cache.nbytes == 0


@pytest.mark.parametrize(("rows", "columns"), [(12, 18), (18, 18)])
def test_a_dora_of_mlx(tmp_path: Path, rows: int, columns: int) -> None:
    magnitude, weight = 1 + torch.rand(rows), torch.randn(rows, columns, dtype=torch.float64)
    tensors = factors(rows, columns) | {f"{PATH}.m": magnitude}
    layer = lyc.load_adapter(folder(tmp_path, tensors)).layers[PATH]
    adapted = weight + 20.0 * (tensors[f"{PATH}.lora_a"].double() @ tensors[f"{PATH}.lora_b"].double()).T
    wanted = magnitude.double()[:, None] * adapted / adapted.norm(dim=1, keepdim=True)
    torch.testing.assert_close(weight + layer.delta(weight), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dialect", ["comfy", "kohya", "lycoris"])
def test_a_lora_of_mlx_in_other_dialects(tmp_path: Path, dialect: str) -> None:
    """The factors that are written are those of the file, bit by bit."""
    tensors = factors(12, 18)
    adapter = lyc.load_adapter(folder(tmp_path, tensors))
    out = tmp_path / "out.safetensors"
    lyc.save_adapter(adapter, out, dialect=dialect, model={f"diffusion_model.{PATH}.weight": (12, 18)})
    (layer,) = lyc.load_adapter(out).layers.values()
    assert isinstance(layer, type(adapter.layers[PATH])) and layer.alpha == 60.0
    found = layer.dump()
    assert torch.equal(found["lora_down.weight"], tensors[f"{PATH}.lora_a"].T)
    assert torch.equal(found["lora_up.weight"], tensors[f"{PATH}.lora_b"].T)


def test_without_a_configuration_the_scale_is_reported_as_missing(tmp_path: Path) -> None:
    """mlx-lm's usual scale is 20, so that nobody should take such an adapter for a weak one."""
    tensors = factors(12, 18)
    adapter = lyc.load_adapter(folder(tmp_path, tensors, None))
    wanted = (tensors[f"{PATH}.lora_a"].double() @ tensors[f"{PATH}.lora_b"].double()).T
    torch.testing.assert_close(change(adapter.layers[PATH], (12, 18)), wanted)
    assert adapter.without_alpha == (PATH,)
    said = "no adapter_config.json beside the file: 1 layer at scale 1"
    assert said in lyc.describe(lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), {f"{PATH}.weight": (12, 18)}))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("{", "not JSON"),
        ({"lora_parameters": {"rank": 3}}, r"lora_parameters\.scale"),
        ({"lora_parameters": {"scale": "20"}}, r"lora_parameters\.scale"),
        ({"lora_parameters": {"scale": 1e300}}, r"lora_parameters\.scale"),
        ('{"lora_parameters": {"scale": NaN}}', r"lora_parameters\.scale"),
        ({"lora_parameters": {"scale": 10**4000}}, r"lora_parameters\.scale.* 13288 bits"),
        ({"lora_parameters": {"scale": [[1] * 99]}}, r"lora_parameters\.scale"),
    ],
)
def test_a_damaged_configuration_is_an_error(tmp_path: Path, config: Any, problem: str) -> None:
    with pytest.raises(
        lyc.FileFormatError, match=rf"adapter_config\.json.*{problem}|{problem}.*adapter_config"
    ):
        lyc.load_adapter(folder(tmp_path, factors(12, 18), config))
    with pytest.raises(lyc.FileFormatError, match="Restore it, or remove it to apply the adapter at scale 1"):
        lyc.load_adapter(tmp_path / "trained")


def test_square_factors_without_a_configuration_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(lyc.FileFormatError, match=rf"{PATH}\.lora_a.*which axis") as caught:
        read(tmp_path, factors(4, 4, rank=4))
    assert "adapter_config.json" in str(caught.value)


def test_experts_in_one_tensor_are_refused_by_name(tmp_path: Path) -> None:
    tensors = {f"{PATH}.lora_a": torch.randn(2, 3, 18), f"{PATH}.lora_b": torch.randn(2, 12, 3)}
    with pytest.raises(lyc.FileFormatError, match="experts"):
        lyc.load_adapter(folder(tmp_path, tensors))


def test_factors_of_a_conv1d_in_torchs_shapes_are_no_experts(tmp_path: Path) -> None:
    down, up = torch.randn(3, 18, 5), torch.randn(12, 3, 1)
    adapter = read(tmp_path, {f"{PATH}.lora_a": down, f"{PATH}.lora_b": up})
    wanted = torch.einsum("or,rik->oik", up.double()[..., 0], down.double())
    torch.testing.assert_close(change(adapter.layers[PATH], (12, 18, 5)), wanted)


def test_contradicting_shapes_name_the_file_and_the_layer(tmp_path: Path) -> None:
    tensors = {f"{PATH}.lora_a": torch.randn(18, 3), f"{PATH}.lora_b": torch.randn(4, 12)}
    with pytest.raises(lyc.LayerError, match=rf"x\.safetensors.*{PATH}"):
        read(tmp_path, tensors)


@pytest.mark.parametrize("end", ["", ".weight"])
def test_lower_case_factors_in_torchs_shapes(tmp_path: Path, end: str) -> None:
    down, up = torch.randn(3, 18), torch.randn(12, 3)
    adapter = read(tmp_path, {f"{PATH}.lora_a{end}": down, f"{PATH}.lora_b{end}": up})
    torch.testing.assert_close(change(adapter.layers[PATH], (12, 18)), up.double() @ down.double())


def test_nunchakus_packed_factors_are_refused_by_name(tmp_path: Path) -> None:
    path = "transformer_blocks.0.mlp_fc1"
    with pytest.raises(lyc.FileFormatError, match="Nunchaku"):
        read(tmp_path, {f"{path}.lora_down": torch.randn(16, 18), f"{path}.lora_up": torch.randn(12, 16)})


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_written_back_it_is_the_same_bit_by_bit(tmp_path: Path, kind: str) -> None:
    tensors = factors(12, 18) | ({f"{PATH}.m": 1 + torch.rand(12)} if kind == "dora" else {})
    source = lyc.load_adapter(folder(tmp_path, tensors))
    lyc.save_adapter(source, tmp_path / "written", dialect="mlx")
    found = load_file(tmp_path / "written" / "adapters.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in found)
    assert sorted(path.name for path in (tmp_path / "written").iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
    ]
    assert json.loads((tmp_path / "written" / "adapter_config.json").read_text()) == {
        "fine_tune_type": kind,
        "num_layers": -1,
        "lora_parameters": {**SETTINGS, "keys": [PATH]},
    }
    again = lyc.load_adapter(tmp_path / "written")
    assert again.alphas() == source.alphas() and again.dialect == "mlx"


def test_a_layer_that_nothing_reads_is_copied_as_it_is(tmp_path: Path) -> None:
    unread = {key.replace("q_proj", "k_proj"): tensor for key, tensor in factors(12, 18).items()}
    unread[f"{PATH.replace('q_proj', 'k_proj')}.lora_z"] = torch.randn(2)
    source = lyc.load_adapter(folder(tmp_path, factors(12, 18) | unread))
    assert set(source.unused_keys) == unread.keys()
    lyc.save_adapter(source, tmp_path / "written", dialect="mlx")
    found = load_file(tmp_path / "written" / "adapters.safetensors")
    assert all(torch.equal(found[key], tensor) for key, tensor in unread.items())


def test_layers_of_two_scales_do_not_fit_into_one_configuration(tmp_path: Path) -> None:
    layers = {f"x.{name}.lora_down.weight": torch.randn(2, 8) for name in "qv"}
    layers |= {f"x.{name}.lora_up.weight": torch.randn(8, 2) for name in "qv"}
    source = read(tmp_path, layers | {"x.q.alpha": torch.tensor(2.0), "x.v.alpha": torch.tensor(4.0)})
    with pytest.raises(lyc.LayerError, match="one scale for all layers"):
        lyc.save_adapter(source, tmp_path / "written", dialect="mlx")


@pytest.mark.parametrize(("rows", "columns"), [(30, 12), (12, 12)])
@pytest.mark.parametrize("name", ["model.embed_tokens", "model.wte"])
def test_an_embedding_is_not_transposed(tmp_path: Path, name: str, rows: int, columns: int) -> None:
    """mlx-lm fuses it as W + scale * lora_a @ lora_b, for a weight (V, D)."""
    held = {f"{name}.lora_a": torch.randn(rows, 3), f"{name}.lora_b": torch.randn(3, columns)}
    adapter = lyc.load_adapter(folder(tmp_path, held))
    wanted = 20.0 * held[f"{name}.lora_a"].double() @ held[f"{name}.lora_b"].double()
    torch.testing.assert_close(change(adapter.layers[name], (rows, columns)), wanted)
    path = lyc.save_adapter(adapter, tmp_path / "again", "mlx").path
    again = load_file(path)
    assert all(torch.equal(again[key], tensor) for key, tensor in held.items()) and len(again) == 2
