"""The lock of a run directory, between real processes."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from molgen_pretrain.errors import UserError
from molgen_pretrain.run_lock import held_run

HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from molgen_pretrain.run_lock import held_run
with held_run(Path(sys.argv[1]), wait_seconds=0):
    if os.fork() == 0:  # a data worker that outlives it
        time.sleep(20)
        os._exit(0)
    subprocess.Popen(["sleep", "20"], close_fds=False)
    print("holds", flush=True)
    time.sleep(20)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `tmp_path / "run"`, with children of both kinds."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_second_process_is_told_who_holds_it(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(UserError) as refused, held_run(tmp_path / "run", wait_seconds=0):
        pass
    assert time.monotonic() - began < 1
    assert str(refused.value).startswith(
        f"run_name=run: is being trained by pid {holder.pid} on host {platform.node()} since 20"
    )


def test_a_killed_holder_is_waited_for_and_its_children_hold_nothing(
    holder: subprocess.Popen[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"])
    began = time.monotonic()
    with held_run(tmp_path / "run", wait_seconds=15):
        assert time.monotonic() - began > 0.4
    assert killer.wait() == 0
    assert time.monotonic() - began < 5, "the children live for 20 s"
    assert caplog.text.count(f"waiting up to 15 s for pid {holder.pid} on host") == 1


def test_it_is_free_again_after_the_end_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held_run(tmp_path / "new" / "run", wait_seconds=0):
        raise KeyError
    with (
        held_run(tmp_path / "new" / "run", wait_seconds=0),
        pytest.raises(UserError, match=rf"sweep_name=run.*pid {os.getpid()} on"),
        held_run(tmp_path / "new" / "run", wait_seconds=0.3, setting="sweep_name"),
    ):
        pass
    with held_run(tmp_path / "new" / "run", wait_seconds=0):
        pass


def test_a_forked_child_that_leaves_the_block_frees_nothing(tmp_path: Path) -> None:
    with held_run(tmp_path, wait_seconds=0):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with held_run(tmp_path, wait_seconds=0):
                    os.write(write, b"held twice")
            except UserError:
                os.write(write, b"refused")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 99) == b"refused"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_a_run_goes_on_with_a_warning(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held_run(tmp_path, wait_seconds=0):
        assert f"cannot be locked ({os.strerror(code)})" in caplog.text
