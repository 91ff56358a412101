"""The process group: joined once, left in the one order that does not abort."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """This process among the ranks of the run."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank; others pass anything."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

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
    try:
        yield World(rank, size, local_rank, device)
    finally:
        gc.collect()
        if grouped and dist.is_initialized():
            dist.destroy_process_group()


def _device(kind: str, local_rank: int) -> torch.device:
    if kind == "cuda" or (kind == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def _init_group(device: torch.device, size: int, timeout_seconds: int) -> None:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    if size > 1:
        dist.init_process_group(backend, timeout=timeout)
    else:
        # A lone process needs no rendezvous, no port and no launcher.
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
