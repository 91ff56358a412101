"""One process of a run, with faults built in: `conftest.py` runs this file in a fork, with SPEC set.

A fault replaces something that the application calls by something that goes wrong at a certain place; the
application itself knows nothing of it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from molgen_pretrain.__main__ import main as application
from molgen_pretrain.data.batch import Batch
from molgen_pretrain.model.qwen3 import Qwen3ForPretraining
from molgen_pretrain.optim.guard import UpdateGuard
from molgen_pretrain.parallel.activity import Activity
from molgen_pretrain.training import runner, trainer


def main(spec: dict[str, Any]) -> None:
    os.setsid()
    os.chdir(spec["folder"])
    os.environ.update(spec["env"])
    output = os.open(spec["log"], os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    for name, arguments in spec["faults"]:
        globals()[name](**arguments)
    sys.argv = ["molgen-pretrain", *spec["overrides"]]
    application()


def poison(unit: Sequence[int], factor: str = "nan", where: str = "loss") -> None:
    """Batches that hold the tokens of `unit` have their loss multiplied; or only the gradient that comes of it."""
    forward = Qwen3ForPretraining.forward
    wanted, number = _as_text(unit), float(factor)

    def poisoned(self: Qwen3ForPretraining, input_ids: torch.Tensor, *rest: Any) -> Any:
        sums = forward(self, input_ids, *rest)
        if not any(wanted in _as_text(row) for row in input_ids.tolist()):
            return sums
        if where == "gradient" and sums.total.requires_grad:
            sums.total.register_hook(lambda gradient: gradient * number)
        return sums if where == "gradient" else sums._replace(total=sums.total * number)

    Qwen3ForPretraining.forward = poisoned  # type: ignore[method-assign]


def ahead() -> None:
    """Steps are launched before the result of the last one is known, as on a GPU."""
    trainer.update_guard = lambda _, optimizer, device: UpdateGuard(optimizer, device)  # type: ignore[assignment]


def lack(first: int, last: int) -> None:
    """The order of the data lacks the global batches that end with these numbers of sequences, and those between."""
    build = runner.build_batches

    def without(*arguments: Any, **named: Any) -> Iterator[Batch]:
        for batch in build(*arguments, **named):
            if not first <= batch.position.sequences <= last:
                yield batch

    runner.build_batches = without  # type: ignore[assignment]


def at(step: int, phase: str, action: str, times: int = 1, **arguments: Any) -> None:
    """`action` (a function of this file) runs when the process enters a phase of a step, the first `times` times."""
    enter = Activity.enter
    left = times

    def entered(self: Activity, now: int, what: str) -> None:
        nonlocal left
        enter(self, now, what)
        if (now, what) == (step, phase) and left:
            left -= 1
            globals()[action](**arguments)

    Activity.enter = entered  # type: ignore[method-assign]


def before(target: str, action: str, **arguments: Any) -> None:
    """`action` runs when a function, named with its module, is called for the first time."""
    module, _, name = target.rpartition(".")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    waiting = [action]

    def called(*positional: Any, **named: Any) -> Any:
        if waiting:
            globals()[waiting.pop()](**arguments)
        return function(*positional, **named)

    setattr(sys.modules[module], name, called)


def signalled(number: int, rank: int = 0) -> None:
    """This process is sent a signal, if it is the rank; the wish is heard by the time that it goes on."""
    if int(os.environ.get("RANK", "0")) == rank:
        os.kill(os.getpid(), number)
        time.sleep(0.05)


def sleeping(seconds: float) -> None:
    time.sleep(seconds)


def blocked(folder: str) -> None:
    """A file stands where the checkpoints' folder should be."""
    aside = Path(folder).with_name("aside")
    if Path(folder).exists():
        Path(folder).rename(aside)
    Path(folder).write_text("in the way")


def unblocked(folder: str) -> None:
    """The folder is back, once a save that is under way has failed."""
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()
    Path(folder).unlink()
    aside = Path(folder).with_name("aside")
    if aside.exists():
        aside.rename(folder)


def filled(folder: str) -> None:
    """The file system has no byte left."""
    with open(Path(folder) / "ballast", "wb", buffering=0) as file:
        for size in (2**16, 2**10, 1):
            _write_until_refused(file.write, bytes(size))


def emptied(folder: str) -> None:
    (Path(folder) / "ballast").unlink()


def killed_in_background_save(sync: int) -> None:
    """SIGKILL at the so-many-th fsync of the thread that saves."""
    fsync, left = os.fsync, sync

    def fatal(descriptor: int) -> None:
        nonlocal left
        if threading.current_thread().name == "checkpoint":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = fatal


def _write_until_refused(write: Callable[[bytes], Any], data: bytes) -> None:
    try:
        while write(data):
            pass
    except OSError:
        return


def _as_text(ids: Sequence[int]) -> str:
    return f",{','.join(map(str, ids))},"


if __name__ == "__run__":
    main(globals()["SPEC"])
