"""The ranks of one job as processes of this machine: started from a fork server, watched, ended."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

from molgen_pretrain.launchers.jobs import Entry, Outcome, State
from molgen_pretrain.signals import SIGNALS, EndAtOnce, Interrupted

_context = multiprocessing.get_context("forkserver")
_STOPPED = {128 + number: int(number) for number in SIGNALS}  # exit codes


def start_server(preload: Sequence[str]) -> None:
    """Start the process that forks all others, with modules imported once. No effect where one runs already."""
    if preload:
        _context.set_forkserver_preload(list(preload))
    # It would unblock the signals below as it starts.
    resource_tracker.ensure_running()
    # The server dies of no signal that a scheduler sends to all: it alone knows how the others ended. They inherit
    # the mask, and hear what came before they were ready.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class JobProcesses:
    """The ranks of one job under way. Only the thread that made it may use it, except for `hand_on`."""

    def __init__(
        self,
        entry: Entry,
        payload: Any,
        environments: Sequence[Mapping[str, str]],
        *,
        threads: int | None,
        output: Path | None,
        grace_seconds: float,
    ) -> None:
        """Start them, one for each of `environments`.

        Args:
            threads: of torch, where it is imported already and has read another number from the environment.
            output: a file to append to all they say; None for this process's terminal.
            grace_seconds: how long ranks may go on when one has failed; after it SIGTERM, after it again SIGKILL.
        """
        self._grace_seconds = grace_seconds
        self._failed_at: float | None = None
        self._is_told = False
        self._is_urged = False
        self._codes: dict[int, int] = {}  # by rank, in the order in which they ended
        self._processes = []
        try:
            for environment in environments:
                arguments = (entry, payload, dict(environment), threads, output)
                process = _context.Process(target=_run_rank, args=arguments)
                process.start()
                self._processes.append(process)
        except BaseException:
            self.end()
            raise

    @property
    def sentinels(self) -> list[int]:
        """Become readable when a rank ends."""
        return [process.sentinel for rank, process in enumerate(self._processes) if rank not in self._codes]

    @property
    def is_failing(self) -> bool:
        """Whether a rank has failed and others are still there: `poll` is to be called every now and then."""
        return self._failed_at is not None

    def hand_on(self, number: int) -> None:
        """A signal that asks all ranks to save and leave. Once: the second one is an order to leave at once."""
        if not self._is_told:
            self._is_told = True
            self._send(number)

    def poll(self) -> Outcome | None:
        """How the job ended, once all ranks have. Ends those that outlive a failed one."""
        for rank, process in enumerate(self._processes):
            if rank not in self._codes and process.exitcode is not None:
                self._codes[rank] = process.exitcode
                if self._failed_at is None and not _is_in_order(process.exitcode):
                    self._failed_at = time.monotonic()
        if len(self._codes) == len(self._processes):
            return self._outcome()
        if self._failed_at is not None:
            waited_seconds = time.monotonic() - self._failed_at
            if waited_seconds > 2 * self._grace_seconds:
                self._send(signal.SIGKILL)
            elif waited_seconds > self._grace_seconds and not self._is_urged:
                self._send(signal.SIGTERM)
                self._is_urged = True
        return None

    def end(self) -> None:
        """Let all ranks save and leave, and kill those that are there after the grace."""
        self.hand_on(signal.SIGTERM)
        deadline = time.monotonic() + self._grace_seconds
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.poll()
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        for rank, process in enumerate(list(self._processes)):
            if rank not in self._codes and process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def _outcome(self) -> Outcome:
        failures = [(rank, code) for rank, code in self._codes.items() if not _is_in_order(code)]
        if failures:
            rank, code = failures[0]  # why the others ended
            how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
            return Outcome(State.FAILED, how if len(self._processes) == 1 else f"rank {rank}: {how}")
        stops = [_STOPPED[code] for code in self._codes.values() if code]
        return Outcome(State.STOPPED, f"signal {stops[0]}") if stops else Outcome(State.FINISHED)


def _is_in_order(code: int) -> bool:
    return code == 0 or code in _STOPPED


def _run_rank(
    entry: Entry, payload: Any, environment: Mapping[str, str], threads: int | None, output: Path | None
) -> None:
    """In the new process, which has the fork server's environment, output and blocked signals."""
    os.environ.clear()
    os.environ.update(environment)
    if threads is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    if output is not None:
        _redirect(output)
    # As in a process that a user starts: data workers would come from one more fork server.
    multiprocessing.set_start_method(None, force=True)
    threading.Thread(target=_end_with_launcher, name="launcher", daemon=True).start()
    try:
        with EndAtOnce():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            try:
                entry(payload)
            finally:
                # multiprocessing ends its processes without these, which know of data workers and dashboards.
                atexit._run_exitfuncs()
    except Interrupted as interrupt:
        sys.exit(128 + interrupt.number)


def _redirect(output: Path) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _end_with_launcher() -> None:
    """However the launching process ended, by SIGKILL too: nobody would see what runs on. Save and stop."""
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    launcher.join()
    os.kill(os.getpid(), signal.SIGTERM)
