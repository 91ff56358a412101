"""The runs that many tests look at, made once; and runs in which something goes wrong."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

_RUN_SCRIPT = Path(__file__).with_name("run_process.py")

# A fork server imports the slow libraries once, those of tests/distributed among them (there is one server). A
# run is then a fork that is there in a second instead of ten.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "molgen_pretrain.__main__",
        "molgen_pretrain.training.runner",
        "torch.distributed.checkpoint",
        "torch.distributed.fsdp",
        "torch.distributed.tensor.parallel",
        "torch.utils.tensorboard",
        "transformers.models.qwen3.modeling_qwen3",
        "safetensors.torch",
        "pytest",
    ]
)

Fault = tuple[str, dict[str, Any]]


class Started:
    """The processes of a run under way, one per rank, and what they say."""

    def __init__(self, processes: Sequence[BaseProcess], logs: Sequence[Path]) -> None:
        self.processes = list(processes)
        self._logs = list(logs)

    def end(self, timeout: float = 90) -> tuple[list[int], str]:
        """Exit codes by rank (negative: killed by that signal), and all output."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [process for process in self.processes if process.exitcode is None]
        for process in late:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        output = "".join(log.read_text() for log in self._logs)
        assert not late, f"no end after {timeout} s:\n{output}"
        return [process.exitcode for process in self.processes], output


class FaultyRuns:
    """Starts the application in `app.folder`, on several ranks if need be, with faults of `run_process.py`."""

    def __init__(self, app) -> None:
        self.app = app
        self._started = 0

    def start(self, *overrides: str, ranks: int = 0, faults: Sequence[Fault] = ()) -> Started:
        """`ranks` 0: one process without a launcher's environment."""
        self._started += 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes, logs = [], []
        for rank in range(max(ranks, 1)):
            env = {"MOLGEN_CACHE": self.app.env["MOLGEN_CACHE"], "CUDA_VISIBLE_DEVICES": ""}
            if ranks:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            log = self.app.folder / f"start-{self._started}-rank-{rank}.log"
            spec = {
                "folder": str(self.app.folder),
                "log": str(log),
                "env": env,
                "overrides": list(overrides),
                "faults": list(faults),
            }
            arguments = {"init_globals": {"SPEC": spec}, "run_name": "__run__"}
            process = _context.Process(target=runpy.run_path, args=(str(_RUN_SCRIPT),), kwargs=arguments)
            process.start()
            processes.append(process)
            logs.append(log)
        return Started(processes, logs)

    def run(self, *overrides: str, ranks: int = 0, faults: Sequence[Fault] = (), code: int = 0) -> tuple[str, Any]:
        """Wait for the end; every rank has to exit with `code`. Returns the output and the run."""
        codes, output = self.start(*overrides, ranks=ranks, faults=faults).end()
        assert codes == [code] * max(ranks, 1), f"exit codes {codes}, expected {code}:\n{output}"
        return output, self.app.find(overrides)


@pytest.fixture(scope="session")
def faulty_factory(app_factory) -> Callable[[str], FaultyRuns]:
    return lambda name: FaultyRuns(app_factory(name))


@pytest.fixture
def faulty(app) -> FaultyRuns:
    return FaultyRuns(app)


@pytest.fixture(scope="session")
def whole(app_factory, tiny):
    """An uninterrupted run in one process: the yardstick of many tests. (output, run)"""
    extras = ("checkpoint.hf_export=milestones", "metrics.tensorboard=true", "training.profile_steps=[3,4]")
    return app_factory("whole").run(*tiny, *extras)


@pytest.fixture(scope="session")
def whole_on_two(app_factory, tiny):
    """The same run on two processes with FSDP."""
    return app_factory("whole_on_two").run(*tiny, processes=2)
