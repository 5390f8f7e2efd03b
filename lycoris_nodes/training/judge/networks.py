"""The networks of the adapters to judge, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ....lycoris_ops import Adapter, Entry, LycorisNetwork, join_networks, weighted
from ...host.weights import weight_shapes
from ..data.texts import TextEncoder
from ..model.session import Session
from ..node.settings import parts_of


@dataclass
class Networks:
    """Makes the network of an entry. Only the last one stays in memory."""

    model: Any
    clip: Any
    session: Session
    encoder: TextEncoder | None
    left_out: dict[str, int] = field(default_factory=dict[str, int])
    """How many text-encoder layers of each file are not judged: without `clip`, all of them."""
    _kept: tuple[Entry | None, LycorisNetwork | None] = (None, None)

    def of(self, entry: Entry) -> LycorisNetwork:
        """The network of an entry at strength 1, with its rules.

        Raises MatchError where a layer has no place in the model.
        """
        kept, network = self._kept
        if kept is not entry or network is None:
            self._forget()
            network = self._made(entry)
            self._kept = (entry, network)
        return network

    def _forget(self) -> None:
        for session in (self.session, *([self.encoder.session] if self.encoder else [])):
            session.networks.clear()
        self._kept = (None, None)

    def _made(self, entry: Entry) -> LycorisNetwork:
        shapes = weight_shapes(self.model, self.clip)
        adapter = entry.adapter if entry.rules is None else weighted(entry, shapes)
        of_model, of_text = parts_of(adapter, self.model, self.clip)
        if self.encoder is None:
            of_model = self._without_text(entry, of_model)
        networks: Mapping[str, LycorisNetwork] = {
            **({"diffusion_model": self.session.adapted(weights=of_model)} if of_model else {}),
            **(
                {"text_encoders": self.encoder.session.adapted(weights=of_text)}
                if of_text and self.encoder
                else {}
            ),
        }
        # Join only where the adapter has layers for both the model and its text encoders.
        return join_networks(networks) if len(networks) > 1 else next(iter(networks.values()))

    def _without_text(self, entry: Entry, adapter: Adapter | None) -> Adapter | None:
        if adapter is None:
            return None
        texts = {name for name, info in adapter.info.items() if info.named.component == "te"}
        if not texts:
            return adapter
        self.left_out[entry.name] = len(texts)
        rest = {name: layer for name, layer in adapter.layers.items() if name not in texts}
        return Adapter.of(rest, name=adapter.name) if rest else None
