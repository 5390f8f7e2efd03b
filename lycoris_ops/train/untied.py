"""Give modules that share a weight weights of their own, also in the configurations of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import nn

from ..errors import LycorisError
from ..modules.sites import Site, shared_weights

TIED = "tie_word_embeddings"


def check_untied(model: nn.Module, path: str) -> None:
    """Raise LycorisError where the pass of a model depends on whether its weights are tied."""
    for _, config in _configs(model, path):
        if getattr(config, "is_encoder_decoder", False):
            raise LycorisError("E-encoder-decoder-not-untied", weight=path, got=type(config).__name__)


def give_own_weights(model: nn.Module, path: str, sites: Mapping[str, Site]) -> None:
    """Copy the weight of a module for each other one that shares it, and with it all that transformers ties
    by the same setting, which becomes False."""
    for other in (path, *shared_weights(sites.values()).get(path, ())):
        _copy(sites[other].module, sites[other].weight)
    for owner, config in _configs(model, path):
        if getattr(config, TIED, False):
            met: dict[int, Any] = {}
            for name, value in owner.named_parameters(remove_duplicate=False):
                module, _, own = name.rpartition(".")
                holder = owner.get_submodule(module)
                if met.setdefault(id(value), holder) is not holder:
                    _copy(holder, own)
            setattr(config, TIED, False)
        keys = vars(owner).get("all_tied_weights_keys")
        if isinstance(keys, dict):
            cast("dict[str, str]", keys).clear()


def _copy(module: nn.Module, name: str) -> None:
    value = getattr(module, name)
    setattr(module, name, nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad))


def _configs(model: nn.Module, path: str) -> Iterator[tuple[nn.Module, Any]]:
    """The models that hold a module, the outermost first, each with its configuration and its text's."""
    names = path.split(".")
    for count in range(len(names)):
        owner = model.get_submodule(".".join(names[:count]))
        config: Any = getattr(owner, "config", None)
        text = getattr(config, "get_text_config", None)
        if callable(text):
            yield owner, config
            if text() is not config:
                yield owner, text()
