"""Fixes that make a model of the host trainable, by the class of its network.

An unlisted network gets every cure, which is correct for any model but slower for most.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .kernels import Differentiable, NormsCopied
from .mutation import mutation_allowed

WRITES_NOTHING = frozenset(
    {
        "UNetModel",
        "StageB",
        "StageC",
        "OpenAISignatureMMDITWrapper",
        "MMDiT",
        "AsymmDiTJoint",
        "GeneralDIT",
        "MiniTrainDIT",
        "Anima",
        "NextDiT",
        "WanModel",
        "QwenImageTransformer2DModel",
        "HiDreamImageTransformer2DModel",
        "OmniGen2Transformer2DModel",
        "Kandinsky5",
        "ACEStepTransformer2DModel",
        "AceStepConditionGenerationModel",
        "SingleStreamDiT",
        "MageFlowTransformer2DModel",
        "Ideogram4Transformer2DModel",
        "CogVideoXTransformer3DModel",
        "ErnieImageModel",
        "JoyImageTransformer3DModel",
        "AudioDiffusionTransformer",
        "PixArtMS",
        "HunYuanDiT",
        "HunYuanDiTPlain",
        "LensTransformer2DModel",
        "NextDiTPixelSpace",
        "VaceWanModel",
        "CameraWanModel",
        "HumoWanModel",
        "AnimateWanModel",
        "SCAILWanModel",
        "SCAIL2WanModel",
        "CausalWanModel",
        "BooguTransformer2DModel",
        "LatentSeqMMFlowModel",
        "HiDreamO1Transformer",
    }
)
"""Networks that never overwrite an activation that the backward pass needs. tests/host trains each for a step
without the cure."""

FUSED = frozenset(
    {"MiniTrainDIT", "Anima", "ErnieImageModel", "JoyImageTransformer3DModel", "MiniMaxH3Model"}
)
"""Networks that use fused kernels even when the host is in training mode."""

ONE_ROW = frozenset({"MiniMaxH3Model"})
"""Networks that take one sample at a time."""

ENCODERS_WRITE_NOTHING = frozenset(
    {"BertModel", "Gemma2_2B", "Llama2", "Qwen25_7BVLI", "Qwen3_06B", "Qwen3_4B"}
)
"""Text encoders that never overwrite an activation that the backward pass needs."""

OVERWRITES_NORMED = {
    "CLIPTextModel": "CLIPTextModel",
    "T5": "T5",
    "WanDancerModel": "AudioInjector_WAN",
    "WanModel_S2V": "AudioInjector_WAN",
    "Flux": "Flux",
    "Chroma": "Chroma",
    "HunyuanVideo": "HunyuanVideo",
    "Hunyuan3Dv2": "Hunyuan3Dv2",
    "ChromaRadiance": "ChromaRadiance",
}
"""Networks that overwrite only inputs of norms, each with the class of the part that does so.

Copying these inputs is cheaper than watching every operation: a step of a small Flux takes a quarter of the
time."""

OVERWRITES_ATTENDED = {"LTXVModel": "CrossAttention", "LTXAVModel": "CrossAttention"}
"""Networks that overwrite only inputs of attentions of this class, and of norms that are called as
functions."""

ENCODER = "SDClipModel"
"""The host's class for one text encoder. Its `transformer` is the network."""


def kinds_of(network: nn.Module) -> frozenset[str]:
    """The classes that decide the cures of a network: its own, or those of its text encoders."""
    encoders: list[Any] = [
        module
        for module in network.modules()
        if any(kind.__name__ == ENCODER for kind in type(module).__mro__)
    ]
    return frozenset(type(encoder.transformer).__name__ for encoder in encoders) or frozenset(
        {type(network).__name__}
    )


@contextmanager
def cured(kinds: Collection[str]) -> Generator[None]:
    """A context in which a network of these classes gets correct gradients.

    OVERWRITES_NORMED and OVERWRITES_ATTENDED need the context `reads_copied` too.
    """
    kinds = frozenset(kinds)
    copying = OVERWRITES_NORMED.keys() | OVERWRITES_ATTENDED.keys()
    unknown = kinds - WRITES_NOTHING - ENCODERS_WRITE_NOTHING - copying
    with ExitStack() as stack:
        if unknown:
            stack.enter_context(mutation_allowed())
        if unknown or kinds & FUSED:
            stack.enter_context(Differentiable())
        if kinds & OVERWRITES_ATTENDED.keys():
            stack.enter_context(NormsCopied())
        yield


@contextmanager
def reads_copied(network: nn.Module) -> Generator[None]:
    """A context in which norms, and some attentions, read copies of inputs that are overwritten
    afterwards."""

    def copied(module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        return (arguments[0].clone(), *arguments[1:]) if torch.is_grad_enabled() else None

    norms = [
        norm
        for module in network.modules()
        if type(module).__name__ in OVERWRITES_NORMED.values()
        for norm in module.modules()
        if type(norm).__name__.endswith("LayerNorm")
    ]
    attentions = [
        module
        for module in network.modules()
        if type(module).__name__ == OVERWRITES_ATTENDED.get(type(network).__name__)
    ]
    handles = [module.register_forward_pre_hook(copied) for module in (*norms, *attentions)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
