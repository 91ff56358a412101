"""A folder that is built once, whole or not at all, by whichever process comes first."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from molgen_pretrain.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows: the rename alone decides there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_STALE_SECONDS = 3600.0


def build_once(
    folder: Path,
    build: Callable[[Path], None],
    is_complete: Callable[[Path], bool],
    setting: str = "paths.cache",
) -> None:
    """Makes `folder` stand complete: `build(empty folder)` is called aside, and its result renamed.

    Of several processes one builds while the others wait. Where the file system has no locks each builds its
    own and the first rename wins. A kill at any moment leaves no `folder`, or a complete one. A folder that
    `is_complete` refuses (say after a disk error) is built again. Raises UserError where nothing can be
    written, and whatever `build` raises.
    """
    if is_complete(folder):
        return
    with unwritable_as_user_error(folder, setting):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder.with_name(folder.name + ".lock")):
            if not is_complete(folder):
                _remove_leftovers(folder)
                _build_aside(folder, build, is_complete)


@contextmanager
def unwritable_as_user_error(folder: Path, setting: str) -> Iterator[None]:
    """Raises UserError for an OSError within: what is written there is the cache at `folder`, which `setting` names."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{setting}: cannot write the cache at {folder}: {error.strerror}; give a folder that is writable"
            " and has room"
        ) from error


def sync_to_disk(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _build_aside(folder: Path, build: Callable[[Path], None], is_complete: Callable[[Path], bool]) -> None:
    aside = folder.with_name(f"{folder.name}.building-{os.getpid()}-{secrets.token_hex(4)}")
    aside.mkdir()
    try:
        build(aside)
        for path in (*aside.rglob("*"), aside):
            sync_to_disk(path)
        _publish(aside, folder, is_complete)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _publish(aside: Path, folder: Path, is_complete: Callable[[Path], bool]) -> None:
    if folder.exists() and not is_complete(folder):
        logger.warning("cache %s is damaged and is replaced", folder)
        shutil.rmtree(folder)
    try:
        aside.rename(folder)
    except OSError as error:
        # Without locks another process may have been first; its result is as good.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not is_complete(folder):
            raise
    sync_to_disk(folder.parent)


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed builders left; one that is still written to (elsewhere, without locks) stays."""
    for aside in folder.parent.glob(f"{folder.name}.building-*"):
        try:
            newest = max(entry.stat().st_mtime for entry in (aside, *aside.rglob("*")))
        except FileNotFoundError:
            continue
        if time.time() - newest > _STALE_SECONDS:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def hold_lock(file: Path) -> Iterator[None]:
    """Holds an exclusive lock on `file` as far as the platform and the file system have one."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            _acquire(descriptor, file)
        yield
    finally:
        os.close(descriptor)  # releases the lock, as does the end of the process


def _acquire(descriptor: int, file: Path) -> None:
    try:
        if _try_lock(descriptor):
            return
        logger.info("waiting for another process that builds %s", file.with_suffix(""))
        # Polled rather than blocking, so that a signal handler of this process can end the wait.
        while not _try_lock(descriptor):
            time.sleep(_POLL_SECONDS)
    except OSError as error:
        logger.warning("no file locks at %s (%s): several processes may build it", file, error.strerror)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
