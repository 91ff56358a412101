"""AdamW over the parameter groups of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from molgen_pretrain.optim.param_groups import ParamGroup


def build_adamw(
    groups: Iterable[ParamGroup], *, betas: Sequence[float], eps: float, fused: bool | None
) -> torch.optim.AdamW:
    """torch's AdamW (Loshchilov and Hutter 2019). lr and weight decay are set by ScheduleApplier.

    `fused=None` takes the fused kernel wherever every parameter lives on a device that has one.
    """
    torch_groups = [group.as_torch() for group in groups]
    parameters = [p for group in torch_groups for p in group["params"]]
    if fused is None:
        fused = all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for p in parameters)
    beta1, beta2 = betas
    return torch.optim.AdamW(torch_groups, lr=0.0, betas=(beta1, beta2), eps=eps, weight_decay=0.0, fused=fused)


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
