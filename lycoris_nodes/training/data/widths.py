"""Check that captions are as wide as a model needs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ....lycoris_ops import TrainError
from ..model.session import Session
from .captions import Caption, joined
from .latents import Latent
from .targets import sigma_at


def check_width(session: Session, caption: Caption, latent: Latent) -> None:
    """Raise TrainError for a caption of another width than the model takes.

    Models do not state that width, so one pass without a graph is tried for each new width.
    """
    widths = _widths(caption)
    if widths in session.widths:
        return
    x = latent.values.to(session.device)
    sigma = sigma_at(session.model.model_sampling, torch.full((1,), 0.5, device=session.device))
    with torch.no_grad(), misfits_told(session.network):
        session.prediction(x, sigma, joined([caption]))
    session.widths.add(widths)


@contextmanager
def misfits_told(network: nn.Module) -> Generator[None]:
    """A context in which an error is a TrainError if a layer was given vectors of a wrong width before it."""
    with _misfits(network) as misfits:
        try:
            yield
        except Exception as error:
            if not misfits:
                raise
            path, width, expected = misfits[0]
            raise TrainError("E-caption-width-differs", width=width, path=path, expected=expected) from error


def _widths(caption: Caption) -> frozenset[tuple[str, int]]:
    """The name and width of each sequence of embeddings, and of the pooled one (`y`)."""
    conds = {name: cond.cond for name, cond in caption.conds.items()}
    return frozenset(
        (name, value.shape[-1])
        for name, value in conds.items()
        if isinstance(value, Tensor) and (value.ndim == 3 or name == "y")
    )


@contextmanager
def _misfits(network: nn.Module) -> Generator[list[tuple[str, int, int]]]:
    """A context that notes layers given vectors of a wrong width: path, given width, right width."""
    misfits: list[tuple[str, int, int]] = []

    def note(path: str, width: int) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and isinstance(arguments[0], Tensor) and arguments[0].shape[-1:] != (width,):
                misfits.append((path, arguments[0].shape[-1], width))

        return hook

    with ExitStack() as stack:
        for path, module in network.named_modules():
            if width := _taken(module):
                stack.callback(module.register_forward_pre_hook(note(path, width)).remove)
        yield misfits


def _taken(module: nn.Module) -> int | None:
    """The input width of a linear layer or a norm of vectors; None for other modules."""
    if isinstance(width := getattr(module, "in_features", None), int):
        return width
    weight = getattr(module, "weight", None)
    is_norm = type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
    return weight.shape[0] if is_norm and isinstance(weight, Tensor) and weight.ndim == 1 else None
