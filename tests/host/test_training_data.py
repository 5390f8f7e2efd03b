"""What Train LoRA / LyCORIS does with its data: where they are, what preserves, what a resume notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hosting import Host
from PIL import Image
from trainable import Counted, caption, fill, latent, module, unchanged

pytestmark = pytest.mark.host

Train = Callable[..., Any]


def data(number: int, first: int = 0) -> tuple[list[Any], list[Any]]:
    seeds = range(first, first + number)
    return [latent(seed) for seed in seeds], [caption(seed) for seed in seeds]


def test_held_out_latents_are_judged_at_evenly_spaced_times(host: Host, tiny_unet: Any) -> None:
    training, samples = module(host, ""), module(host, "samples")
    times: list[int] = []

    def seen(_: Any, args: tuple[Any, ...]) -> None:
        times.extend(args[1].round().long().tolist())

    with training.opened(tiny_unet) as session, torch.no_grad():
        held = samples.samples_of(session, *data(3), empty=[caption(9)])
        loss = training.DiffusionLoss(session=session, times=training.Times())
        handle = session.network.register_forward_pre_hook(seen)
        judged = samples.judged(held, 2, 4)
        assert all(sample.without is None for batch in judged for sample in batch)
        for batch in judged:
            loss(session.network, batch)
        handle.remove()
    # Of the thousand steps of Stable Diffusion, for each of three latents.
    assert times == [time for time in (125, 375, 625, 875) for _ in range(3)]


def test_a_picture_that_repeats_is_converted_once(host: Host, tiny_unet: Any) -> None:
    training, samples = module(host, ""), module(host, "samples")
    (one, two), captions = data(2)
    both, mask = {"samples": torch.cat([one["samples"], two["samples"]])}, torch.ones(1, 64, 64)
    with training.opened(tiny_unet) as session:
        found = samples.samples_of(
            session, [one, both, one, both], captions[:1], masks=[mask, *[mask] * 4, 0.5 * mask]
        )
    held = [sample.latent for sample in found]
    assert [held.index(latent) for latent in held] == [0, 1, 2, 0, 1, 2]
    assert torch.equal(held[0].values, held[1].values) and not torch.equal(held[1].values, held[2].values)
    assert found[3].mask is found[0].mask and float(found[5].mask.max()) == 0.5


def test_what_preserves_comes_as_often_as_what_is_learned(
    host: Host,
    train: Train,
    tiny_unet: Any,
) -> None:
    training, samples = module(host, ""), module(host, "samples")
    with training.opened(tiny_unet) as session:
        learned = samples.samples_of(session, *data(5))
        kept = samples.samples_of(session, *data(2, 20), weight=0.25)
    for batch_size in (1, 3):
        epoch = samples.epochs_of(learned, batch_size, kept)(0)
        found = [sample for batch in epoch for sample in batch]
        assert sorted(map(id, learned)) == sorted(id(one) for one in found if one.weight == 1)
        again = [sum(one is each for one in found) for each in kept]
        assert sum(again) == 5 and min(again) == 2
    latents, captions = data(2, 20)
    given: dict[str, Any] = {"preset": "attn-only", "steps": 2, "warmup": 0, "batch_size": 2}
    given |= {"regularisation_latents": latents, "regularisation_positive": captions}
    full, none = train(**given), train(**given, prior_weight=0.0)
    assert "preserved: 2 latents" in full["report"] and "preserved" not in none["report"]
    assert "regularisation_latents are left out, because prior_weight is 0" in none["report"]
    # It is the training without them, bit by bit.
    without = train(**{name: value for name, value in given.items() if "regularisation" not in name})
    assert all(torch.equal(none["lora"][key], without["lora"][key]) for key in without["lora"])
    assert any(not torch.equal(full["lora"][key], none["lora"][key]) for key in full["lora"])
    for inputs, words in (
        ({"regularisation_positive": captions}, "regularisation captions without latents"),
        ({"regularisation_latents": latents}, "regularisation_latents.*0 captions and 2 latents"),
    ):
        with pytest.raises(host.ops.TrainError, match=words):
            train(steps=1, **inputs)


def test_latents_of_which_no_two_have_one_size_are_said(train: Train) -> None:
    latents = [latent(0), latent(1, side=16), latent(2, side=24)]
    made = train(preset="attn-only", steps=1, batch_size=2, latents=latents, positive=[caption(0)])
    words = "3 latents (8 x 8 x1, 8 x 16 x1, 8 x 24 x1), batches in an epoch: 3; no two fit in one batch of 2"
    assert words in " ".join(made["report"].split())


def test_a_resumed_training_says_how_its_data_changed(train: Train) -> None:
    latents, captions = data(3)
    masks = [torch.ones(1, 64, 64)]
    settings: dict[str, Any] = {"preset": "attn-only", "resume": True}
    train(**{**settings, "resume": False}, latents=latents, positive=captions, masks=masks, steps=1)
    more, more_captions = data(4, 7)
    half = torch.ones(1, 64, 64)
    half[:, :, :32] = 0
    for steps, (inputs, words) in enumerate(
        (
            # Each differs from the one before it.
            ({"latents": latents[::-1], "positive": captions[::-1]}, ""),
            (
                {"latents": [*latents, more[3]], "positive": [*captions, more_captions[3]]},
                "latents: 1 new, 4",
            ),
            ({"latents": latents[:2], "positive": captions[:2]}, "latents: 2 gone, 2 in all"),
            ({"latents": latents[:2], "positive": captions[1::-1]}, "positive: changed for 2 of 2"),
            ({"latents": latents[:2], "positive": captions[1::-1], "masks": [half]}, "masks: changed for 2"),
            ({"latents": latents[:2], "positive": captions[1::-1], "masks": []}, "masks: changed for 2 of 2"),
            (
                {
                    "latents": latents[:2],
                    "positive": captions[1::-1],
                    "masks": [],
                    "empty_caption": captions[:1],
                },
                "empty_caption: 1 new",
            ),
        ),
        2,
    ):
        made = train(**{**settings, "masks": masks, **inputs}, steps=steps)
        report = " ".join(made["report"].split())
        assert made["path"].endswith("style_00001_.safetensors") and made["steps_done"] == steps
        assert f"went on from step {steps - 1} of an earlier run" in report
        assert ("Since then the data have changed: " + words in report) if words else "changed:" not in report


@pytest.mark.soak
def test_a_model_computes_in_the_precision_that_is_asked_for(
    host: Host,
    train: Train,
    tiny_unet: Any,
) -> None:
    seen: set[torch.dtype] = set()
    given: dict[str, Any] = {"steps": 6, "learning_rate": 3e-2, "preset": "full", "warmup": 0}
    latents, captions = data(1, 10)
    given |= {"validate_every": 6, "validation_latents": latents, "validation_positive": captions}
    whole = dict(train(**{**given, "steps": 1})["loss_map"]["validation"])
    handle = tiny_unet.model.diffusion_model.register_forward_pre_hook(
        lambda _, args: seen.add(args[0].dtype)
    )
    try:
        for precision, dtype, scaled in (
            ("bf16", torch.bfloat16, ""),
            ("fp16", torch.float16, ", with a scaled loss"),
        ):
            seen.clear()
            with unchanged(tiny_unet.model):
                made = train(**given, precision=precision, checkpointing="on")
            assert seen == {dtype}
            assert f"computed in {str(dtype).removeprefix('torch.')}{scaled}" in made["report"]
            # What is trained stays in float32.
            assert {tensor.dtype for tensor in made["lora"].values()} == {torch.float32}
            losses = dict(made["loss_map"]["validation"])
            assert losses[6] < 0.98 * losses[0] and losses[0] == pytest.approx(whole[0], rel=0.02)
    finally:
        handle.remove()


def test_samples_are_decoded_by_the_vae(
    host: Host,
    train: Train,
    tmp_path: Path,
) -> None:
    vae = host.nodes.CheckpointLoaderSimple().load_checkpoint("base.safetensors")[2]
    made = train(preset="attn-only", steps=2, sample_every=1, warmup=0, vae=vae)
    folder = tmp_path / "loras" / "style_00001_-checkpoints"
    pictures = [np.asarray(Image.open(folder / f"sample-00000{step}.png")) for step in (1, 2)]
    assert pictures[0].shape == (64, 64, 3) and "are rough" not in made["report"]
    with pytest.raises(host.ops.TrainError, match=r"vae: the VAE is not the model's \(found 16 channels"):
        train(preset="attn-only", steps=1, vae=Counted(16).vae)


def test_dropouts_are_drawn(train: Train) -> None:
    settings: dict[str, Any] = {"preset": "attn-only", "steps": 3, "warmup": 0, "learning_rate": 1e-2}
    plain = train(**settings)
    for name in ("input_dropout", "rank_dropout", "module_dropout"):
        dropped, again = (train(**settings, **{name: 0.5}) for _ in range(2))
        assert any(not torch.equal(dropped["lora"][key], plain["lora"][key]) for key in plain["lora"]), name
        # Chance is made of the seed alone.
        assert all(torch.equal(dropped["lora"][key], again["lora"][key]) for key in plain["lora"])


def test_inputs_in_groups_are_checked(host: Host, train: Train, tiny_unet: Any) -> None:
    made = train(preset="attn-only", steps=1, batch_size=2, optimiser="sgd", learning_rate=0.1)
    assert ", sgd, " in made["report"] and "batches in an epoch: 2" in made["report"]
    node = host.nodes.NODE_CLASS_MAPPINGS["LycorisTrain"]
    latents, captions = data(4)
    given: dict[str, Any] = {"model": [tiny_unet], "latents": latents, "positive": captions, "steps": [1]}
    with pytest.raises(
        host.ops.LycorisError, match=r"learning_rat: there is no such input.*Is it learning_rate\?"
    ):
        train(learning_rat=1.0)
    with pytest.raises(host.ops.LycorisError, match=r"preset: there is no such .*Is it layers\.preset\?"):
        node.execute(**given, preset=["full"])
    with pytest.raises(host.ops.LycorisError, match=r"`batch_size` cannot be used.*whole"):
        node.execute(**given, optimisation={"optimisation": ["own"], "batch_size": [1.5]})


def test_what_a_mask_leaves_out_is_held_to_the_model_itself(host: Host, tiny_unet: Any) -> None:
    """The loss is that within the mask, and the distance from the model alone outside of it."""
    training, samples = module(host, ""), module(host, "samples")
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :16] = 1
    with training.opened(tiny_unet) as session:
        held = samples.samples_of(session, [latent(0)], [caption(0)], masks=[mask])
        (whole,) = samples.samples_of(session, [latent(0)], [caption(0)])
        inverse = samples.samples_of(session, [latent(0)], [caption(0)], masks=[1 - mask])
        net = session.adapted(rank=2, preset="attn-only", seed=0).apply_to()
        fill(net)
        given = {"session": session, "times": training.Times()}

        def value(of: list[Any], **more: Any) -> float:
            torch.manual_seed(3)
            return float(training.DiffusionLoss(**given, **more)(session.network, of).detach())

        # What the model alone makes of the noised latent, as a latent to be learned.
        torch.manual_seed(3)
        drawn = training.DiffusionLoss(**given)._draw(whole)
        sigma = training.sigma_at(session.model.model_sampling, drawn.time)
        x = training.noised(session.model.model_sampling, sigma, drawn.noise, whole.latent.values)
        conds = training.joined([whole.caption])
        with torch.no_grad():
            found = session.prediction(x, sigma, conds)
            with net.off():
                alone = session.prediction(x, sigma, conds)
        unit = training.weight_on_denoised(session.model.model_sampling, sigma)
        outside = inverse[0].mask.expand_as(alone)
        apart = float(unit * ((found - alone).square() * outside).sum() / (1 - outside).sum())
        assert value(held, masked_prior=0.5) == pytest.approx(value(held) + 0.5 * apart, rel=1e-4)
        assert value([whole], masked_prior=0.5) == value([whole]) and apart > 0
