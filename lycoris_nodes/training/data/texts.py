"""Train text encoders: each pass encodes its texts anew, within its autograd graph."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ....lycoris_ops import LycorisNetwork, TrainError
from ...host import training as host
from ..model.cures import kinds_of
from ..model.session import Session
from .captions import Caption, Text, caption_of
from .latents import Latent

Encoded = tuple[Tensor, dict[str, Any]]


@dataclass
class TextEncoder:
    """The text encoders of a CLIP that is open for training.

    `session` belongs to the CLIP's patcher. `model` is the host's model that gets the encoders' output.
    """

    clip: Any
    session: Session
    model: Any
    device: torch.device
    """Where the model is."""
    seed: int = 0
    _made: dict[str, Encoded] | None = field(default=None, init=False)
    """The results of this pass, by text."""

    def __post_init__(self) -> None:
        self.clip = host.staying(self.clip)

    @contextmanager
    def one_pass(self) -> Generator[None]:
        """A context in which a text that comes twice is encoded once."""
        self._made = {}
        try:
            yield
        finally:
            self._made = None

    def adapted(self, **options: Any) -> LycorisNetwork:
        """A network for the encoders, see `Session.adapted`.

        With a preset, parts that no text goes through are left out, such as those for pictures.
        Raises TrainError for encoders whose outputs have no gradient.
        """
        if "preset" in options:
            options["exclude"] = self._unused()
        net = self.session.adapted(**options).eval().apply_to()
        try:
            encoded = self.conditioning(_ANY)[0]
        finally:
            net.restore()
        if not any(getattr(tensor, "requires_grad", False) for tensor in tree_leaves(encoded)):
            kinds = ", ".join(sorted(kinds_of(self.session.network)))
            raise TrainError(
                "E-encoder-without-gradient",
                key="clip",
                name=type(self.session.network).__name__,
                kinds=kinds,
            )
        return net

    def conditioning(self, text: Text) -> list[Any]:
        """The conditioning that CLIP Text Encode would give for a text, with the encoders as they are now."""
        words = text.words
        encoded = None if self._made is None else self._made.get(words)
        if encoded is None:
            encoded = host.text_encoded(self.clip, words)
            if self._made is not None:
                self._made[words] = encoded
        return [[encoded[0], {**text.settings, **encoded[1]}]]

    def caption(self, text: Text, latent: Latent) -> Caption:
        """A text encoded for one latent, on the model's device and with its graph."""
        caption = caption_of(
            self.model, self.conditioning(text), latent, seed=self.seed, device=self.device, graph=True
        )
        return replace(caption, text=text)

    def _unused(self) -> list[str]:
        """The outermost parts of the encoders that a text does not go through, by path."""
        called: set[nn.Module] = set()

        def note(module: nn.Module, arguments: Any) -> None:
            called.add(module)

        with ExitStack() as stack, torch.no_grad():
            for module in self.session.network.modules():
                stack.callback(module.register_forward_pre_hook(note).remove)
            self.conditioning(_ANY)
        return list(_without(self.session.network, called, ""))


_ANY = Text('a sign that says "open"', {})
"""A text that goes through all parts for texts. One part of HunyuanImage sees only quoted words."""


def _without(module: nn.Module, called: Set[nn.Module], path: str) -> Iterator[str]:
    """The paths of the outermost modules that contain linear layers and no module that was called."""
    for name, child in module.named_children():
        child_path = path + name
        if any(inner in called for inner in child.modules()):
            yield from _without(child, called, f"{child_path}.")
        elif any(isinstance(inner, nn.Linear) for inner in child.modules() if inner is not child):
            yield child_path
