"""Saving in the background of several ranks: its own process group, one outcome for all, no hang."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from molgen_pretrain.checkpoint import saving
from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.errors import CheckpointSaveError


def build(width: int = 33) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Linear(width, 3))
    for layer in model:
        fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        model(torch.ones(4, model[0].in_features)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def training_goes_on(root: str) -> list[bool]:
    """Each save is in the background while both ranks train, which talks in the other group."""
    model, optimizer = build()
    train(model, optimizer, 1)
    equal = []
    with Checkpointer(Path(root) / "async", keep_latest_k=0, asynchronous=True) as background:
        for step in range(1, 5):
            sync = Checkpointer(Path(root) / "sync", keep_latest_k=0)
            expected = sync.save(step, model=model, optimizer=optimizer, state={"step": step})
            path = background.save(step, model=model, optimizer=optimizer, state={"step": step})
            train(model, optimizer, 5)
            background.wait()
            equal.append(files(path) == files(expected))
    return equal


def test_background_saves_equal_synchronous_ones_while_training_talks(run_distributed: Any, tmp_path: Path) -> None:
    assert run_distributed(training_goes_on, 2, tmp_path) == [[True] * 4] * 2


def one_rank_fails(root: str) -> dict[str, Any]:
    model, optimizer = build()
    checkpointer = Checkpointer(Path(root), keep_latest_k=0, asynchronous=True)
    write = saving.write_tensors

    def refuse(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    saving.write_tensors = refuse if dist.get_rank() == 1 else write
    checkpointer.save(1, model=model, optimizer=optimizer, state={})
    with pytest.raises(CheckpointSaveError) as caught:
        checkpointer.save(2, model=model, optimizer=optimizer, state={})
    saving.write_tensors = write
    failures = checkpointer.failures_in_a_row
    dist.barrier()
    left = os.listdir(root)
    dist.barrier()
    checkpointer.save(2, model=model, optimizer=optimizer, state={})
    checkpointer.wait()
    return {"message": str(caught.value), "failures": failures, "left": left, "steps": checkpointer.steps()}


def test_failure_on_one_rank_surfaces_on_all_at_the_next_call(run_distributed: Any, tmp_path: Path) -> None:
    results = run_distributed(one_rank_fails, 2, tmp_path)
    assert results[0] == results[1]
    assert "step 1 was not saved" in results[0]["message"]
    assert "rank 1: OSError: [Errno 28] No space left" in results[0]["message"]
    assert (results[0]["failures"], results[0]["left"], results[0]["steps"]) == (1, [], [2])


def one_rank_dies(root: str) -> dict[str, Any]:
    model, optimizer = build()
    checkpointer = Checkpointer(Path(root), keep_latest_k=0, asynchronous=True, timeout_seconds=20)
    checkpointer.save(1, model=model, optimizer=optimizer, state={})
    checkpointer.wait()
    write = saving.write_tensors

    def die(*_: Any) -> Any:
        # As a kill would end it; but the test's own book-keeping wants a result and a good exit code.
        Path(os.readlink("/proc/self/fd/1")).with_suffix(".json").write_text("null")
        os._exit(0)

    saving.write_tensors = die if dist.get_rank() == 1 else write
    checkpointer.save(2, model=model, optimizer=optimizer, state={})
    began = time.monotonic()
    with pytest.raises(RuntimeError):
        checkpointer.wait()
    return {"seconds": time.monotonic() - began, "steps": checkpointer.steps()}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_rank_that_dies_in_the_background_is_no_hang(run_distributed: Any, tmp_path: Path) -> None:
    survivor, dead = run_distributed(one_rank_dies, 2, tmp_path)
    assert dead is None
    assert survivor["steps"] == [1]
    assert survivor["seconds"] < 25
