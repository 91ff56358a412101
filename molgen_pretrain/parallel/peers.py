"""A rank that dies, fails or hangs ends the run on every rank, in bounded time and with the cause said first.

Every rank keeps a connection to rank 0 (`links.py`) and a thread that serves it (`watch.py`), which runs also
while the main thread is blocked in a collective, where Python sees neither errors nor signals.

- A rank died: its connection ends without a goodbye. Rank 0 notices it for all, and all notice it of rank 0.
- A rank failed: before it leaves with an error of its own it says so.
- A rank hangs: a collective timed out (gloo raises), or nobody has moved for the time-out while the ranks stand
  at different places (NCCL does not raise). Ranks that all do the same long thing, compiling say, are let be.

The first cause that rank 0 hears of is everybody's verdict (`ending.py`).
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from molgen_pretrain.errors import RankLostError, UserError
from molgen_pretrain.parallel.activity import Activity
from molgen_pretrain.parallel.ending import Ending, Verdict
from molgen_pretrain.parallel.watch import Member, Watch

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0  # the cause of a collective's error is known by then, or will not be
_COLLECTIVE_ERROR = re.compile(r"gloo|nccl|connection (closed|reset)|pair closure|broken pipe", re.IGNORECASE)
_TIMED_OUT = re.compile(r"timed? ?out", re.IGNORECASE)


class Peers:
    """This rank among the others. Made without arguments, for a lone process, it does nothing."""

    def __init__(self, rank: int = 0, size: int = 1, timeout_seconds: float = float("inf")) -> None:
        """`timeout_seconds`: ranks that stand still, at different places, for so long end the run."""
        self.activity = Activity()
        self._rank = rank
        self._timeout_seconds = timeout_seconds
        self._ending = Ending(rank)
        self._watch: Watch | None = None
        if size > 1:
            me = Member(rank, socket.gethostname(), os.getpid())
            self._watch = Watch(me, size, self.activity, self._ending, timeout_seconds)

    def are_lost(self) -> bool:
        """Whether the run is ending because of a rank."""
        return self._ending.verdict is not None

    @contextmanager
    def watching(self, share: Callable[[Any], Any]) -> Iterator[None]:
        """Watch, and be watched, while entered. To be entered by all ranks at once.

        `share` gives rank 0's value to every rank. Raises RankLostError at the end too, where a rank was lost
        after the last that this one needed of it.
        """
        self._watch = self._watch and self._connected(self._watch, share)
        yield
        self._ending.main_thread_leaves()
        if self._ending.verdict is not None:
            raise self._lost()
        if self._watch is not None:
            self._watch.goodbye()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns the errors that collectives raise because of another rank into RankLostError with the cause.

        Other errors go on unchanged, and the other ranks hear of them.
        """
        try:
            yield
        except RankLostError:
            raise
        except BaseException as error:
            if self._watch is None:
                raise
            self._ending.main_thread_leaves()
            trouble = _collective_error(error)
            if trouble is not None and self._knows_cause(self._watch, trouble):
                raise self._lost() from error
            if self._ending.verdict is None:
                self._watch.failed(_summary(error))
            raise

    def call_before_exit(self, action: Callable[[], None]) -> None:
        """`action` is called where the process exits with its main thread blocked, beyond any `finally`."""
        self._ending.farewells.append(action)

    def _connected(self, watch: Watch, share: Callable[[Any], Any]) -> Watch | None:
        """`watch`, at work; or None, with a warning, where the network does not allow it."""
        problem: object = "rank 0 has no port for it"
        invitation = None
        if self._rank == 0:
            try:
                invitation = watch.open()
            except OSError as error:
                problem = error
        invitation = share(invitation)
        if invitation is not None:
            try:
                if self._rank != 0:
                    watch.join(invitation)
                return watch
            except OSError as error:
                problem = error
        logger.warning("rank %d is not watched: its death shows only in a collective (%s)", self._rank, problem)
        return None

    def _knows_cause(self, watch: Watch, trouble: str) -> bool:
        """Wait, for seconds, until it is known why a collective raised `trouble`."""
        timed_out = _TIMED_OUT.search(trouble) is not None
        if timed_out:
            watch.timed_out()
        if not self._ending.known.wait(ANSWER_SECONDS) and timed_out:
            step, phase = self.activity.place
            place = f"in a collective at step {step}, in {phase}"
            message = f"no progress for {self._timeout_seconds:.0f} s {place}, and rank 0 does not answer"
            self._ending.decide(Verdict(message, culprit=0))
        return self._ending.verdict is not None

    def _lost(self) -> RankLostError:
        assert self._ending.verdict is not None
        self._ending.say()
        self._ending.bound_close()
        return RankLostError(self._ending.verdict.message)


def _collective_error(error: BaseException | None) -> str | None:
    """What a collective said, where one is at the root of `error`."""
    while error is not None:
        text = str(error)
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _COLLECTIVE_ERROR.search(text)):
            return text
        error = error.__cause__ or error.__context__
    return None


def _summary(error: BaseException) -> str:
    first_line = (str(error).splitlines() or [""])[0]
    return first_line if isinstance(error, UserError) else f"{type(error).__name__}: {first_line}".rstrip(": ")
