"""Checkpoints of transformers' Trainer that hold a network, not the model that it is beside."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from ..errors import TrainError
from .extras import required
from .network import LycorisNetwork


def adapter_checkpoints(
    network: LycorisNetwork, dialect: str = "peft", metadata: Mapping[str, str | None] | None = None
) -> Any:
    """A callback for transformers' `Trainer`, by which it saves a network in place of the whole model.

    The trainer is given the model itself, this callback, and an optimiser of the network's parameters. While
    it trains and the network is applied, each checkpoint holds the adapter beside the states of optimiser and
    schedule, as does what `save_model` writes. For "peft" it is a folder that PEFT loads; for the other
    dialects a file of the name `adapter.safetensors`. `metadata` is as in `save_adapter`. After the training
    `save_model` writes the whole model again, without the network, which `save_weights` writes. A training
    goes on from a checkpoint by `create_lycoris(model, weights=folder)`; the trainer's
    `resume_from_checkpoint` wants the whole model, as does `load_best_model_at_end`.

    Raises TrainError without transformers, and at the start for a trainer of another model than the
    network's, of one that is no model of transformers, or one that is to load the best model at its end.
    """
    transformers: Any = required("transformers", "transformers", "a callback of its Trainer")

    changed = ExitStack()

    class AdapterCheckpoints(transformers.TrainerCallback):
        def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if model is not network.module or not isinstance(model, transformers.PreTrainedModel):
                raise TrainError(
                    "the trainer is not that of the network's model",
                    got=type(model).__name__,
                    expected=f"the {type(network.module).__name__} of the network, a model of transformers",
                )
            if args.load_best_model_at_end:
                raise TrainError(
                    "the trainer is to load the best model at its end, but its checkpoints hold no model",
                    got="load_best_model_at_end=True",
                    expected="load_best_model_at_end=False",
                    hint="Load the best checkpoint afterwards: create_lycoris(model, weights=folder)",
                )

        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            # A training that failed has not ended.
            changed.close()
            whole = model.save_pretrained

            def save_pretrained(folder: str | os.PathLike[str], *given: Any, **options: Any) -> Any:
                if not network.applied:
                    return whole(folder, *given, **options)
                if options.get("is_main_process", True):
                    place = folder if dialect == "peft" else os.path.join(folder, "adapter.safetensors")
                    network.save_weights(place, dialect, metadata=metadata)
                return None

            changed.enter_context(_has(model, save_pretrained=save_pretrained))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            changed.close()

    return AdapterCheckpoints()


@contextmanager
def _has(owner: object, **attributes: Any) -> Generator[None]:
    """A context in which an object has these attributes of its own, and afterwards those from before."""
    held: dict[str, Any] = vars(owner)
    before = {name: held[name] for name in attributes if name in held}
    held.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del held[name]
        held.update(before)
