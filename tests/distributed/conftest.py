"""`run_distributed`: real gloo ranks from plain pytest, with their results, tracebacks and a time limit."""

from __future__ import annotations

import json
import multiprocessing
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_RANK_SCRIPT = Path(__file__).with_name("rank_process.py")
_GRACE_SECONDS = 10.0

# A fork server imports the slow libraries once; each rank is then a fork that starts in milliseconds, from
# a process that has never run an operation (forking one that has would hang in its thread pools).
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torch",
        "torch.distributed.checkpoint",
        "torch.distributed.fsdp",
        "torch.distributed.tensor.parallel",
        "transformers.models.qwen3.modeling_qwen3",
        "safetensors.torch",
        "pytest",
    ]
)


@pytest.fixture
def run_distributed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """Call `run(function, world_size, *arguments)` to run a module-level function on that many gloo ranks.

    The default process group stands while it runs (rank and size from torch.distributed). Arguments travel
    as JSON (paths become text) and so does what it returns: one result per rank comes back, in rank order.
    A rank that fails or outlives `timeout_seconds` fails the test with the output of the ranks to blame.
    """

    def run(function: Callable[..., Any], world_size: int, *arguments: Any, timeout_seconds: float = 90) -> list[Any]:
        folder = tmp_path_factory.mktemp(function.__name__)
        spec = {
            "file": function.__code__.co_filename,
            "function": function.__name__,
            "arguments": json.loads(json.dumps(arguments, default=str)),
            "world_size": world_size,
            "folder": str(folder),
            "timeout_seconds": timeout_seconds,
        }
        ranks = [_start(spec, rank) for rank in range(world_size)]
        late = _wait(ranks, timeout_seconds)
        failed = [rank for rank, process in enumerate(ranks) if process.exitcode != 0]
        if failed:
            pytest.fail(_report(folder, ranks, failed, late), pytrace=False)
        return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world_size)]

    return run


def _start(spec: dict[str, Any], rank: int) -> Any:
    arguments = {"init_globals": {"SPEC": {**spec, "rank": rank}}, "run_name": "__rank__"}
    process = _context.Process(target=runpy.run_path, args=(str(_RANK_SCRIPT),), kwargs=arguments)
    process.start()
    return process


def _wait(ranks: list[Any], timeout_seconds: float) -> bool:
    """Wait for all; a rank that fails gives the others a short grace. Kill what is left; True if late."""
    deadline = time.monotonic() + timeout_seconds
    late = True
    while time.monotonic() < deadline:
        codes = [process.exitcode for process in ranks]
        if None not in codes:
            return False
        if late and any(codes):  # some exit code is neither None nor 0
            late, deadline = False, min(deadline, time.monotonic() + _GRACE_SECONDS)
        time.sleep(0.01)
    for process in ranks:
        process.kill()
        process.join()
    return late


def _report(folder: Path, ranks: list[Any], failed: list[int], late: bool) -> str:
    lines = ["ranks timed out" if late else "ranks failed"]
    for rank in failed:
        log = folder / f"rank-{rank}.log"
        output = log.read_text()[-6000:] if log.exists() else ""
        lines.append(f"--- rank {rank} (exit code {ranks[rank].exitcode}) ---\n{output}")
    return "\n".join(lines)
