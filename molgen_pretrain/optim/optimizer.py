"""Optimizers over parameter groups, and clipping. lr and weight decay are set by ScheduleApplier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from molgen_pretrain.errors import UserError
from molgen_pretrain.optim.muon import MuonAdamW, WholeMatrixMuon
from molgen_pretrain.optim.param_groups import ParamGroup
from molgen_pretrain.optim.presets import is_hidden_matrix

OptimizerKind = Literal["adamw", "adam", "sgd", "muon"]

# Before the first ScheduleApplier.prepare an optimizer moves nothing.
_UNSET: dict[str, Any] = {"lr": 0.0, "weight_decay": 0.0}


def build_optimizer(
    kind: OptimizerKind, groups: Sequence[ParamGroup], *, fused: bool | None, **hyperparameters: Any
) -> torch.optim.Optimizer:
    """The optimizer `kind` with the hyper-parameters of its build function (build_adamw, ...).

    `fused=None` takes torch's fused kernels wherever all parameters live on a device that has them, and else
    leaves the choice (foreach or a loop) to torch.
    """
    return _BUILDERS[kind](groups, fused=fused, **hyperparameters)


def build_adamw(
    groups: Sequence[ParamGroup], *, betas: Sequence[float], eps: float, fused: bool | None
) -> torch.optim.AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""
    beta1, beta2 = betas
    return torch.optim.AdamW(_torch(groups), betas=(beta1, beta2), eps=eps, fused=_fused(groups, fused), **_UNSET)


def build_adam(
    groups: Sequence[ParamGroup], *, betas: Sequence[float], eps: float, fused: bool | None
) -> torch.optim.Adam:
    """Adam (Kingma and Ba 2015); weight decay is added to the gradient (L2)."""
    beta1, beta2 = betas
    return torch.optim.Adam(_torch(groups), betas=(beta1, beta2), eps=eps, fused=_fused(groups, fused), **_UNSET)


def build_sgd(groups: Sequence[ParamGroup], *, momentum: float, nesterov: bool, fused: bool | None) -> torch.optim.SGD:
    """Stochastic gradient descent; weight decay is added to the gradient (L2).

    Raises UserError for `fused=True` on shards: torch (2.13) has no fused SGD for DTensors.
    """
    if any(isinstance(p, DTensor) for group in groups for p in group.parameters):
        if fused:
            raise UserError("optimizer.fused=true: torch has no fused SGD for sharded parameters; use null or false")
        fused = False
    fused = _fused(groups, fused)
    return torch.optim.SGD(_torch(groups), momentum=momentum, nesterov=nesterov, fused=fused, **_UNSET)


def build_muon(
    groups: Sequence[ParamGroup],
    *,
    momentum: float,
    nesterov: bool,
    ns_steps: int,
    adjust_lr: Literal["original", "match_rms_adamw"],
    adamw_lr_scale: float,
    betas: Sequence[float],
    eps: float,
    fused: bool | None,
) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) on hidden matrices; AdamW on embeddings, head, norms and biases.

    A group with both kinds becomes two, `NAME.muon` and `NAME.adamw`; the latter's lr_scale is multiplied with
    `adamw_lr_scale`. Muon multiplies its learning rate further by a factor of the matrix's shape, `adjust_lr`
    (see muon.shape_factor): logs show the rate before that. `fused` concerns AdamW; a model that has only one
    kind of parameters gets that optimizer alone.
    """
    hidden, rest = [], []
    for group in groups:
        matrices, others = group.partition(is_hidden_matrix)
        if matrices is not None and others is not None:
            matrices = replace(matrices, name=f"{group.name}.muon")
            others = replace(others, name=f"{group.name}.adamw")
        if matrices is not None:
            hidden.append(matrices)
        if others is not None:
            rest.append(replace(others, lr_scale=others.lr_scale * adamw_lr_scale))
    settings: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
    muon = WholeMatrixMuon(_torch(hidden), adjust_lr_fn=adjust_lr, **settings, **_UNSET) if hidden else None
    adamw = build_adamw(rest, betas=betas, eps=eps, fused=fused) if rest else None
    if muon is None or adamw is None:
        only = muon or adamw
        assert only is not None  # a model has parameters
        return only
    return MuonAdamW(muon, adamw)


_BUILDERS: dict[OptimizerKind, Callable[..., torch.optim.Optimizer]] = {
    "adamw": build_adamw,
    "adam": build_adam,
    "sgd": build_sgd,
    "muon": build_muon,
}


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale gradients to a global L2 norm of at most `max_norm` (0: leave them); return the norm before.

    The norm is over all shards of all ranks, a plain float32 scalar on every rank.
    """
    with_grad = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(with_grad, max_norm, norm)
    return norm


def _torch(groups: Sequence[ParamGroup]) -> list[dict[str, Any]]:
    return [group.as_torch() for group in groups]


def _fused(groups: Sequence[ParamGroup], wanted: bool | None) -> bool:
    if wanted is not None:
        return wanted
    parameters = [p for group in groups for p in group.parameters]
    return all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for p in parameters)
