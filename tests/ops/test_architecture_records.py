"""What is known of an architecture is in its record and nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from lycoris_ops.names.architectures import ARCHITECTURES
from lycoris_ops.names.families import families_of_layers, families_said

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "lycoris_ops" / "names" / "architectures"
FAMILIES = {family.name: family for record in ARCHITECTURES.values() for family in record.families}
IN_HOST = ROOT / "lycoris_nodes" / "host" / "families"


def stated(field: str) -> list[str]:
    """The texts in a field of all records of the host's families; of a mapping, its keys."""
    calls = [
        node
        for file in IN_HOST.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Family"
    ]
    values = [given.value for call in calls for given in call.keywords if given.arg == field]
    texts = [
        text
        for value in values
        for text in (value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [value]))
    ]
    return [text.value for text in texts if isinstance(text, ast.Constant)]


KINDS = [*stated("hosts"), *stated("variants")]
WORDS = {
    *FAMILIES,
    *KINDS,
    *stated("name"),
    *(size.preset for family in FAMILIES.values() for size in family.sizes if size.preset),
}
"""What the records call architectures."""


def written_out(file: Path) -> Iterator[tuple[int, set[str]]]:
    """The collections that a file writes out, each with its line and the architectures that it names."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Dict | ast.List | ast.Set | ast.Tuple):
            texts = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
            yield node.lineno, {text for text in texts if isinstance(text, str)} & WORDS


def test_there_is_no_second_list_of_architectures() -> None:
    files = [file for part in ("lycoris_ops", "lycoris_nodes") for file in (ROOT / part).rglob("*.py")]
    seconds = [
        (file.name, line, named)
        for file in files
        if file.parent not in (RECORDS, IN_HOST)
        for line, named in written_out(file)
        if len(named) > 2
    ]
    assert seconds == []


def test_nothing_has_two_records() -> None:
    for names in (
        [family.name for record in ARCHITECTURES.values() for family in record.families],
        KINDS,
        [len(vector.blocks) for record in ARCHITECTURES.values() for vector in record.vectors],
    ):
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("said", "family"),
    [
        ("stable-diffusion-xl-v1-base/lora", "SDXL"),
        ("stable-diffusion-xl-v1-base/refiner", "the SDXL refiner"),
        ("flux-1-dev/lora", "Flux 1"),
        ("Flux.2-dev", "Flux 2"),
        ("flux1-krea-dev", "Flux 1"),
        ("krea2", "Krea 2"),
        ("wan2.1-animate", "Wan"),
        ("qwen-image", "Qwen-Image"),
        ("qwen-image-2.1/lora", "Qwen-Image 2.1"),
    ],
)
def test_metadata_that_fits_two_families_means_the_more_exact_one(said: str, family: str) -> None:
    assert families_said({"modelspec.architecture": said}) == (family,)


@pytest.mark.parametrize(
    ("layers", "families"),
    [
        # To the last block of Flux 1.
        (("double_blocks.18.img_attn.qkv", "single_blocks.37.linear1"), ("Flux 1", "Chroma")),
        # More blocks than Flux 1 has.
        (("double_blocks.19.img_attn.qkv",), ("HunyuanVideo",)),
        (
            ("single_transformer_blocks.30.attn.to_q",),
            ("AuraFlow", "Flux 1", "Flux 2", "Chroma", "HunyuanVideo"),
        ),
        (("single_transformer_blocks.40.attn.to_q",), ("Flux 2",)),
        # To the last block of one of HunyuanVideo's two lists.
        (("single_blocks.39.linear1",), ("HunyuanVideo",)),
        # More blocks than any family has.
        (("single_blocks.48.linear1",), ("Flux 2",)),
        (("transformer_blocks.3.ff_context.net.2",), ("Flux 1", "Chroma", "HunyuanVideo", "SD3")),
        (("blocks.0.attn.wq",), ("Krea 2",)),
        (("transformer_blocks.0.img_mlp.net.2",), ("Qwen-Image",)),
        (("transformer_blocks.0.img_mlp.proj",), ("Qwen-Image 2.1",)),
        (("transformer_blocks.0.img_mlp.gate_up",), ("Qwen-Image 2.1",)),
        (("transformer_blocks.0.attn1.add_q_proj", "transformer_blocks.0.ff_context.net.2"), ("Mochi",)),
        (("layers.0.mlp",), ()),
    ],
)
def test_layers_tell_the_families_that_can_have_them(
    layers: tuple[str, ...], families: tuple[str, ...]
) -> None:
    assert families_of_layers((layer, ()) for layer in layers) == families


def test_the_width_of_a_text_tells_a_unet() -> None:
    path = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    assert families_of_layers([(path, (320, 768))]) == ("SD 1.5",)
    assert families_of_layers([(path, (640, 2048))]) == ("SDXL",)
    assert families_of_layers([(path, ())]) == ("SD 1.5", "SD 2", "SDXL", "the SDXL refiner")
    # LTX-Video is as wide.
    assert families_of_layers([("transformer_blocks.0.attn2.to_k", (2048, 2048))]) == ()
