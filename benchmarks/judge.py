"""Judge LyCORIS by halving beside the exhaustive search, on trainings of a small model.

`python -m benchmarks.judge [--trainings N ...] [--sets N]` prints a table, and with `--picture FILE` it
writes the heat map of the last training. The model is the flow transformer of `quality/graph/shapes.py`,
which the host builds and which is trained on drawn shapes. Each training adapts it to hatched shapes by Train
LoRA / LyCORIS, with a rate, a rank, a kind and a number of pictures of its own: some learn their pictures by
heart, some learn too little, some go too far. All of their six checkpoints are judged at four strengths on
held-out pictures, with several sets of pictures and of noise. All passes are made once, and the halving takes
its losses from them.

"named" counts how often the halving named the best of all. "as good" counts how often its choice was no
further from the best than the standard error of that difference. "worst gap" is the largest distance to the
loss of the best, as a share of what the best gains on the model alone. "even" spends the same number of
passes, but equally many on each pair of file and strength.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.graph.shapes import Host, Shapes, drawn, latents
from benchmarks.side import Table
from benchmarks.train_node import defaults, run
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process, loaded_pack

STEPS, EVERY, STRENGTHS = 240, 40, "0.4..1.3 in 4"
HELD, TIMES, SHARE = 8, 8, 0.2
SETS = 2
"""How many sets of held-out pictures and noise each training is judged on."""


@dataclass(frozen=True)
class Recipe:
    pictures: int
    lr: float
    rank: int
    algorithm: str = "lora"

    def __str__(self) -> str:
        return f"{self.algorithm} r{self.rank}, rate {self.lr:g}, {self.pictures} pictures"


RECIPES = (
    Recipe(4, 3e-3, 8),
    Recipe(8, 3e-3, 16),
    Recipe(16, 1e-2, 4),
    Recipe(40, 3e-3, 16),
    Recipe(16, 3e-3, 4, "lokr"),
    Recipe(8, 1e-3, 4),
    Recipe(40, 1e-2, 8),
    Recipe(16, 3e-3, 4, "loha"),
)


class Bench:
    def __init__(self, host: Host, pack: Any, folder: Path) -> None:
        self.host, self.folder = host, folder
        self.ops = self.module("lycoris_ops", pack)
        self.halved = self.module("lycoris_ops.train.judge", pack).halved
        self.run_judge = self.module("lycoris_nodes.training.judge.run", pack).run_judge
        self.asked = self.module("lycoris_nodes.training.node.settings", pack).Asked
        self.no_expert = self.module("lycoris_nodes.training.node.experts", pack).ALL

    @staticmethod
    def module(name: str, pack: Any) -> Any:
        from importlib import import_module

        return import_module(f"{pack.__name__}.{name}")

    def conditionings(self, kinds: Sequence[int]) -> list[Any]:
        host = self.host
        return [[[host.context[kind][None], {"pooled_output": host.pooled[kind][None]}]] for kind in kinds]

    def pictures(self, count: int, seed: int) -> dict[str, Any]:
        pictures, kinds = drawn(count, seed, hatched=True)
        outer = self.host.model.model.process_latent_out(latents(pictures))
        return {
            "latents": [{"samples": one[None]} for one in outer],
            "positive": self.conditionings(kinds.tolist()),
        }

    def train(self, recipe: Recipe, number: int) -> str:
        """Train, keeping all checkpoints, and return the name of the training."""
        name = f"judge-{os.getpid()}/{number}"
        node = self.host.nodes.NODE_CLASS_MAPPINGS["LycorisTrain"]
        given = {
            "steps": STEPS,
            "learning_rate": recipe.lr,
            "rank": recipe.rank,
            "algorithm": recipe.algorithm,
            "batch_size": 4,
            "checkpoint_every": EVERY,
            "keep": 1000,
            "filename_prefix": name,
            "seed": number,
        }
        data = {"model": self.host.model, **self.pictures(recipe.pictures, 100 + number)}
        run(node, {**defaults(node), **given, **data})
        return name

    def judged(self, name: str, number: int) -> Any:
        """All losses of a training's checkpoints on one set, as a Judgement of the pack."""
        nothing = dict.fromkeys(("stack", "vae", "clip_vision", "clip"))
        none = dict.fromkeys(("masks", "captions", "other_positive", "empty_caption"), ())
        settings = {"training": name, "strengths": STRENGTHS, "times": TIMES, "share": 1.0, "samples": 0}
        settings |= {"expert": self.no_expert, "because": ""}
        asked = self.asked(
            model=self.host.model,
            batch_size=1,
            seed=number,
            **self.pictures(HELD, 10_000 + number),
            **settings,
            **nothing,
            **none,
        )
        return self.run_judge(asked, lambda stage, done, of: None).judgement


@dataclass(frozen=True)
class Outcome:
    named: bool
    as_good: bool
    share: float
    gap: float


def outcome(ops: Any, whole: Any, losses: Mapping[Any, Sequence[float]]) -> Outcome:
    """The choice by a part of the losses, compared with the best by all of them."""
    found = ops.Judgement(whole.names, whole.strengths, losses, whole.draws)
    gap, error = whole.behind(found.best)
    gain, _ = whole.behind(ops.ALONE)
    return Outcome(found.best == whole.best, gap <= error, found.spent, gap / gain if gain > 0 else math.nan)


def _among(losses: Mapping[Any, Sequence[float]]) -> Callable[[Any, range], Sequence[float]]:
    """A function that looks up known losses instead of measuring them."""
    return lambda place, numbers: losses[place][numbers.start : numbers.stop]


def told(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    count = len(outcomes)
    return (
        f"{sum(one.named for one in outcomes)} of {count}",
        f"{sum(one.as_good for one in outcomes)} of {count}",
        f"{max(one.gap for one in outcomes):.1%}",
        f"{max(one.share for one in outcomes):.1%}",
    )


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--trainings", type=int, nargs="+", default=range(len(RECIPES)), help="from 0 on")
    made.add_argument("--sets", type=int, default=SETS, help="sets of held-out pictures and noise")
    made.add_argument("--picture", type=Path)
    options = made.parse_args()
    folder = base_directory(ROOT / ".cache" / "bench" / "judge", ROOT)
    nodes = boot_in_process(facts().comfyui, folder)
    import comfy.utils
    import folder_paths

    comfy.utils.PROGRESS_BAR_ENABLED = False
    with torch.inference_mode(mode=False):
        bench = Bench(Host(nodes, folder, Shapes()), loaded_pack(folder), folder)
    lines = Table(
        "training", "best of all", "gain", "named", "as good", "worst gap", "even: as good", "passes"
    )
    halving: list[Outcome] = []
    even: list[Outcome] = []
    for number in options.trainings:
        recipe = RECIPES[number]
        name = bench.train(recipe, number)
        own: list[Outcome] = []
        same: list[Outcome] = []
        bests: list[str] = []
        gains: list[float] = []
        for held in range(options.sets):
            whole = bench.judged(name, 10 * number + held)
            losses = whole.losses
            part = bench.halved(list(losses), _among(losses), whole.draws, SHARE)
            few = math.floor(SHARE * whole.draws)
            own.append(outcome(bench.ops, whole, part))
            same.append(outcome(bench.ops, whole, {place: each[:few] for place, each in losses.items()}))
            bests.append(whole.called(whole.best))
            gains.append(1 - whole.loss(whole.best) / whole.loss(bench.ops.ALONE))
        halving += own
        even += same
        named, good, gap, share = told(own)
        lines.row(
            str(recipe),
            ", ".join(dict.fromkeys(bests)),
            f"{sum(gains) / len(gains):.0%}",
            named,
            good,
            gap,
            told(same)[1],
            share,
        )
        if options.picture:
            bench.ops.judgement_picture(whole).image().save(options.picture, lossless=True)
    named, good, gap, share = told(halving)
    lines.row("all", "", "", named, good, gap, told(even)[1], share)
    shutil.rmtree(Path(folder_paths.get_output_directory()) / f"judge-{os.getpid()}", ignore_errors=True)


if __name__ == "__main__":
    main()
