"""Saving in the background: the same files, a true snapshot, and no failure lost."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from molgen_pretrain.checkpoint import host_copy, saving
from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.errors import CheckpointSaveError
from molgen_pretrain.checkpoint.host_copy import HostCopy
from molgen_pretrain.checkpoint.ranks import RankFailure
from molgen_pretrain.checkpoint.state import named_tensors
from molgen_pretrain.errors import UserError


def files(folder: Path) -> dict[str, bytes]:
    """All but the manifest, which has the time in it."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds every write back until it is set."""
    gate = threading.Event()
    write = saving.write_tensors

    def late(*arguments: Any) -> Any:
        assert gate.wait(20)
        return write(*arguments)

    monkeypatch.setattr(saving, "write_tensors", late)
    yield gate
    gate.set()


def test_the_snapshot_is_of_the_moment_and_the_files_are_those_of_a_synchronous_save(
    gate: threading.Event, training: Callable[..., Any], tmp_path: Path
) -> None:
    model, optimizer = training(0)
    gate.set()
    state = {"progress": {"step": 2}}
    Checkpointer(tmp_path / "sync", keep_latest_k=1).save(2, model=model, optimizer=optimizer, state=state)
    gate.clear()
    with Checkpointer(tmp_path / "async", keep_latest_k=1, asynchronous=True) as checkpointer:
        path = checkpointer.save(2, model=model, optimizer=optimizer, state=state)
        state["progress"]["step"] = 3
        optimizer.param_groups[0]["lr"] = 99.0
        with torch.no_grad():
            for tensor in named_tensors(model, optimizer).values():
                tensor.add_(1)
        assert checkpointer.steps() == []
        gate.set()
    assert files(path) == files(tmp_path / "sync" / path.name)
    assert len(files(path)) == 4


def test_the_next_save_the_load_and_the_end_wait(
    gate: threading.Event, training: Callable[..., Any], tmp_path: Path
) -> None:
    model, optimizer = training(0)
    checkpointer = Checkpointer(tmp_path, keep_latest_k=1, asynchronous=True)

    def begin(step: int) -> None:
        checkpointer.wait()
        gate.clear()
        checkpointer.save(step, model=model, optimizer=optimizer, state={"step": step})
        threading.Timer(0.2, gate.set).start()

    begin(1)
    first = checkpointer.last_stall_seconds
    checkpointer.save(2, model=model, optimizer=optimizer, state={"step": 2})
    assert first < 0.2 <= checkpointer.last_stall_seconds
    begin(3)
    assert checkpointer.load_newest(model=model, optimizer=optimizer) == (tmp_path / "step-00000003", {"step": 3})
    begin(4)
    checkpointer.wait()
    assert checkpointer.steps() == [4]
    checkpointer.save(4, model=model, optimizer=optimizer, state={"step": "again"})
    assert checkpointer.last_stall_seconds > 0.15, "an explicit wait counts"
    assert checkpointer.load(4, model=model, optimizer=optimizer) == {"step": 4}


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


CALLS: dict[str, Callable[[Checkpointer, dict[str, Any]], object]] = {
    "save": lambda checkpointer, both: checkpointer.save(3, **both, state={}),
    "load": lambda checkpointer, both: checkpointer.load(1, **both),
    "load_newest": lambda checkpointer, both: checkpointer.load_newest(**both),
    "wait": lambda checkpointer, both: checkpointer.wait(),
    "exit": lambda checkpointer, both: checkpointer.__exit__(None, None, None),
}


@pytest.mark.parametrize(
    ("error", "kind"),
    [(OSError(errno.EDQUOT, "Disk quota exceeded"), CheckpointSaveError), (KeyError("x"), RankFailure)],
)
@pytest.mark.parametrize("call", CALLS)
def test_a_failure_surfaces_at_the_next_call_once(
    call: str, error: Exception, kind: type[Exception], training: Callable[..., Any], tmp_path: Path
) -> None:
    model, optimizer = training(0)
    checkpointer = Checkpointer(tmp_path, keep_latest_k=0, asynchronous=True)
    both = {"model": model, "optimizer": optimizer}
    checkpointer.save(1, **both, state={})
    checkpointer.wait()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "write_tensors", failing(error))
        checkpointer.save(2, **both, state={})
        with pytest.raises(kind, match=r"quota|KeyError"):
            CALLS[call](checkpointer, both)
    checkpointer.wait()
    assert checkpointer.steps() == [1]
    checkpointer.save(3, **both, state={})
    checkpointer.wait()
    assert checkpointer.steps() == [1, 3]


def test_at_the_end_another_error_goes_first(
    training: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, optimizer = training(0)
    monkeypatch.setattr(saving, "write_tensors", failing(OSError(errno.EIO, "Input/output error")))

    def train() -> None:
        with Checkpointer(tmp_path, keep_latest_k=1, asynchronous=True) as checkpointer:
            checkpointer.save(1, model=model, optimizer=optimizer, state={})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), caplog.at_level(logging.ERROR):
        train()
    assert "step 1 was not saved" in caplog.text


def test_buffers_serve_again_and_follow_the_tensors() -> None:
    copy = HostCopy()
    tensors = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(3, dtype=torch.bfloat16)}
    copy.reserve(tensors)
    first = copy.take(tensors)
    places = {name: tensor.data_ptr() for name, tensor in first.items()}
    tensors["a"].add_(1)
    copy.reserve(tensors)
    second = copy.take(tensors)
    assert {name: tensor.data_ptr() for name, tensor in second.items()} == places
    assert all(torch.equal(second[name], tensors[name]) for name in tensors)
    grown = {"a": torch.ones(4, 4)}
    copy.reserve(grown)
    assert copy.take(grown).keys() == {"a"}


def test_too_little_memory_is_a_message(
    training: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = training(0)
    checkpointer = Checkpointer(tmp_path, keep_latest_k=1, asynchronous=True)
    monkeypatch.setattr(host_copy.torch, "empty", failing(RuntimeError("can't allocate memory")))
    with pytest.raises(UserError, match=r"async_mode=async: no host memory .* use checkpoint\.async_mode=sync"):
        checkpointer.save(1, model=model, optimizer=optimizer, state={})
    assert list(tmp_path.iterdir()) == []
