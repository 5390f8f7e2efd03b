"""Latents, captions and masks as a model is trained on them, and the loss of a batch of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, patcher
from trainable import CPU, fill, module, tiny, train

pytestmark = pytest.mark.host


def text(words: int, features: int, seed: int = 0, **settings: Any) -> list[Any]:
    """A conditioning as CLIP Text Encode makes it."""
    draw = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, 12, generator=draw)
    return [[10 * torch.randn(1, words, features, generator=draw), {"pooled_output": pooled, **settings}]]


def sdxl() -> Any:
    """A tiny SDXL that takes the sizes of the picture."""
    return tiny("SDXL", adm_in_channels=12 + 6 * 256)


def raw(training: Any, values: torch.Tensor) -> Any:
    """A latent in the scale of the model already: the tiny models have fewer channels than the real ones."""
    return training.Latent(values, (values.shape,))


def test_latents_get_the_scale_of_the_model(host: Host) -> None:
    """A picture is a video of one frame for a model of videos, whose channels have scales of their own."""
    wan = tiny("Wan 2.1 t2v")
    with torch.inference_mode():
        latent = torch.randn(1, 16, 8, 8)
    made = module(host, "").latent_of(wan, latent, CPU).values
    mean, spread = wan.latent_format.latents_mean, wan.latent_format.latents_std
    torch.testing.assert_close(made, (latent.clone()[:, :, None] - mean) / spread)
    assert not made.is_inference()


def test_nested_latents_count_each_part_by_itself(host: Host) -> None:
    latents = module(host, "latents")
    from comfy.nested_tensor import NestedTensor

    video, sound = torch.randn(1, 128, 2, 4, 4), torch.randn(1, 8, 3, 16)
    made = latents.latent_of(tiny("LTX-Video"), NestedTensor([video, sound]), CPU)
    assert made.values.shape == (1, 1, video.numel() + sound.numel())
    assert [tuple(shape) for shape in made.shapes] == [tuple(video.shape), tuple(sound.shape)]
    found = latents.means(made.values.square(), made.shapes, None)
    torch.testing.assert_close(found[0], video.square().mean() + sound.square().mean())


def test_a_mask_is_averaged_over_what_a_latent_value_stands_for(host: Host) -> None:
    training, latents = module(host, ""), module(host, "latents")
    model = tiny("SD1.5")
    latent = training.latent_of(model, torch.ones(1, 4, 2, 3), CPU)
    pixels = torch.zeros(16, 24)
    pixels[:8, :8], pixels[8:, 8:12] = 1.0, 1.0
    mask = training.mask_of(model, pixels, latent)
    assert torch.equal(mask, torch.tensor([[1.0, 0, 0], [0, 0.5, 0]]).view(1, 1, 2, 3))
    difference = torch.arange(24.0).view(1, 4, 2, 3)
    wanted = (difference[:, :, 0, 0] ** 2 + 0.5 * difference[:, :, 1, 1] ** 2).sum() / (4 * 1.5)
    assert float(latents.means(difference.square(), latent.shapes, mask)) == pytest.approx(float(wanted))
    # A VAE drops what does not fill a value.
    training.mask_of(model, torch.ones(1, 19, 31), latent)
    for bad, problem in ((torch.ones(32, 24), "size"), (torch.zeros(16, 24), "nothing")):
        with pytest.raises(host.ops.TrainError, match=problem):
            training.mask_of(model, bad, latent)


def test_latents_are_noised_in_the_models_scale_however_they_are_given(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, model, seen = module(host, "loss"), patcher(tiny("SD1.5")), []
    noised = loss.noised

    def watched(sampling: Any, sigma: Any, noise: Any, latent: torch.Tensor) -> torch.Tensor:
        seen.extend(latent.split(1))
        return noised(sampling, sigma, noise, latent)

    monkeypatch.setattr(loss, "noised", watched)
    square, wide = torch.randn(3, 4, 8, 8), torch.randn(2, 4, 8, 16)
    for given in ([square], list(square.split(1)), [*square.split(1), *wide.split(1)], [square, wide]):
        seen.clear()
        train(
            host,
            tmp_path,
            model=model,
            latents=[{"samples": batch} for batch in given],
            positive=[text(5, 24)],
            preset="attn-only",
            rank=2,
            steps=2,
            batch_size=2,
            accumulation=5,
        )
        wanted = [0.18215 * latent for batch in given for latent in batch.split(1)]
        for latent in wanted:
            assert any(latent.shape == one.shape and torch.allclose(latent, one) for one in seen)
        # Once in each epoch: of so few steps the loss of the model alone is not measured.
        assert len(seen) == 2 * len(wanted)


def test_sdxl_is_told_the_real_sizes(host: Host, tmp_path: Path) -> None:
    training = module(host, "")
    model = sdxl()
    latent = training.latent_of(model, torch.randn(1, 4, 8, 16), CPU)

    def told(*values: int) -> torch.Tensor:
        return torch.cat([model.embedder(torch.tensor([float(value)])) for value in values], dim=1)

    def sizes(caption: Any) -> torch.Tensor:
        return caption.conds["y"].cond[:, 12:]

    words = text(5, 24)
    torch.testing.assert_close(sizes(training.caption_of(model, words, latent)), told(64, 128, 0, 0, 64, 128))
    sizes_of = training.sizes_told((800, 600), (30, 20), (128, 64))
    made = training.caption_of(model, text(5, 24, **sizes_of), latent)
    torch.testing.assert_close(sizes(made), told(600, 800, 20, 30, 64, 128))
    # As CLIPTextEncodeSDXL says it.
    own = text(5, 24, width=512, height=256)
    torch.testing.assert_close(sizes(training.caption_of(model, own, latent)), told(256, 512, 0, 0, 64, 128))
    # The network itself gets them from the node that trains.
    seen: list[torch.Tensor] = []
    model.diffusion_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["y"][:, 12:]), with_kwargs=True
    )
    given = {"latents": [{"samples": torch.randn(1, 4, 8, 16)}], "positive": [own], "rank": 2, "steps": 1}
    train(host, tmp_path, model=patcher(model), **given)
    torch.testing.assert_close(seen[0], told(256, 512, 0, 0, 64, 128))


def test_guidance_is_that_of_the_family_whatever_a_caption_says(host: Host, tmp_path: Path) -> None:
    training = module(host, "")
    flux, chroma = tiny("Flux 1", in_channels=16, out_channels=16), tiny("Chroma")
    latent = raw(training, torch.randn(1, 4, 8, 8))

    def of(model: Any, words: list[Any]) -> float:
        return float(training.caption_of(model, words, latent).conds["guidance"].cond)

    assert of(flux, text(5, 20)) == 1.0 and of(chroma, text(5, 20)) == 0.0
    # As Flux Guidance and CLIP Text Encode (Flux) say it, for samplers.
    assert of(flux, text(5, 20, guidance=3.5)) == 1.0
    none = training.caption_of(flux, text(5, 20, guidance=None), latent)
    assert "guidance" not in none.conds
    given = {"latents": [{"samples": torch.randn(1, 16, 8, 8)}], "rank": 2, "steps": 1}
    for said, told in ((3.5, True), (1.0, False)):
        made = train(host, tmp_path, model=patcher(flux), positive=[text(5, 20, guidance=said)], **given)
        words = "a guidance of 1, at which Flux is usually trained; the guidance of the captions (3.5)"
        assert (words in made["report"]) is told
        assert "losses are at a guidance of 1, at which Flux is usually trained" in made["report"]


BATCHES = {
    # A text of 10 tokens beside one of 5: the host repeats the shorter, which changes no attention.
    "SD1.5": (24, 5, 10, 1),
    "SDXL": (24, 5, 5, 1),
    "Flux 1": (20, 5, 5, 1),
    # Texts of different length are a pass each.
    "Qwen-Image": (20, 5, 7, 2),
    "Lumina 2": (20, 5, 7, 2),
}
"""The width of the texts, how many tokens two of them have, and how many passes the two are."""


def assert_each_row_has_its_own(opened: Any, samples: list[Any]) -> None:
    """Assert that the predictions of a batch are those of each sample alone.

    The errors are shares of what another caption changes.
    """
    sigma = torch.tensor([0.5, 0.5])
    latent = samples[0].latent.values.repeat(2, 1, 1, 1)
    captions = [sample.caption.conds for sample in samples]
    with torch.no_grad():
        both = opened.prediction(latent, sigma, joined(captions))
        alone = [opened.prediction(latent[:1], sigma[:1], joined([caption])) for caption in captions]
    effect = (alone[0] - alone[1]).norm()
    assert effect > 1e-5 * alone[0].norm()
    for row, one in zip(both, alone, strict=True):
        assert (row - one[0]).norm() < 0.02 * effect


def joined(conds: list[Any]) -> dict[str, Any]:
    """What the host itself makes of conditionings of one batch."""
    from comfy.samplers import cond_cat

    return cond_cat(conds)


@pytest.mark.parametrize("architecture", BATCHES)
def test_a_batch_of_two_captions_is_the_two_single_ones(host: Host, architecture: str) -> None:
    training = module(host, "")
    width, first, second, passes = BATCHES[architecture]
    model = sdxl() if architecture == "SDXL" else tiny(architecture)
    frames = (1,) if architecture == "Qwen-Image" else ()
    with training.opened(patcher(model)) as opened:
        fill(opened.adapted(rank=2, preset="attn-mlp", seed=0).apply_to())
        samples = []
        for seed, words in enumerate((first, second)):
            latent = raw(training, torch.randn(1, 4, *frames, 8, 8))
            samples.append(
                training.Sample(latent, training.caption_of(model, text(words, width, seed), latent))
            )
        loss = training.DiffusionLoss(session=opened, times=training.trained_family(model).times)
        calls = []
        model.diffusion_model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
        torch.manual_seed(0)
        both = loss(opened.network, samples)
        assert len(calls) == passes and sum(calls) == 2
        torch.manual_seed(0)
        singles = [loss(opened.network, [sample]) for sample in samples]
        torch.testing.assert_close(both, sum(singles) / 2, rtol=1e-5, atol=0)
        if passes == 1:
            assert_each_row_has_its_own(opened, samples)
    assert [len(batch) for batch in training.batches_of(samples, 2)] == [2 // passes] * passes


def test_the_loss_of_a_model_is_that_of_its_raw_target(host: Host) -> None:
    """The loss that is handed over, against the network's own output and target, for noise and velocity."""
    training = module(host, "")
    for architecture, width, is_flow in (("SD1.5", 24, False), ("Flux 1", 20, True)):
        model = tiny(architecture)
        with training.opened(patcher(model)) as opened, torch.no_grad():
            latent = raw(training, torch.randn(1, 4, 8, 8))
            sample = training.Sample(latent, training.caption_of(model, text(5, width), latent))
            outputs: list[torch.Tensor] = []
            model.diffusion_model.register_forward_hook(lambda *given: outputs.append(given[-1]))  # noqa: B023
            loss = training.DiffusionLoss(session=opened, times=training.Times())
            torch.manual_seed(4)
            found = loss(opened.network, [sample])
            torch.manual_seed(4)
            torch.rand(1)
            noise = torch.randn(latent.values.shape)
            target = noise - latent.values if is_flow else noise
            torch.testing.assert_close(found, (outputs[0] - target).square().mean(), rtol=1e-4, atol=0)
            off = (outputs[0] - target).double()
            root = (off**2 + 0.3**2).sqrt() - 0.3
            for kind, wanted in {"l1": off.abs(), "huber": 0.6 * root, "smooth_l1": 2 * root}.items():
                loss = training.DiffusionLoss(
                    session=opened, times=training.Times(), loss_type=kind, delta=0.3
                )
                torch.manual_seed(4)
                found = loss(opened.network, [sample])
                torch.testing.assert_close(found.double(), wanted.mean(), rtol=1e-4, atol=0)


def test_what_is_beside_a_text_stays_where_the_text_is_dropped(host: Host) -> None:
    training, samples, model = module(host, ""), module(host, "samples"), sdxl()
    sizes = {"width": 640, "height": 320, "crop_w": 8}
    positive = [text(5, 24, seed, **sizes) for seed in range(2)] + [text(5, 24, 2)]
    (empty,) = text(5, 24, 9)
    with training.opened(patcher(model)) as opened:
        latents = [{"samples": torch.randn(1, 4, 8, 8)} for _ in positive]
        first, second, plain = samples.samples_of(opened, latents, positive, empty=[[empty]])
    # One object serves all that say the same.
    assert first.without is second.without is not plain.without
    for made, settings in ((first, sizes), (plain, {})):
        wanted = training.caption_of(model, [[empty[0], {**empty[1], **settings}]], made.latent)
        for name, cond in wanted.conds.items():
            assert torch.equal(made.without.conds[name].cond, cond.cond)


def test_dropped_captions_weights_and_offsets(host: Host) -> None:
    training = module(host, "")
    model = tiny("SD1.5")
    with training.opened(patcher(model)) as opened, torch.no_grad():
        latent = raw(training, torch.randn(1, 4, 8, 8))
        said, empty = (training.caption_of(model, text(5, 24, seed), latent) for seed in (1, 2))
        times = training.Times()

        def loss(sample: Any, **more: Any) -> torch.Tensor:
            torch.manual_seed(0)
            made = training.DiffusionLoss(session=opened, times=times, **more)
            return made(opened.network, [sample])

        plain = loss(training.Sample(latent, said))
        assert loss(training.Sample(latent, said, without=empty), caption_dropout=1.0) == loss(
            training.Sample(latent, empty)
        )
        assert loss(training.Sample(latent, said), caption_dropout=1.0) == plain
        torch.testing.assert_close(loss(training.Sample(latent, said, weight=0.5)), plain / 2)
        assert loss(training.Sample(latent, said), noise_offset=0.1) != plain
        huber = {"loss_type": "huber", "delta": 100.0}
        torch.testing.assert_close(loss(training.Sample(latent, said), **huber), plain, rtol=1e-3, atol=0)
        low, high = ({"weighting": "min-snr", **how} for how in ({}, {"loss_type": "huber", "delta": 100.0}))
        torch.testing.assert_close(
            loss(training.Sample(latent, said), **low),
            loss(training.Sample(latent, said), **high),
            rtol=1e-3,
            atol=0,
        )
    with (
        training.opened(patcher(tiny("Flux 1"))) as opened,
        pytest.raises(host.ops.TrainError, match="offset"),
    ):
        training.DiffusionLoss(session=opened, times=times, noise_offset=0.1)
    # A schedule whose last step is noise alone, as Model Sampling Discrete makes it.
    zero = patcher(tiny("SD1.5"))
    (zero,) = host.nodes.NODE_CLASS_MAPPINGS["ModelSamplingDiscrete"]().patch(zero, "v_prediction", True)
    zero.patch_model()
    with training.opened(zero) as opened:
        training.DiffusionLoss(session=opened, times=times)
        with pytest.raises(host.ops.TrainError, match=r"offset.*zsnr"):
            training.DiffusionLoss(session=opened, times=times, noise_offset=0.1)
