"""Two adapters in two halves of a picture: do they stay there, and what does that take?

`python -m benchmarks.bleed [--pictures N] [--only MODEL] [--side N]` trains a small UNet and a small
transformer of ComfyUI's to draw a white shape in each half of a picture, and for each an adapter that makes
shapes red and one that makes them blue. It then samples pictures with red for the left half and blue for the
right one: by masks, by ComfyUI's hooks (a conditioning with its own LoRA for each half) and by both adapters
unmasked. It prints the share of pictures whose halves have the right colours, and the time of a picture.
The three ways take turns, batch by batch. Latents are twice as wide as in training, with several shapes in
each half: in one of the training's size the border between the halves is near everywhere.

The models are trained once, in minutes on a CPU, and kept in `.cache/bench/quality`.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.passes import made
from benchmarks.passes import run as ran
from benchmarks.quality.bases import trained
from benchmarks.side import Table, milliseconds, parser, versions
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process, loaded_pack

SIDE, BATCH, STEPS = 16, 25, 10
"""The side of a latent in training, the pictures of a batch and the steps of a sampling."""
DENOISE = 0.7
"""How much of the noise is put on a dark picture. Models this small do not find its colour in noise alone."""
WHITE, RED, BLUE = (1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, -1.0, 1.0)
ON_DARK = -1.0
CLEAR = 0.5
"""A shape is right if its colour exceeds the other colour by more than this, of at most 2."""
Batch = tuple[Tensor, Tensor, Tensor]
"""Pictures, noise, and shares of the diffusion's time."""


@dataclass(frozen=True)
class Case:
    title: str
    architecture: str
    settings: Mapping[str, Any]
    channels: int
    text: int
    """The width of a text's tokens."""
    cfg: float
    steps: int
    times: float
    """The last time that the model's sampling knows."""
    pooled: int = 0
    lr: float = 2e-3
    adapter_steps: int = 250
    more: Mapping[str, float] = field(default_factory=dict[str, float])
    """Numbers that the model is given in training."""

    def conditioning(self, seed: int) -> Any:
        """A text of random vectors, as a CLIP gives it."""
        draw = torch.Generator().manual_seed(seed)
        options = {"pooled_output": torch.randn(1, self.pooled, generator=draw)} if self.pooled else {}
        return [[torch.randn(1, 5, self.text, generator=draw), options]]

    def conds(self, rows: int) -> dict[str, Tensor]:
        """What `apply_model` takes beside the latent: half of the rows with another text, as in guidance."""
        found: dict[str, list[Tensor]] = {}
        for number in range(rows):
            ((text, options),) = self.conditioning(number % 2)
            found.setdefault("c_crossattn", []).append(text)
            if self.pooled:
                found.setdefault("y", []).append(options["pooled_output"])
        joined = {name: torch.cat(values) for name, values in found.items()}
        return {**joined, **{name: torch.full((rows,), value) for name, value in self.more.items()}}


CASES = (
    Case(
        "UNet",
        "SD1.5",
        {
            "model_channels": 32,
            "num_head_channels": 16,
            "context_dim": 24,
            "channel_mult": [1, 2],
            "num_res_blocks": [1, 1],
            "transformer_depth": [1, 1],
            "transformer_depth_output": [1, 1, 1, 1],
        },
        channels=4,
        text=24,
        cfg=2.0,
        steps=1500,
        times=999.0,
    ),
    Case(
        "transformer",
        "Flux 1",
        {
            "in_channels": 16,
            "out_channels": 16,
            "hidden_size": 64,
            "num_heads": 4,
            "axes_dim": [4, 6, 6],
            "depth": 2,
            "depth_single_blocks": 2,
            "context_in_dim": 20,
        },
        channels=16,
        text=20,
        cfg=1.0,
        steps=1000,
        times=1.0,
        pooled=12,
        more={"guidance": 3.5},
    ),
)


def pictures(count: int, colour: tuple[float, ...], channels: int, draw: torch.Generator) -> Tensor:
    """Pictures (count, channels, SIDE, SIDE) with a round or square shape in each half."""
    place = torch.arange(SIDE) + 0.5
    shape = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for left in (0, SIDE // 2):
        size = 2 + torch.rand(count, 1, 1, generator=draw)
        x = left + size + (SIDE / 2 - 2 * size) * torch.rand(count, 1, 1, generator=draw)
        y = size + (SIDE - 2 * size) * torch.rand(count, 1, 1, generator=draw)
        across, down = (place - x).abs(), (place[:, None] - y).abs()
        is_round = torch.rand(count, 1, 1, generator=draw) < 0.5
        shape |= torch.where(is_round, across.square() + down.square() < size**2, across.maximum(down) < size)
    # As many channels as the model has, one colour after the other.
    values = torch.tensor([colour[number % 3] for number in range(channels)])[:, None, None]
    return torch.where(shape[:, None], values, ON_DARK)


def batches(case: Case, colour: tuple[float, ...], seed: int, count: int = 12) -> Iterator[Batch]:
    draw = torch.Generator().manual_seed(seed)
    while True:
        drawn = pictures(count, colour, case.channels, draw)
        yield drawn, torch.randn(drawn.shape, generator=draw), torch.rand(count, generator=draw)


def loss(case: Case, model: Any, network: Any, batch: Batch) -> Tensor:
    """The mean square error of the denoised picture, weighted so that high noise counts too.

    For a flow this is the error of the velocity, and for models with noise levels above 1 the error of v
    (arXiv 2202.00512, appendix D).
    """
    assert model.diffusion_model is network
    drawn, noise, times = batch
    sampling = model.model_sampling
    sigma = sampling.sigma(times * case.times)
    wide = sigma[:, None, None, None]
    noisy = sampling.noise_scaling(wide, noise, drawn)
    found = model.apply_model(noisy, sigma, transformer_options={}, **case.conds(len(drawn)))
    weight = wide.square().reciprocal() + float(case.times > 1)
    return (weight * (found - drawn).square()).mean()


def adapter(ops: Any, case: Case, model: Any, colour: tuple[float, ...]) -> Any:
    """A LoRA that gives the shapes a colour."""
    network = ops.create_lycoris(
        model.diffusion_model, rank=8, preset="attn-mlp", prefix="diffusion_model.", seed=1
    )
    network.apply_to()
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=case.adapter_steps)
    for batch in itertools.islice(batches(case, colour, seed=5), case.adapter_steps):
        loss(case, model, model.diffusion_model, batch).backward()
        optimiser.step()
        rates.step()
        optimiser.zero_grad()
    network.restore()
    return network.to_adapter()


@contextmanager
def trainable(pack: Any, network: Any) -> Iterator[None]:
    """A context in which a network of ComfyUI's has gradients, as in the pack's own training."""
    cures: Any = importlib.import_module(f"{pack.__name__}.lycoris_nodes.training.model.cures")
    host: Any = importlib.import_module(f"{pack.__name__}.lycoris_nodes.host.training")
    with host.marked_training(), cures.cured(cures.kinds_of(network)), cures.reads_copied(network):
        yield


def is_right(latents: Tensor) -> list[bool]:
    """Whether the shapes in the left half are red and those in the right half blue, for each picture."""
    found: list[bool] = []
    for red, _, blue in latents[:, :3].unbind():
        lit, lead = torch.maximum(red, blue) > 0, red - blue
        leads = [
            float(half[shape].mean()) if int(shape.sum()) >= 4 else 0.0
            for half, shape in zip(lead.chunk(2, 1), lit.chunk(2, 1), strict=True)
        ]
        found.append(leads[0] > CLEAR and leads[1] < -CLEAR)
    return found


def main() -> None:
    options = parser(__doc__, rounds=0)
    options.add_argument("--pictures", type=int, default=100)
    options.add_argument("--only", choices=[case.title for case in CASES], help="one of the two models")
    options.add_argument("--side", type=int, default=2 * SIDE, help="the side of the sampled latents")
    chosen = options.parse_args()
    side: int = chosen.side
    base = base_directory(ROOT / ".cache" / facts().host / "bench-bleed", ROOT)
    nodes = boot_in_process(facts().comfyui, base)
    import folder_paths
    from comfy.model_patcher import ModelPatcher

    pack: Any = loaded_pack(base)
    ops: Any = pack.lycoris_ops
    loras = base / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    folder_paths.add_model_folder_path("loras", str(loras))
    device = torch.device("cpu")
    halves = [torch.zeros(1, side * 8, side * 8) for _ in range(2)]
    halves[0][..., : side * 4] = halves[1][..., side * 4 :] = 1

    run: Callable[..., Any] = partial(ran, nodes)
    table = Table("model", "way", "both halves right", "ms a picture", "time over that of hooks")
    for case in (case for case in CASES if chosen.only in (None, case.title)):
        name = f"bleed-{case.title}"
        torch.manual_seed(0)
        model = made(case.architecture, case.settings)
        with trainable(pack, model.diffusion_model):
            trained(
                name,
                (case, SIDE),
                lambda model=model: model.diffusion_model,
                partial(batches, case, WHITE, 3),
                partial(loss, case, model),
                steps=case.steps,
                lr=case.lr,
            )
            colours = {"red": RED, "blue": BLUE}
            adapters = {word: adapter(ops, case, model, colour) for word, colour in colours.items()}
        plain = ModelPatcher(model, load_device=device, offload_device=device)
        positive, negative = case.conditioning(0), case.conditioning(1)
        stacks = {word: ops.Stack([ops.Entry(one)]) for word, one in adapters.items()}
        masked = [
            run("LycorisMask", stack, half)[0] for stack, half in zip(stacks.values(), halves, strict=True)
        ]
        pairs: list[Any] = []
        for word, half in zip(adapters, halves, strict=True):
            file = f"{name}-{word}.safetensors"
            (loras / file).unlink(missing_ok=True)
            ops.save_adapter(adapters[word], loras / file, dialect="comfy")
            folder_paths.filename_list_cache.clear()
            (hooks,) = run("CreateHookLoraModelOnly", file, 1.0)
            pairs.append(
                run(
                    "PairConditioningSetProperties",
                    positive,
                    negative,
                    1.0,
                    "default",
                    mask=half,
                    hooks=hooks,
                )
            )
        by_hooks = run("PairConditioningCombine", *pairs[0], *pairs[1])
        unmasked = stacks["red"] + stacks["blue"]
        works: dict[str, tuple[Any, Any, Any]] = {
            "masks": (run("LycorisApplyStack", plain, masked[0] + masked[1])[0], positive, negative),
            "hooks": (plain.clone(), *by_hooks),
            "unmasked": (run("LycorisApplyStack", plain, unmasked)[0], positive, negative),
        }

        def sampled(way: str, seed: int, works: Any = works, case: Case = case) -> Tensor:
            patched, *texts = works[way]
            dark = torch.full((BATCH, case.channels, side, side), ON_DARK)
            start = {"samples": patched.model.process_latent_out(dark)}
            with torch.inference_mode():
                (found,) = run(
                    "KSampler", patched, seed, STEPS, case.cfg, "euler", "simple", *texts, start, DENOISE
                )
            return patched.model.process_latent_in(found["samples"])

        times: dict[str, list[float]] = {way: [] for way in works}
        right: dict[str, list[bool]] = {way: [] for way in works}
        for seed in range(-1, chosen.pictures // BATCH):
            for way in works:
                found: list[Tensor] = []
                took = milliseconds(
                    lambda way=way, seed=seed, found=found: found.append(sampled(way, seed + 1))
                )
                # The first batch only warms up.
                if seed >= 0:
                    times[way].append(took)
                    right[way] += is_right(found[0])
        for way in works:
            share = sum(right[way]) / len(right[way])
            spent, other = sum(times[way]), sum(times["hooks"])
            table.row(
                case.title, way, f"{share:.0%}", f"{spent / len(right[way]):.1f}", f"{spent / other:.2f}"
            )
    print(f"\n{versions()}", file=sys.stdout)


if __name__ == "__main__":
    main()
