"""PEFT's own methods: LoRA, AdaLoRA, and the initialisations EVA and LoRA-GA."""

from __future__ import annotations

import re
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..method import LARGE, PROBE_BATCHES, Method, Setting, trained
from ..task import Batch
from ..training import Adapted


def _config(setting: Setting, rank: int, **options: Any) -> Any:
    from peft import LoraConfig

    paths = "|".join(map(re.escape, setting.sites))
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=paths, **options)


def _adapted(module: nn.Module) -> Adapted:
    return Adapted(
        module=module,
        groups=lambda lr: [{"params": [p for p in module.parameters() if p.requires_grad], "lr": lr}],
        numbers=lambda: trained(module),
    )


def lora(setting: Setting) -> Adapted:
    from peft import inject_adapter_in_model

    torch.manual_seed(setting.seed)
    return _adapted(inject_adapter_in_model(_config(setting, int(setting.size)), setting.module))


def lora_ga(setting: Setting) -> Adapted:
    """LoRA-GA shifts the base, so an ordinary file of it has twice the rank. What is trained is counted."""
    from peft import LoraGAConfig, get_peft_model
    from peft.tuners.lora import preprocess_loraga

    def passes() -> None:
        for batch in setting.probe_batches():
            (setting.task.loss(setting.module, batch) / PROBE_BATCHES).backward()

    torch.manual_seed(setting.seed)
    config = _config(setting, int(setting.size), init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    preprocess_loraga(setting.module, config, passes)
    # The base is in eval mode again after the passes, but the layers that PEFT adds are not.
    return _adapted(get_peft_model(setting.module, config).eval())


def eva(setting: Setting) -> Adapted:
    from peft import EvaConfig, get_peft_model, initialize_lora_eva_weights

    torch.manual_seed(setting.seed)
    # With rho 1 it only initialises; with 2, its default, it also distributes the ranks.
    config = _config(setting, int(setting.size), init_lora_weights="eva", eva_config=EvaConfig(rho=2.0))
    model = get_peft_model(setting.module, config)

    def forward(module: nn.Module, batch: Batch) -> None:
        setting.task.loss(module, batch)

    initialize_lora_eva_weights(
        model,
        list(setting.probe_batches()),
        forward_fn=forward,
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    return _adapted(model.eval())


def adalora(setting: Setting) -> Adapted:
    """AdaLoRA from 1.5 times the rank; the schedule and the weight of its penalty are those of its paper."""
    from peft import AdaLoraConfig, get_peft_model

    rank, steps = int(setting.size), setting.steps
    config = AdaLoraConfig(
        init_r=round(1.5 * rank),
        target_r=rank,
        lora_alpha=round(1.5 * rank),
        tinit=steps // 10,
        tfinal=steps // 2,
        deltaT=max(1, steps // 50),
        total_step=steps,
        orth_reg_weight=0.1,
        target_modules="|".join(map(re.escape, setting.sites)),
    )
    torch.manual_seed(setting.seed)
    model = cast("Any", get_peft_model(setting.module, config)).eval()
    factors = [
        (name, value)
        for name, value in model.named_parameters()
        if value.requires_grad and ("lora_A" in name or "lora_B" in name)
    ]

    def penalty() -> Tensor:
        distances: list[Tensor] = []
        for name, value in factors:
            gram = value @ value.T if "lora_A" in name else value.T @ value
            distances.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram))))
        return config.orth_reg_weight * torch.stack(distances).mean()

    def numbers() -> int:
        """The numbers of the ranks that are kept: PEFT masks the others and leaves them out of its file."""
        total = 0
        for layer in model.modules():
            for name, values in getattr(layer, "lora_E", {}).items():
                each = layer.lora_A[name].shape[1] + layer.lora_B[name].shape[0] + 1
                total += int((values != 0).sum()) * each
        return total

    adapted = _adapted(model)
    return Adapted(
        module=model,
        groups=adapted.groups,
        numbers=numbers,
        after_step=lambda _, step: model.base_model.update_and_allocate(step),
        penalty=penalty,
    )


# EVA and LoRA-GA are for linear layers alone. Only one of the tasks adapts no others.
METHODS = (
    Method("PEFT LoRA", (4,), -10, lora, LARGE),
    Method("PEFT AdaLoRA", (4,), -8, adalora, LARGE),
    Method("PEFT EVA", (4,), -10, eva, ("source code",)),
    Method("PEFT LoRA-GA", (4,), -12, lora_ga, ("source code",)),
)
