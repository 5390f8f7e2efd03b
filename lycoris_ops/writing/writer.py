"""Prepare the layers of an adapter for writing in a dialect, with their configuration."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.axes import ALPHA
from ..algorithms.base import Sharing, once
from ..errors import (
    LayerError,
    LycorisError,
    MatchError,
    WriteError,
)
from ..layers.cast import cast_layer
from ..names.dialects import KEPT, WRITES, Asked, Encoded, write_of
from ..names.relation import LookedUp, Relation
from ..names.to_write import LayerToWrite, plan_names
from ..peft import PURPOSE, Config, ConfigFile, ConflictError
from ..reading.adapter import Adapter
from ..reading.copies import Use, find_copies, uses_of
from .configuration import configuration
from .regroup import Regrouper


@dataclass(frozen=True)
class Made:
    """A layer that is ready to be written."""

    planned: LayerToWrite
    layer: Layer
    """The layer that a reader must find in the file."""
    encoded: Encoded
    """The layer's name and tensors in the dialect."""
    source_alpha: float | None
    """The alpha of the source layer; None if there was none, or if this is made of several layers."""


class Writer:
    """Prepares one adapter's layers for one dialect.

    With `dialect` None the layers keep their names, see `own_dialect`. With `dtype` None factors keep their
    dtypes. `relation` has the model's names, if the model is known.
    """

    def __init__(
        self, adapter: Adapter, dialect: str | None, dtype: torch.dtype | None, relation: Relation | None
    ) -> None:
        self.adapter = adapter
        self.named = dialect
        self.dialect = dialect or KEPT
        self.dtype = dtype
        self._looked_up = LookedUp.of(adapter.names, relation)
        self._regrouper = Regrouper(adapter, self._looked_up)
        self._cast = once(Tensor.to)

    @cached_property
    def copies(self) -> dict[str, str]:
        """Layers that only repeat others, see `find_copies`. They are not written."""
        if self._looked_up.relation is None:
            return {}
        targets, uses = self._looked_up.relation.targets, list[Use]()
        for name, candidates in self._looked_up.meanings.items():
            info = self.adapter.info[name]
            # `plan_names` deals with names that fit several weights and with shapes that do not fit.
            if len(candidates) == 1 and info.fits(targets.shape_of(*candidates[0])):
                uses += uses_of(info, candidates[0], targets)
        return find_copies(self.adapter, uses)

    def plan(self) -> list[LayerToWrite]:
        """The names of the layers to write, and their sources. Raises MatchError as `plan_names` does."""
        return self._plan(self.named)

    def _plan(self, dialect: str | None) -> list[LayerToWrite]:
        layers = {name: info for name, info in self.adapter.info.items() if name not in self.copies}
        return plan_names(layers, dialect, self._looked_up, self.adapter.path)

    def make(self, planned: LayerToWrite) -> Made:
        """A planned layer with its tensors.

        Raises LayerError where the dialect cannot hold it, WriteError where its values do not fit the dtype.
        """
        try:
            layer = self._regrouper.make(planned)
        except LayerError as error:
            # An error that names the file is about a layer that cannot be read.
            if error.file is not None:
                raise
            fault = LayerError(
                "E-dialect-fuses-differently", fault=error, got=error.got, expected=error.expected
            )
            raise self._not_held(planned, fault) from error
        try:
            layer = self._complete(planned, layer, self.dialect)
            if self.dtype is not None:
                if isinstance(layer, Sharing):
                    layer = layer.with_shared(lambda one: self._cast(one, "cpu", self.dtype).contiguous())
                layer = cast_layer(
                    layer, self.dtype, file=self.adapter.path, key=planned.sources[0], error=WriteError
                )
            encoded = self._encoded(planned, layer, self.dialect)
        except LayerError as error:
            raise self._not_held(planned, error) from error
        return Made(planned, layer, encoded, self._source_alpha(planned))

    def _complete(self, planned: LayerToWrite, layer: Layer, dialect: str) -> Layer:
        """The layer without tensors that it shares with others, where the dialect does not hold these."""
        if not isinstance(layer, Sharing) or write_of(dialect).shares:
            return layer
        return layer.alone(planned.shape or self._looked_up.shape_of(planned.sources[0]))

    def _source_alpha(self, planned: LayerToWrite) -> float | None:
        first, *others = planned.sources
        stored = ALPHA in self.adapter.info[first].keys and not others
        return self._alphas[first] if stored else None

    @cached_property
    def _alphas(self) -> dict[str, float | None]:
        # In one read: a file is opened for each.
        return self.adapter.alphas()

    def configuration(
        self, layers_made: Sequence[Made], metadata: Mapping[str, str | None] | None = None
    ) -> str | None:
        """The configuration of the layers as JSON; None for a dialect that has none.

        The adapter's purpose (`PURPOSE`) is from the `metadata`, else from the source's configuration. The
        source's list of modules is kept where the layers are the same. Raises LayerError if no configuration
        describes all layers.
        """
        layers = [(layer.planned, layer.encoded) for layer in layers_made]
        source = self._source
        same = {name for layer in layers_made for name in layer.planned.sources} == set(self.adapter.info)
        # A configuration of a kind that is only read may name layers that the file lacks.
        listed = source and same and not self.adapter.unreadable and not source.read_only
        ends = source.target_modules if source and listed else ()
        try:
            table = configuration(self.dialect, layers, self._looked_up.relation, ends)
        except ConflictError as error:
            planned = next(layer.planned for layer in layers_made if layer.planned.name == error.member.name)
            raise self._not_held(planned, error) from error
        if table is not None and write_of(self.dialect).card:
            stated = {
                key: text for key, text in (metadata or {}).items() if key in PURPOSE and text is not None
            }
            table |= {**(source.purpose if source else {}), **stated}
        return None if table is None else json.dumps(table, indent=2, sort_keys=True)

    @cached_property
    def _source(self) -> Config[Any] | None:
        """The configuration beside the source, where one is to be written too."""
        path = self.adapter.config if self.adapter.dialect == self.dialect else None
        return ConfigFile(path).read if path and write_of(self.dialect).card else None

    def _not_held(self, planned: LayerToWrite, error: LayerError) -> LayerError:
        """The error for a layer that the dialect cannot hold, with the dialects that can."""
        others = {name: self._refusal(name, planned.sources) for name in WRITES if name != self.dialect}
        able = [name for name, refusal in others.items() if refusal is None]
        kind = self.adapter.info[planned.sources[0]].algorithm
        # Without a model some may only lack its name.
        nameless = [name for name, why in others.items() if isinstance(why, MatchError)]
        nameless = [name for name in nameless if WRITES[name].holds(kind, True)]
        without = bool(nameless) and not able and self._looked_up.relation is None
        return LayerError(
            "E-dialect-holds-not-without-model"
            if without
            else "E-dialect-holds-not"
            if able
            else "E-dialects-hold-not",
            file=self.adapter.path,
            key=planned.sources[0],
            dialect=self.dialect,
            fault=error,
            others=nameless if without else able,
            got=error.got,
            expected=error.expected,
        )

    def _refusal(self, dialect: str, layers: Collection[str]) -> LycorisError | None:
        """Why another dialect cannot hold these layers, with any others that it joins to them or that
        share tensors with them."""
        try:
            # Try everything, since the names, the tensors or the configuration may be impossible.
            planned, tried = self._plan(dialect), set(layers)
            sharing = {name for name, info in self.adapter.info.items() if info.algorithm.table.shared}
            if write_of(dialect).shares and tried & sharing:
                tried |= sharing
            encoded: list[tuple[LayerToWrite, Encoded]] = []
            for other in planned:
                if not tried.isdisjoint(other.sources):
                    layer = self._complete(other, self._regrouper.make(other), dialect)
                    encoded.append((other, self._encoded(other, layer, dialect)))
            configuration(dialect, encoded, self._looked_up.relation)
        except LycorisError as error:
            return error
        return None

    def _encoded(self, planned: LayerToWrite, layer: Layer, dialect: str) -> Encoded:
        info = self.adapter.info[planned.sources[0]]
        weight = planned.shape or self._looked_up.shape_of(planned.sources[0])
        biased = any(map(self._looked_up.may_have_bias, planned.sources))
        asked = Asked(
            planned.name,
            info.options,
            weight,
            biased,
            planned.takes_lokr,
            self.dtype,
            on_parameter=info.on_parameter,
        )
        return write_of(dialect).tensors(layer, asked)
