"""Ranks that die, fail or hang, with real processes: the others end soon, by the cause, and nobody by mistake."""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_SCRIPT = Path(__file__).with_name("peers_process.py")
_KILLED = -signal.SIGKILL


class Ranks:
    """Gloo ranks of one scenario; forks of the server that conftest.py prepares."""

    def __init__(self, folder: Path, scenario: str, size: int, timeout_seconds: int) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        spec = {"scenario": scenario, "folder": str(folder), "port": port, "timeout_seconds": timeout_seconds}
        spec["world_size"] = size
        context = multiprocessing.get_context("forkserver")
        self.processes: list[Any] = []
        for rank in range(size):
            arguments = {"init_globals": {"SPEC": {**spec, "rank": rank}}, "run_name": "__rank__"}
            self.processes.append(context.Process(target=runpy.run_path, args=(str(_SCRIPT),), kwargs=arguments))
            self.processes[-1].start()

    def ready(self) -> float:
        """Wait for all to be where it happens."""
        _await(lambda: all((self.folder / f"ready-{r}").exists() for r in range(len(self.processes))), 60)
        return time.monotonic()

    def codes(self, seconds: float, ranks: list[int] | None = None) -> list[int]:
        """Exit codes; a rank that is still there after `seconds` fails the test."""
        chosen = [self.processes[rank] for rank in (ranks if ranks is not None else range(len(self.processes)))]
        _await(lambda: all(process.exitcode is not None for process in chosen), seconds, self)
        return [process.exitcode for process in chosen]

    def output(self, rank: int) -> str:
        return (self.folder / f"rank-{rank}.log").read_text()

    def errors(self) -> list[str]:
        """What all ranks said as errors."""
        lines = "".join(self.output(rank) for rank in range(len(self.processes))).splitlines()
        return [line for line in lines if "] error: " in line]

    def pid(self, rank: int) -> int:
        return int((self.folder / f"ready-{rank}").read_text())


def _await(condition: Any, seconds: float, ranks: Ranks | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            said = {r: ranks.output(r) for r in range(len(ranks.processes))} if ranks else ""
            pytest.fail(f"not within {seconds} s: {said}", pytrace=False)
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[Ranks] = []

    def start(scenario: str, size: int = 2, timeout_seconds: int = 60) -> Ranks:
        started.append(Ranks(tmp_path, scenario, size, timeout_seconds))
        return started[-1]

    yield start
    for ranks in started:
        for process in ranks.processes:
            process.kill()
            process.join()


def test_the_death_of_a_rank_ends_the_others_by_name(start) -> None:
    ranks = start("die", size=3)
    ranks.ready()
    assert ranks.codes(8) == [1, 1, _KILLED]
    host = re.escape(socket.gethostname())
    expected = rf"\[rank 0\] error: rank 2 \({host}, pid {ranks.pid(2)}\) died at step 4, in data, by its last report"
    assert re.fullmatch(expected, ranks.output(0).splitlines()[0]), "not the first line"
    assert len(ranks.errors()) == 1, "said more than once"


def test_the_death_of_rank_0_is_noticed_by_all(start) -> None:
    ranks = start("rank_0_dies", size=3)
    ranks.ready()
    assert ranks.codes(8) == [_KILLED, 1, 1]
    assert f"pid {ranks.pid(0)}) died at step 4, in data" in ranks.output(1).splitlines()[0]


def test_ranks_that_are_computing_learn_of_a_death_too(start) -> None:
    """Their main threads do not come out by themselves in time."""
    ranks = start("die_while_computing", size=3)
    ranks.ready()
    assert ranks.codes(8) == [1, 1, _KILLED]
    assert "died at step 4, in data" in ranks.errors()[0]
    assert len(ranks.errors()) == 1
    assert (ranks.folder / "farewell-0").exists()


def test_a_data_worker_that_outlives_its_rank_hides_nothing(start) -> None:
    ranks = start("die_with_a_fork")
    ranks.ready()
    assert ranks.codes(6) == [1, _KILLED]
    assert "rank 1" in ranks.errors()[0]


@pytest.mark.parametrize("scenario", ["hang", "hang_without_error"])
def test_a_hang_ends_with_the_place_of_every_rank(start, scenario: str) -> None:
    ranks = start(scenario, size=3, timeout_seconds=2)
    ranks.ready()
    assert ranks.codes(10) == [1, 1, 1], "the one that hangs ends too"
    assert ranks.errors() == [
        "[rank 0] error: no progress for 2 s in a collective: "
        "rank 2 at step 4, in data; ranks 0-1 at step 4, in forward"
    ]


def test_a_frozen_rank_0_is_named_by_the_others(start) -> None:
    ranks = start("rank_0_is_stopped", timeout_seconds=2)
    ranks.ready()
    assert ranks.codes(15, ranks=[1]) == [1]
    assert ranks.output(1).splitlines()[0].endswith("at step 4, in forward, and rank 0 does not answer")


@pytest.mark.parametrize("scenario", ["ends_apart", "interpreter_lock_held"])
def test_no_false_alarm(start, scenario: str) -> None:
    """Ranks that end one after another, and one that is busy for longer than a lost host is waited for."""
    ranks = start(scenario, size=3)
    assert ranks.codes(60) == [0, 0, 0]
    assert "".join(ranks.output(rank) for rank in range(3)) == ""


def test_the_error_of_one_rank_is_the_cause_on_all(start) -> None:
    ranks = start("error_on_one")
    ranks.ready()
    assert ranks.codes(8) == [1, 1]
    assert ranks.output(0).splitlines() == [
        f"[rank 0] error: rank 1 ({socket.gethostname()}, pid {ranks.pid(1)}) failed at step 4, in data: "
        "ValueError: a bad line"
    ]
    assert "ValueError: a bad line" in ranks.output(1)


def test_an_error_of_all_ranks_is_each_ones_own(start) -> None:
    ranks = start("error_on_all")
    assert ranks.codes(60) == [1, 1]
    assert ranks.errors() == []
    assert all("ValueError: every rank says so" in ranks.output(rank) for rank in range(2))


def test_two_sigterms_end_a_rank_that_is_blocked_in_a_collective(start) -> None:
    ranks = start("blocked")
    ranks.ready()
    time.sleep(0.3)
    os.kill(ranks.pid(0), signal.SIGTERM)
    time.sleep(0.7)
    assert ranks.processes[0].exitcode is None
    os.kill(ranks.pid(0), signal.SIGTERM)
    assert ranks.codes(1.5, ranks=[0]) == [128 + signal.SIGTERM]
    assert ranks.codes(8, ranks=[1]) == [1]


def test_under_torchrun(tmp_path: Path) -> None:
    """Its agent hosts the store, and signals the ranks that are left."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*launcher, str(_SCRIPT), "die", str(tmp_path), "60"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert result.returncode != 0
    pid = (tmp_path / "ready-1").read_text()
    said = [line for line in result.stderr.splitlines() if "] error: " in line]
    assert f"pid {pid}) died at step 4, in data" in said[0]
    # What the launcher has to say about it, and its traceback, come later.
    assert result.stderr.index(said[0]) < result.stderr.index("failed (exitcode")
