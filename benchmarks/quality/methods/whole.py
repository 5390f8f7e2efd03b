"""Fine-tuning of the whole weights of the adapted layers: what the adapters are measured against."""

from __future__ import annotations

from ..method import LARGE, SMALL, Method, Setting
from ..training import Adapted


def fine_tuning(setting: Setting) -> Adapted:
    weights = [site.module.weight.requires_grad_(True) for site in setting.sites.values()]
    return Adapted(
        module=setting.module,
        groups=lambda lr: [{"params": weights, "lr": lr}],
        numbers=lambda: sum(weight.numel() for weight in weights),
    )


METHODS = (
    Method("fine-tuning", (0,), -14, fine_tuning, LARGE),
    Method("fine-tuning", (0,), -10, fine_tuning, SMALL),
)
