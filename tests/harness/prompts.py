"""Prompts in the API's format, and the parts of them that tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file

from .launch import Run, Server

Node = dict[str, Any]
Prompt = dict[str, Node]
Link = list[Any]


def node(kind: str, **inputs: Any) -> Node:
    return {"class_type": kind, "inputs": inputs}


def sampled(
    model: Link, clip: Link, folder: str, *, checkpoint: str = "base.safetensors", **sampler: Any
) -> Prompt:
    """Nodes that load a checkpoint, `base`, sample at 64x64 pixels with a model and a clip, and save that.

    With another folder the host saves again, even where it has the latent cached.
    """
    settings = {"seed": 7, "steps": 1, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", **sampler}
    links = {"positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["empty", 0]}
    return {
        "base": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "positive": node("CLIPTextEncode", text="a cat on a mat", clip=clip),
        "negative": node("CLIPTextEncode", text="", clip=clip),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sample": node("KSampler", model=model, denoise=1.0, **links, **settings),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix=f"{folder}/latent"),
    }


def stacked(entries: Iterable[tuple[str, float, float]], name: str = "load") -> tuple[Prompt, Link]:
    """Nodes that load files with strengths for the model and the clip into one stack, and the link to it."""
    prompt: Prompt = {}
    stack: dict[str, Link] = {}
    for number, (file, strength, strength_clip) in enumerate(entries):
        strengths = {"strength_model": strength, "strength_clip": strength_clip}
        prompt[f"{name}{number}"] = node("LycorisLoadAdapter", file=file, **strengths, **stack)
        stack = {"stack": [f"{name}{number}", 0]}
    return prompt, stack["stack"]


def latent(server: Server, run: Run) -> torch.Tensor:
    """The latent that a run has saved. Its file is removed."""
    (saved,) = run.outputs["save"]["latents"]
    path = server.base / "output" / saved["subfolder"] / saved["filename"]
    found = load_file(path)["latent_tensor"]
    path.unlink()
    return found


def own(group: str, **inputs: Any) -> dict[str, Any]:
    """Inputs of a group of a node by their names in a prompt."""
    return {group: "own", **{f"{group}.{name}": value for name, value in inputs.items()}}


def grouped(node: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a node as the host hands them over, with those of a group nested in it."""
    groups = {
        inner.id: one.id
        for one in node.GET_SCHEMA().inputs
        for option in getattr(one, "options", None) or ()
        for inner in getattr(option, "inputs", ())
    }
    made = {name: value for name, value in given.items() if name not in groups}
    for name in given.keys() & groups.keys():
        made.setdefault(groups[name], {groups[name]: ["own"]})[name] = given[name]
    return made
