"""What every launcher is given and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

Entry = Callable[[Any], None]
"""Runs a payload in one process (one rank) of a job. Returns where all is done, or leaves by SystemExit: code 1 for an
error, which it has printed, 128 + n where signal n stopped it with everything saved, so that it can go on later."""


@dataclass(frozen=True)
class Job:
    """One run of the application, on one rank or many."""

    key: str  # unique in its sweep, fit for a file name
    payload: Any  # pickled on its way
    folder: Path  # the run directory, for people to find
    after: tuple[str, ...] = ()  # keys of the jobs that must have finished before


class State(str, Enum):
    """How a job ended; the value is what people read."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"  # by a signal, saved: it goes on when it is started again
    BLOCKED = "blocked"  # never started, since a job before it did not finish
    SUBMITTED = "submitted"  # nobody waited for it


@dataclass(frozen=True)
class Outcome:
    state: State
    detail: str = ""  # for people: `exit code 1`, `Slurm job 1003_2: OUT_OF_MEMORY`


class JobLauncher(Protocol):
    """Starts jobs, each when those before it have finished. A failed job never keeps the others from running."""

    @property
    def ranks(self) -> int:
        """Processes per job."""

    @property
    def unattended(self) -> bool:
        """Whether jobs go on, and may end, without the process that started them."""

    def run(
        self,
        jobs: Sequence[Job],
        entry: Entry,
        *,
        folder: Path,
        on_end: Callable[[Job, Outcome], None] = lambda job, outcome: None,
    ) -> Mapping[str, Outcome]:
        """Run `jobs`, in an order in which each comes after those it waits for; returns the outcome of every key.

        `folder`: where the launcher keeps what it needs (scripts, logs, job numbers). `on_end` hears of every
        outcome as soon as it is known. Raises Interrupted, with all outcomes told, where a signal stopped it.
        """
