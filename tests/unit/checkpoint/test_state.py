from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.errors import CheckpointMismatch
from molgen_pretrain.checkpoint.state import match_optimizer_state, named_state, named_tensors

OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adamw fused": partial(torch.optim.AdamW, fused=True),
    "adamw foreach": partial(torch.optim.AdamW, foreach=True, amsgrad=True),
    "adam tensor lr": partial(torch.optim.Adam, lr=torch.tensor(1e-3)),
    "sgd": partial(torch.optim.SGD, lr=1e-5),
    "sgd momentum": partial(torch.optim.SGD, lr=1e-5, momentum=0.9, weight_decay=0.1),
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "nadam": partial(torch.optim.NAdam, weight_decay=0.1),
    "radam": torch.optim.RAdam,
    "rmsprop": partial(torch.optim.RMSprop, momentum=0.9, centered=True),
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
    "adafactor": torch.optim.Adafactor,
}


def step_once(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model(torch.arange(7)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_names_cover_the_state_once(training: Callable[..., Any]) -> None:
    model, optimizer = training(0)
    state = named_state(model, optimizer)
    weights = {"model.embed.weight", "model.norm.weight", "model.norm.bias"}
    trained = {name.replace("model.", "optimizer.", 1) for name in weights}
    moments = {f"{name}.{key}" for name in trained for key in ("step", "exp_avg", "exp_avg_sq")}
    assert state.tensors.keys() == weights | {"model.seen"} | moments
    assert state.ties == {"model.head.weight": "model.embed.weight"}
    assert state.param_groups[0]["params"] == ["embed.weight", "norm.weight", "norm.bias"]
    assert state.tensors["model.embed.weight"] is model.embed.weight


def test_wrappers_do_not_change_names(training: Callable[..., Any]) -> None:
    model, optimizer = training(0)
    names = named_tensors(model, optimizer).keys()
    model.norm = checkpoint_wrapper(model.norm)
    assert named_tensors(model, optimizer).keys() == names
    assert named_tensors(torch.compile(model), optimizer).keys() == names


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_continues_bit_identically(name: str, training: Callable[..., Any], tmp_path: Path) -> None:
    model, optimizer = training(0, 2, OPTIMIZERS[name])
    Checkpointer(tmp_path, keep_latest_k=1).save(2, model=model, optimizer=optimizer, state={})
    fresh, its_optimizer = training(1, 0, OPTIMIZERS[name])
    Checkpointer(tmp_path, keep_latest_k=1).load(2, model=fresh, optimizer=its_optimizer)
    assert same(named_tensors(fresh, its_optimizer), named_tensors(model, optimizer))
    for _ in range(2):
        step_once(model, optimizer)
        step_once(fresh, its_optimizer)
    assert same(named_tensors(fresh, its_optimizer), named_tensors(model, optimizer))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_making_optimizer_state_changes_no_weight_and_no_setting(name: str, training: Callable[..., Any]) -> None:
    stored = named_state(*training(0, 1, OPTIMIZERS[name]))
    model, optimizer = training(1, 0, OPTIMIZERS[name])
    before = {key: tensor.detach().clone() for key, tensor in named_tensors(model, None).items()}
    settings = [dict(group) for group in optimizer.param_groups]
    match_optimizer_state(
        model, optimizer, {key for key in stored.tensors if key.startswith("optimizer.")} | set(stored.values)
    )
    assert same(named_tensors(model, None), before)
    assert named_tensors(model, optimizer).keys() == stored.tensors.keys()
    assert all(parameter.grad is None for parameter in model.parameters())
    for group, original in zip(optimizer.param_groups, settings, strict=True):
        assert all(group[key] is original[key] for key in original)


def test_an_optimizer_that_never_stepped_is_restored_as_such(training: Callable[..., Any], tmp_path: Path) -> None:
    model, optimizer = training(0, 0)
    Checkpointer(tmp_path, keep_latest_k=1).save(0, model=model, optimizer=optimizer, state={})
    other, its_optimizer = training(1, 3)
    Checkpointer(tmp_path, keep_latest_k=1).load(0, model=other, optimizer=its_optimizer)
    assert not its_optimizer.state
    step_once(model, optimizer)
    step_once(other, its_optimizer)
    assert same(named_tensors(other, its_optimizer), named_tensors(model, optimizer))


def test_plain_numbers_in_optimizer_state_are_restored(training: Callable[..., Any], tmp_path: Path) -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["count"] = self.state[parameter].get("count", 0) + 1
            return super().step(closure)

    model, optimizer = training(0, 5, Counting)
    Checkpointer(tmp_path, keep_latest_k=1).save(5, model=model, optimizer=optimizer, state={})
    other, its_optimizer = training(1, 0, Counting)
    Checkpointer(tmp_path, keep_latest_k=1).load(5, model=other, optimizer=its_optimizer)
    assert {entry["count"] for entry in its_optimizer.state.values()} == {5}


def test_hyperparameters_come_back_only_on_request(training: Callable[..., Any], tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, keep_latest_k=1)
    model, optimizer = training(0, 1, partial(torch.optim.AdamW, lr=0.25, betas=(0.5, 0.75)))
    checkpointer.save(1, model=model, optimizer=optimizer, state={})
    other, its_optimizer = training(0, 0, partial(torch.optim.AdamW, lr=torch.tensor(0.5)))
    checkpointer.load(1, model=other, optimizer=its_optimizer)
    assert its_optimizer.param_groups[0]["lr"] == 0.5
    checkpointer.load(1, model=other, optimizer=its_optimizer, hyperparameters=True)
    assert its_optimizer.param_groups[0]["lr"] == 0.25
    assert its_optimizer.param_groups[0]["betas"] == (0.5, 0.75)

    split = torch.optim.AdamW([{"params": [p]} for p in other.parameters()])
    checkpointer.load(1, model=other, optimizer=split)
    with pytest.raises(CheckpointMismatch, match="parameter groups"):
        checkpointer.load(1, model=other, optimizer=split, hyperparameters=True)


def test_foreign_parameters_and_opaque_state_are_refused(training: Callable[..., Any]) -> None:
    model, _ = training(0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match="shape \\(3,\\)"):
        named_tensors(model, optimizer)
    model, optimizer = training(0)
    optimizer.state[model.norm.bias]["history"] = object()
    with pytest.raises(TypeError, match=r"norm\.bias\.history"):
        named_tensors(model, optimizer)
