"""Written adapters: every kind in every dialect, their metadata, and what is refused.

The reference is the source. A layer that is read back must have the same delta, and also the same tensors
if the dialect can hold every kind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import CASES, FEW, MIXED, WEIGHTS, base, factors, lokr, lora
from models import unet as model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from written import adapter as adapter_of
from written import configured, read

import lycoris_ops as lyc
from lycoris_ops import WRITTEN_DIALECTS
from lycoris_ops.names.network_args import network_options
from lycoris_ops.writing import save as saving

PATH = "down_blocks.0.attentions.0.proj_in"
END = "proj_in"
NAMES = {
    "kohya": "lora_unet_down_blocks_0_attentions_0_proj_in",
    "comfy": "diffusion_model.input_blocks.1.1.proj_in",
    "peft": f"base_model.model.{PATH}",
    "diffusers": f"unet.{PATH}",
    "lycoris": "lycoris_down_blocks_0_attentions_0_proj_in",
    "mlx": "input_blocks.1.1.proj_in",
}
TLORA = {"ss_network_args": json.dumps({"algo": "tlora", "sig_type": "principal"})}
"""Metadata that say where a T-LoRA started, because its tensors do not."""

ONLY_LORA = {"lora", "lora-dora-out"}
IN_PEFT = ONLY_LORA | {
    "loha",
    "loha-tucker",
    "lokr-full-full",
    "lokr-full-low",
    # The models of these tests have no bias, on which the two kinds would differ.
    "ia3",
    "ia3-peft",
    "oftv2",
    "boft-peft",
}
"""The kinds that diffusers (ONLY_LORA) and PEFT (IN_PEFT) can hold for a UNet. The other three dialects can
hold every kind."""


def written(
    folder: Path, tensors: Mapping[str, Tensor], name: str = NAMES["kohya"], **given: Any
) -> lyc.Adapter:
    """An adapter from a file with one layer, given by its tensors."""
    return adapter_of(folder, {name: tensors}, **given)


def out(folder: Path, dialect: str) -> Path:
    return folder / dialect if lyc.has_folder(dialect) else folder / f"{dialect}.safetensors"


def saved(adapter: lyc.Adapter, folder: Path, dialect: str, **options: Any) -> lyc.Adapter:
    """The adapter after it has been written in a dialect and read back."""
    return lyc.load_adapter(lyc.save_adapter(adapter, out(folder, dialect), dialect, **options).path)  # type: ignore[arg-type]


def held(kind: str, weight: str, dialect: str) -> bool:
    """Whether a dialect can hold this kind of layer for this weight."""
    if dialect == "diffusers":
        return kind in ONLY_LORA
    if dialect == "mlx":
        return kind in ONLY_LORA and weight.startswith("linear")
    if dialect == "peft":
        # PEFT has no core of three dimensions: for such kernels it has flat factors. From a full factor of a
        # Conv1d it computes another product.
        other = {("loha-tucker", "conv3d"), ("lokr-full-full", "conv1d"), ("lokr-low-full", "conv1d")}
        # On kernels, PEFT's OFT computes one change in its forward pass and another in its merge.
        fault = kind == "oftv2" and weight not in ("linear", "linear-odd", "conv2d-1x1")
        return kind in IN_PEFT and (kind, weight) not in other and not fault
    return True


# VeRA is written as LoRA, or with the tensors that its layers share: see `test_vera`.
ALONE = [case for case in CASES if case[0] != "vera"]
HELD = [
    (*case, dialect)
    for case in ALONE
    if case in MIXED
    for dialect in WRITTEN_DIALECTS
    # Only PEFT shapes tensors in its own way. The others have the same ones under other names.
    if held(*case, dialect) and (case in FEW or dialect in ("comfy", "peft"))
]
REFUSED = [
    (*case, dialect)
    for case in ALONE
    for dialect in WRITTEN_DIALECTS
    if not held(*case, dialect) and (case in FEW or held(case[0], "conv2d", dialect))
]


@pytest.mark.parametrize(("kind", "weight", "dialect"), REFUSED)
def test_the_error_of_what_a_dialect_cannot_hold_names_who_can(
    tmp_path: Path, kind: str, weight: str, dialect: str
) -> None:
    adapter = written(tmp_path, factors(kind, weight), metadata=TLORA)
    with pytest.raises(lyc.LayerError, match=rf"{NAMES['kohya']}: {dialect} .*comfy") as caught:
        saved(adapter, tmp_path, dialect, model=model(WEIGHTS[weight]))
    for other in ("comfy", "lycoris"):
        assert other in str(caught.value)
    assert not out(tmp_path, dialect).exists()


@pytest.mark.parametrize(("kind", "weight", "dialect"), HELD)
def test_a_written_layer_is_the_layer(tmp_path: Path, kind: str, weight: str, dialect: str) -> None:
    """The delta of the layer is that of the source.

    Dialects that hold every kind must also keep its tensors bit by bit.
    """
    adapter = written(tmp_path, factors(kind, weight), metadata=TLORA)
    options: dict[str, Any] = {"model": model(WEIGHTS[weight])}
    found = saved(adapter, tmp_path, dialect, **options)
    assert found.dialect == dialect and list(found.info) == [NAMES[dialect]] and not found.unused_keys
    before, after = adapter.layers[NAMES["kohya"]], found.layers[NAMES[dialect]]
    assert before.algorithm == after.algorithm and before.rank == after.rank
    met = base(weight)
    torch.testing.assert_close(after.delta(met), before.delta(met), rtol=1e-6, atol=1e-7)
    if dialect in ("kohya", "comfy", "lycoris"):
        ours, theirs = before.dump(), after.dump()
        assert set(theirs) == set(ours)
        assert all(torch.equal(ours[s].flatten(), theirs[s].flatten()) for s in ours)


def test_every_scaled_layer_gets_the_alpha_that_its_scale_is(tmp_path: Path) -> None:
    """A file without alpha means a scale of 1, so the alpha to write is the rank."""
    path = saved(written(tmp_path, factors("loha", "linear", alpha=None)), tmp_path, "kohya").path
    alpha = load_file(path)[f"{NAMES['kohya']}.alpha"]
    assert alpha.dtype == torch.float32 and alpha.shape == () and alpha.item() == 3.0
    # LoKr of two full factors has no scale, whatever alpha the file holds.
    both_full = {**lokr((12, 18), 3, first="full", second="full"), "alpha": torch.tensor(float("inf"))}
    path = saved(written(tmp_path, both_full), tmp_path, "comfy", model=model()).path
    assert load_file(path)[f"{NAMES['comfy']}.alpha"].item() == 1.0


def test_peft_s_alpha_and_magnitude_become_tensors(tmp_path: Path) -> None:
    up, down = torch.randn(12, 3), torch.randn(3, 18)
    tensors = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": 1 + torch.rand(12)}
    adapter = saved(written(tmp_path, tensors, NAMES["peft"]), tmp_path, "kohya", model=model())
    file = load_file(adapter.path)
    assert file[f"{NAMES['kohya']}.dora_scale"].shape == (12, 1)
    assert file[f"{NAMES['kohya']}.alpha"].item() == 3.0
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "use_rslora": True}
    named = {f"{NAMES['peft']}.{key}": tensor for key, tensor in tensors.items()}
    path = saved(configured(tmp_path / "rs", named, config), tmp_path, "kohya", model=model()).path
    # rsLoRA scales by alpha / sqrt(rank); in kohya's dialect the scale is alpha / rank.
    assert load_file(path)[f"{NAMES['kohya']}.alpha"].item() == pytest.approx(6 * 3**0.5)


# Dialects without alpha: the scale goes into a factor.


def test_diffusers_has_the_scale_in_a_factor_exactly_or_in_float32(tmp_path: Path) -> None:
    half = {key: tensor.half() for key, tensor in lora((12, 18), 3).items()}
    # Half of small whole numbers is exact in float16; 1.1 / 3 of random ones is not.
    exact = torch.randint(1, 5, (12, 3)).half()
    for up, alpha, dtype in ((exact, 1.5, torch.float16), (half["lora_up.weight"], 1.1, torch.float32)):
        source = {**half, "lora_up.weight": up, "alpha": torch.tensor(alpha)}
        result = lyc.save_adapter(
            written(tmp_path, source), out(tmp_path, "diffusers"), "diffusers", model=model()
        )
        tensors = load_file(result.path)
        assert set(tensors) == {f"unet.{PATH}.lora.down.weight", f"unet.{PATH}.lora.up.weight"}
        assert tensors[f"unet.{PATH}.lora.up.weight"].dtype == dtype
        up_written, down_written = (
            tensors[f"unet.{PATH}.lora.{side}.weight"].double() for side in ("up", "down")
        )
        product = up_written @ down_written
        wanted = torch.tensor(alpha).double() / 3 * up.double() @ half["lora_down.weight"].double()
        torch.testing.assert_close(product, wanted, rtol=1e-6, atol=1e-7)
    assert any("float32" in change for change in result.changes)


def test_diffusers_unets_are_spelled_as_all_its_generations_and_the_host_read_them(tmp_path: Path) -> None:
    """Attention in a UNet is spelled as a processor, and other layers with `.lora.`.

    Layers of a transformer, and magnitudes of DoRA, have PEFT's spelling.
    """
    block = "unet.mid_block.attentions.0.transformer_blocks.0"
    names = [f"{block}.attn1.to_q", f"{block}.attn2.to_out.0", f"{block}.ff.net.2", "transformer.x.attn.to_q"]
    tensors = {f"{name}.{key}": tensor for name in names for key, tensor in lora((6, 6), 2).items()}
    tensors |= {f"{name}.dora_scale": torch.ones(6) for name in names[:3]}
    source = read(tmp_path, tensors, "source")
    result = lyc.save_adapter(source, tmp_path / "out.safetensors", "diffusers")
    factors = {
        f"{block}.attn1.processor.to_q_lora": ("down.weight", "up.weight"),
        f"{block}.attn2.processor.to_out_lora": ("down.weight", "up.weight"),
        f"{block}.ff.net.2.lora": ("down.weight", "up.weight"),
        "transformer.x.attn.to_q": ("lora_A.weight", "lora_B.weight"),
        **dict.fromkeys(names[:3], ("lora_magnitude_vector",)),
    }
    written = {f"{name}.{suffix}" for name, suffixes in factors.items() for suffix in suffixes}
    assert set(load_file(result.path)) == written
    assert set(lyc.load_adapter(result.path).info) == set(names)


def test_what_does_not_round_in_the_down_factor_is_folded_there(tmp_path: Path) -> None:
    """Half of the smallest float16 number is no float16 number.

    The scale of one half therefore goes into the down factor, which holds it exactly.
    """
    up = torch.full((12, 2), 2.0**-24).half()
    down = torch.ones(2, 18).half()
    source = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.0)}
    tensors = load_file(saved(written(tmp_path, source), tmp_path, "diffusers", model=model()).path)
    assert torch.equal(tensors[f"unet.{PATH}.lora.down.weight"], down / 2)
    assert torch.equal(tensors[f"unet.{PATH}.lora.up.weight"], up)


def test_diffusers_metadata_say_ranks_and_scales_part_by_part(tmp_path: Path) -> None:
    names = {"unet.a": 2, "unet.b": 2, "unet.c.a": 5, "text_encoder.x": 4}
    tensors = {f"{name}.{k}": t for name, rank in names.items() for k, t in lora((6, 6), rank).items()}
    theirs = {
        key.replace("lora_up", "lora_B").replace("lora_down", "lora_A"): t for key, t in tensors.items()
    }
    adapter = saved(read(tmp_path, theirs, "source"), tmp_path, "diffusers")
    config = json.loads(adapter.metadata["lora_adapter_metadata"])
    assert config["unet.r"] == config["unet.lora_alpha"] == 2
    assert config["unet.rank_pattern"] == config["unet.alpha_pattern"] == {r"^c\.a": 5}
    assert config["text_encoder.r"] == 4 and config["text_encoder.rank_pattern"] == {}
    assert adapter.metadata["format"] == "pt"
    assert config["unet.target_modules"] == r"a|b|c\.a", "an entry of a list would match the end of any path"


def test_modules_are_listed_where_the_model_has_no_other_of_such_an_end(tmp_path: Path) -> None:
    """PEFT compares an entry of a list with the end of a path, and a string with the whole path.

    In the second model `x` is also the end of `block.x`, which is not adapted.
    """
    adapter = written(tmp_path, factors("lora", "linear"))
    lyc.save_adapter(adapter, tmp_path / "peft", "peft", model=model())
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["target_modules"] == [PATH]
    # A list of a file of PEFT's is kept without the model too, unless some layers that it names are left out.
    for selecting, wanted in ({}, [END]), ({"exclude_modules": ["x"]}, PATH.replace(".", r"\.")):
        told = {**config, "target_modules": [END], **selecting}
        (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(told))
        lyc.save_adapter(lyc.load_adapter(tmp_path / "peft"), tmp_path / "again", "peft", torch.float16)
        again = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
        assert again["target_modules"] == wanted
    outer = {"x": (4, 4), "block.x": (4, 4)}
    names = {f"{path}.weight": shape for path, shape in outer.items()}
    single = written(tmp_path, lora((4, 4), 2), "lycoris_x")
    lyc.save_adapter(single, tmp_path / "peft", "peft", model=names)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["target_modules"] == "x"


# The configuration beside a PEFT file.


def peft_config(tmp_path: Path, layers: Mapping[str, Mapping[str, Tensor]], **options: Any) -> dict[str, Any]:
    """The configuration that is written beside an adapter with these layers."""
    tensors = {f"unet.{path}.{k}": t.contiguous() for path, found in layers.items() for k, t in found.items()}
    lyc.save_adapter(read(tmp_path, tensors, "many"), tmp_path / "peft", "peft", **options)
    return json.loads((tmp_path / "peft" / "adapter_config.json").read_text())


def test_peft_needs_one_kind_and_one_choice_for_a_file(tmp_path: Path) -> None:
    dora = {**lora((6, 6), 2), "dora_scale": torch.rand(6, 1)}
    for odd, why in ((factors("loha", "linear"), "one kind"), (dora, "DoRA in every layer")):
        with pytest.raises(lyc.LayerError, match=rf"unet\.x\.c: peft needs {why}.*lycoris"):
            peft_config(tmp_path, {"x.a": lora((6, 6), 2), "x.b": lora((6, 6), 2), "x.c": odd})
    with pytest.raises(lyc.LayerError, match="single part of a model only"):
        two = {
            f"{p}.{p}_x.{k.replace('up', 'B').replace('down', 'A')}": t
            for p in ("unet", "text_encoder")
            for k, t in lora((6, 6), 2).items()
        }
        lyc.save_adapter(read(tmp_path, two, "two"), tmp_path / "peft", "peft")
    assert not (tmp_path / "peft").exists()


def test_peft_s_folder_is_its_own(tmp_path: Path) -> None:
    """PEFT finds a file by its fixed name, and a configuration beside it.

    Each adapter therefore needs a folder of its own.
    """
    adapter = written(tmp_path, factors("lora", "linear"))
    for path in (tmp_path / "style.safetensors", tmp_path / "adapter_model.safetensors"):
        # The second name is right, but the folder holds the source.
        with pytest.raises(lyc.WriteError, match=r"one name|other adapters"):
            lyc.save_adapter(adapter, path, "peft", model=model())
    result = lyc.save_adapter(adapter, tmp_path / "new" / "adapter_model.safetensors", "peft", model=model())
    again = lyc.save_adapter(adapter, tmp_path / "new", "peft", model=model())
    assert result == again and sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert "new/adapter_model.safetensors" in lyc.describe_saved(result)


def test_options_that_only_a_configuration_tells_stay_in_peft(tmp_path: Path) -> None:
    """Other dialects hold none of these options, and the error names PEFT."""
    config = {
        "peft_type": "OFT",
        "r": 0,
        "oft_block_size": 3,
        "num_cayley_neumann_terms": 7,
        "coft": True,
        "eps": 0.5,
    }
    adapter = configured(tmp_path / "oft", {f"{NAMES['peft']}.oft_R.weight": torch.randn(6, 3)}, config)
    with pytest.raises(lyc.LayerError, match=r"kohya holds no terms.*written as peft"):
        saved(adapter, tmp_path, "kohya", model=model())
    after = saved(adapter, tmp_path, "peft").layers[NAMES["peft"]]
    assert (after.terms, after.constraint, after.last) == (7, 0.5, 2)  # type: ignore[attr-defined]


def test_a_peft_folder_has_a_card_that_says_what_it_is(tmp_path: Path) -> None:
    """The header is YAML for a model hub, whatever the name of the base model holds."""
    from huggingface_hub import ModelCard

    names = (
        "org/base",
        'a: "b" # c\\',
        "- x\n---\ny: 1",
        "null",
        "\x85\u2028\ufeff\x00",
        "\U0001f600 {}",
        None,
    )
    for number, name in enumerate(names):
        told = {} if name is None else {"base_model_name_or_path": name}
        adapter = written(tmp_path, factors("lora", "linear"))
        lyc.save_adapter(adapter, tmp_path / f"{number}", "peft", metadata=told, model=model())
        card = ModelCard.load(tmp_path / f"{number}" / "README.md")
        assert card.data.library_name == "peft" and card.data.base_model == name
        assert card.data.tags == ([] if name is None else [f"base_model:adapter:{name}"]) + ["lora"]
    assert "1 layer of lora 3." in card.text and "PeftModel.from_pretrained" in card.text


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_card_that_is_there_is_kept(tmp_path: Path, overwrite: bool) -> None:
    """It may be the user's own, and takes no name that the adapter needs."""
    card = tmp_path / "peft" / "README.md"
    card.parent.mkdir()
    card.write_bytes(b"my words")
    saved(written(tmp_path, factors("lora", "linear")), tmp_path, "peft", model=model(), overwrite=overwrite)
    assert card.read_bytes() == b"my words" and len(list(card.parent.iterdir())) == 3
    card.unlink()
    card.symlink_to("nowhere")
    saved(lyc.load_adapter(card.parent), tmp_path, "peft")
    assert card.is_symlink()


def test_a_configuration_names_the_release_of_peft_that_it_follows(tmp_path: Path) -> None:
    """OFT names 0.18.0 or none, since that decides what its tensors mean.

    In diffusers' metadata a field that names a version would be an error of PEFT before 0.18.
    """
    for kind, follows in (("lora", "0.21.0"), ("loha", "0.21.0"), ("oftv2", "0.18.0")):
        lyc.save_adapter(written(tmp_path, factors(kind, "linear")), tmp_path / kind, "peft", model=model())
        config = json.loads((tmp_path / kind / "adapter_config.json").read_text())
        assert config["peft_version"] == follows
    tensors = {f"{NAMES['peft']}.oft_R.weight": torch.randn(6, 3)}
    older = configured(tmp_path / "older", tensors, {"peft_type": "OFT", "r": 0, "oft_block_size": 3})
    lyc.save_adapter(older, tmp_path / "again", "peft")
    assert "peft_version" not in (tmp_path / "again" / "adapter_config.json").read_text()
    found = saved(written(tmp_path, factors("lora", "linear")), tmp_path, "diffusers", model=model())
    told = json.loads(found.metadata["lora_adapter_metadata"])
    assert told["unet.r"] and "unet.peft_version" not in told


def test_tlora_s_start_is_in_the_metadata(tmp_path: Path) -> None:
    written(tmp_path, factors("tlora", "linear"))
    adapter = lyc.load_adapter(tmp_path / "source.safetensors", sig_type="last")
    found = saved(adapter, tmp_path, "kohya")
    assert found.layers[NAMES["kohya"]].sig_type == "last"  # type: ignore[attr-defined]
    # A random start cannot be rebuilt, and other kinds have none.
    for args in ({"algo": "tlora", "use_data_init": "False"}, {"algo": "lora"}):
        assert not network_options({"ss_network_args": json.dumps(args)})


# The dtype of what is written.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dialect", WRITTEN_DIALECTS)
def test_a_dtype_is_that_of_every_factor_and_never_of_alpha(
    tmp_path: Path, dialect: str, dtype: torch.dtype
) -> None:
    kind = "lora-dora-out" if held("lora-dora-out", "linear", dialect) else "lora"
    source = factors(kind, "linear")
    tensors = load_file(saved(written(tmp_path, source), tmp_path, dialect, dtype=dtype, model=model()).path)
    assert len(tensors) >= len(source) - 1
    for key, tensor in tensors.items():
        assert tensor.dtype == (torch.float32 if key.endswith("alpha") else dtype)
    if dialect == "kohya":
        assert torch.equal(tensors[f"{NAMES['kohya']}.lora_up.weight"], source["lora_up.weight"].to(dtype))


def test_counts_and_places_keep_their_dtype(tmp_path: Path) -> None:
    """Tensors of whole numbers are not converted to the dtype of the factors."""
    for kind, kept in (("lora-sparse", "bias_indices"), ("ia3", "on_input")):
        source = factors(kind, "linear")
        path = saved(written(tmp_path, source), tmp_path, "kohya", dtype=torch.bfloat16).path
        assert load_file(path)[f"{NAMES['kohya']}.{kept}"].dtype == source[kept].dtype


def test_what_does_not_fit_a_dtype_is_an_error(tmp_path: Path) -> None:
    source = {**factors("lora", "linear"), "lora_up.weight": torch.full((12, 3), 1e5)}
    with pytest.raises(
        lyc.WriteError, match=r"proj_in\.lora_up\.weight: a factor does not fit.*1e\+05.*(65504|6\.55e\+04)"
    ):
        saved(written(tmp_path, source), tmp_path, "kohya", dtype=torch.float16)
    saved(written(tmp_path, source), tmp_path, "kohya", dtype=torch.bfloat16)


# Metadata.


def data_of(path: str | Path) -> bytes:
    """The bytes of a safetensors file after its header. kohya's hashes are of these bytes."""
    content = Path(path).read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_the_sources_metadata_are_kept_its_hashes_made_anew(tmp_path: Path) -> None:
    before = {
        "ss_network_module": "networks.lora",
        "ss_tag_frequency": '{"ä": 1}',
        "modelspec.title": "t",
        "modelspec.hash_sha256": "0xfalse",
        "sshs_model_hash": "false",
        "sshs_legacy_hash": "false",
        "mine": "1",
        "theirs": "1",
    }
    adapter = written(tmp_path, factors("lora", "linear"), metadata=before)
    found = saved(adapter, tmp_path, "kohya", metadata={"mine": None, "theirs": "2", "new": "3"})
    kept = {key: before[key] for key in ("ss_network_module", "ss_tag_frequency", "modelspec.title")}
    digest = hashlib.sha256(data_of(found.path)).hexdigest()
    recipe = json.loads(found.metadata["lycoris_recipe"])
    assert recipe == {"source": "source.safetensors", "dialect": "kohya", "dtype": "as in the source"}
    assert dict(found.metadata) == {
        **kept,
        "theirs": "2",
        "new": "3",
        "format": "pt",
        "sshs_model_hash": digest,
        "modelspec.hash_sha256": f"0x{digest}",
        "lycoris_recipe": found.metadata["lycoris_recipe"],
    }


def test_hashes_are_for_kohya_and_where_they_were(tmp_path: Path) -> None:
    adapter = written(tmp_path, factors("lora", "linear"))
    assert "sshs_model_hash" in saved(adapter, tmp_path, "kohya").metadata
    assert "modelspec.hash_sha256" not in saved(adapter, tmp_path, "kohya").metadata
    assert "sshs_model_hash" not in saved(adapter, tmp_path, "comfy", model=model()).metadata
    hashed = written(tmp_path, factors("lora", "linear"), metadata={"sshs_model_hash": "x"})
    found = saved(hashed, tmp_path, "comfy", model=model())
    assert found.metadata["sshs_model_hash"] == hashlib.sha256(data_of(found.path)).hexdigest()


def test_a_recipe_keeps_the_one_before(tmp_path: Path) -> None:
    first = saved(written(tmp_path, factors("lora", "linear")), tmp_path, "kohya", dtype=torch.float16)
    second = saved(first, tmp_path, "comfy", model=model())
    recipe = json.loads(second.metadata["lycoris_recipe"])
    assert recipe["source"] == "kohya.safetensors"
    assert json.loads(recipe["source_recipe"])["dtype"] == "float16"


def test_numbers_of_the_network_stay_true(tmp_path: Path) -> None:
    about = {"ss_network_dim": "3", "ss_network_alpha": "2"}
    adapter = written(tmp_path, factors("lora", "linear"), metadata=about)
    kept = saved(adapter, tmp_path, "comfy", model=model()).metadata
    assert (kept["ss_network_dim"], kept["ss_network_alpha"]) == ("3", "2")
    folded = saved(adapter, tmp_path, "diffusers", model=model()).metadata
    # kohya's word for an alpha that is not one number.
    assert (folded["ss_network_dim"], folded["ss_network_alpha"]) == ("3", "Dynamic")


def test_the_file_is_in_the_order_of_the_safetensors_package(tmp_path: Path) -> None:
    """The data of the file equal those that the safetensors package writes, byte by byte."""
    source = {key: tensor.half() for key, tensor in lora((7, 5), 3).items()} | {"alpha": torch.tensor(1.0)}
    path = saved(written(tmp_path, source), tmp_path, "kohya").path
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file(tensors, tmp_path / "again.safetensors", file.metadata())
    assert data_of(path) == data_of(tmp_path / "again.safetensors")
    # The data are aligned.
    assert (Path(path).stat().st_size - len(data_of(path))) % 8 == 0


# What is not read.


def odd(tmp_path: Path) -> lyc.Adapter:
    """An adapter with an embedding, and with two keys that nothing reads."""
    tensors = {f"{NAMES['kohya']}.{k}": t for k, t in lora((12, 18), 3).items()}
    extra = {"lora_unet_x.strange.weight": torch.ones(3), "_aux.note": torch.ones(2)}
    bundle = {"bundle_emb.word.string_to_param.*": torch.ones(1, 8)}
    return read(tmp_path, {**tensors, **extra, **bundle}, "odd")


def test_what_nothing_reads_stays_with_its_dialect(tmp_path: Path) -> None:
    adapter = odd(tmp_path)
    file = load_file(saved(adapter, tmp_path, "kohya", dtype=torch.float16).path)
    assert torch.equal(file["lora_unet_x.strange.weight"], torch.ones(3)) and "_aux.note" in file
    assert file["lora_unet_x.strange.weight"].dtype == torch.float32, "copied as it is"
    with pytest.raises(lyc.LayerError, match=r"cannot be written as comfy.*drop_unread"):
        saved(adapter, tmp_path, "comfy", model=model())
    result = lyc.save_adapter(adapter, out(tmp_path, "comfy"), "comfy", model=model(), drop_unread=True)
    assert set(lyc.load_adapter(result.path).unused_keys) == set()
    assert "2 unknown keys left out" in lyc.describe_saved(result)
    # Names that no tool uses stay as they are, and so does what is beside them.
    tensors = {f"part.x.{suffix}": tensor for suffix, tensor in lora((12, 18), 3).items()}
    kept = lyc.save_adapter(
        read(tmp_path, {**tensors, "_aux.note": torch.ones(2)}, "bare"), tmp_path / "kept.safetensors"
    )
    assert "_aux.note" in load_file(kept.path) and (kept.dialect, result.dialect) == ("bare", "comfy")


def test_embeddings_go_along_where_there_is_a_place_for_them(tmp_path: Path) -> None:
    adapter = odd(tmp_path)
    for dialect in ("kohya", "comfy", "lycoris"):
        found = saved(adapter, tmp_path, dialect, model=model(), drop_unread=dialect != "kohya")
        assert found.embeddings == ("word",)
    with pytest.raises(lyc.LayerError, match=r"diffusers holds no embeddings.*word.*kohya"):
        saved(adapter, tmp_path, "diffusers", model=model())
    assert not saved(adapter, tmp_path, "diffusers", model=model(), drop_unread=True).embeddings


# The file itself.


def test_a_file_that_does_not_read_back_right_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = written(tmp_path, factors("loha", "linear"))
    target = out(tmp_path, "kohya")
    target.write_bytes(b"earlier")
    before = sorted(tmp_path.iterdir())
    honest = saving.raw_bytes

    # Changes every factor, and leaves alpha.
    def flipped(tensor: Tensor) -> memoryview:
        return honest(tensor.flip(0) if tensor.ndim else tensor)

    # Changes alpha, which is the one tensor without dimensions.
    def halved(tensor: Tensor) -> memoryview:
        return honest(tensor if tensor.ndim else tensor / 2)

    for damage, what in ((flipped, r"hada_\w+"), (halved, "alpha")):
        monkeypatch.setattr(saving, "raw_bytes", damage)
        with pytest.raises(
            lyc.WriteError, match=rf"kohya\.safetensors: \S+\.{what}: .*differs from its source.*other values"
        ):
            lyc.save_adapter(adapter, target)
        assert target.read_bytes() == b"earlier" and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("damage", ["alpha", "shape", "more"])
def test_a_file_that_means_something_else_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Every byte is as it was to be written, and yet a reader would find other layers."""
    order, header = saving.in_file_order, saving.header_of
    added = {f"{NAMES['kohya']}_2.{key}": tensor for key, tensor in lora((4, 4), 2).items()}

    def changed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if damage == "alpha":
            return order({key: t / 2 if key.endswith("alpha") else t for key, t in found.items()})
        return order({**found, **added}) if damage == "more" else order(found)

    def flat(tensors: Mapping[str, Tensor], text: Mapping[str, str]) -> bytes:
        return header(
            {key: t.flatten() for key, t in tensors.items()} if damage == "shape" else tensors, text
        )

    monkeypatch.setattr(saving, "in_file_order", changed)
    monkeypatch.setattr(saving, "header_of", flat)
    says = {"alpha": "a layer differs", "shape": "another shape", "more": "it holds other layers"}[damage]
    with pytest.raises(lyc.WriteError, match=rf"differs from its source.*{says}"):
        lyc.save_adapter(written(tmp_path, factors("lora", "linear")), out(tmp_path, "kohya"))
    assert not out(tmp_path, "kohya").exists()


def test_a_layer_missing_from_the_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = written(tmp_path, factors("lora", "linear"))
    sorted_by = saving.in_file_order
    monkeypatch.setattr(
        saving, "in_file_order", lambda found: sorted_by({k: t for k, t in found.items() if "up" not in k})
    )
    with pytest.raises(lyc.WriteError, match="differs from its source"):
        lyc.save_adapter(adapter, out(tmp_path, "kohya"))
    assert not out(tmp_path, "kohya").exists()


def test_a_file_may_replace_its_own_source(tmp_path: Path) -> None:
    adapter = written(tmp_path, factors("lora", "linear"))
    wanted = adapter.layers[NAMES["kohya"]].dump()
    lyc.save_adapter(adapter, adapter.path, metadata={"note": "new"})
    again = lyc.load_adapter(adapter.path)
    assert again.metadata["note"] == "new"
    assert torch.equal(again.layers[NAMES["kohya"]].dump()["lora_up.weight"], wanted["lora_up.weight"])


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    adapter = written(tmp_path, factors("lora", "linear"))
    (tmp_path / "folder.safetensors").mkdir()
    for path, message in (
        (tmp_path / "nowhere" / "x.safetensors", "no such folder"),
        (tmp_path / "x.ckpt", r"only be written as safetensors.*\.ckpt"),
        (tmp_path / "x", "no ending"),
        (tmp_path / "folder.safetensors", "a folder of that name"),
    ):
        with pytest.raises(lyc.WriteError, match=message):
            lyc.save_adapter(adapter, path)
    with pytest.raises(
        lyc.LycorisError, match=r"unknown dialect.*a1111.*kohya, comfy, peft, diffusers, lycoris"
    ):
        lyc.save_adapter(adapter, tmp_path / "x.safetensors", "a1111")  # type: ignore[arg-type]
    with pytest.raises(lyc.LycorisError, match=r"dtype.*int8.*BF16"):
        lyc.save_adapter(adapter, tmp_path / "x.safetensors", dtype=torch.int8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.safetensors", "source.safetensors"]
