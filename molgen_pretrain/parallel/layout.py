"""Where this rank stands: the device mesh of a run and its axes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from molgen_pretrain.parallel.degrees import Degrees


@dataclass(frozen=True)
class Layout:
    """One rank's place. Ranks that differ only along the tensor axis are neighbours, and see the same batches."""

    degrees: Degrees
    rank: int
    device: torch.device
    fsdp_mesh: DeviceMesh | None  # axes (dp_shard,), or (dp_replicate, dp_shard) for copies (HSDP)
    tensor_mesh: DeviceMesh | None  # axis (tensor,)

    @property
    def data_parallel_size(self) -> int:
        """Ranks that see different data."""
        return self.degrees.data_parallel

    @property
    def data_parallel_rank(self) -> int:
        """Which of them this one is."""
        return self.rank // self.degrees.tensor

    @property
    def counts_data(self) -> bool:
        """Whether sums over all ranks take this one's data: one of the ranks that see the same does."""
        return self.rank % self.degrees.tensor == 0


def build_layout(degrees: Degrees, *, rank: int, device: torch.device) -> Layout:
    """The mesh over all ranks of the process group, as far as the degrees need one. Collective.

    Tensor-parallel ranks are next to each other, inside a node where nodes have enough devices; then come the
    parts of one copy, and last its copies, which talk least.
    """
    if not degrees.fsdp:
        return Layout(degrees, rank, device, fsdp_mesh=None, tensor_mesh=None)
    axes = {"dp_replicate": degrees.replicate, "dp_shard": degrees.shard, "tensor": degrees.tensor}
    used = {name: size for name, size in axes.items() if size > 1 or name == "dp_shard"}
    mesh = init_device_mesh(device.type, tuple(used.values()), mesh_dim_names=tuple(used))
    fsdp_axes = tuple(name for name in used if name != "tensor")
    return Layout(
        degrees,
        rank,
        device,
        fsdp_mesh=mesh[fsdp_axes],
        tensor_mesh=mesh["tensor"] if "tensor" in used else None,
    )
