"""Networks in transformers' Trainer: its steps, and checkpoints that hold the network alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import lycoris_ops as lyc

IDS = torch.arange(1, 13).reshape(2, 6)
LIMIT = 0.05


def llama() -> Any:
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 32}
    heads: Any = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))


def by_hand() -> lyc.LycorisNetwork:
    """Four steps of gradient descent, with gradients whose norm is at most LIMIT."""
    network = lyc.create_lycoris(llama(), rank=2, include="*v_proj", seed=0).apply_to()
    optimiser = torch.optim.SGD(network.parameters(), 0.5)
    for _ in range(4):
        optimiser.zero_grad()
        network.module(input_ids=IDS, labels=IDS).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), LIMIT)
        optimiser.step()
    return network


def test_the_trainer_steps_as_a_loop_does_and_a_checkpoint_holds_the_adapter_alone(tmp_path: Path) -> None:
    model = llama()
    network = lyc.create_lycoris(model, rank=2, include="*v_proj", seed=0).apply_to()
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        save_steps=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        lr_scheduler_type="constant",
        max_grad_norm=LIMIT,
        logging_steps=1,
    )
    rows: Any = [{"input_ids": ids, "labels": ids} for ids in IDS]
    optimiser = torch.optim.SGD(network.parameters(), 0.5)
    callback = lyc.adapter_checkpoints(network, metadata={"task_type": "CAUSAL_LM"})
    trainer: Any = transformers.Trainer(
        model, settings, train_dataset=rows, optimizers=(optimiser, None), callbacks=[callback]
    )
    trainer.train()
    assert "save_pretrained" not in vars(model)
    for ours, theirs in zip(network.parameters(), by_hand().parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert all(entry["grad_norm"] > LIMIT for entry in trainer.state.log_history[:4])
    with torch.no_grad():
        wanted = model.eval()(IDS).logits
    for step in (2, 4):
        found = {file.name for file in (tmp_path / f"checkpoint-{step}").iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt"} <= found
        assert not any(name.startswith(("model", "pytorch_model")) for name in found)
    for again in (
        peft.PeftModel.from_pretrained(llama(), str(tmp_path / "checkpoint-4")),
        lyc.create_lycoris(llama(), weights=tmp_path / "checkpoint-4").apply_to().module,
    ):
        with torch.no_grad():
            assert torch.allclose(again.eval()(IDS).logits, wanted, atol=1e-5)
    trainer.save_model(str(tmp_path / "whole"))
    assert (tmp_path / "whole" / "model.safetensors").exists()
    with pytest.raises(lyc.TrainError, match="for another model than the network"):
        transformers.Trainer(llama(), settings, callbacks=[callback])
    settings.load_best_model_at_end, settings.metric_for_best_model = True, "loss"
    with pytest.raises(lyc.TrainError, match="load_best_model_at_end=True"):
        transformers.Trainer(model, settings, callbacks=[callback])


def test_checkpoints_in_a_dialect_that_is_a_folder(tmp_path: Path) -> None:
    model = llama()
    network = lyc.create_lycoris(model, rank=2, include="*v_proj").apply_to()
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, save_steps=1, use_cpu=True, report_to="none"
    )
    rows: Any = [{"input_ids": ids, "labels": ids} for ids in IDS]
    optimiser = torch.optim.SGD(network.parameters(), 0.5)
    transformers.Trainer(
        model,
        settings,
        train_dataset=rows,
        optimizers=(optimiser, None),
        callbacks=[lyc.adapter_checkpoints(network, "mlx")],
    ).train()
    found = lyc.load_adapter(tmp_path / "checkpoint-1")
    assert found.dialect == "mlx" and len(found.layers) == len(network.members)


def test_a_trainer_that_leaves_the_gradients_of_a_network_is_refused(tmp_path: Path) -> None:
    """And networks that are taken away in any order leave the model as it was."""
    model = llama()
    network, other = (
        lyc.create_lycoris(model, rank=2, include=one).apply_to() for one in ("*v_proj", "*q_proj")
    )
    other.requires_grad_(False)
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    rows: Any = [{"input_ids": ids, "labels": ids} for ids in IDS]
    optimiser = torch.optim.SGD(network.parameters(), 0.5)

    class Clearing(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            optimiser.zero_grad(set_to_none=False)

    def train(optimiser: Any, *callbacks: Any) -> int:
        trainer: Any = transformers.Trainer(
            model, settings, train_dataset=rows, optimizers=(optimiser, None), callbacks=[*callbacks]
        )
        trainer.train()
        return trainer.state.global_step

    for given in (optimiser, None):
        with pytest.raises(lyc.TrainError, match=r"neither clipped nor cleared.*after a step"):
            train(given)
    # No step is made where gradients are above the limit.
    start = [one.detach().clone() for one in network.parameters()]
    settings.max_grad_norm = LIMIT / 100
    with pytest.raises(lyc.TrainError, match=r"neither clipped nor cleared.*before a step, though"):
        train(optimiser)
    assert all(map(torch.equal, network.parameters(), start))
    optimiser.zero_grad()
    settings.max_grad_norm = 1.0
    with pytest.raises(lyc.TrainError, match="no parameter of the network"):
        train(None, lyc.adapter_checkpoints(network))
    # Gradients from before do not matter, and other callbacks may clear them.
    assert train(optimiser, lyc.adapter_checkpoints(network)) == train(optimiser, Clearing()) == 2
    other.requires_grad_(True)
    with pytest.raises(lyc.TrainError, match="neither clipped nor cleared"):
        train(optimiser, lyc.adapter_checkpoints(network))
    assert model.train() is model and not model.eval().training
    copied = copy.deepcopy(model)
    assert copied.train().training and not model.training
    network.restore()
    assert "train" in vars(model)
    other.restore()
    assert "train" not in vars(model)
