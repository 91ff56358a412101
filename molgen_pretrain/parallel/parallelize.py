"""FSDP2 over the blocks of a decoder: the one place where a model is wrapped."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


def data_parallel_mesh(device: torch.device, size: int) -> DeviceMesh:
    """One axis, `dp_shard`, over all ranks of the process group."""
    return init_device_mesh(device.type, (size,), mesh_dim_names=("dp_shard",))


def shard_model(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    mesh: DeviceMesh,
    *,
    compute_dtype: torch.dtype,
    reshard_after_forward: bool,
) -> None:
    """Shard each block and then the rest as the root group, in place, on meta or real weights.

    Embedding, final norm and head stay together in the root group: a tied weight may belong to only one group.
    Weights and gradient reduction are float32; `compute_dtype` is what forward and backward see.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=None if compute_dtype is torch.float32 else compute_dtype, reduce_dtype=torch.float32
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    # The root is needed again at once in the backward: resharding it would only gather it twice.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
