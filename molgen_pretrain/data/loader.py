"""Worker processes for the dataset, with the care that forks, signals and errors need."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import multiprocessing.process
import os
import re
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from molgen_pretrain.data.batch import Batch, PackedBatches
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.signals import leave_signals_to_main_process
from molgen_pretrain.errors import UserError

_TOKENIZERS_SWITCH = "TOKENIZERS_PARALLELISM"
_WORKER_DIED = re.compile(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)", re.DOTALL)
_MESSAGES_AHEAD = 2


def build_loader(
    dataset: JsonlTaggedPackedDataset,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch_factor: int = 4,
    persistent_workers: bool = True,
) -> DataLoader[Batch]:
    """A loader of ready micro-batches, in the same order for any number of workers.

    `prefetch_factor` (micro-batches that each worker has ready at least) and `persistent_workers` matter only
    with workers. A user's mistake that a worker finds arrives as a UserError, the end of a worker that the
    system killed as a RuntimeError that says so.
    """
    if num_workers == 0:
        return BatchLoader(dataset, pin_memory=pin_memory)
    return BatchLoader(
        dataset,
        pin_memory=pin_memory,
        num_workers=num_workers,
        prefetch_factor=max(-(-prefetch_factor // dataset.micro_batches_at_once), _MESSAGES_AHEAD),
        persistent_workers=persistent_workers,
        worker_init_fn=_prepare_worker,
    )


class BatchLoader(DataLoader[Batch]):
    """A DataLoader whose workers may fork after the tokenizer's threads have run."""

    def __init__(self, dataset: JsonlTaggedPackedDataset, **options: Any) -> None:
        # A generator of its own: starting workers draws a number, and training's random state must not move.
        generator = torch.Generator().manual_seed(0)
        super().__init__(_ReportingDataset(dataset), batch_size=None, generator=generator, **options)
        self._unpack = dataset.unpack

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        with _serial_tokenizers(self.num_workers > 0), _child_handler_kept():
            others = set(multiprocessing.active_children())
            try:
                items = super().__iter__()
            finally:  # also where a later worker could not be started
                _workers_to_end.update(set(multiprocessing.active_children()) - others)
        return _unwrap(items, self._unpack)


@dataclass(slots=True)
class _Failure:
    """A user's mistake found in a worker, on its way to the main process."""

    message: str


class _ReportingDataset(IterableDataset[Any]):
    """What the DataLoader iterates over: groups of micro-batches, this worker's or all of them, one at a time.

    Sends a UserError through the queue as an item: the DataLoader would pass it on too, but with the worker's
    traceback as its message.
    """

    def __init__(self, dataset: JsonlTaggedPackedDataset) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[PackedBatches | _Failure]:
        worker = get_worker_info()
        if worker is None:
            yield from self._dataset.packed(self._dataset.micro_batches_at_once)
            return
        groups = self._dataset.packed(self._dataset.micro_batches_at_once, worker.id, worker.num_workers)
        try:
            yield from groups
        except UserError as error:
            yield _Failure(str(error))


def _unwrap(items: Any, unpack: Callable[[PackedBatches], Iterator[Batch]]) -> Iterator[Batch]:
    """The batches of a DataLoader's iterator; failures become exceptions that hold no reference to it."""
    death = ""
    try:
        for item in items:
            if isinstance(item, _Failure):
                raise UserError(item.message)
            yield from unpack(item)
    except RuntimeError as error:
        if not _WORKER_DIED.search(str(error)):
            raise
        death = str(error)
        # As good as shut down: torch's own way waits, forever, for a lock that the dead worker may have held.
        items._shutdown = True
    finally:
        # In a traceback, and so in a cycle, it would be shut down by the garbage collector, which takes 10 s.
        del items
    if death:
        raise RuntimeError(
            "a data worker process was ended from outside, most often because memory ran out;"
            f" give the job more of it, or lower data.num_workers or data.prefetch_factor ({death})"
        )


@contextmanager
def _serial_tokenizers(active: bool) -> Iterator[None]:
    """Workers start with this environment: no tokenizer threads in a forked process, where they deadlock."""
    if not active:
        yield
        return
    before = os.environ.get(_TOKENIZERS_SWITCH)
    os.environ[_TOKENIZERS_SWITCH] = "false"
    try:
        yield
    finally:
        del os.environ[_TOKENIZERS_SWITCH]
        if before is not None:
            os.environ[_TOKENIZERS_SWITCH] = before


@contextmanager
def _child_handler_kept() -> Iterator[None]:
    """Takes back the SIGCHLD handler that torch installs with its first worker.

    It raises a worker's death in the middle of whatever runs, an optimizer step or a save. Without it the
    death is noticed where the next batch is waited for, at most 5 seconds later.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _prepare_worker(worker_id: int) -> None:
    leave_signals_to_main_process()
    # What the fork brought along is not searched for garbage, which would also copy its pages.
    gc.freeze()


# Python ends daemon processes at exit with the SIGTERM that ours ignore, and then waits for them: a loader that
# something still refers to (a traceback is enough) would keep the process from ever ending.
_workers_to_end: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    for worker in list(_workers_to_end):
        worker.kill()
