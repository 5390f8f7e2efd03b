"""Each family's usual settings beside the recipe of its best-known trainer, on a small trained model of it.

`python -m benchmarks.families [--minutes N] [--only FAMILY ...] [--as-set]` trains what `families.jsonl`
beside this file does not have, and prints the table of `benchmarks/README.md`. The models are of ComfyUI's
own classes, and learn drawn shapes, see `quality/graph/shapes.py`. Train LoRA / LyCORIS then adapts them to
hatched ones: with nothing set, and with a trainer's recipe written down as settings. ComfyUI's own trainer
adapts them too, as it comes. Each trains at the rate that it sets, and at the best of rates that are a
quarter of a decade apart, which is chosen on separate pictures.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.bleed import trainable
from benchmarks.passes import usual_weights
from benchmarks.quality.bases import trained
from benchmarks.quality.graph.shapes import KINDS, SEEDS, drawn
from benchmarks.quality.graph.ways import Asked, comfy, own
from benchmarks.quality.results import whole_lines
from benchmarks.quality.run import OutOfTimeError
from benchmarks.quality.search import best
from benchmarks.quality.tables import table
from tests.harness import zoo
from tests.harness.facts import ROOT, facts
from tests.harness.inputs import INPUTS
from tests.harness.launch import base_directory, boot_in_process, loaded_pack

RESULTS = Path(__file__).with_suffix(".jsonl")
STEPS, TRAINED_WITH, WIDTH = 80, (0, 1), 1
"""Steps of a training, its seeds, and how far apart rates are, in quarters of a decade."""
BASE_STEPS, BASE_BATCH, BASE_LR = 300, 16, 2e-3
PICTURES = {"train": 40, "tune": 32, "test": 64}
DRAWS, ROWS, SAMPLED = 4, 64, 20
"""At how many times each held-out picture is judged, rows in a pass, and the steps of a sampling."""
MOVES = 3
"""How far the pictures of a clip move from one frame to the next, in pixels."""
OURS, HOST = "usual", "ComfyUI's trainer"
HOSTS: Mapping[str, Any] = {"rank": 8, "alpha": 1.0, "learning_rate": 5e-4}
"""What it sets."""


@dataclass(frozen=True)
class Recipe:
    trainer: str
    source: str
    """Where the settings are from, in the trainer's repository."""
    settings: Mapping[str, Any]
    """Inputs of Train LoRA / LyCORIS. All others are left at their usual values."""


def by_tokens(low: float, high: float, few: int, many: int, tokens: int) -> float:
    """The shift exp(mu), where mu is linear in the number of tokens: low at `few`, high at `many`."""
    return math.exp(low + (high - low) * (tokens - few) / (many - few))


PLAIN = {"preset": "attn-mlp", "warmup": 0.0}
"""The layers that are trained, beside those of `include`, and a constant rate."""


def kohya(source: str, rank: int, alpha: float, lr: float, **settings: Any) -> Recipe:
    """A recipe of kohya-ss: AdamW with torch's default weight decay, at a constant rate."""
    common = {**PLAIN, "weight_decay": 0.01, "rank": rank, "alpha": alpha, "learning_rate": lr}
    named = "musubi-tuner" if source.split()[-1].startswith("musubi") else "sd-scripts"
    return Recipe(named, source.removesuffix(" musubi"), {**common, **settings})


def ai_toolkit(times: str, source: str = "", **settings: Any) -> Recipe:
    """What the page for a new job of ai-toolkit sets for a model, with its type of timesteps.

    "weighted" draws times evenly and weighs them by a table. The shift here gives the same mean time.
    """
    drawn = {
        "sigmoid": {"times": "logit-normal", "shift": 1.0},
        "weighted": {"times": "uniform", "shift": WEIGHTED},
    }
    common = {**PLAIN, "weight_decay": 1e-4, "rank": 32, "alpha": 32.0, "learning_rate": 1e-4}
    return Recipe(
        "ai-toolkit", f"ui/src/app/jobs/new, {times}{source}", {**common, **drawn[times], **settings}
    )


def onetrainer(preset: str, **settings: Any) -> Recipe:
    """A preset of OneTrainer for LoRA, with what it leaves at the defaults of its configuration.

    The warm-up of 200 steps is left out, because it is longer than a training here.
    """
    common = {"weight_decay": 0.01, "rank": 16, "alpha": 1.0, "learning_rate": 3e-4}
    drawn = {"times": "logit-normal", "shift": 1.0}
    return Recipe("OneTrainer", f"training_presets, {preset}", {**PLAIN, **common, **drawn, **settings})


WEIGHTED = 1.66
LTX_TRAINER = Recipe(
    "LTX-Video-Trainer",
    "configs/ltxv_2b_lora.yaml",
    {
        "preset": "attn-only",
        "rank": 32,
        "alpha": 32.0,
        "learning_rate": 2e-4,
        "warmup": 0.0,
        "schedule": "linear",
        "weight_decay": 0.01,
        "times": "logit-normal",
        # Its times are the sigmoid of a normal with a mean other than 0. The shift here is exp of that mean.
        "shift": by_tokens(0.95, 2.05, 1024, 4096, 48),
    },
)


@dataclass(frozen=True)
class Case:
    """A family: a model of `zoo.SPECIES`, what is changed in it, and recipes of trainers."""

    architecture: str
    recipes: Sequence[Recipe]
    changed: Mapping[str, Any]
    fold: int = 4
    """The side, in pixels, of the square that a latent holds at each of its places."""
    mirrored: bool = False
    """Whether a latent also holds the mirrored picture, for models with twice the channels."""
    frames: int = 0
    """The frames of a clip; 0 for latents without an axis for time."""
    masked: bool = False
    """Whether the host's text encoder gives a mask of the tokens."""
    guidances: tuple[float, ...] = ()
    """The guidances that the model is given: that of trainers, and that of the host."""

    def latents(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 1, 32, 32) as latents, as the model itself sees them."""
        if self.fold == 2:
            # Four channels. The picture is halved first, which takes less time.
            pictures = functional.avg_pool2d(pictures, 2)
        if self.mirrored:
            pictures = torch.cat([pictures, pictures.flip(-1)], 1)
        if not self.frames:
            return functional.pixel_unshuffle(pictures, self.fold)
        frames = [pictures.roll(MOVES * number, -1) for number in range(self.frames)]
        return torch.stack([functional.pixel_unshuffle(frame, self.fold) for frame in frames], 2)


_UNET = {
    "model_channels": 32,
    "num_head_channels": 16,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth_output": [1] * 4,
}
_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 64,
    "num_heads": 4,
    "axes_dim": [4, 6, 6],
    "depth": 1,
    "depth_single_blocks": 2,
}
_IN_UNET = {"include": "*.proj_in *.proj_out"}
_IN_FLUX = {"include": "*_mod.lin single_blocks.*.modulation.lin"}
_EVEN = {"times": "uniform", "shift": 1.0}
_BY_SIZE = {"times": "logit-normal", "shift": by_tokens(0.5, 1.15, 256, 4096, 16)}
"""The shift of Flux for the 16 tokens of a picture."""

CASES: dict[str, Case] = {
    "SD1.5": Case(
        "SD1.5",
        [
            kohya("docs/train_network.md", 16, 1.0, 1e-4, **_IN_UNET, **_EVEN),
            onetrainer("#sd 1.5 LoRA", **_IN_UNET, **_EVEN),
        ],
        {**_UNET, "transformer_depth": [1, 1]},
        fold=2,
    ),
    "SDXL": Case(
        "SDXL",
        [
            kohya("docs/sdxl_train_network.md", 32, 16.0, 1e-4, **_IN_UNET, **_EVEN),
            onetrainer("#sdxl 1.0 LoRA", **_IN_UNET, **_EVEN),
        ],
        {
            **_UNET,
            "transformer_depth": [0, 1],
            "transformer_depth_output": [0, 0, 1, 1],
            "transformer_depth_middle": 1,
            # Six numbers of 256 values each and the pooled text.
            "adm_in_channels": 6 * 256 + 20,
        },
        fold=2,
    ),
    "SD3": Case(
        "SD3",
        [
            kohya(
                "docs/sd3_train_network.md", 16, 1.0, 1e-4, include="joint_blocks.*adaLN_modulation*", **_EVEN
            ),
            Recipe(
                "diffusers",
                "examples/dreambooth/README_sd3.md",
                {
                    "preset": "attn-only",
                    "rank": 4,
                    "alpha": 4.0,
                    "learning_rate": 4e-4,
                    "warmup": 0.0,
                    "weight_decay": 1e-4,
                    "times": "logit-normal",
                    "shift": 3.0,
                },
            ),
            onetrainer("#sd 3 LoRA", include="*"),
        ],
        {"in_channels": 16, "out_channels": 16},
    ),
    "Flux": Case(
        "Flux 1",
        [
            ai_toolkit("sigmoid", **_IN_FLUX),
            kohya("docs/flux_train_network.md", 16, 1.0, 1e-4, **_BY_SIZE, **_IN_FLUX),
            onetrainer("#flux LoRA", include="*", exclude="*norm*", **_BY_SIZE),
        ],
        _FLUX,
        guidances=(1.0, 3.5),
    ),
    "Flux 2": Case(
        "Flux 2",
        [
            ai_toolkit("weighted"),
            onetrainer("#flux2 LoRA 16GB", learning_rate=3e-5, **_BY_SIZE),
        ],
        {**_FLUX, "in_channels": 128, "out_channels": 128, "axes_dim": [4] * 4},
        fold=8,
        mirrored=True,
        guidances=(1.0, 3.5),
    ),
    "Chroma": Case(
        "Chroma",
        # OneTrainer draws times from a parabola, which is nearly the logit-normal distribution.
        [ai_toolkit("sigmoid"), onetrainer("#chroma LoRA 24GB")],
        {
            **_FLUX,
            "in_channels": 64,
            "out_channels": 64,
            "in_dim": 64,
            "hidden_dim": 64,
            "out_dim": 64,
        },
    ),
    "Wan": Case(
        "Wan 2.1 t2v",
        [ai_toolkit("sigmoid")],
        {
            "dim": 64,
            "in_dim": 16,
            "out_dim": 16,
            "ffn_dim": 256,
            "freq_dim": 64,
            "num_heads": 4,
            "num_layers": 3,
        },
        frames=3,
    ),
    "HunyuanVideo": Case(
        "HunyuanVideo",
        [
            kohya(
                *("docs/hunyuan_video.md musubi", 32, 1.0, 2e-4),
                times="logit-normal",
                shift=7.0,
                exclude="txt_in.*",
            ),
            onetrainer("#hunyuan video LoRA", exclude="txt_in.*", **_IN_FLUX),
        ],
        _FLUX,
        frames=3,
        guidances=(1.0, 6.0),
    ),
    "Qwen-Image": Case(
        "Qwen-Image",
        [ai_toolkit("weighted", include="*_mod.1"), onetrainer("#qwen LoRA 24GB")],
        {"in_channels": 64, "out_channels": 16, "num_attention_heads": 4, "num_layers": 3},
        frames=1,
    ),
    "Z-Image": Case(
        "Z-Image",
        [
            ai_toolkit("weighted", include="layers.*adaLN_modulation*", exclude="*_refiner*"),
            onetrainer("#z-image LoRA 16GB", exclude="*_refiner*"),
        ],
        {
            "in_channels": 16,
            "dim": 256,
            "n_heads": 16,
            "n_kv_heads": 16,
            "axes_dims": [4, 6, 6],
            "n_refiner_layers": 1,
            "ffn_dim_multiplier": 0.75,
            "pad_tokens_multiple": 8,
        },
    ),
    "LTX": Case(
        "LTX-Video",
        [LTX_TRAINER],
        {
            "in_channels": 128,
            "cross_attention_dim": 64,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "num_layers": 3,
        },
        fold=8,
        mirrored=True,
        masked=True,
        frames=3,
    ),
}


@dataclass(frozen=True)
class Key:
    """What is trained."""

    family: str
    recipe: str
    """The hash of all that makes the base model, and of the numbers of pictures and steps."""
    who: str
    """`OURS`, or a trainer."""
    step: int | None
    """The rate, in quarters of a decade; None for that of the settings."""
    seed: int


@dataclass(frozen=True)
class Row:
    key: Key
    before: float
    """The loss on "test" without an adapter."""
    tune: float
    test: float
    sampled: float
    """The loss on "test" at the times of the host's own sampling."""
    numbers: int
    """How many numbers the adapter has. If the training diverged it is 0, and the losses are infinite."""
    settings: Mapping[str, Any]
    """The trainer's, or what is usual for the family. Without a rate that was searched."""


def read(file: Path = RESULTS) -> dict[Key, Row]:
    rows = [json.loads(line) for line in whole_lines(file)]
    return {row.key: row for row in (Row(Key(**line.pop("key")), **line) for line in rows)}


class Family:
    """A trained model of a family in the host, and the losses of adapters for it."""

    def __init__(self, nodes: Any, pack: Any, name: str, base_steps: int = BASE_STEPS) -> None:
        from comfy.model_base import Flux, model_sampling
        from comfy.model_patcher import ModelPatcher

        self.nodes, self.case = nodes, CASES[name]
        self.diverged: type[Exception] = pack.lycoris_ops.DivergedError
        given = INPUTS[self.case.architecture]
        draw = torch.Generator().manual_seed(0)
        assert given.text is not None
        pooled = given.more.get("y")
        self.texts = torch.randn((KINDS, *given.text), generator=draw)
        self.pooled = None if pooled is None else torch.randn((KINDS, *pooled), generator=draw)
        torch.manual_seed(0)
        changed = {**given.changed, **self.case.changed}
        model: Any = zoo.make(self.case.architecture, changed=changed, cut=False)
        # The zoo has overwritten the noise levels.
        model.model_sampling = model_sampling(model.model_config, model.model_type)
        usual_weights(model)
        for buffer in model.diffusion_model.buffers():
            # The position embedding of Stable Diffusion 3.
            buffer.normal_(std=0.5)
        if name == "Flux 2":
            # Its texts would be filled up to 512 tokens, which only takes time.
            model.extra_conds = lambda **said: Flux.extra_conds(model, **said)

        def again(**_: Any) -> ModelPatcher:
            # Its configuration cannot be copied.
            copied = copy.deepcopy(model, {id(model.model_config): model.model_config})
            return ModelPatcher(copied, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))

        self.model = ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
        # ComfyUI's trainer takes the model from its loader again.
        self.model.cached_patcher_init = again, ()
        self.conds = [self._conds(number) for number in range(max(1, len(self.case.guidances)))]
        base = (name, given.text, pooled, changed, self.case.guidances, base_steps, BASE_BATCH, BASE_LR)
        self.hash = sha256(repr((base, PICTURES, STEPS)).encode()).hexdigest()[:10]
        with trainable(pack, model.diffusion_model):
            trained(
                f"family-{name}",
                base,
                lambda: model.diffusion_model,
                self._batches,
                lambda _, batch: self._errors(*batch).mean(),
                steps=base_steps,
                lr=BASE_LR,
            )
        self.before = self.held_out({}, "test")
        families: Any = importlib.import_module(f"{pack.__name__}.lycoris_nodes.host.families")
        usual = families.family_of(model)
        shift = usual.times.shift
        self.usual = {
            "times": usual.times.distribution,
            "shift": astuple(shift) if is_dataclass(shift) else shift,
            "preset": usual.preset,
            "include": " ".join(usual.include),
            "rank": usual.rank,
            "learning_rate": usual.lr,
        }
        """The settings that the node uses where nothing is set."""

    def _conditioning(self, kind: int) -> Any:
        said = {} if self.pooled is None else {"pooled_output": self.pooled[kind][None]}
        if self.case.masked:
            said["attention_mask"] = torch.ones((1, self.texts.shape[1]), dtype=torch.long)
        return [[self.texts[kind][None], said]]

    def _conds(self, number: int) -> dict[str, Any]:
        """What the host makes of the captions, a row for each, at one of the guidances."""
        rows: dict[str, list[Any]] = {}
        noise = self.case.latents(torch.zeros(1, 1, 32, 32))
        sides = {"height": 8 * noise.shape[-2], "width": 8 * noise.shape[-1]}
        told = {"guidance": self.case.guidances[number]} if self.case.guidances else {}
        for kind in range(KINDS):
            ((text, said),) = self._conditioning(kind)
            device = torch.device("cpu")
            made = self.model.model.extra_conds(
                cross_attn=text, noise=noise, device=device, prompt_type="positive", **sides, **said, **told
            )
            for key, value in made.items():
                rows.setdefault(key, []).append(value.process_cond(batch_size=1, area=None).cond)
        return {
            key: torch.cat(values) if isinstance(values[0], Tensor) else values[0]
            for key, values in rows.items()
        }

    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        for number in itertools.count():
            yield self._noisy(BASE_BATCH, 1_000_000 + number, 1, hatched=False)

    def _noisy(self, count: int, seed: int, draws: int, *, hatched: bool) -> tuple[Tensor, ...]:
        """Latents, their captions, noise, sigmas at evenly spaced times, and which guidance is given."""
        pictures, kinds = drawn(count, seed, hatched=hatched)
        x = self.case.latents(pictures)
        x, kinds = x.repeat(draws, *(1 for _ in x.shape[1:])), kinds.repeat(draws)
        draw = torch.Generator().manual_seed(1_000 + seed)
        times = (torch.randperm(len(x), generator=draw) + 0.5) / len(x)
        told = torch.arange(len(x)) % len(self.conds)
        return x, kinds, torch.randn(x.shape, generator=draw), self._sigmas(times), told

    def _sigmas(self, times: Tensor) -> Tensor:
        from comfy.model_sampling import CONST

        sampling = self.model.model.model_sampling
        if isinstance(sampling, CONST):
            return times
        return sampling.sigmas[(times * len(sampling.sigmas)).long()]

    def _errors(self, x: Tensor, kinds: Tensor, noise: Tensor, sigmas: Tensor, told: Tensor) -> Tensor:
        """The mean square error of the network's output for each row: the noise, or the velocity.

        Both are (what the model takes - the denoised latent) / sigma, up to the sign.
        """
        model = self.model.model
        wide = sigmas.view(-1, *(1 for _ in x.shape[1:]))
        conds = {
            key: torch.stack([one[key] for one in self.conds])[told, kinds]
            if isinstance(value, Tensor)
            else value
            for key, value in self.conds[0].items()
        }
        seen = model.model_sampling.noise_scaling(wide, noise, x)
        found = model.apply_model(seen, sigmas, transformer_options={}, **conds)
        return ((found - x) / wide).square().flatten(1).mean(1)

    def data(self) -> dict[str, Any]:
        """The inputs of the node: latents as an autoencoder would give them, and captions."""
        pictures, kinds = drawn(PICTURES["train"], SEEDS["train"], hatched=True)
        outer = self.model.model.process_latent_out(self.case.latents(pictures))
        return {
            "model": self.model,
            "latents": [{"samples": one[None]} for one in outer],
            "positive": [self._conditioning(kind) for kind in kinds.tolist()],
        }

    @torch.no_grad()
    def held_out(self, adapter: Mapping[str, Tensor], split: str) -> tuple[float, float]:
        """The losses of the model with an adapter that the host patches it with: at evenly spaced times, and
        at those of the host's sampling."""
        import comfy.model_management
        import comfy.samplers
        import comfy.sd

        patched, _ = comfy.sd.load_lora_for_models(self.model, None, dict(adapter), 1.0, 0.0)
        comfy.model_management.load_models_gpu([patched])
        x, kinds, noise, sigmas, told = self._noisy(PICTURES[split], SEEDS[split], DRAWS, hatched=True)
        told = torch.full_like(told, len(self.conds) - 1)
        steps = comfy.samplers.calculate_sigmas(self.model.model.model_sampling, "simple", SAMPLED)[:-1]
        found: list[float] = []
        try:
            for at in (sigmas, steps[torch.arange(len(x)) * SAMPLED // len(x)]):
                parts = zip(*(tensor.split(ROWS) for tensor in (x, kinds, noise, at, told)), strict=True)
                found.append(float(torch.cat([self._errors(*part) for part in parts]).mean()))
        finally:
            comfy.model_management.unload_all_models()
        return found[0], found[1]

    def told(self, key: Key, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What a row says of the settings, as JSON gives it back."""
        set_ = dict(self.usual if key.who == OURS else settings)
        if key.step is not None:
            # A rate of the search replaces it.
            del set_["learning_rate"]
        return json.loads(json.dumps(set_))

    def row(self, key: Key, settings: Mapping[str, Any], steps: int = STEPS) -> Row:
        lr = None if key.step is None else 10 ** (key.step / 4)
        given = {name: value for name, value in settings.items() if lr is None or name != "learning_rate"}
        told = self.told(key, settings)
        diverged = Row(key, self.before[0], math.inf, math.inf, math.inf, 0, told)
        try:
            if key.who == HOST:
                made = comfy(Asked(self, settings["rank"], lr, steps, key.seed), "bf16")
            else:
                made = own(Asked(self, 0, lr, steps, key.seed), **given)
        except self.diverged:
            return diverged
        tune, _ = self.held_out(made.tensors, "tune")
        test, sampled = self.held_out(made.tensors, "test")
        # ComfyUI's trainer goes on where a loss is not finite.
        finite = math.isfinite(tune)
        return Row(key, self.before[0], tune, test, sampled, made.numbers, told) if finite else diverged


class Bench:
    def __init__(self, until: float) -> None:
        self.until, self.found = until, read()

    def row(self, family: Family, key: Key, settings: Mapping[str, Any]) -> Row:
        known = self.found.get(key)
        if known is None or known.settings != family.told(key, settings):
            if time.monotonic() > self.until:
                raise OutOfTimeError
            row = self.found[key] = family.row(key, settings)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
            rate = "as set" if key.step is None else f"{10 ** (key.step / 4):.1e}"
            print(
                f"{key.family:12} {key.who:18} rate {rate} seed {key.seed} before {row.before:.4f} "
                f"tune {row.tune:.4f} test {row.test:.4f} sampled {row.sampled:.4f} {row.numbers} numbers",
                flush=True,
            )
        return self.found[key]

    def way(self, family: Family, name: str, who: str, settings: Mapping[str, Any], *, search: bool) -> None:
        def row(step: int | None, seed: int = TRAINED_WITH[0]) -> Row:
            return self.row(family, Key(name, family.hash, who, step, seed), settings)

        steps: list[int | None] = [None]
        if search:
            # A small scale of the change wants a higher rate.
            small = settings.get("alpha", 1.0) < settings.get("rank", 1) / 4
            steps.append(best(lambda step: row(step).tune, -6 if small else -8, WIDTH))
        for step, seed in itertools.product(steps, TRAINED_WITH):
            row(step, seed)


def ways(name: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Who trains a family, and with which settings."""
    return [(OURS, {}), *((one.trainer, one.settings) for one in CASES[name].recipes), (HOST, HOSTS)]


def page(rows: Mapping[Key, Row]) -> str:
    """The table of the rows that there are."""

    def losses(name: str, who: str, *, searched: bool) -> tuple[str, str]:
        own = [row for row in rows.values() if (row.key.family, row.key.who) == (name, who)]
        own = [row for row in own if (row.key.step is not None) == searched]
        if not own:
            return "–", "–"
        step = min(own, key=lambda row: row.tune).key.step
        chosen = [row for row in own if row.key.step == step]
        shown = [
            f"{statistics.fmean(values):.3f}"
            + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
            for values in ([row.test for row in chosen], [row.sampled for row in chosen])
        ]
        if step is None:
            return shown[0], shown[1]
        tried = [row.key.step or 0 for row in own]
        edge = "" if min(tried) < step < max(tried) else " (edge)"
        return f"{shown[0]} at {10 ** (step / 4):.0e}{edge}", shown[1]

    lines: list[Sequence[str]] = []
    for name in dict.fromkeys(key.family for key in rows):
        before = next(row.before for row in rows.values() if row.key.family == name)
        sources = {recipe.trainer: f", {recipe.source}" for recipe in CASES[name].recipes}
        for who, _ in ways(name):
            set_, _ = losses(name, who, searched=False)
            found, sampled = losses(name, who, searched=True)
            lines.append(
                (
                    name if who == OURS else "",
                    f"{before:.3f}" if who == OURS else "",
                    who + sources.get(who, ""),
                    set_,
                    found,
                    sampled,
                )
            )
    titles = ("family", "before", "settings", "rate as set", "best rate", "the same at sampled times")
    return table(titles, lines)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many minutes")
    made.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="these alone")
    made.add_argument("--as-set", action="store_true", help="search no rates")
    options = made.parse_args()
    base = base_directory(ROOT / ".cache" / "bench" / "families", ROOT)
    nodes = boot_in_process(facts().comfyui, base)
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    bench, pack = Bench(time.monotonic() + 60 * options.minutes), loaded_pack(base)
    try:
        for name in options.only:
            family = Family(nodes, pack, name)
            for who, settings in ways(name):
                bench.way(family, name, who, settings, search=not options.as_set)
    except OutOfTimeError:
        print(f"stopped after {options.minutes:g} minutes; the same command goes on")
    print(page(bench.found))


if __name__ == "__main__":
    main()
