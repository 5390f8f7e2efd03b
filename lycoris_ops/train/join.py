"""Join the networks of several models into one, to train them together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import LycorisError
from ..names.layer_name import LayerName
from .naming import DIFFUSERS
from .network import LycorisNetwork


def join_networks(networks: Mapping[str, LycorisNetwork]) -> LycorisNetwork:
    """One network that trains the members of several, such as those of a model and its text encoders.

    The keys of `networks` are the names of their models. The joined network is for a module that holds these
    models by these names, so a member's path begins with its model's name. With the names `diffusion_model`
    and `text_encoders` ComfyUI can read its files. With the names of a pipeline's components (`unet` or
    `transformer`, `text_encoder`, `text_encoder_2`) files in the dialect "diffusers" are for the pipeline's
    `load_lora_weights`. The members are shared with the given networks, which must not be applied any more.

    Raises LycorisError for no networks, for networks of different strengths, and for a name that is empty or
    holds a dot.
    """
    if not networks:
        raise LycorisError("E-join-without-networks")
    for name in networks:
        if not name or "." in name:
            raise LycorisError("E-join-name-unusable", got=repr(name))
    strengths = {network.multiplier for network in networks.values()}
    if len(strengths) > 1:
        raise LycorisError(
            "E-join-strengths-differ", got=", ".join(f"{strength:g}" for strength in sorted(strengths))
        )
    holder: Any = nn.Module()
    for name, network in networks.items():
        network.restore()
        holder.add_module(name, network.module)
    joined = LycorisNetwork(
        holder,
        {
            f"{name}.{path}": member
            for name, network in networks.items()
            for path, member in network.members.items()
        },
        seed=next(iter(networks.values())).seed,
        notes=[note for network in networks.values() for note in network.notes],
    )
    joined.components = all(LayerName.of(f"{name}.layer").dialect == DIFFUSERS for name in networks)
    joined.set_multiplier(strengths.pop())
    origins = {network.origin for network in networks.values()}
    joined.origin = next(origin for origin in ("file", "plan", "fresh") if origin in origins)
    return joined
