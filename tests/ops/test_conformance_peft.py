"""Files that PEFT's `save_pretrained` writes, against the forward pass of PEFT itself.

The configuration beside the weights is part of such a file: it alone holds alpha, patterns, the kind of
Cayley map, and on which side of a square convolution an (IA)^3 vector acts.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import EPS32, EPS64, SHAPES, error, fill, layer
from peft_files import KINDS, NARROW, computed, saved
from torch import Tensor, nn

import lycoris_ops as lyc

CASES = [
    (kind, weight, file)
    for kind, spec in KINDS.items()
    for number, weight in enumerate(spec.layers)
    for file in (torch.float32, NARROW[kind])
    # What a file's dtype does to a factor does not depend on the layer.
    if file == torch.float32 or number % 4 == 0
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, torch.dtype], Any]:
    """The file of each kind in each dtype, made once: to write a file takes longer than all tests of it."""
    torch.manual_seed(0)
    return {
        (kind, file): saved(spec, file, tmp_path_factory.mktemp(kind))
        for kind, spec in KINDS.items()
        for file in (torch.float32, NARROW[kind])
    }


@pytest.mark.parametrize(("kind", "file"), [*((kind, torch.float32) for kind in KINDS), *NARROW.items()])
def test_every_key_of_the_file_is_read(files: Any, kind: str, file: torch.dtype) -> None:
    adapter, layers = files[kind, file]
    assert (dict(adapter.unreadable), adapter.unused_keys) == ({}, ())
    assert adapter.layers.keys() == {f"base_model.model.{name}" for name in layers}
    assert {layer.algorithm for layer in adapter.layers.values()} == {KINDS[kind].algorithm}


@pytest.mark.parametrize(("kind", "weight", "file"), CASES)
def test_delta_is_what_peft_computes(files: Any, kind: str, weight: str, file: torch.dtype) -> None:
    """The change of a loaded layer is the change of weight and bias that PEFT's forward pass shows."""
    spec = KINDS[kind]
    adapter, layers = files[kind, file]
    theirs: Any = layers[weight]
    base = theirs.base_layer.weight
    old = getattr(theirs.base_layer, "bias", None)
    changed, bias = computed(theirs)
    change = adapter.layers[f"base_model.model.{weight}"].change(base, old)
    assert change.delta.dtype == torch.float64
    assert error(change.delta, changed - base, base) <= 16 * spec.eps
    if old is None or (bias - old).abs().max() <= 16 * EPS64:
        assert change.bias is None or not change.bias.any()
    else:
        # A bias of LoRA's own is scaled in float32.
        assert error(change.bias.double(), bias - old, old) <= 16 * EPS32


# The faults of peft 0.21, and what its files hold that no change of a weight can say.


def written(folder: Path, config: Any, model: nn.Module) -> tuple[Path, Any]:
    """A file that PEFT wrote with random values, and the adapted model in float64."""
    import peft

    adapted = peft.get_peft_model(model.requires_grad_(False), config).eval().requires_grad_(False)
    fill((p for name, p in adapted.named_parameters() if "default" in name), torch.float32)
    adapted.save_pretrained(str(folder))
    return folder / "adapter_model.safetensors", adapted.double().base_model.model


@pytest.mark.parametrize("options", [{}, {"decompose_both": True, "decompose_factor": 18}], ids=str)
def test_a_lokr_of_a_conv1d_with_a_full_factor_is_pefts_own_product(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """PEFT aligns the two dimensions of w1 with the last two of w2, which are inputs and kernel.

    PEFT's own low-rank LoKr of the same layer, and every other implementation, aligns outputs and inputs. The
    file was trained with PEFT's product.
    """
    from peft import LoKrConfig

    config = LoKrConfig(r=4 if options else 16, alpha=24, target_modules=["layer"], **options)
    path, model = written(tmp_path, config, nn.ModuleDict({"layer": layer((36, 40, 3))}))
    base = model["layer"].base_layer.weight
    changed, _ = computed(model["layer"])
    read: Any = lyc.load_adapter(path).layers["base_model.model.layer"]
    assert (read.lokr_w1 is None) == bool(options) and read.lokr_w2.ndim == 3
    # PEFT's scale goes into a factor, in float32.
    assert error(read.delta(base), changed - base, base) <= 16 * EPS32
    # The change of these factors in any other tool.
    w1 = read.lokr_w1 if read.lokr_w1 is not None else read.lokr_w1_a @ read.lokr_w1_b
    assert error(torch.kron(w1.double()[..., None], read.lokr_w2.double()), changed - base, base) > 0.1


def test_peft_rotates_each_window_of_a_convolution_and_adds_where_they_overlap(tmp_path: Path) -> None:
    """PEFT rotates every window of the input on its own, so its forward pass is no convolution at all.

    Its merge rotates the weight instead, and the library does the same.
    """
    from peft import OFTConfig

    config = OFTConfig(r=0, oft_block_size=4, target_modules=["layer"])
    path, model = written(tmp_path, config, nn.ModuleDict({"layer": layer((8, 12, 3, 3), padding=1)}))
    theirs, x = model["layer"], torch.randn(1, 12, 6, 6, dtype=torch.float64)
    base = theirs.base_layer.weight.clone()
    delta = lyc.load_adapter(path).layers["base_model.model.layer"].delta(base)
    with torch.no_grad():
        seen = theirs.forward(x)
        theirs.merge()
        merged = theirs.forward(x)
    assert error(delta, theirs.base_layer.weight - base, base) <= 16 * EPS64
    # PEFT still has this fault: so no such file is written for it, and none is trained for it.
    assert (seen - merged).abs().max() > 0.1 * merged.abs().max()
    with pytest.raises(lyc.LayerError, match=r"peft rotates every window.*lycoris"):
        lyc.save_adapter(
            lyc.load_adapter(path), tmp_path / "again", "peft", model={"layer.weight": (8, 12, 3, 3)}
        )
    assert not (tmp_path / "again").exists()
    for kernel, faulty in ((3, True), (1, False)):
        model = nn.ModuleDict({"layer": nn.Conv2d(12, 8, kernel)})
        network = lyc.create_lycoris(model, algorithm="oftv2", rank=4, preset="full")
        with pytest.raises(lyc.LayerError, match="rotates") if faulty else nullcontext():
            network.check_dialect("peft")


def test_a_file_of_peft_before_0_18_takes_its_last_neumann_term_twice(tmp_path: Path) -> None:
    """PEFT's series was I + 2 Q + 2 Q^2 + ..., to the last term. Its configuration then named no version.

    From 0.18 on the last term counts once, and PEFT itself reads older files with the newer series.
    """
    from peft import OFTConfig

    config = OFTConfig(r=0, oft_block_size=4, num_cayley_neumann_terms=5, target_modules=["layer"])
    path, model = written(tmp_path, config, nn.ModuleDict({"layer": layer((6, 8))}))
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    # An older file, made from a newer one: it has no version.
    assert said.pop("peft_version")
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    base = model["layer"].base_layer.weight
    read: Any = lyc.load_adapter(path).layers["base_model.model.layer"]
    upper = torch.zeros(2, 4, 4, dtype=torch.float64)
    row, column = torch.triu_indices(4, 4, 1)
    upper[:, row, column] = read.oft_r.double()
    skew = upper - upper.mT
    series = torch.eye(4, dtype=torch.float64) + 2 * sum(skew.matrix_power(n) for n in range(1, 5))
    wanted = base @ torch.block_diag(*series).T
    assert error(read.delta(base), wanted - base, base) <= 64 * EPS64


class BlockDiagonal:
    """Does what PEFT's CUDA extension does: it makes block-diagonal matrices."""

    @staticmethod
    def apply(blocks: Tensor) -> Tensor:
        return torch.stack([torch.block_diag(*stage) for stage in blocks])


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("weight", ["linear", "conv2d", "conv2d-1x1"])
def test_a_boft_is_read(weight: str, stages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delta is that of PEFT's forward pass.

    BOFT of several stages needs PEFT's CUDA extension, in whose place `BlockDiagonal` stands.
    """
    from peft import BOFTConfig
    from peft.tuners.boft import layer as boft

    monkeypatch.setattr(boft, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(boft, "FastBlockDiag", BlockDiagonal)
    shape = (6, 16, *SHAPES[weight][2:])
    config = BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=stages, target_modules=["layer"])
    path, model = written(tmp_path, config, nn.ModuleDict({"layer": layer(shape)}))
    base = model["layer"].base_layer.weight
    changed, _ = computed(model["layer"])
    delta = lyc.load_adapter(path).layers["base_model.model.layer"].delta(base.double())
    assert error(base.double() + delta, changed, base) <= 64 * EPS64


def test_a_rotated_embedding_is_reported(tmp_path: Path) -> None:
    from peft import OFTConfig

    config = OFTConfig(r=0, oft_block_size=4, target_modules=["layer", "words"])
    parts = {"layer": layer((6, 8)), "words": nn.Embedding(9, 8)}
    path, _ = written(tmp_path, config, nn.ModuleDict(parts))
    adapter = lyc.load_adapter(path)
    assert adapter.layers.keys() == {"base_model.model.layer"}
    assert adapter.unused_keys == ("base_model.model.words.oft_embedding_R.weight",)
