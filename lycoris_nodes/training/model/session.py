"""Open a model of the host for training, and leave it as it was."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ....lycoris_ops import LycorisNetwork, TrainError, create_lycoris
from ...host import training as host
from ...host.passes import forget_passes
from .aliases import aliased
from .cures import cured, kinds_of, reads_copied
from .frozen import weights_fetched_again
from .recompute import recomputed

_open: WeakSet[nn.Module] = WeakSet()
"""The models that are open for training."""


class Session:
    """A model that is open for training, see `opened`."""

    def __init__(self, patcher: Any) -> None:
        self.patcher = patcher
        self.networks: list[LycorisNetwork] = []
        """The networks that are removed when the session ends."""
        self.dtype = torch.float32
        """The dtype that the model computes in."""
        self.fetching = 0
        """How many layers fetch their weights again in the backward pass."""
        self.blocks = 0
        """How many blocks are checkpointed."""
        self.widths: set[frozenset[tuple[str, int]]] = set()
        """The widths of captions that the model has taken, see `check_width`."""

    @property
    def model(self) -> Any:
        """The host's model."""
        return self.patcher.model

    @property
    def network(self) -> nn.Module:
        """The network to adapt: the diffusion model, or the text encoders as a whole."""
        return getattr(self.model, "diffusion_model", self.model)

    @property
    def prefix(self) -> str:
        """The prefix of `network`'s paths in adapter files."""
        return "diffusion_model." if hasattr(self.model, "diffusion_model") else ""

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    def adapted(self, **options: Any) -> LycorisNetwork:
        """A network of adapters, see `create_lycoris`. It is removed when the session ends."""
        if self.fetching:
            # To rebuild, the weight itself is needed, and it is fetched only in a pass.
            options.setdefault("form", "bypass")
        net = create_lycoris(self.network, prefix=self.prefix, **options)
        # An offloaded weight is not on the device that multiplies it.
        net.to(self.device)
        self.networks.append(net)
        return net

    @contextmanager
    def scaled(self, by: float) -> Generator[None]:
        """A context in which the adapters' strengths are multiplied by a number; with 0 they do not act."""
        with ExitStack() as stack:
            for net in self.networks if by != 1 else ():
                stack.enter_context(net.at(by * net.multiplier))
            yield

    @contextmanager
    def sampling(self) -> Generator[None]:
        """A context in which the host's samplers run the model as usual with the adapters as they are now."""
        model = self.model
        before = getattr(model, "current_patcher", None)
        with torch.no_grad(), host.marked_training(False):
            forget_passes(model)
            try:
                yield
            finally:
                forget_passes(model)
                if hasattr(model, "current_patcher"):
                    model.current_patcher = before

    def prediction(self, x: Tensor, sigma: Tensor, conds: Mapping[str, Any]) -> Tensor:
        """The denoised latent (B, ...) that the model makes of x (B, ...) at sigma (B,).

        A sampler gets the same for one prompt, by the same function of the model. But a sampler computes
        every row with every prompt and averages, while here each row has its own conditioning. `conds` are
        the model's arguments by name (see `Caption`).
        """
        options: dict[str, Any] = {
            **self.patcher.model_options["transformer_options"],
            "sigmas": sigma,
            "sample_sigmas": sigma,
            "cond_or_uncond": [0],
            # Some packs keep values for each conditioning by this id, so each pass gets a new id.
            "uuids": [uuid.uuid4()],
            "optimized_attention_override": host.attention,
        }
        forget_passes(self.model)
        try:
            return self.model.apply_model(x, sigma, transformer_options=options, **conds)
        finally:
            forget_passes(self.model)


@contextmanager
def opened(
    patcher: Any,
    *,
    checkpointing: bool = False,
    memory: float | None = 0.0,
    dtype: torch.dtype | None = None,
    beside: Sequence[Any] = (),
) -> Generator[Session]:
    """A context in which adapters can be trained for a model, or for text encoders, given its patcher.

    The model is loaded by the host, with its patches, and `memory` bytes are left free beside it. Other nodes
    hold the same weights: no copy is made, and afterwards every weight, flag, hook and method is as before,
    also after an error or an interrupt. Adapters must be made and used within the context.

    With `checkpointing` the blocks of the model keep only their inputs and run again in the backward pass.
    `dtype` is the dtype that a diffusion model computes in; None keeps the host's. The patchers `beside` are
    loaded in the same call, so that opening them within the context does not displace the model. Open these
    with `memory` None, because they are loaded already.

    Raises TrainError for a model that is open already.
    """
    session = Session(patcher)
    if patcher.model in _open:
        raise TrainError("E-training-of-model-runs", got=type(patcher.model).__name__)
    # Stay in the caller's mode here: weights that the host made in inference mode must be moved in inference
    # mode.
    if memory is not None:
        host.loaded([patcher, *beside], memory)
    with ExitStack() as stack:
        _open.add(patcher.model)
        stack.callback(_open.discard, patcher.model)
        stack.enter_context(host.computing_in(patcher.model, dtype))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_modes_kept(patcher.model))
        stack.enter_context(aliased(patcher.model))
        stack.enter_context(host.running(patcher))
        stack.enter_context(host.marked_training())
        session.dtype = _dtype(patcher.model)
        session.fetching = stack.enter_context(
            weights_fetched_again(session.network, session.dtype, session.device)
        )
        kinds = kinds_of(session.network)
        if checkpointing:
            session.blocks = stack.enter_context(recomputed(session.network, partial(cured, kinds)))
        stack.enter_context(reads_copied(session.network))
        stack.enter_context(cured(kinds))
        try:
            yield session
        finally:
            for net in reversed(session.networks):
                net.restore()


def _dtype(model: Any) -> torch.dtype:
    """The dtype that a model computes in."""
    asked = getattr(model, "get_dtype_inference", None)
    return asked() if asked else next(model.parameters()).dtype


@contextmanager
def _modes_kept(model: nn.Module) -> Generator[None]:
    """A context in which the modules are in `eval` mode. Afterwards they have their modes back."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
