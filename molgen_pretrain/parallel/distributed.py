"""The process group: joined once, left in the one order that does not abort."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from molgen_pretrain.errors import UserError
from molgen_pretrain.parallel.peers import Peers

logger = logging.getLogger(__name__)

_NCCL_EXTRA_SECONDS = 30


@dataclass(frozen=True)
class World:
    """This process among the ranks of the run."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    peers: Peers = field(default_factory=Peers)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank; others pass anything."""
        return value if self.size == 1 else _from_rank_0(value)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined_world(device_kind: str, *, needs_group: bool, timeout_seconds: int) -> Iterator[World]:
    """Join the ranks that torchrun or srun started (RANK, WORLD_SIZE, LOCAL_RANK), and leave at the end.

    `device_kind` is auto, cpu or cuda. `needs_group` asks for a process group even in a lone process. Whoever
    runs inside must drop model, optimizer and mesh before the end: with gloo and FSDP2 a process that still
    holds them when the group is destroyed aborts in a third of all exits.
    """
    rank, size, local_rank = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device = _device(device_kind, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    grouped = needs_group or size > 1
    if grouped:
        _init_group(device, size, timeout_seconds)
    peers = Peers(rank, size, timeout_seconds)
    with peers.watching(_from_rank_0):
        try:
            with peers.explained():
                yield World(rank, size, local_rank, device, peers)
        finally:
            gc.collect()
            if grouped and dist.is_initialized():
                dist.destroy_process_group()


def _from_rank_0(value: Any) -> Any:
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _device(kind: str, local_rank: int) -> torch.device:
    if kind == "cuda" or (kind == "auto" and torch.cuda.is_available()):
        # Where Slurm shows each task its own GPU alone, that is number 0 for all.
        return torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))
    return torch.device("cpu")


def _init_group(device: torch.device, size: int, timeout_seconds: int) -> None:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # NCCL's own watchdog aborts the process with a dump: `peers`, which says who is missing, speaks before it.
    timeout = timedelta(seconds=timeout_seconds + (_NCCL_EXTRA_SECONDS if device.type == "cuda" else 0))
    if size > 1:
        try:
            dist.init_process_group(backend, timeout=timeout)
        except dist.DistError as error:
            where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
            raise UserError(
                f"parallelism.timeout_seconds={timeout_seconds}: the {size} ranks did not come together at {where} in"
                f" that time; start them all, with the same MASTER_ADDR and MASTER_PORT ({str(error).splitlines()[0]})"
            ) from error
    else:
        # A lone process needs no rendezvous, no port and no launcher.
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
