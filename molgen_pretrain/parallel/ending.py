"""How this rank ends once it is known why the run does: says the cause, lets the main thread leave, or exits."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from molgen_pretrain.errors import error_lines

logger = logging.getLogger(__name__)

SAY_SECONDS = 1.0  # a rank may be about to raise the very error that another one has reported
LEAVE_SECONDS = 10.0  # for the main thread to come out of what it does
CLOSE_SECONDS = 90  # for it to close logs, metrics and the process group: wandb alone may take 60
_FAREWELL_SECONDS = 5.0


@dataclass(frozen=True)
class Verdict:
    """Why the run ends. `culprit` is None where it is no single rank; `failed`: it has raised an error itself."""

    message: str
    culprit: int | None = None
    failed: bool = False


class Ending:
    """The verdict of this rank, and what follows from it. Main thread and watching thread both use it."""

    def __init__(self, rank: int) -> None:
        self.verdict: Verdict | None = None
        self.known = threading.Event()
        # Called before an exit that the main thread takes no part in.
        self.farewells: list[Callable[[], None]] = []
        self._rank = rank
        self._decided_at = 0.0
        self._main_thread_left = False
        self._said = False
        self._lock = threading.Lock()

    def decide(self, verdict: Verdict) -> bool:
        """Take the first verdict; False for any later one."""
        with self._lock:
            if self.verdict is not None:
                return False
            self.verdict = verdict
            self._decided_at = time.monotonic()
        if not verdict.failed:
            self.say()
        self.known.set()
        return True

    def say(self) -> None:
        """The cause on stderr, once, on one rank of the run (one of each node where rank 0 is gone)."""
        with self._lock:
            if self._said or self.verdict is None:
                return
            self._said = True
        if self._speaks(self.verdict):
            # Not through a stream, whose lock the blocked main thread may hold.
            os.write(2, error_lines(self.verdict.message).encode() + b"\n")

    def _speaks(self, verdict: Verdict) -> bool:
        if verdict.culprit != 0:
            return self._rank == 0
        return not verdict.failed and (self._rank == 1 or os.environ.get("LOCAL_RANK") == "0")

    def main_thread_leaves(self) -> None:
        """The main thread is on its way out, with an error or at its end: it decides how."""
        self._main_thread_left = True

    def bound_close(self) -> None:
        """Give the rest of the process CLOSE_SECONDS, also where it blocks in C++ while the interpreter ends."""
        signal.alarm(CLOSE_SECONDS)

    def enforce(self) -> None:
        """Exit with code 1 if the main thread does not come out; to be called about every second."""
        if self.verdict is None or self._main_thread_left:
            return
        waited_seconds = time.monotonic() - self._decided_at
        if waited_seconds > SAY_SECONDS:
            self.say()
        if waited_seconds > LEAVE_SECONDS:
            # Aside, since a log on a file system that hangs must not keep the process.
            farewell = threading.Thread(target=self._part, args=(self.verdict,), daemon=True)
            farewell.start()
            farewell.join(_FAREWELL_SECONDS)
            os._exit(1)

    def _part(self, verdict: Verdict) -> None:
        logger.error("the run ends, its main thread still blocked: %s", verdict.message)
        for farewell in self.farewells:
            farewell()
