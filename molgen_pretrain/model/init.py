"""Initial weights that depend on the seed and the parameter's name alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


@torch.no_grad()
def init_weights(model: nn.Module, *, seed: int, std: float) -> None:
    """Fill every parameter in place: matrices normal(0, std), vectors (RMSNorm gains) one.

    Every value comes from a generator seeded by (seed, parameter name) and is made in full, one parameter at
    a time, on the CPU; a sharded parameter takes its slice. So all layouts start from the same weights without
    a word between ranks. Qwen3 has no biases.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
            continue
        generator = torch.Generator().manual_seed(_parameter_seed(seed, name))
        value = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
        _assign(parameter, value)


def _parameter_seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # manual_seed takes a signed 64-bit integer


def _assign(parameter: Tensor, value: Tensor) -> None:
    if not isinstance(parameter, DTensor):
        parameter.copy_(value)
        return
    value = value.to(parameter.device, parameter.dtype)
    # src_data_rank=None: every rank holds the whole value and just cuts its own slice.
    local = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(local)
