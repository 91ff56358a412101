"""Initial weights that depend on the seed and the parameter's name alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

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
        box, part = own_part(parameter)
        part.copy_(normal(parameter.shape, std, seed=seed, name=name)[box])


def normal(shape: Sequence[int], std: float, *, seed: int, name: str) -> Tensor:
    """Float32 values of normal(0, std) on the CPU, the same wherever seed, name and shape are."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1  # manual_seed takes a signed 64-bit integer
    generator = torch.Generator().manual_seed(number)
    return torch.empty(*shape, dtype=torch.float32).normal_(0.0, std, generator=generator)


def own_part(parameter: Tensor) -> tuple[tuple[slice, ...], Tensor]:
    """Where this rank's part of a parameter lies in the whole, one box whatever the mesh, and the part itself.

    Writing to the part is writing to the parameter. It is empty on a rank that holds nothing of it.
    """
    if not isinstance(parameter, DTensor):
        return tuple(slice(0, size) for size in parameter.shape), parameter
    (chunk,) = parameter.__create_chunk_list__()
    box = zip(chunk.offsets, chunk.sizes, strict=True)
    return tuple(slice(offset, offset + size) for offset, size in box), parameter.to_local()
