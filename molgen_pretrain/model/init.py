"""Initial weights that depend on the seed and the parameter's name alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def init_weights(model: nn.Module, *, seed: int, std: float) -> None:
    """Fill every parameter in place: matrices normal(0, std), vectors (RMSNorm gains) one.

    Every value comes from a generator seeded by (seed, parameter name) and is made in full, one parameter at
    a time, on the CPU; a sharded parameter takes its slice. So all layouts start from the same weights without
    a word between ranks, and building needs a rank's own shards and the largest parameter in float32 at once.
    Qwen3 has no biases.
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
    if isinstance(parameter, DTensor):
        # Every rank has the whole value and just cuts its own part, one box whatever the mesh.
        (part,) = parameter.__create_chunk_list__()
        box = zip(part.offsets, part.sizes, strict=True)
        value = value[tuple(slice(offset, offset + size) for offset, size in box)]
        parameter = parameter.to_local()
    parameter.copy_(value)
