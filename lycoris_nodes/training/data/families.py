"""How the models of each family are trained by default, as their trainers do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....lycoris_ops import TrainError, located
from .targets import parametrisation_of
from .times import ByTokens, Times


@dataclass(frozen=True)
class Family:
    """The defaults for one family of models. The learning rate is for a scale (alpha / rank) of 1."""

    name: str
    times: Times
    source: str
    """Whose defaults these are."""
    guidance: float | None = None
    """What a guidance embedding gets in a training; None for what the caption says, if it has one."""
    rank: int = 16
    lr: float = 1e-4
    preset: str = "attn-mlp"
    resolution: int = 1024
    """The side in pixels of a square with as many as a picture is trained in."""


UNIFORM = Times()
LOGIT_NORMAL = Times("logit-normal")


def _shifted(shift: float | ByTokens, distribution: str = "logit-normal") -> Times:
    return Times(distribution, shift=shift)


FAMILIES: dict[str, Family] = {
    "BaseModel": Family("Stable Diffusion", UNIFORM, "kohya-ss/sd-scripts, OneTrainer", resolution=512),
    "SDXL": Family("SDXL", UNIFORM, "kohya-ss/sd-scripts", rank=32),
    "SDXLRefiner": Family("SDXL refiner", UNIFORM, "kohya-ss/sd-scripts", rank=32),
    "SD3": Family("Stable Diffusion 3", LOGIT_NORMAL, "huggingface/diffusers, OneTrainer"),
    "Flux": Family("Flux", _shifted(ByTokens()), "kohya-ss/sd-scripts, diffusion-pipe", 1.0),
    "Flux2": Family("Flux 2", _shifted(ByTokens()), "kohya-ss/musubi-tuner", 1.0, rank=32),
    "LongCatImage": Family("LongCat-Image", _shifted(ByTokens()), "as Flux"),
    "Chroma": Family("Chroma", LOGIT_NORMAL, "kohya-ss/sd-scripts, ai-toolkit", 0.0),
    "QwenImage": Family(
        "Qwen-Image", _shifted(ByTokens(0.5, 0.9, 256, 8192)), "kohya-ss/musubi-tuner", lr=5e-5
    ),
    "Lumina2": Family("Lumina 2", _shifted(6.0), "kohya-ss/sd-scripts", rank=8),
    "ZImage": Family("Z-Image", _shifted(2.0), "kohya-ss/musubi-tuner", rank=32),
    "WAN21": Family("Wan", _shifted(3.0), "kohya-ss/musubi-tuner", rank=32, lr=2e-4, resolution=512),
    "HunyuanVideo": Family(
        "HunyuanVideo",
        _shifted(7.0),
        "kohya-ss/musubi-tuner, diffusion-pipe",
        1.0,
        rank=32,
        lr=2e-4,
        resolution=512,
    ),
    "HunyuanVideo15": Family(
        "HunyuanVideo 1.5", _shifted(2.0), "kohya-ss/musubi-tuner", rank=32, lr=2e-4, resolution=512
    ),
    "HunyuanImage21": Family("HunyuanImage 2.1", _shifted(5.0, "uniform"), "kohya-ss/sd-scripts"),
    "LTXV": Family("LTX-Video", LOGIT_NORMAL, "diffusion-pipe", rank=32, resolution=512),
    "LTXAV": Family("LTX-2", LOGIT_NORMAL, "diffusion-pipe", rank=32, resolution=512),
    "HiDream": Family("HiDream", LOGIT_NORMAL, "OneTrainer, ai-toolkit", rank=32, lr=2e-4),
    "Anima": Family("Anima", LOGIT_NORMAL, "kohya-ss/sd-scripts", rank=8),
    "CosmosPredict2": Family("Cosmos-Predict2", LOGIT_NORMAL, "kohya-ss/sd-scripts", rank=8),
    "Krea2": Family("Krea 2", _shifted(2.5), "kohya-ss/musubi-tuner", rank=32),
    "ACEStep": Family("ACE-Step", _shifted(3.0), "SimpleTuner"),
    "ACEStep15": Family("ACE-Step 1.5", Times("logit-normal", mean=-0.4), "SimpleTuner"),
}
"""By the name of the host's class of the model, or of its configuration where that says more.

The sources are the defaults and examples of these trainers in 2026. Their learning rates are for scales of
1/16 to 1, so that they are a start and no more.
"""

OTHER_FLOW = Family("other flow models", LOGIT_NORMAL, "what most trainers do")
OTHER = Family("other models", UNIFORM, "what most trainers do")

NOT_GENERATORS = ("RT_DETR_v4", "SAM3", "DepthAnything3")
"""The host's classes of models that detect, segment or measure, though they are called flow models there."""


def family_of(model: Any) -> Family:
    """The family of a model of the host: that of the most special class that has one.

    Raises TrainError for a model that does not denoise.
    """
    own = type(model).__name__
    if own in NOT_GENERATORS:
        raise TrainError(
            "this model makes no pictures, and is not trained by adding noise to them",
            key="model",
            got=own,
            expected="a model that denoises, such as Stable Diffusion, Flux or Wan",
        )
    with located(key=own):
        predicted = parametrisation_of(model.model_sampling).name
    kinds = [*type(getattr(model, "model_config", None)).__mro__, *type(model).__mro__]
    named = [kind.__name__ for kind in kinds]
    flow = "flow" in predicted
    for name in named:
        # Nearly every model is one of these; only those that predict noise are like it.
        if name in FAMILIES and not (name == "BaseModel" and (flow or type(model).__name__ != "BaseModel")):
            return FAMILIES[name]
    return OTHER_FLOW if flow else OTHER
