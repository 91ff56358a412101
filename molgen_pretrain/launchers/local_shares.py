"""What each rank of a local job is told of its world, and its share of the machine."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from molgen_pretrain.errors import UserError
from molgen_pretrain.launchers.gpus import DEVICES, visible_gpus

_THREADS = "OMP_NUM_THREADS"
_WORLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Shares:
    """The machine, divided among `parallel` jobs at a time of `processes` ranks each."""

    parallel: int
    processes: int
    threads: int | None  # per rank; None leaves them to the libraries
    devices: tuple[str, ...]  # `processes` for each of the parallel jobs; empty leaves them as they are

    @classmethod
    def of_this_machine(cls, parallel: int, processes: int) -> Shares:
        """Cores in equal parts unless OMP_NUM_THREADS says how many; GPUs only where jobs run in parallel.

        Raises UserError where there are GPUs, but not one for every rank.
        """
        ranks = parallel * processes
        shares_cores = ranks > 1 and _THREADS not in os.environ
        return cls(
            parallel,
            processes,
            max(1, _cores() // ranks) if shares_cores else None,
            _enough_devices(parallel, processes) if parallel > 1 else (),
        )

    def environments(self, slot: int) -> list[dict[str, str]]:
        """The environment of each rank of a job that runs as number `slot` (from 0) of the parallel ones."""
        job = {name: value for name, value in os.environ.items() if name not in _WORLD}
        if self.threads is not None:
            job[_THREADS] = str(self.threads)
        if self.devices:
            first = slot * self.processes
            job[DEVICES] = ",".join(self.devices[first : first + self.processes])
        if self.processes == 1:
            return [job]
        job |= {
            "WORLD_SIZE": str(self.processes),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self._port(),
        }
        return [{**job, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(self.processes)]

    def _port(self) -> str:
        given = os.environ.get("MASTER_PORT")
        if given and self.parallel == 1:
            return given
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return str(free.getsockname()[1])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _enough_devices(parallel: int, processes: int) -> tuple[str, ...]:
    visible, needed = visible_gpus(), parallel * processes
    if 0 < len(visible) < needed:
        raise UserError(
            f"hydra.launcher.parallel={parallel}: so many jobs of {processes} ranks need {needed} GPUs,"
            f" {len(visible)} are visible; at most {len(visible) // processes} jobs fit, or none needs any with"
            f" {DEVICES}= in the environment"
        )
    return tuple(visible[:needed])
