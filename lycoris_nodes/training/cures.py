"""What a model of the host needs so that it can be trained, by the class of its network.

A network that is not listed gets every cure, which is right for any model and slower for most.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from .kernels import Differentiable
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
    }
)
"""Networks that write over no activation that a backward pass needs. Tested by a step of each without the
cure, in tests/host."""

FUSED = frozenset(
    {"MiniTrainDIT", "Anima", "ErnieImageModel", "JoyImageTransformer3DModel", "MiniMaxH3Model"}
)
"""Networks that use fused kernels even where the host says that it trains."""

ONE_ROW = frozenset({"MiniMaxH3Model"})
"""Networks that take one sample at a time."""


@contextmanager
def cured(network: Any) -> Generator[None]:
    """A time in which forward and backward passes of a network give its gradients."""
    name = type(network).__name__
    with ExitStack() as stack:
        if name not in WRITES_NOTHING:
            stack.enter_context(mutation_allowed())
        if name not in WRITES_NOTHING or name in FUSED:
            stack.enter_context(Differentiable())
        yield
