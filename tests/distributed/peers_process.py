"""One rank of test_peers.py: takes some steps together, and then what its scenario has in store for it."""

from __future__ import annotations

import ctypes
import datetime
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def main(spec: dict[str, Any]) -> None:
    rank, folder = spec["rank"], Path(spec["folder"])
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(spec["world_size"]),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(spec["port"]),
    )
    join(spec["scenario"], folder, spec["timeout_seconds"])


def join(scenario: str, folder: Path, timeout_seconds: int) -> None:
    import torch

    from molgen_pretrain.errors import RankLostError
    from molgen_pretrain.parallel import distributed, ending, links, peers

    torch.set_num_threads(1)
    logging.getLogger("molgen_pretrain").addHandler(logging.NullHandler())
    ending.LEAVE_SECONDS = 2.0
    peers.ANSWER_SECONDS = 1.0
    links.GRACE_SECONDS = 1
    if scenario == "hang_without_error":
        # As NCCL: the collective itself would wait for much longer than the time-out.
        patience = datetime.timedelta(seconds=600)
        init = distributed.dist.init_process_group
        distributed.dist.init_process_group = lambda *a, **k: init(*a, **{**k, "timeout": patience})
    try:
        with distributed.joined_world("cpu", needs_group=True, timeout_seconds=timeout_seconds) as world:
            world.peers.call_before_exit((folder / f"farewell-{world.rank}").touch)
            _train(world, scenario, folder)
    except RankLostError:
        sys.exit(1)


def _train(world: Any, scenario: str, folder: Path) -> None:
    import torch

    from molgen_pretrain.signals import StopRequest

    activity, is_last = world.peers.activity, world.rank == world.size - 1
    for step in range(1, 6):
        activity.enter(step, "data")
        if step == 4:
            time.sleep(0.3)  # long enough for a report
            (folder / f"ready-{world.rank}").write_text(str(os.getpid()))
            with StopRequest():
                _happen(scenario, world, is_last)
        activity.enter(step, "forward")
        torch.distributed.all_reduce(torch.ones(1))
        activity.enter(step, "backward")
    if scenario == "ends_apart":
        time.sleep((0.5, 0.0, 1.0)[world.rank])


def _happen(scenario: str, world: Any, is_last: bool) -> None:
    import torch

    victim = 0 if scenario == "rank_0_dies" else world.size - 1
    if "die" in scenario and world.rank == victim:
        if scenario == "die_with_a_fork" and os.fork() == 0:  # as a data worker, which lives on for some seconds
            time.sleep(8)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    elif scenario == "die_while_computing":
        world.peers.activity.enter(4, "forward")
        time.sleep(60)
    elif scenario in ("hang", "hang_without_error") and is_last:
        time.sleep(60)
    elif scenario == "rank_0_is_stopped" and world.rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif scenario == "interpreter_lock_held" and is_last:
        ctypes.PyDLL(None).sleep(2)
    elif scenario == "error_on_one" and is_last:
        raise ValueError("a bad line")
    elif scenario == "error_on_all":
        time.sleep(0.4 if world.rank == 0 else 0.0)  # it hears of the other's first
        raise ValueError("every rank says so")
    elif scenario == "blocked":
        if world.rank == 0:
            torch.distributed.all_reduce(torch.ones(1))
        time.sleep(60)


if __name__ == "__rank__":
    main(globals()["SPEC"])
elif __name__ == "__main__":
    join(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
