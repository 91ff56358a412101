"""The lock of a run directory: two processes never train the same run."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from molgen_pretrain.errors import UserError

logger = logging.getLogger(__name__)

_FILE = ".lock"
_POLL_SECONDS = 0.2
# What file systems answer that know no locks, or whose lock server is away.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def held_run(root: Path, *, wait_seconds: float, setting: str = "run_name") -> Iterator[None]:
    """Hold the directory `root`, made where it is missing, for this process alone.

    The kernel gives the lock back when the process ends, however it ends. Neither forked children (data workers)
    nor started programs hold it, so none that outlives the process keeps it. Where the file system has no locks,
    the log says so and nothing is held. The lock is no counter: the process that holds it cannot take it again.

    Args:
        wait_seconds: how long to wait for a holder, such as a predecessor that is dying; 0 does not wait.
        setting: what the user calls the directory by, for the message.

    Raises:
        UserError: another process still holds it then; the message says which.
        OSError: the directory cannot be written.
    """
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / _FILE, os.O_RDWR | os.O_CREAT, 0o666)  # not inherited by programs that are started
    _descriptors.add(descriptor)
    try:
        _acquire(descriptor, root, wait_seconds, setting)
        yield
    finally:
        if descriptor in _descriptors:  # not in a forked child
            _descriptors.remove(descriptor)
            os.close(descriptor)


def _acquire(descriptor: int, root: Path, wait_seconds: float, setting: str) -> None:
    deadline = time.monotonic() + wait_seconds
    has_said = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            logger.warning("%s cannot be locked (%s): nothing keeps a second process from it", root, error.strerror)
            return
        else:
            _sign(descriptor)
            return
        if time.monotonic() >= deadline:
            raise UserError(
                f"{setting}={root.name}: is being trained by {holder}; wait for its end, or stop it, or take another"
                f" {setting}"
            )
        if not has_said:
            has_said = True
            logger.info("%s=%s: waiting up to %.0f s for %s to end", setting, root.name, wait_seconds, holder)
        time.sleep(_POLL_SECONDS)


def _sign(descriptor: int) -> None:
    """Say in the file who holds it."""
    holder = {
        "host": platform.node(),
        "pid": os.getpid(),
        "started": datetime.now().isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"pid {holder['pid']} on host {holder['host']} since {holder['started']}"
    except (ValueError, KeyError, TypeError):  # it is just signing, or has not come to it
        return "another process"


# A lock belongs to the open file, which a fork shares.
_descriptors: set[int] = set()


def _drop_in_child() -> None:
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_drop_in_child)
