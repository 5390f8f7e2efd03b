"""The nodes that train, each with what is set on it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.train_node import defaults, run
from lycoris_ops.train.rates import rate_of

BATCH = 4
"""Pictures in a step."""
PLACE = str(os.getpid())
"""The folder of what this process trains."""
RATED, ITSELF = -8, None
"""Where the search for a rate begins, in quarters of a decade, and the mark of a way that finds its own."""


class Trainable(Protocol):
    """A model in the host, and what it is adapted to."""

    @property
    def nodes(self) -> Any: ...

    def data(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Asked:
    host: Trainable
    size: int
    """The rank of a LoRA, or of a LoRA that has as many numbers on the layers that the node trains."""
    lr: float | None
    """None leaves the node's own."""
    steps: int
    seed: int


@dataclass(frozen=True)
class Trained:
    tensors: dict[str, Tensor]
    """The file's."""
    seconds: float
    """CPU time of all nodes."""
    told: str = ""
    """What was searched, in words."""

    @property
    def numbers(self) -> int:
        """How many numbers the file holds."""
        return sum(tensor.numel() for tensor in self.tensors.values() if tensor.ndim)


@dataclass(frozen=True)
class Way:
    name: str
    sizes: tuple[int, ...]
    train: Callable[[Asked], Trained]
    start: int | None = RATED


def own(asked: Asked, **settings: Any) -> Trained:
    """This pack's node."""
    node = asked.host.nodes.NODE_CLASS_MAPPINGS["LycorisTrain"]
    _forget()
    given = {
        "steps": asked.steps,
        "seed": asked.seed,
        "batch_size": BATCH,
        "rank": asked.size,
        "filename_prefix": f"{PLACE}/own",
        **({} if asked.lr is None else {"learning_rate": asked.lr}),
        **settings,
    }
    began = time.process_time()
    made = run(node, {**defaults(node), **given, **asked.host.data()})
    seconds = time.process_time() - began
    lines = [line for line in made.args[-1].splitlines() if line.startswith("searched")]
    return Trained(dict(made.args[1]), seconds, "".join(lines))


def usual(asked: Asked, way: Callable[..., Trained] = own, **settings: Any) -> Trained:
    """A way at the rate that the library takes for LoRA of this rank on these layers."""
    tensors = own(Asked(asked.host, 1, 1e-4, 1, 0), **settings).tensors
    ups = {name: tensor for name, tensor in tensors.items() if name.endswith("lora_up.weight")}
    shapes = [(len(up), tensors[name.replace("_up", "_down")].shape[1]) for name, up in ups.items()]
    return way(replace(asked, lr=rate_of("lora", shapes, asked.size)), **settings)


def planned(asked: Asked, include: str = "", **settings: Any) -> Trained:
    """The node that plans, then the node that trains."""
    node = asked.host.nodes.NODE_CLASS_MAPPINGS["LycorisPlan"]
    one = own(Asked(asked.host, 1, 1e-4, 1, 0), include=include, **settings).numbers
    began = time.process_time()
    sizes = {"size": f"{asked.size * one} parameters", "seed": asked.seed, "include": include}
    made = run(node, {**defaults(node), **sizes, **asked.host.data()})
    seconds = time.process_time() - began
    found = own(asked, plan=made.args[0], **settings)
    return Trained(found.tensors, seconds + found.seconds)


def comfy(asked: Asked, dtype: str = "fp32") -> Trained:
    """ComfyUI's own node. In a batch it would compute each picture with the captions of all of them."""
    node = asked.host.nodes.NODE_CLASS_MAPPINGS["TrainLoraNode"]
    given = {
        "steps": asked.steps,
        "seed": asked.seed,
        "grad_accumulation_steps": BATCH,
        "rank": asked.size,
        "algorithm": "LoRA",
        "training_dtype": dtype,
        "lora_dtype": dtype,
        "existing_lora": "[None]",
        **({} if asked.lr is None else {"learning_rate": asked.lr}),
    }
    # It draws pictures and times with the random numbers of the process.
    torch.manual_seed(asked.seed)
    began = time.process_time()
    made = run(node, {**defaults(node), **given, **asked.host.data()})
    return Trained(
        {name: tensor.detach() for name, tensor in made.args[0].items()}, time.process_time() - began
    )


def _forget() -> None:
    """Remove the files of earlier trainings: the node would continue them, and reuse their searches."""
    import folder_paths

    shutil.rmtree(Path(folder_paths.get_output_directory()) / PLACE, ignore_errors=True)


ALL_LAYERS: dict[str, Any] = {"include": "*"}
FALLING: dict[str, Any] = {"schedule": "cosine"}
WITH_BIASES: dict[str, Any] = {**ALL_LAYERS, "overrides": "*: bias true"}
"""All layers, norms and biases, as in ComfyUI's trainer. Without this, the usual layers are trained."""
WITHOUT_NORMS: dict[str, Any] = {**ALL_LAYERS, "exclude": "*_norm"}
"""All layers that a plan can have: no norms and no biases."""

WAYS = (
    Way("LoRA by hand", (1, 4, 16), own),
    Way("LoRA, usual rate", (4,), usual, ITSELF),
    Way("LoRA by hand, all layers", (1, 4, 8), lambda asked: own(asked, **WITH_BIASES)),
    Way("LoRA by hand, all layers without norms", (2, 4), lambda asked: own(asked, **WITHOUT_NORMS)),
    Way("LoRA by hand, cosine", (4,), lambda asked: own(asked, **FALLING)),
    Way("LoRA by hand, all layers, cosine", (4,), lambda asked: own(asked, **WITH_BIASES, **FALLING)),
    Way("plan", (1, 4), planned),
    Way("plan, usual rate", (4,), lambda asked: usual(asked, planned), ITSELF),
    Way("plan, cosine", (4,), lambda asked: planned(asked, **FALLING)),
    Way("plan, all layers", (2, 4, 8), lambda asked: planned(asked, **ALL_LAYERS)),
    Way("LoKr by hand", (1,), lambda asked: own(asked, algorithm="lokr", rank=4096)),
    Way("search all", (4,), lambda asked: usual(asked, search="all"), ITSELF),
    Way("search all, all layers", (4,), lambda asked: usual(asked, search="all", **WITH_BIASES), ITSELF),
    Way("search all, cosine", (4,), lambda asked: usual(asked, search="all", **FALLING), ITSELF),
    Way("search rate", (4,), lambda asked: usual(asked, search="rate"), ITSELF),
    Way("ComfyUI's trainer", (4, 8), comfy),
    Way("ComfyUI's trainer as set", (8,), lambda asked: comfy(asked, "bf16"), ITSELF),
)
"""A rate is searched for each on separate pictures, unless it ends in ITSELF."""
