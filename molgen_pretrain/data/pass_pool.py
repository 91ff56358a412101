"""Counting chunks on several processes, in order.

The processes are started anew (a fork would not survive the tokenizer's threads) and import nothing of the main
program; each has a thread here that hands it a chunk and waits for the counts.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

from molgen_pretrain.data.chunk import Chunk, ChunkCounts, UnitRules, count_chunk
from molgen_pretrain.data.pass_worker import ChunkFailure
from molgen_pretrain.errors import UserError

# Chunks per process that are in work or wait for an earlier one.
_AHEAD = 2
# With the import path of this process, whatever it was started as.
_START = (
    "import sys; sys.path[:] = sys.argv[1:]; from molgen_pretrain.data.signals import leave_signals_to_main_process;"
    " leave_signals_to_main_process(); from molgen_pretrain.data.pass_worker import main; main()"
)
# One core each: the processes are the parallelism.
_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def count_chunks(chunks: Iterable[Chunk], rules: UnitRules, processes: int) -> Generator[ChunkCounts, None, None]:
    """The counts of each chunk, in order; `chunks` is drawn from a little ahead. One process is this one.

    Close the generator where it is not used up. Raises what `count_chunk` raises, and UserError if a process
    cannot be started or is ended from outside.
    """
    if processes == 1:
        for chunk in chunks:
            yield count_chunk(chunk, rules)
        return
    # The workers end first: their threads then find the pipes broken and end too.
    with ThreadPoolExecutor(processes) as threads, _started_workers(rules, processes) as idle:
        results: deque[Future[ChunkCounts]] = deque()
        for chunk in chunks:
            results.append(threads.submit(_count_on_any, idle, chunk))
            if len(results) == _AHEAD * processes:
                yield results.popleft().result()
        while results:
            yield results.popleft().result()


def _count_on_any(idle: queue.SimpleQueue[_Worker], chunk: Chunk) -> ChunkCounts:
    worker = idle.get()
    try:
        return worker.count(chunk)
    finally:
        idle.put(worker)


@contextlib.contextmanager
def _started_workers(rules: UnitRules, processes: int) -> Iterator[queue.SimpleQueue[_Worker]]:
    pickled = pickle.dumps(rules, protocol=pickle.HIGHEST_PROTOCOL)
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        for _ in range(processes):
            worker = _Worker(pickled)
            stack.callback(worker.end)
            idle.put(worker)
        yield idle


class _Worker:
    """One process. It gets the rules with its first chunk, so that all load their tokenizers at the same time."""

    def __init__(self, rules: bytes) -> None:
        self._unsent = rules
        command = [sys.executable, "-c", _START, *sys.path]
        environment = {**os.environ, **_ENVIRONMENT}
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        except OSError as error:
            raise UserError(
                f"data.index_processes: cannot start a process ({error.strerror}); lower it to what is allowed here"
            ) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._replies: IO[bytes] = self._process.stdout

    def count(self, chunk: Chunk) -> ChunkCounts:
        try:
            self._requests.write(self._unsent + pickle.dumps(chunk))
            self._requests.flush()
            self._unsent = b""
            reply = pickle.load(self._replies)  # noqa: S301 - from a process that this one started
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise self._death() from error
        if not isinstance(reply, ChunkFailure):
            return reply
        if reply.is_user_error:
            raise UserError(reply.message)
        raise RuntimeError(f"the one-time pass failed at {chunk.source}:\n{reply.message}")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._replies.close()
        with contextlib.suppress(OSError):  # of what was not sent
            self._requests.close()

    def _death(self) -> UserError:
        code = self._process.wait()
        how = f"ended with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        return UserError(
            f"a process of the one-time pass over the data {how}, most often because memory ran out; give the job"
            " more of it, or lower data.index_processes"
        )
