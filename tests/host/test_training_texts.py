"""Tiny text encoders with the real tokenizer, trained beside a model by the node and by its parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, Patched, patcher, unload
from torch import Tensor
from trainable import (
    chained,
    clip_with_words,
    distance,
    encoded,
    fill,
    gradients,
    held_out_loss,
    latent,
    module,
    tiny,
    unchanged,
)

pytestmark = pytest.mark.host

WIDTH = 32
TEXTS = ["mystyle, a red disc on a mat", "mystyle, a blue square"]


@pytest.fixture(scope="module")
def tiny_unet(host: Host) -> Any:
    return patcher(tiny("SD1.5", context_dim=WIDTH))


@pytest.fixture(scope="module")
def clip(host: Host) -> Any:
    return clip_with_words("SD1.5")


def settings_of(host: Host, clip: Any) -> dict[str, Any]:
    """Two latents with their captions, and two that are held out."""
    positive = [encoded(host, clip, text) for text in TEXTS]
    return {
        "latents": [latent(0), latent(1)],
        "positive": positive,
        "captions": TEXTS,
        "validation_latents": [latent(10), latent(11)],
        "validation_positive": positive,
        "validation_captions": TEXTS,
    }


def loss_of(host: Host, model: Any, clip: Any) -> float:
    """The held-out loss as the node measures it, with captions that CLIP Text Encode makes."""
    with torch.inference_mode():
        positive = [encoded(host, clip, text) for text in TEXTS]
    return held_out_loss(host, model, [latent(10), latent(11)], positive)


def test_both_are_trained_and_the_file_gives_the_encodings_and_the_loss_of_the_training(
    host: Host,
    train: Callable[..., Any],
    tiny_unet: Any,
    clip: Any,
) -> None:
    given = settings_of(host, clip)
    settings: dict[str, Any] = {"steps": 12, "learning_rate": 2e-2, "validate_every": 12, "sample_every": 12}
    settings |= {"text_learning_rate": 4e-2, "preset": "full", "checkpointing": "off", "warmup": 0}
    with unchanged(tiny_unet.model), unchanged(clip.cond_stage_model):
        made = train(clip=clip, **given, **settings)
    losses = dict(made["loss_map"]["validation"])
    assert losses[12] < 0.98 * losses[0]
    assert (
        "text encoders at 2 times that" in made["report"] and "10% of the captions dropped" in made["report"]
    )
    layers = made["stack"].entries[0].adapter.layers
    of_text = [name for name in layers if name.startswith("text_encoders.clip_l.transformer.")]
    # q, k, v, out and the two of the MLP in each of three layers.
    assert len(of_text) == 18 and len(layers) > 18
    applied = host.apply(Patched(tiny_unet, clip), made["stack"], mode="bypass")
    with unchanged(clip.cond_stage_model):
        assert loss_of(host, applied.model, applied.clip) == pytest.approx(losses[12], rel=1e-4)
        unload()
    before, after = (encoded(host, one, TEXTS[0])[0][0] for one in (clip, applied.clip))
    assert (after - before).norm() > 0.01 * before.norm()
    # ComfyUI's own loader reads every layer of the file.
    import comfy.sd

    loaded: Any
    loaded_clip: Any
    loaded, loaded_clip = comfy.sd.load_lora_for_models(tiny_unet, clip, made["lora"], 1.0, 1.0)
    assert len(loaded_clip.patcher.patches) == len(of_text)
    assert len(loaded.patches) == len(layers) - len(of_text)
    assert loss_of(host, loaded, loaded_clip) == pytest.approx(losses[12], rel=1e-4)


def test_parentheses_are_trained_as_they_are_encoded(host: Host, tiny_unet: Any, clip: Any) -> None:
    """They are taken literally, where CLIP Text Encode would read weights of words."""
    training = module(host, "")
    with training.opened(clip.patcher) as session, torch.no_grad():
        encoder = training.TextEncoder(clip, session, tiny_unet.model, session.device)
        found = encoder.conditioning(training.Text("a (small) cat", {}))[0][0]
    assert torch.equal(found, encoded(host, clip, r"a \(small\) cat")[0][0])
    assert not torch.equal(found, encoded(host, clip, "a (small) cat")[0][0])


def test_a_stack_goes_on_with_both_and_texts_are_asked_for(
    host: Host,
    train: Callable[..., Any],
    clip: Any,
) -> None:
    held_out = settings_of(host, clip)
    given = {name: value for name, value in held_out.items() if not name.startswith("validation")}
    first = train(clip=clip, **given, steps=1, preset="attn-only", dialect="kohya")
    assert {f"lora_te_text_model_encoder_layers_{number}_mlp_fc1.alpha" for number in range(3)} <= set(
        first["lora"]
    )
    prior = {"regularisation_latents": [latent(5)], "regularisation_positive": given["positive"][:1]}
    prior["regularisation_captions"] = ["a square"]
    again: dict[str, Any] = {"stack": first["stack"], "filename_prefix": "loras/more", **prior}
    second = train(clip=clip, **given, steps=1, **again)
    assert len(second["lora"]) == len(first["lora"]) and "preserved: 1 latent" in second["report"]
    assert all(name.startswith(("diffusion_model.", "text_encoders.")) for name in second["lora"])
    kept = {**given, "captions": []}
    for inputs, words in (
        (kept, r"captions: a text encoder is trained on texts"),
        ({**given, "captions": [*TEXTS, "three"]}, r"not as many texts as latents.*3 texts and 2 latents"),
        ({**held_out, "validation_captions": ["a", "b", "c"]}, r"validation_latents.*3 texts"),
        (
            {**given, "validation_captions": ["a"]},
            r"^validation_captions: .*held-out captions without latents",
        ),
    ):
        with pytest.raises(host.ops.TrainError, match=words):
            train(clip=clip, **inputs, steps=1)
    with pytest.raises(host.ops.MatchError, match=r"To resume it, link `clip` and `captions`, as they were"):
        train(**kept, steps=2, filename_prefix="loras/more", resume=True)
    # An optimiser that finds the rate takes one for all.
    settings = host.module("lycoris_nodes.training.node.settings")
    usual = {"prodigy": 1.0, "adamw": 0.1}
    assert usual == {
        name: settings.text_rate_of(settings.Asked(text_learning_rate=0.0, optimiser=name), None)
        for name in usual
    }
    # Without `clip` texts would have no effect, whichever latents they are for.
    for inputs, name in (
        (given, "captions"),
        ({**kept, **prior}, "regularisation_captions"),
        ({**kept, **held_out, "captions": []}, "validation_captions"),
    ):
        with pytest.raises(host.ops.TrainError, match=rf"^{name}: .*no text encoder to train.*`{name}`"):
            train(**inputs, steps=1)


@pytest.mark.soak
def test_a_resumed_training_of_both_ends_as_an_unbroken_one(
    host: Host,
    train: Callable[..., Any],
    stop_after: Callable[[int], None],
    clip: Any,
    tmp_path: Path,
) -> None:
    """Bitwise, after Stop and after the last step, with all draws: dropouts, orders and regularisation."""
    import comfy.model_management

    # Latents of two sizes and texts of two lengths, so that a batch takes several passes.
    texts = [*TEXTS, "mystyle, " + "a green square on a mat, " * 16]
    settings: dict[str, Any] = {
        "latents": [latent(0), latent(1, side=16), latent(2)],
        "positive": [encoded(host, clip, text) for text in texts],
        "captions": texts,
        "regularisation_latents": [latent(5)],
        "regularisation_positive": [encoded(host, clip, "a square")],
        "regularisation_captions": ["a square"],
        "validation_latents": [latent(10)],
        "validation_positive": [encoded(host, clip, texts[0])],
        "validation_captions": texts[:1],
    }
    settings |= {"preset": "attn-only", "schedule": "constant", "warmup": 0, "batch_size": 2, "ema": 0.9}
    settings |= {"caption_dropout": 0.3, "input_dropout": 0.1, "rank_dropout": 0.2, "module_dropout": 0.1}
    settings |= {"learning_rate": 2e-2, "text_learning_rate": 2e-2, "accumulation": 2, "validate_every": 2}
    one_level = {"channel_mult": [1], "num_res_blocks": [1]}
    one_level |= {"transformer_depth": [1], "transformer_depth_output": [1, 1]}
    settings |= {"clip": clip, "model": patcher(tiny("SD1.5", context_dim=WIDTH, **one_level))}
    stop_after(2)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(**settings, steps=4)
    # As the host does before each prompt.
    comfy.model_management.interrupt_current_processing(False)
    assert (tmp_path / "loras" / "style_00001_-checkpoints" / "last.state.safetensors").is_file()
    stop_after(100)
    # A finished training goes on in the same way as a stopped one.
    assert train(**settings, steps=2, filename_prefix="loras/ended")["steps_done"] == 2
    whole = train(**settings, steps=4, filename_prefix="loras/whole")
    for prefix in ("style", "ended"):
        resumed = train(**settings, steps=4, filename_prefix=f"loras/{prefix}", resume=True)
        assert resumed["loss_map"] == whole["loss_map"]
        assert resumed["lora"].keys() == whole["lora"].keys()
        assert all(torch.equal(resumed["lora"][key], whole["lora"][key]) for key in whole["lora"])
    of_text = [key for key in whole["lora"] if key.startswith("text_encoders.") and "lora_up" in key]
    assert of_text and all(whole["lora"][key].any() for key in of_text)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_through_the_captions_are_those_of_the_changed_weights(
    host: Host, tiny_unet: Any, clip: Any, checkpointing: bool
) -> None:
    """The reference is the chain rule: autograd's gradient of each weight, through the layer's change."""
    training = module(host, "")
    samples = module(host, "samples")
    positive = [encoded(host, clip, text) for text in TEXTS]

    def loss_of(session: Any, of_text: Any) -> Tensor:
        encoder = training.TextEncoder(clip, of_text, session.model, session.device)
        data = samples.samples_of(session, [latent(0), latent(1)], positive, texts=TEXTS, encoder=encoder)
        loss = training.DiffusionLoss(session=session, times=training.Times(), encoder=encoder)
        torch.manual_seed(0)
        return loss(None, data)

    with (
        training.opened(tiny_unet, checkpointing=checkpointing) as session,
        training.opened(clip.patcher, checkpointing=checkpointing, memory=None) as of_text,
    ):
        net = of_text.adapted(rank=2, preset="attn-mlp", seed=0)
        fill(net)
        wanted = chained(net, lambda: loss_of(session, of_text))
        net.apply_to()
        loss_of(session, of_text).backward()
        assert distance(gradients(net), wanted) < 1e-4
        with pytest.raises(host.ops.TrainError, match="running already"), training.opened(tiny_unet):
            pass
