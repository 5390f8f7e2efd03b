"""What other tools call the layers of each architecture.

diffusers' names are in a record (`tests/harness/architecture_names.toml`), and names of other tools are
explained by them. A name means rows of one or more weights of the model. All numbers of a test's model are
different, so two names mean the same rows where they read the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from lycoris_ops.names import fused_attention
from lycoris_ops.names.architectures import ARCHITECTURES, Slice, Slices, recognise
from lycoris_ops.names.architectures.notation import Layout, Model, recognised
from lycoris_ops.names.relation import Relation
from tests.harness.architecture_names import Rows, Shape, records

Shapes = Mapping[str, Shape]
Tensors = Mapping[str, Tensor]
Names = Mapping[str, Slices]

RECORDS = records()
every_architecture = pytest.mark.parametrize("name", RECORDS)

FOLLOWING = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
    "to_out": ("to_out.0",),
}
"""Last words of names that other tools use in any attention. Each has the last words of diffusers' layers
that it stands for, in the order of their rows."""

BLOCK, SINGLE = "transformer_blocks.*", "single_transformer_blocks.*"
QKV = tuple(f"{BLOCK}.attn.to_{part}" for part in "qkv")
ADDED_QKV = tuple(f"{BLOCK}.attn.add_{part}_proj" for part in "qkv")
SINGLE_QKV = tuple(f"{SINGLE}.attn.to_{part}" for part in "qkv")
REFINER = "context_embedder.token_refiner.refiner_blocks.*"
NORMS = {
    **{
        f"double_blocks.*.{stream}_attn.norm.{norm}": f"{BLOCK}.attn.norm_{added}{norm[0]}"
        for stream, added in (("img", ""), ("txt", "added_"))
        for norm in ("query_norm", "key_norm")
    },
    **{
        f"single_blocks.*.norm.{norm}": f"{SINGLE}.attn.norm_{norm[0]}" for norm in ("query_norm", "key_norm")
    },
}
Others = list[tuple[str, str | tuple[str, ...]]]
OTHERS: Mapping[str, Others] = {
    "ldm_unet": [
        # Both names are in diffusers, each for other UNets.
        *((f"class_embedding.linear_{n}", f"add_embedding.linear_{n}") for n in (1, 2)),
        *((f"add_embedding.linear_{n}", f"class_embedding.linear_{n}") for n in (1, 2)),
    ],
    "flux": [
        ("img_in.proj", "x_embedder"),
        # Flux' name for what diffusers calls otherwise in LongCat-Image.
        *(
            (f"time_text_embed.timestep_embedder.linear_{n}", f"time_embed.timestep_embedder.linear_{n}")
            for n in (1, 2)
        ),
        (f"{BLOCK}.attn.add_qkv_proj", ADDED_QKV),
        # XLabs' names of layers.
        ("double_blocks.*.processor.qkv_lora1", QKV),
        ("double_blocks.*.processor.qkv_lora2", ADDED_QKV),
        ("double_blocks.*.processor.proj_lora1", f"{BLOCK}.attn.to_out.0"),
        ("double_blocks.*.processor.proj_lora2", f"{BLOCK}.attn.to_add_out"),
        ("single_blocks.*.processor.qkv_lora", SINGLE_QKV),
        ("single_blocks.*.processor.proj_lora", f"{SINGLE}.proj_out"),
        ("single_blocks.*.processor.proj_lora", f"{SINGLE}.attn.to_out"),
        ("single_blocks.*.linear1_qkv", SINGLE_QKV),
        ("single_blocks.*.linear1_mlp", f"{SINGLE}.proj_mlp"),
        # The host calls the parameter of a norm `weight`; files call it `scale`.
        *((name + end, meaning) for name, meaning in NORMS.items() for end in ("", ".scale")),
        ("distilled_guidance_layer.norms.*.scale", "distilled_guidance_layer.norms.*"),
    ],
    "hunyuan_video": [
        *((f"double_blocks.*.img_attn_{part}", name) for part, name in zip("qkv", QKV, strict=True)),
        *((f"double_blocks.*.txt_attn_{part}", name) for part, name in zip("qkv", ADDED_QKV, strict=True)),
        *((f"single_blocks.*.linear1_{part}", name) for part, name in zip("qkv", SINGLE_QKV, strict=True)),
        ("single_blocks.*.linear1_qkv", SINGLE_QKV),
        ("single_blocks.*.linear1_mlp", f"{SINGLE}.proj_mlp"),
        ("single_blocks.*.linear2.fc", f"{SINGLE}.proj_out"),
        *(
            (
                f"txt_in.t_embedder.linear_{n}",
                f"context_embedder.time_text_embed.timestep_embedder.linear_{n}",
            )
            for n in (1, 2)
        ),
        ("double_blocks.*.img_mlp.fc0", f"{BLOCK}.ff.net.0.proj"),
        ("double_blocks.*.txt_mlp.fc0", f"{BLOCK}.ff_context.net.0.proj"),
        ("txt_in.individual_token_refiner.blocks.*.mlp.fc0", f"{REFINER}.ff.net.0.proj"),
    ],
    "ace_step": [
        ("proj_in.1", "proj_in_conv"),
        ("proj_out.1", "proj_out_conv"),
        *(
            (f"layers.*.{attention}.{official}", f"layers.*.{attention}.{name}")
            for attention in ("self_attn", "cross_attn")
            for official, name in (
                *((f"{part}_proj", f"to_{part}") for part in "qkv"),
                ("o_proj", "to_out.0"),
                ("q_norm", "norm_q"),
                ("k_norm", "norm_k"),
            )
        ),
    ],
    "stable_cascade": [
        (name, meaning)
        for layer in ("down_blocks.*.*.attention", "up_blocks.*.*.attention")
        for parts in [tuple(f"{layer}.to_{part}" for part in "qkv")]
        for name, meaning in (
            (f"{layer}.attn.in_proj_weight", parts),
            *((f"{layer}.attn.to_{part}", name) for part, name in zip("qkv", parts, strict=True)),
            *((f"{layer}.attn.in_proj.{n}", name) for n, name in enumerate(parts)),
        )
    ],
}
"""Names that other tools than diffusers use, by the file of their architecture.

Each has diffusers' layer or layers that it stands for; `*` is any number."""
APART: Mapping[str, tuple[tuple[str, str], ...]] = {
    "ltx": (
        (r"^(video|audio)_embeddings_connector", r"connectors.\1_connector"),
        ("transformer_1d_blocks", "transformer_blocks"),
        (r"([qk])_norm", r"norm_\1"),
    ),
    "cosmos": ((r"^llm_adapter", "text_conditioner"),),
}
"""Renames of layers that are a model of their own in diffusers, from `scripts/convert_ltx2_to_diffusers.py`
and its conversion of Anima's adapters. The first pattern of each fits them."""


def numbered(shapes: Shapes) -> Tensors:
    """A float64 tensor of the given shape for every path. No number occurs twice in the model."""
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    starts = list(accumulate(sizes, initial=0))[:-1]
    return {
        path: torch.arange(first, first + size).double().reshape(shape)
        for (path, shape), size, first in zip(shapes.items(), sizes, starts, strict=True)
    }


def read(tensors: Tensors, places: Slices | Rows) -> Tensor:
    """The rows that a name means: those of its places, one after the other."""
    pairs = [(place.path, place.rows) if isinstance(place, Slice) else place for place in places]
    return torch.cat([tensors[path][slice(*rows)] if rows else tensors[path] for path, rows in pairs])


def every(model: Model) -> Names:
    """All names of a model's layers in other tools, diffusers included."""
    return {**model.elsewhere(), **model.in_diffusers()}


def knowing(shapes: Shapes) -> dict[str, Model]:
    """The model as each architecture that recognises it has it, by the names of the architectures' files."""
    found = {file: recognised(record.layouts, shapes) for file, record in ARCHITECTURES.items()}
    return {file: model for file, model in found.items() if model}


@every_architecture
def test_of_the_layouts_that_a_model_fits_one_has_most_marks(name: str) -> None:
    layouts = [layout for record in ARCHITECTURES.values() for layout in record.layouts]
    shapes = RECORDS[name].layers
    fitting = sorted(len(layout.marks) for layout in layouts if recognised([layout], shapes))
    assert len(fitting) < 2 or fitting[-2] < fitting[-1]


def test_the_order_of_layouts_means_nothing() -> None:
    few, more = Layout(("a",)), Layout(("a", "b.*"))
    for layouts in ([few, more], [more, few]):
        found = recognised(layouts, {"a": (), "b.0": ()})
        assert found is not None and found.layout is more


def test_a_video_unet_has_no_names_of_diffusers() -> None:
    video = ("input_blocks.1.0.in_layers.2", "label_emb.0.0", "input_blocks.1.0.time_stack.in_layers.2")
    found = recognise(dict.fromkeys(("input_blocks.0.0", *video), (8, 8, 3, 3)))
    assert found is not None and not found.in_diffusers()


def flat(name: str) -> str:
    """A name as kohya writes it."""
    return name.replace(".", "_")


@every_architecture
def test_diffusers_names_mean_the_rows_of_the_record(name: str) -> None:
    """Each row has one name in diffusers at most. A model without a record has diffusers' names."""
    shapes, record = RECORDS[name].layers, RECORDS[name].diffusers
    found = knowing(shapes)
    names = {key: places for model in found.values() for key, places in model.in_diffusers().items()}
    if not names:
        assert record == {path: ((path, None),) for path in shapes}
        return
    assert len(found) == 1
    rows = [
        (place.path, row)
        for places in names.values()
        for place in places
        for row in range(*(place.rows or (0, shapes[place.path][0])))
    ]
    assert len(rows) == len(set(rows))
    assert {
        key: tuple((place.path, place.rows) for place in places) for key, places in names.items()
    } == record


@every_architecture
def test_names_of_other_tools_are_those_of_diffusers_layers(name: str) -> None:
    """A name that neither OTHERS nor FOLLOWING explains is OneTrainer's.

    OneTrainer numbers the parts of a fused layer, which are layers of diffusers', in the order of their rows.
    """
    shapes = RECORDS[name].layers
    ours = numbered(shapes)
    theirs = {key: read(ours, rows) for key, rows in RECORDS[name].diffusers.items()}
    for file, model in knowing(shapes).items():
        names = model.elsewhere()
        known = dict(theirs)
        named = apart(file, ours)
        if file == "hunyuan_video":
            named |= other_layout(name, ours)
        if name.startswith("Flux 2"):
            named |= halves_of_flux_2(ours)
        assert named.keys() <= names.keys()
        known |= named
        for pattern, meaning in OTHERS.get(file, ()):
            known |= explained(names, pattern, meaning, theirs)
        for key, places in names.items():
            # Some exports of Flux 2 cut the word short.
            key = re.sub("^sformer_", "transformer_", key)
            parent, _, last = key.rpartition(".")
            if key in known:
                wanted = known[key]
            elif last in FOLLOWING:
                wanted = torch.cat([known[f"{parent}.{part}"] for part in FOLLOWING[last]])
            else:
                wanted = part(parent, int(last), ours, theirs)
            assert torch.equal(read(ours, places).reshape(wanted.shape), wanted), key


@pytest.mark.parametrize("file", OTHERS)
def test_each_name_of_another_tool_is_known_for_some_model(file: str) -> None:
    unknown = dict.fromkeys(OTHERS[file])
    for record in RECORDS.values():
        if model := knowing(record.layers).get(file):
            names = model.elsewhere()
            theirs = dict.fromkeys(record.diffusers, torch.zeros(1))
            for pattern, meaning in [*unknown]:
                if explained(names, pattern, meaning, theirs):
                    del unknown[pattern, meaning]
    assert not unknown


@every_architecture
def test_an_attention_has_names_for_several_layers_as_one(name: str) -> None:
    shapes = RECORDS[name].layers
    for model in knowing(shapes).values():
        theirs, names = model.in_diffusers(), every(model)
        for key in theirs:
            attention = key.removesuffix(".to_q")
            if attention != key and f"{attention}.to_k" in theirs:
                inputs = {shapes[theirs[f"{attention}.to_{part}"][0].path][1:] for part in "qkv"}
                assert f"{attention}.to_kv" in names
                assert (f"{attention}.to_qkv" in names) == (len(inputs) == 1)


def explained(names: Names, pattern: str, meaning: str | tuple[str, ...], theirs: Tensors) -> Tensors:
    """What the names that fit a pattern of `OTHERS` stand for, as far as the model has such layers."""
    matcher = re.compile(re.escape(pattern).replace(r"\*", r"(\d+)"))
    found: dict[str, Tensor] = {}
    for match in filter(None, map(matcher.fullmatch, names)):
        layers = [meaning] if isinstance(meaning, str) else list(meaning)
        for number in match.groups():
            layers = [layer.replace("*", number, 1) for layer in layers]
        if all(layer in theirs for layer in layers):
            found[match[0]] = torch.cat([theirs[layer] for layer in layers])
    return found


def apart(file: str, ours: Tensors) -> dict[str, Tensor]:
    """The layers that `APART` renames, under their new names."""
    (first, *_), *_ = renames = APART.get(file, (("$^", ""),))
    found: dict[str, Tensor] = {}
    for path, value in ours.items():
        if re.match(first, path):
            name = path
            for pattern, words in renames:
                name = re.sub(pattern, words, name)
            found[name] = value
    return found


def halves_of_flux_2(ours: Tensors) -> Tensors:
    """Parts of layers that are whole in diffusers: queries, keys and values, and then the MLP."""
    found: dict[str, Tensor] = {}
    for n in (0, 1):
        whole = ours[f"single_blocks.{n}.linear1"]
        end = 3 * len(ours[f"single_blocks.{n}.linear2"])
        found |= dict.fromkeys(
            (f"single_blocks.{n}.linear1_qkv", f"single_blocks.{n}.processor.qkv_lora"), whole[:end]
        )
        found[f"single_blocks.{n}.linear1_mlp"] = whole[end:]
    return found


def other_layout(name: str, ours: Tensors) -> Tensors:
    """Names of the other layout of HunyuanVideo: the host's for a file, and the file's for the host."""
    other = name.removesuffix(", in files") if name.endswith(", in files") else f"{name}, in files"
    pairs = zip(RECORDS[other].layers, RECORDS[name].layers, strict=True)
    return {theirs: ours[path] for theirs, path in pairs if theirs != path}


def part(path: str, number: int, ours: Tensors, theirs: Tensors) -> Tensor:
    """The diffusers layer of this number, counting those that are rows of the host's layer `path`."""
    whole = next(value for key, value in ours.items() if flat(key) == flat(path))
    starts = {row[0].item(): index for index, row in enumerate(whole.flatten(1))}
    parts = {
        starts[first]: value
        for value in theirs.values()
        if len(value) < len(whole) and (first := value.flatten()[0].item()) in starts
    }
    return parts[sorted(parts)[number]]


@every_architecture
def test_a_name_has_one_meaning(name: str) -> None:
    """Dots and underscores count as the same character, because kohya writes underscores for dots.

    In diffusers the second and the third norm of HunyuanDiT have each other's names.
    """
    shapes = RECORDS[name].layers
    meanings: dict[str, set[Slices]] = {}
    for model in knowing(shapes).values():
        for key, places in [
            *every(model).items(),
            *((path, (Slice(path),)) for path in shapes),
        ]:
            meanings.setdefault(flat(key), set()).add(places)
        assert not model.elsewhere().keys() & (shapes.keys() | model.in_diffusers().keys())
    rivals = {key for key, places in meanings.items() if len(places) > 1}
    assert rivals == set() or (
        name.startswith("HunyuanDiT") and all(re.fullmatch(r"blocks_\d_norm[23]", key) for key in rivals)
    )


@every_architecture
def test_without_shapes_only_whole_layers_have_names(name: str) -> None:
    shapes = RECORDS[name].layers
    for model in knowing(shapes).values():
        known = every(model)
        (without,) = knowing(dict.fromkeys(shapes, ())).values()
        unknown = every(without)
        assert unknown.items() <= known.items()
        assert known.keys() - unknown.keys() == {
            key for key, places in known.items() if len(places) > 1 or places[0].rows
        }


@every_architecture
def test_no_fallback_is_a_real_path(name: str) -> None:
    shapes = RECORDS[name].layers
    names = fused_attention.fallback(shapes)
    assert not names.keys() & shapes.keys()
    for places in names.values():
        for place in places:
            first, end = place.rows or (0, shapes[place.path][0])
            assert 0 <= first < end <= shapes[place.path][0]


def only(shapes: Shapes, without: Iterable[str]) -> dict[str, Shape]:
    return {path: shape for path, shape in shapes.items() if not path.startswith(tuple(without))}


def test_radiance_has_the_blocks_of_flux() -> None:
    """Chroma Radiance has Flux's blocks, with other layers before and after them."""
    shapes = only(RECORDS["Chroma, in files"].layers, ("img_in", "final_layer"))
    shapes |= {"img_in_patch": (2, 3, 4, 4), "nerf_blocks.0.norm.scale": (2,)}
    found = every(knowing(shapes)["flux"])
    assert found["single_transformer_blocks.1.proj_mlp"] == (Slice("single_blocks.1.linear1", (96, 224)),)
    assert found["nerf_blocks.0.norm"] == (Slice("nerf_blocks.0.norm.scale"),)
    assert "x_embedder" not in found


def test_hunyuan_3d_is_no_flux() -> None:
    """Hunyuan 3D has Flux's blocks, but no layer for text."""
    shapes = only(RECORDS["Flux 1"].layers, ("img_in", "txt_in"))
    assert not knowing({**shapes, "latent_in": (2, 3), "cond_in": (2, 3)})


def test_ovis_image_has_gated_mlps() -> None:
    """The layers of LongCat-Image, with MLPs whose gate is a layer apart."""
    shapes = dict(RECORDS["LongCat-Image"].layers)
    for n in (0, 1):
        wide, narrow = shapes.pop(f"double_blocks.{n}.img_mlp.0"), shapes.pop(f"double_blocks.{n}.img_mlp.2")
        gated = {"gate_proj": wide, "up_proj": wide, "down_proj": narrow}
        shapes |= {f"double_blocks.{n}.img_mlp.{path}": shape for path, shape in gated.items()}
    assert knowing(shapes)["flux"].in_diffusers()["transformer_blocks.1.ff.net.0.proj"] == (
        Slice("double_blocks.1.img_mlp.up_proj"),
        Slice("double_blocks.1.img_mlp.gate_proj"),
    )


def test_hidream_o1_is_below_model_in_training() -> None:
    """In the files of musubi-tuner paths begin with `model`."""
    shapes = {"language_model.layers.0.self_attn.q_proj": (8, 8), "visual.blocks.0.attn.qkv": (18, 6)}
    shapes |= {"t_embedder1.mlp.0": (8, 8), "x_embedder.proj1": (3, 5), "final_layer2.linear": (5, 8)}
    names = knowing(shapes)["hidream_o1"].elsewhere()
    assert names == {f"model.{path}": (Slice(path),) for path in shapes}


def test_ideogram_4_has_a_name_of_its_own_for_the_model() -> None:
    """diffusers accepts the prefix `conditional_transformer.` beside `transformer.` and the host's own."""
    layers = RECORDS["Ideogram 4"].layers
    relation = Relation({f"diffusion_model.{path}.weight": shape for path, shape in layers.items()})
    width = layers["layers.1.attention.qkv"][0] // 3
    for prefix in ("conditional_transformer.", "diffusion_model.", "transformer."):
        ((target,),) = relation.find(f"{prefix}layers.1.attention.to_k")
        assert (target.path, target.rows) == ("layers.1.attention.qkv", (width, 2 * width))


def test_qwen_image_21_may_fuse_the_first_layers_of_its_mlp() -> None:
    """ComfyUI has fused them since the model came; diffusers has them apart, the gate first."""
    apart = {f"{BLOCK[:-1]}{n}.img_mlp.{part}": (12, 4) for n in (0, 1) for part in ("gate_layer", "proj")}
    whole = {f"{BLOCK[:-1]}{n}.img_mlp.gate_up": (24, 4) for n in (0, 1)}
    rest = {"txt_in.text_norm": (6,), "modulation.1": (16, 4), "img_in": (4, 3)}
    rest |= {f"{BLOCK[:-1]}{n}.img_mlp.out": (4, 12) for n in (0, 1)}
    gate, proj, fused = (f"transformer_blocks.1.img_mlp.{part}" for part in ("gate_layer", "proj", "gate_up"))
    found = knowing({**rest, **whole})["qwen_image_21"]
    names = found.in_diffusers()
    assert names[gate] == (Slice(fused, (0, 12)),) and names[proj] == (Slice(fused, (12, 24)),)
    assert names.keys() == {*rest, *apart}
    found = knowing({**rest, **apart})["qwen_image_21"]
    assert found.in_diffusers() == {path: (Slice(path),) for path in {**rest, **apart}}
    assert found.elsewhere()[fused] == (Slice(gate), Slice(proj))
