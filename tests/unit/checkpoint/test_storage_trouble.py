"""Storage that fails: it costs the save, leaves nothing behind, and the next save works when it is over."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from molgen_pretrain.checkpoint import saving
from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.errors import CheckpointSaveError

MODES = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@contextmanager
def size_limit(_: Path) -> Iterator[None]:
    """Files of this process may not grow beyond 500 bytes; Python ignores the signal that comes with it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def vanished(folder: Path) -> Iterator[None]:
    """The run's folder is gone, as when a mount is lost."""
    away = folder.parent.rename(folder.parent.with_name("away"))
    yield
    assert not folder.parent.exists(), "nothing may grow where the mount was"
    away.rename(folder.parent)


@contextmanager
def no_folder(folder: Path) -> Iterator[None]:
    """Something else stands where the folder should be."""
    away = folder.rename(folder.with_name("away"))
    folder.write_text("")
    yield
    folder.unlink()
    away.rename(folder)


TROUBLES: dict[str, tuple[Callable[[Path], AbstractContextManager[None]], int]] = {
    "size limit": (size_limit, errno.EFBIG),
    "vanished": (vanished, errno.ENOENT),
    "no folder": (no_folder, errno.EEXIST),
}


def check(
    checkpointer: Checkpointer, save: Callable[[int], Any], trouble: AbstractContextManager[None], number: int
) -> None:
    """Step 1 is saved, 2 and 3 fail, 4 works again and is all there is."""

    def save_and_wait(step: int) -> None:
        save(step)
        checkpointer.wait()

    save_and_wait(1)
    with trouble:
        for failures, step in enumerate((2, 3), start=1):
            with pytest.raises(CheckpointSaveError) as caught:
                save_and_wait(step)
            assert f"step {step} was not saved" in str(caught.value)
            assert os.strerror(number) in str(caught.value)
            assert checkpointer.failures_in_a_row == failures
    root = checkpointer.layout.root
    assert [entry.name for entry in root.iterdir()] == ["step-00000001"]
    save_and_wait(4)
    assert [entry.name for entry in root.iterdir()] == ["step-00000004"]
    assert checkpointer.failures_in_a_row == 0


@pytest.fixture
def saver(training: Callable[..., Any]) -> Callable[[Checkpointer], Callable[[int], Any]]:
    model, optimizer = training(0)
    return lambda checkpointer: lambda step: checkpointer.save(step, model=model, optimizer=optimizer, state={})


@MODES
@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_costs_the_save_only(name: str, asynchronous: bool, saver: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    checkpointer = Checkpointer(run / "checkpoint", keep_latest_k=1, asynchronous=asynchronous)
    trouble, number = TROUBLES[name]
    check(checkpointer, saver(checkpointer), trouble(checkpointer.layout.root), number)


@MODES
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("stage", ["write_tensors", "write_bytes", "write_manifest", "publish"])
def test_every_stage_of_a_save_may_be_refused(
    stage: str, number: int, asynchronous: bool, saver: Any, tmp_path: Path
) -> None:
    @contextmanager
    def trouble() -> Iterator[None]:
        def refuse(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saving, stage, refuse)
            yield

    checkpointer = Checkpointer(tmp_path, keep_latest_k=1, asynchronous=asynchronous)
    check(checkpointer, saver(checkpointer), trouble(), number)


@contextmanager
def full(mount: Path) -> Iterator[None]:
    free = shutil.disk_usage(mount).free
    (mount / "filler").write_bytes(bytes(free))
    yield
    (mount / "filler").unlink()


@contextmanager
def read_only(mount: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", str(mount)], check=True)


@MODES
@pytest.mark.parametrize(("trouble", "number"), [(full, errno.ENOSPC), (read_only, errno.EROFS)])
def test_a_real_file_system_that_refuses(
    trouble: Callable[[Path], AbstractContextManager[None]], number: int, asynchronous: bool, saver: Any, tmp_path: Path
) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        (tmp_path / "run").mkdir()
        checkpointer = Checkpointer(tmp_path / "run", keep_latest_k=1, asynchronous=asynchronous)
        check(checkpointer, saver(checkpointer), trouble(tmp_path), number)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_was_to_be_replaced_comes_back(training: Callable[..., Any], tmp_path: Path) -> None:
    model, optimizer = training(0)
    Checkpointer(tmp_path, keep_latest_k=1).save(1, model=model, optimizer=optimizer, state={"training": "other"})

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    checkpointer = Checkpointer(tmp_path, keep_latest_k=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "publish", refuse)
        with pytest.raises(CheckpointSaveError):
            checkpointer.save(1, model=model, optimizer=optimizer, state={"training": "this"})
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpointer.load(1, model=model, optimizer=optimizer) == {"training": "other"}
