"""Sliders of three attributes of drawn discs: how an attribute follows the strength, and what else moves.

`python -m benchmarks.slider [--steps N] [--seed N] [--ways NAME ...] [--attributes NAME ...]` prints a
table, and with `--picture FILE` it writes a picture of what the sliders make at strengths from -2 to 2. A
small flow transformer of FLUX.1's layout, which the host builds, is trained on pictures of 16 x 16 with one
to four discs of one radius and one shade. Its captions name a size, a shade and a number, or leave them open.
Train LyCORIS Slider trains a slider for each of these attributes, from the word for less of it to the word
for more, and ComfyUI samples with it at seven strengths from the same noise. Attributes are measured on the
pictures, as `attributes` says.

"words" is no slider: the model alone samples with the word for less, with no word and with the word for
more. "prompts" are sliders between two prompts. "pictures" are sliders of rows of pictures that differ only
in the attribute, at four strengths. "LECO" is the recipe of the paper, written down below, with the same
layers, rank, steps and rate.

"R2" is that of a line through the mean attribute at each strength. "moves" is how far this mean goes from
strength -1 to 1, as a share of the range in which the pictures were drawn. "drift" is the farthest that each
other attribute goes from its mean at strength 0, as a share of its range, with the standard error over the
pictures. "beyond words" is how far it is at most, at strength -1 or 1, from where the word for less or more
takes it. "without" is how many pictures have no discs, at the strength with the most of these. They have
neither size nor shade.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.quality.bases import trained
from benchmarks.side import Table
from benchmarks.train_node import defaults, run
from tests.harness.base import CONTEXT
from tests.harness.diffusion import write_model
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process

SIZES = {"width": 128, "double": 1, "single": 2}
BASE_STEPS, BASE_BATCH, BASE_LR = 1500, 64, 2e-3
SIDE, FOLD, MOST, GROUND = 16, 4, 4, -1.0
RADIUS, SHADE = (1.5, 3.5), (-0.2, 1.0)
"""In pixels, and as values from -1 to 1."""
THRESHOLD = -0.6
GUIDANCE = 3.5
"""The built-in guidance that the model is trained and sampled at."""
LATENT = (1, 16, SIDE // FOLD, SIDE // FOLD)
RANGES = {"size": RADIUS[1] - RADIUS[0], "shade": SHADE[1] - SHADE[0], "count": MOST - 1.0}
WORDS = ("discs", "open", "small", "large", "dark", "bright", "few", "many")
ENDS = {"size": ("small", "large"), "shade": ("dark", "bright"), "count": ("few", "many")}
STRENGTHS = (-1.0, -2 / 3, -1 / 3, 0.0, 1 / 3, 2 / 3, 1.0)
PICTURES = 384
SHOWN = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
"""The strengths in the picture."""
SAMPLING = 20
"""Steps of the sampler."""
LR, RANK, BATCH = 2e-3, 4, 4
"""The settings of all sliders."""
GUIDED = 0.5
"""LECO's guidance along the difference of prompts. With it a slider goes about as far as the prompts do."""
WAYS = ("prompts", "pictures", "LECO")
AT, ROWS, REACH = (-1.0, -0.5, 0.5, 1.0), 32, 0.35
"""The strengths of opposed pictures, how many rows there are, and how far strength 1 is from the middle of a
range, as a share of it."""


@dataclass(frozen=True)
class Drawn:
    pictures: Tensor
    """(N, 1, 16, 16)."""
    words: list[list[str]]
    """For each picture what is said of its size, shade and count."""


def painted(shares: Tensor) -> Tensor:
    """Pictures (N, 1, 16, 16) of discs of one radius and shade, each in the middle of its own quarter.

    `shares` (N, 3) say where in their ranges the size, shade and number of each picture are. The discs fill
    the quarters in one order. In a random order this small model decided on each quarter almost by itself,
    and left some pictures empty.
    """
    radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * shares[:, 0]
    shade = SHADE[0] + (SHADE[1] - SHADE[0]) * shares[:, 1]
    discs = 1 + (MOST * shares[:, 2]).long()
    line = torch.arange(SIDE) + 0.5
    inside = torch.zeros(len(shares), SIDE, SIDE)
    for place in range(MOST):
        row, column = (4 + 8 * at for at in divmod(place, 2))
        far = ((line[:, None] - row) ** 2 + (line - column) ** 2).sqrt()
        disc = (0.5 + radius[:, None, None] - far).clamp(0, 1)
        inside = torch.maximum(inside, disc * (place < discs)[:, None, None])
    return (GROUND + inside * (shade[:, None, None] - GROUND))[:, None]


def drawn(count: int, seed: int) -> Drawn:
    """Pictures with captions. A word is open in a random third, and where the attribute is about average."""
    draw = torch.Generator().manual_seed(seed)
    shares = torch.rand((count, 3), generator=draw)
    said = torch.rand((count, 3), generator=draw) < 2 / 3
    words = [
        [
            "open" if not told or 1 / 3 <= share <= 2 / 3 else ENDS[name][int(share > 0.5)]
            for name, share, told in zip(RANGES, row, own, strict=True)
        ]
        for row, own in zip(shares.tolist(), said.tolist(), strict=True)
    ]
    return Drawn(painted(shares), words)


def encoded(words: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """What a text encoder would give for some captions: (N, 4, 768), and (N, 768)."""
    table = torch.randn((len(WORDS), CONTEXT), generator=torch.Generator().manual_seed(0))
    tokens = torch.stack([table[[WORDS.index(word) for word in ("discs", *one)]] for one in words])
    return tokens, tokens.mean(1)


def conditioning(*words: str) -> list[Any]:
    tokens, pooled = encoded([words])
    return [[tokens, {"pooled_output": pooled}]]


OPEN = conditioning("open", "open", "open")


def ends_of(name: str) -> list[Any]:
    """The prompts of the least and of the most of an attribute."""
    place = list(RANGES).index(name)
    return [conditioning(*(end if at == place else "open" for at in range(3))) for end in ENDS[name]]


def attributes(pictures: Tensor) -> dict[str, Tensor]:
    """The mean radius and shade of the discs of each picture (N, 1, 16, 16), and their number, each (N,).

    The shade of a disc is the mean of its four pixels in the middle, which every disc covers. Its area is the
    sum over its quarter, divided by this shade, both above the ground. A picture without discs has neither
    radius nor shade: they are NaN.
    """
    quarters = pictures[:, 0].unflatten(1, (2, -1)).unflatten(3, (2, -1)).transpose(2, 3)
    shade = quarters[..., 3:5, 3:5].mean((-1, -2))
    there = shade > THRESHOLD
    area = (quarters - GROUND).sum((-1, -2)) / (shade - GROUND)
    count = there.sum((1, 2))

    def mean(values: Tensor) -> Tensor:
        return torch.where(there, values, 0.0).sum((1, 2)) / count

    return {"size": mean((area / torch.pi).sqrt()), "shade": mean(shade), "count": count.float()}


def at_any_guidance(base: nn.Module) -> dict[str, Tensor]:
    """The weights of a model that gives at any guidance the output of the trained one at `GUIDANCE`.

    The node trains at the guidance of FLUX.1's trainers, 1. The trained model has never seen that one.
    """
    from comfy.ldm.flux.layers import timestep_embedding

    weights, last = base.state_dict(), "guidance_in.out_layer"
    told = base.get_submodule("guidance_in")(timestep_embedding(torch.tensor([GUIDANCE]), 256))[0].detach()
    return {**weights, f"{last}.weight": torch.zeros_like(weights[f"{last}.weight"]), f"{last}.bias": told}


class Discs:
    """The trained model in the host."""

    def __init__(self, nodes: Any, folder: Path, seed: int) -> None:
        """`seed` is that of the sliders' trainings. The model is always the same."""
        self.nodes, self.seed = nodes, seed
        place = folder / "models" / "diffusion_models"

        def untrained() -> nn.Module:
            write_model(place / "untrained.safetensors", "Flux", **SIZES)
            made = nodes.UNETLoader().load_unet("untrained.safetensors", "default")[0]
            return made.model.diffusion_model.requires_grad_(True)

        def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
            with differentiable(module):
                return self._loss(module, batch)

        recipe = ("discs in order", SIZES, BASE_STEPS, BASE_BATCH, BASE_LR)
        base = trained("discs", recipe, untrained, self._batches, loss, steps=BASE_STEPS, lr=BASE_LR)
        save_file(at_any_guidance(base), place / "discs.safetensors")
        self.model = nodes.UNETLoader().load_unet("discs.safetensors", "default")[0]

    @staticmethod
    def _batches() -> Iterator[tuple[Tensor, ...]]:
        for number in itertools.count():
            found = drawn(BASE_BATCH, 1_000_000 + number)
            draw = torch.Generator().manual_seed(number)
            x = functional.pixel_unshuffle(found.pictures, FOLD)
            times = (torch.randperm(BASE_BATCH, generator=draw) + torch.rand(1, generator=draw)) / BASE_BATCH
            yield (x, *encoded(found.words), torch.randn(x.shape, generator=draw), times)

    @staticmethod
    def _loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        x, context, pooled, noise, times = batch
        there = times[:, None, None, None]
        seen = (1 - there) * x + there * noise
        found = module(seen, times, context, y=pooled, guidance=torch.full_like(times, GUIDANCE))
        return functional.mse_loss(found, noise - x)

    @torch.no_grad()
    def pictures(self, file: str | None, strength: float, said: Any = OPEN, count: int = PICTURES) -> Tensor:
        """The first `count` pictures of a prompt with a file at a strength, always from the same noise."""
        import comfy.sample
        import comfy.sd
        import comfy.utils

        model: Any = self.model
        if file is not None:
            tensors = comfy.utils.load_torch_file(file, safe_load=True)
            model, _ = comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)
        noise = torch.randn((PICTURES, *LATENT[1:]), generator=torch.Generator().manual_seed(5))[:count]
        zeros = torch.zeros(noise.shape)
        said = [[said[0][0], {**said[0][1], "guidance": GUIDANCE}]]
        made = comfy.sample.sample(
            model, noise, SAMPLING, 1.0, "euler", "simple", said, said, zeros, disable_pbar=True, seed=5
        )
        return functional.pixel_shuffle(model.model.process_latent_in(made), FOLD)

    def slider(self, name: str, steps: int, **data: Any) -> str:
        """The file of a slider that the node trains."""
        node = self.nodes.NODE_CLASS_MAPPINGS["LycorisSlider"]
        given = {
            "steps": steps,
            "learning_rate": LR,
            "rank": RANK,
            "batch_size": BATCH,
            "seed": self.seed,
            "filename_prefix": f"slider-{os.getpid()}/{name}",
        }
        known = {"model": self.model, "positive": [OPEN]}
        return run(node, {**defaults(node), **given, **known, **data}).args[5]

    def between_prompts(self, name: str, steps: int) -> str:
        less, more = ends_of(name)
        data = {"latents": [{"samples": torch.zeros(LATENT)}], "less": [less], "more": [more]}
        return self.slider(f"{name}-prompts", steps, pictures=32, **data)

    def of_pictures(self, name: str, steps: int) -> str:
        """A slider of rows of pictures that differ only in the attribute."""
        shares = torch.rand((ROWS, 3), generator=torch.Generator().manual_seed(7))
        rows: list[Tensor] = []
        for strength in AT:
            shares[:, list(RANGES).index(name)] = 0.5 + REACH * strength
            rows.append(painted(shares))
        latents = functional.pixel_unshuffle(torch.stack(rows, 1).flatten(0, 1), FOLD)
        samples = self.model.model.process_latent_out(latents)
        strengths = ", ".join(map(str, AT))
        data = {"latents": [{"samples": samples}], "strengths": strengths}
        return self.slider(f"{name}-pictures", steps, **data)

    def by_leco(self, name: str, steps: int) -> str:
        """The recipe of LECO and of Concept Sliders' prompts, on the layers that the node trains.

        A step samples from noise to a random time with the adapter at strength 1, and trains the output there
        towards e(what) + guidance (e(more) - e(less)), where e is the model alone. Strengths below 0 are not
        trained.
        """
        network, like = self.model.model.diffusion_model, self.of_pictures(name, 1)
        layers = {key.partition(".lora_")[0] for key in load_file(like) if ".lora_" in key}
        draw = torch.Generator().manual_seed(self.seed)
        said = [(text[0][0], text[0][1]["pooled_output"]) for text in (OPEN, *ends_of(name))]
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        strength, hooks = 0.0, []

        def put_out(x: Tensor, time: Tensor, text: tuple[Tensor, Tensor], at: float) -> Tensor:
            nonlocal strength
            strength = at
            context, pooled = (one.expand(BATCH, *one.shape[1:]) for one in text)
            times = time.expand(BATCH)
            return network(x, times, context, y=pooled, guidance=torch.full((BATCH,), GUIDANCE))

        for layer in sorted(layers):
            linear = network.get_submodule(layer.removeprefix("diffusion_model."))
            down = torch.randn((RANK, linear.in_features), generator=draw) / linear.in_features**0.5
            factors[layer] = (down.requires_grad_(), torch.zeros(linear.out_features, RANK).requires_grad_())

            def beside(_: Any, given: Any, found: Tensor, own: Any = factors[layer]) -> Tensor:
                return found + strength * functional.linear(functional.linear(given[0], own[0]), own[1])

            hooks.append(linear.register_forward_hook(beside))
        optimiser = torch.optim.AdamW([one for both in factors.values() for one in both], lr=LR)
        schedule = torch.linspace(1, 0, SAMPLING + 1)
        with differentiable(network):
            for _ in range(steps):
                with torch.no_grad():
                    x = torch.randn((BATCH, *LATENT[1:]), generator=draw)
                    stop = int(torch.randint(SAMPLING, (), generator=draw))
                    for now, then in itertools.pairwise(schedule[: stop + 1]):
                        x = x + (then - now) * put_out(x, now, said[0], 1.0)
                    what, less, more = (put_out(x, schedule[stop], text, 0.0) for text in said)
                found = put_out(x, schedule[stop], said[0], 1.0)
                functional.mse_loss(found, what + GUIDED * (more - less)).backward()
                optimiser.step()
                optimiser.zero_grad()
        for hook in hooks:
            hook.remove()
        place = Path(like).with_name(f"{name}-leco.safetensors")
        tensors = {f"{layer}.lora_down.weight": both[0] for layer, both in factors.items()}
        tensors |= {f"{layer}.lora_up.weight": both[1] for layer, both in factors.items()}
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, place)
        return str(place)


@contextmanager
def differentiable(network: nn.Module) -> Iterator[None]:
    """A context in which a network of the host has gradients."""
    import comfy.model_management

    # Blocks write over what their norms have read, which the backward pass needs.
    hooks = [
        inner.register_forward_pre_hook(lambda _, given: (given[0].clone(),))
        for inner in network.modules()
        if isinstance(inner, nn.LayerNorm)
    ]
    # Some of the host's fused operations have no gradient. In training the host takes others.
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = False
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Followed:
    """How attributes follow the strengths of a slider."""

    name: str
    found: Sequence[dict[str, Tensor]]
    """The attributes of the pictures at each strength, which come from the same noise."""
    strengths: Sequence[float] = STRENGTHS

    @property
    def own(self) -> Any:
        return np.array([float(one[self.name].nanmean()) for one in self.found])

    @property
    def r2(self) -> float:
        fit = np.polyval(np.polyfit(self.strengths, self.own, 1), self.strengths)
        return float(1 - ((self.own - fit) ** 2).sum() / ((self.own - self.own.mean()) ** 2).sum())

    def drift(self, others: Sequence[dict[str, Tensor]]) -> str:
        """How far the other attributes are at most from those of `others`, pictures of the same noise."""
        told: list[str] = []
        for name in (other for other in RANGES if other != self.name):
            pairs = zip(self.found, others, strict=True)
            most, error = farthest([(own[name] - other[name]) / RANGES[name] for own, other in pairs])
            told.append(f"{name} {most:.1%} ± {error:.1%}")
        return ", ".join(told)

    def beyond(self, words: Followed) -> str:
        """The drift at both ends from the pictures that the words for less and more make."""
        ends = Followed(self.name, [self.found[0], self.found[-1]], (-1.0, 1.0))
        return ends.drift([words.found[0], words.found[-1]])

    def cells(self) -> list[object]:
        own = self.own
        return [
            *(f"{own[at]:.2f}" for at in (0, len(own) // 2, -1)),
            f"{(own[-1] - own[0]) / RANGES[self.name]:.0%}",
            "yes" if (np.diff(own) > 0).all() else "no",
            f"{self.r2:.3f}",
            self.drift([self.found[len(self.found) // 2]] * len(self.found)),
            max(int((one["count"] == 0).sum()) for one in self.found),
        ]


def farthest(moves: Sequence[Tensor]) -> tuple[float, float]:
    """The largest of some mean moves, and its standard error. A move is NaN where a picture has no discs."""
    seen = [move[~move.isnan()] for move in moves]
    most = max(seen, key=lambda move: abs(float(move.mean())))
    return abs(float(most.mean())), float(most.std()) / len(most) ** 0.5


def sheet(rows: Sequence[tuple[str, Sequence[Tensor]]]) -> Image.Image:
    """Rows of pictures (N, 1, 16, 16) at the strengths `SHOWN`, with the name of each row before it."""
    side, gap, left = 2 * SIDE, 2, 92
    wide = len(rows[0][1][0]) * (side + gap) + 3 * gap
    made = Image.new("L", (left + wide * len(SHOWN), (side + gap) * len(rows) + 14), 255)
    pen = ImageDraw.Draw(made)
    for column, strength in enumerate(SHOWN):
        pen.text((left + wide * column, 1), f"{strength:g}", fill=0)
    for row, (name, cells) in enumerate(rows):
        top = 14 + (side + gap) * row
        pen.text((2, top + side // 3), name, fill=0)
        for column, cell in enumerate(cells):
            for place, one in enumerate(cell):
                grey = ((one[0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
                at = (left + wide * column + (side + gap) * place, top)
                made.paste(Image.fromarray(grey).resize((side, side), Image.Resampling.NEAREST), at)
    return made


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--steps", type=int, default=500)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    made.add_argument("--attributes", nargs="+", choices=list(RANGES), default=list(RANGES))
    made.add_argument("--picture", type=Path)
    options = made.parse_args()
    folder = base_directory(ROOT / ".cache" / "bench" / "slider", ROOT)
    nodes = boot_in_process(facts().comfyui, folder)
    import comfy.utils
    import folder_paths

    comfy.utils.PROGRESS_BAR_ENABLED = False
    with torch.inference_mode(mode=False):
        discs = Discs(nodes, folder, options.seed)
    for name, pictures in (("drawn", drawn(256, 3).pictures), ("sampled", discs.pictures(None, 0.0))):
        means = {key: round(float(value.nanmean()), 2) for key, value in attributes(pictures).items()}
        print(name, means, flush=True)
    ways: dict[str, Callable[[str, int], str]] = {
        "prompts": discs.between_prompts,
        "pictures": discs.of_pictures,
        "LECO": discs.by_leco,
    }
    lines = Table(
        "by",
        "slider of",
        "at -1",
        "at 0",
        "at 1",
        "moves",
        "monotone",
        "R2",
        "drift",
        "without",
        "beyond words",
        "CPU s",
    )
    words: dict[str, Followed] = {}
    for name in options.attributes:
        less, more = ends_of(name)
        made_of = [attributes(discs.pictures(None, 0.0, said)) for said in (less, OPEN, more)]
        words[name] = Followed(name, made_of, (-1.0, 0.0, 1.0))
        lines.row("words", name, *words[name].cells(), "-", "-")
    shown: list[tuple[str, list[Tensor]]] = []
    # Those of one attribute follow each other in the picture.
    for name, way in itertools.product(options.attributes, options.ways):
        began = time.process_time()
        file = ways[way](name, options.steps)
        took = time.process_time() - began
        found = Followed(name, [attributes(discs.pictures(file, each)) for each in STRENGTHS])
        lines.row(way, name, *found.cells(), found.beyond(words[name]), f"{took:.0f}")
        if options.picture:
            shown.append((f"{name}, {way}", [discs.pictures(file, each, count=2) for each in SHOWN]))
    if options.picture:
        sheet(shown).save(options.picture, lossless=True)
    shutil.rmtree(Path(folder_paths.get_output_directory()) / f"slider-{os.getpid()}", ignore_errors=True)


if __name__ == "__main__":
    main()
