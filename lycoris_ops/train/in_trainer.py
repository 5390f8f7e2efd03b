"""Train a network in transformers' Trainer, with checkpoints that hold it in place of the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from .. import processes
from ..errors import TrainError
from ..reading.adapter import Adapter
from ..writing.paths import has_folder
from ..writing.save import save_adapter
from .extras import required
from .network import LycorisNetwork
from .tensors import norm_of, scale


def adapter_checkpoints(
    network: LycorisNetwork, dialect: str = "peft", metadata: Mapping[str, str | None] | None = None
) -> Any:
    """A callback with which transformers' `Trainer` trains a network and saves it in place of the model.

    Give the trainer the model itself, this callback, and an optimiser of the network's parameters. The
    trainer clips and clears only the gradients of the model's own parameters. So the callback does it for the
    network: it averages the gradients over the processes before each step, clips them by `max_grad_norm`,
    reports their norm, and clears them after the step. All processes start with the first one's weights.

    While the trainer trains and the network is applied, `save_model` writes the adapter, and a checkpoint
    holds the adapter beside the states of optimiser and schedule. For "peft" and "mlx" the adapter is a
    folder that the tool loads; for the other dialects a file `adapter.safetensors`. `metadata` is as in
    `save_adapter`. After the training `save_model` writes the whole model again, without the network;
    `save_weights` writes the network.

    A base and a network that `fully_shard` has divided are saved whole. The trainer must then neither move
    nor wrap the model: see "An engineer's day" in the documentation.

    To resume from a checkpoint use `create_lycoris(model, weights=folder)`: the trainer's
    `resume_from_checkpoint` and `load_best_model_at_end` need the whole model.

    Raises TrainError without transformers. When a trainer is created, the callback raises TrainError if the
    trainer's model is not the network's or is no model of transformers, for `load_best_model_at_end`, and for
    `fp16` in several processes. When a training begins, it raises TrainError if the optimiser has none of the
    network's parameters. Without the callback the first step raises TrainError if its gradients are above
    `max_grad_norm`, and else the pass after it, unless the trainer's model holds the network or something
    else clips and clears its gradients.
    """
    transformers: Any = required("transformers", "transformers", "a callback of its Trainer")

    changed = ExitStack()
    gathered: list[Adapter] = []

    class AdapterCheckpoints(transformers.TrainerCallback):
        def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if model is not network.module or not isinstance(model, transformers.PreTrainedModel):
                raise TrainError(
                    "E-trainer-model-differs", name=type(network.module).__name__, got=type(model).__name__
                )
            if args.load_best_model_at_end:
                raise TrainError("E-trainer-loads-best-model")
            if args.fp16 and processes.count() > 1:
                raise TrainError("E-fp16-in-several-processes", key="fp16", processes=processes.count())

        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
        ) -> None:
            trained = {id(p) for p in network.parameters() if p.requires_grad}
            steps = [id(p) for group in optimizer.param_groups for p in group["params"]]
            if trained and trained.isdisjoint(steps):
                raise TrainError("E-trainer-optimiser-foreign", count=len(steps))
            # A training that failed has not called on_train_end.
            changed.close()
            self.copies = processes.copies_of(network.module, network)
            processes.share(list(network.parameters()))
            network.zero_grad()
            save_own = model.save_pretrained

            def save_pretrained(folder: str | os.PathLike[str], *arguments: Any, **options: Any) -> Any:
                if not network.applied:
                    return save_own(folder, *arguments, **options)
                if options.get("is_main_process", True):
                    path = folder if has_folder(dialect) else os.path.join(folder, "adapter.safetensors")
                    adapter = gathered.pop() if gathered else network.to_adapter(dialect=dialect)
                    save_adapter(adapter, path, dialect, metadata=metadata, model=network.shapes())
                return None

            # An attribute of the instance hides the method, as one of another tool may do already.
            held: dict[str, Any] = vars(network.module)
            changed.callback(held.update, {name: held[name] for name in ("save_pretrained",) if name in held})
            changed.callback(held.pop, "save_pretrained")
            held["save_pretrained"] = save_pretrained

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if network.applied:
                self.norm = mean_gradients(network, self.copies, args.max_grad_norm)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if network.applied:
                network.zero_grad()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            # The trainer has found none, and has put a copy into its history.
            for entry in (logs, state.log_history[-1]) if network.applied else ():
                if "grad_norm" in entry:
                    entry["grad_norm"] = self.norm

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # Every process has a part of a divided network, but the trainer saves in the first process only.
            if control.should_save and network.applied:
                adapter = network.to_adapter(dialect=dialect)
                gathered[:] = [adapter] if args.should_save else []

        on_epoch_end = on_step_end

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            changed.close()

    return AdapterCheckpoints()


@torch.no_grad()
def mean_gradients(network: LycorisNetwork, copies: processes.Copies, limit: float | None) -> float:
    """Average a network's gradients over the copies of the model, and clip them if there is a limit.

    Returns their norm before that. If the network is sharded, its gradients are sums already.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    found = copies.summed_gradients(trained)
    if not found:
        return 0.0
    if copies.count > 1:
        scale(found, 1 / copies.count)
    size = float(norm_of(found, torch.zeros((), device=found[0].device)))
    if limit and size > limit:
        scale(found, limit / size)
    return size
