"""Naming the state of a model and its optimizer so that the names do not depend on the layout.

`model.<name>` is a parameter or persistent buffer, `optimizer.<parameter>.<key>` a tensor of the optimizer's
state. Tensors are the live ones (plain or DTensor), so that loading is copying into them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

MODEL_PREFIX = "model."
OPTIMIZER_PREFIX = "optimizer."


@dataclass(frozen=True)
class NamedState:
    """Everything of a model and an optimizer that a checkpoint stores."""

    tensors: dict[str, Tensor]
    ties: dict[str, str]
    """Second name of a shared tensor -> the name that it is stored under."""
    values: dict[str, Any] = field(default_factory=dict)
    """Optimizer state that is a plain number, by the same kind of name."""
    param_groups: list[dict[str, Any]] = field(default_factory=list)
    """Hyper-parameters by group, with the names of the group's parameters under "params"."""


def named_tensors(model: nn.Module, optimizer: Optimizer | None) -> dict[str, Tensor]:
    """All tensors of a training state by name, tied ones once."""
    return named_state(model, optimizer).tensors


def named_state(model: nn.Module, optimizer: Optimizer | None) -> NamedState:
    """Collect the named state; an optimizer that has not stepped yet contributes no tensors.

    Raises:
        TypeError: the model or optimizer holds state that is neither tensor nor number.
        ValueError: the optimizer trains a parameter that the model does not have.
    """
    tensors, ties = _model_tensors(model)
    if optimizer is None:
        return NamedState(tensors, ties)
    names = _parameter_names(tensors)
    values: dict[str, Any] = {}
    for name, key, value in _optimizer_entries(optimizer, names):
        full_name = f"{OPTIMIZER_PREFIX}{name}.{key}"
        if isinstance(value, Tensor):
            tensors[full_name] = value
        else:
            values[full_name] = _plain(full_name, value)
    return NamedState(tensors, ties, values, _param_groups(optimizer, names))


def match_optimizer_state(model: nn.Module, optimizer: Optimizer, stored: Collection[str]) -> None:
    """Give state to exactly the parameters that have some in a checkpoint, ready to be filled.

    The model's weights do not change. State that the checkpoint lacks for a parameter is dropped, since that
    parameter had none when it was saved.

    Args:
        stored: names of the checkpoint's optimizer tensors and values.
    """
    names = _parameter_names(_model_tensors(model)[0])
    with_state = {name.removeprefix(OPTIMIZER_PREFIX).rpartition(".")[0] for name in stored}
    wanted = [parameter for parameter in _parameters(optimizer) if names[id(parameter)] in with_state]
    if any(not optimizer.state.get(parameter) for parameter in wanted):
        _create_state(optimizer)
    for parameter in _parameters(optimizer):
        if names[id(parameter)] not in with_state:
            optimizer.state.pop(parameter, None)


def restore_values(model: nn.Module, optimizer: Optimizer, values: Mapping[str, Any]) -> None:
    """Put plain numbers back into the optimizer's state."""
    names = _parameter_names(_model_tensors(model)[0])
    for parameter in _parameters(optimizer):
        prefix = f"{OPTIMIZER_PREFIX}{names[id(parameter)]}."
        for key in optimizer.state.get(parameter, {}):
            if prefix + key in values:
                optimizer.state[parameter][key] = values[prefix + key]


def restore_hyperparameters(optimizer: Optimizer, saved: list[dict[str, Any]]) -> None:
    """Set the hyper-parameters of each group to the saved ones; groups correspond by position."""
    for group, stored in zip(optimizer.param_groups, saved, strict=True):
        for key, value in stored.items():
            if key == "params":
                continue
            if isinstance(group.get(key), Tensor):
                group[key].fill_(value)
            else:
                group[key] = tuple(value) if isinstance(value, list) else value


def _model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first_names: dict[int, str] = {}
    # keep_vars hands out the parameters themselves: their identity reveals ties and leads to optimizer state.
    for raw_name, tensor in inner.state_dict(keep_vars=True).items():
        name = MODEL_PREFIX + raw_name.replace("_orig_mod.", "")  # torch.compile's wrapper
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: state of type {type(tensor).__name__} cannot be stored; use tensors")
        first = first_names.setdefault(id(tensor), name)
        if first == name:
            tensors[name] = tensor
        else:
            ties[name] = first
    return tensors, ties


def _parameter_names(tensors: Mapping[str, Tensor]) -> dict[int, str]:
    """id of a model tensor -> its name in the model."""
    return {id(tensor): name.removeprefix(MODEL_PREFIX) for name, tensor in tensors.items()}


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _optimizer_entries(optimizer: Optimizer, names: Mapping[int, str]) -> Iterator[tuple[str, str, Any]]:
    for parameter in _parameters(optimizer):
        if id(parameter) not in names:
            raise ValueError(
                f"the optimizer trains a parameter of shape {tuple(parameter.shape)} that the model does not "
                "have: build the optimizer after the model has its final layout"
            )
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                yield names[id(parameter)], key, value


def _param_groups(optimizer: Optimizer, names: Mapping[int, str]) -> list[dict[str, Any]]:
    groups = []
    for index, group in enumerate(optimizer.param_groups):
        settings = {
            key: _plain(f"param_groups[{index}].{key}", value) for key, value in group.items() if key != "params"
        }
        groups.append({**settings, "params": [names[id(parameter)] for parameter in group["params"]]})
    return groups


def _plain(name: str, value: Any) -> Any:
    """A JSON value: numbers, text, lists of them, 0-dim tensors as numbers."""
    if isinstance(value, Tensor) and value.ndim == 0:
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"optimizer {name}: a {type(value).__name__} cannot be stored")


def _create_state(optimizer: Optimizer) -> None:
    """Let the optimizer make its own state tensors: one step with zero gradients, rate and decay.

    Only the optimizer knows its keys, shapes and devices. Weights stay as they are bit for bit, since every
    term that would be added is zero.
    """
    gradients = [(parameter, parameter.grad) for parameter in _parameters(optimizer)]
    frozen_keys = {"lr", "weight_decay"}
    settings = [{key: group[key] for key in frozen_keys & group.keys()} for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            for key in frozen_keys & group.keys():
                value = group[key]
                group[key] = torch.zeros_like(value) if isinstance(value, Tensor) else 0.0
        for parameter, _ in gradients:
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for group, original in zip(optimizer.param_groups, settings, strict=True):
            group.update(original)
